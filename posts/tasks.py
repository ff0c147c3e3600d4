"""Celery tasks of what we say: work for which no reader should wait."""

import logging

from celery import shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from posts import related
from posts.models import Post

logger = logging.getLogger(__name__)


@shared_task
def renew_related() -> None:
    """Work out anew which posts are related, where one was published or changed (beat)."""
    related.renew()


@shared_task
def render_posts() -> None:
    """Say in all posts what stands beside the author's words in the publication's language, after that changed."""
    Post.objects.all().render_again()


def hint_language() -> None:
    """After the commit, wake a worker for `render_posts`; a broker that is away is named: the command does the same."""
    transaction.on_commit(_publish)


def _publish() -> None:
    try:
        render_posts.delay()
    except OperationalError as error:
        logger.warning("the broker can't be reached, run `manage.py render_posts` for the new language: %s", error)
