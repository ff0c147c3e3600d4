"""Celery tasks of system mail, in a queue of their own so that a confirmation never waits behind an issue."""

import logging
from functools import partial

from celery import shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from subscribers import emails
from subscribers.models import SystemMail

logger = logging.getLogger(__name__)


@shared_task
def send_system_mail(mail_id: int) -> None:
    """Send one mail of the outbox, if it is still owed."""
    emails.send_due(mail_id)


def hint(mail: SystemMail | None) -> None:
    """After the commit, wake a worker for `mail`; a broker that is away costs only time: `sweep` finds the row."""
    if mail:
        transaction.on_commit(partial(_publish, mail.pk))


def _publish(mail_id: int) -> None:
    try:
        send_system_mail.delay(mail_id)
    except OperationalError as error:
        logger.warning("the broker can't be reached, system mail %s waits for the next sweep: %s", mail_id, error)
