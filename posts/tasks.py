"""Celery tasks of what we say: work for which no reader should wait."""

from celery import shared_task

from posts import related


@shared_task
def renew_related() -> None:
    """Work out anew which posts are related, where one was published or changed (beat)."""
    related.renew()
