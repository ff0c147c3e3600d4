"""Celery tasks of system mail, in a queue of their own so that a confirmation never waits behind an issue."""

import logging
from functools import partial

from celery import Task, shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from subscribers import emails, importer, submissions
from subscribers.csvfile import UnreadableFile
from subscribers.models import Import, Submission, SystemMail

logger = logging.getLogger(__name__)


@shared_task
def send_system_mail(mail_id: int) -> None:
    """Send one mail of the outbox, if it is still owed."""
    emails.send_due(mail_id)


@shared_task
def decide_submission(submission_id: int) -> None:
    """Decide what becomes of a form, and send the mail that it asks for."""
    if mail := submissions.decide(submission_id):
        emails.send_due(mail.pk)


def hint_submission(submission: Submission) -> None:
    """After the commit, wake a worker for what a form brought; `sweep` finds it otherwise."""
    transaction.on_commit(partial(_publish, decide_submission, submission.pk))


def hint(mail: SystemMail | None) -> None:
    """After the commit, wake a worker for `mail`; a broker that is away costs only time: `sweep` finds the row."""
    if mail:
        transaction.on_commit(partial(_publish, send_system_mail, mail.pk))


def _publish(task: Task, row_id: int) -> None:
    try:
        task.delay(row_id)
    except OperationalError as error:
        logger.warning("no broker: %s of %s waits for the next sweep: %s", task.name, row_id, error)


@shared_task
def import_readers(import_id: int) -> None:
    """Go through an uploaded file: tell what it would do, or do it, if that was decided. What stops it is shown."""
    found = Import.objects.filter(pk=import_id).exclude(state=Import.State.DONE).first()
    if found is None or not found.parts.exists():
        return
    trial = found.state == Import.State.WAITING
    try:
        with importer.kept_file(found) as open_file:
            importer.run(found, open_file, trial=trial)
    except importer.Stopped as error:
        logger.info("%s", error)
    except UnreadableFile as error:
        Import.objects.filter(pk=import_id).update(state=Import.State.FAILED, error=str(error)[:500])


def hint_import(found: Import) -> None:
    """After the commit, wake a worker for an import; its page offers to go on where none was told."""
    transaction.on_commit(partial(_publish, import_readers, found.pk))
