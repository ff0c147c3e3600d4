"""Celery tasks: each takes ids, calls one function and may run twice, late or not at all, unharmed."""

import logging
import mmap
from functools import partial
from typing import Any

from celery import shared_task
from celery.signals import worker_ready, worker_shutting_down
from django.conf import settings
from django.db import transaction
from kombu.exceptions import OperationalError

from newsletter import delivery, retention, sweeper
from newsletter.watchman import Watchman

logger = logging.getLogger(__name__)

# One byte that the worker's children inherit: its parent, which alone gets the signal, says there that it is to end.
ENDING = mmap.mmap(-1, 1)
WATCHMAN = Watchman()


@worker_ready.connect
def on_ready(**_kwargs: Any) -> None:
    """Let an idle worker sweep when nobody else does, as when the broker or every beat is dead."""
    WATCHMAN.start()


@worker_shutting_down.connect
def on_shutting_down(**_kwargs: Any) -> None:
    """Claim nothing more, finish what is under way, give the rest back."""
    ENDING[0] = 1
    WATCHMAN.stop()


def is_ending() -> bool:
    return ENDING[0] == 1


@shared_task
def dispatch_due() -> None:
    """Freeze and start what is due (beat, each minute)."""
    hint(sweeper.dispatch_due())


@shared_task
def sweep() -> None:
    """Repair and go on with what was left (beat, every 30 s)."""
    hint(sweeper.sweep())


@shared_task
def retain() -> None:
    """Forget whose time has come (beat, each hour)."""
    retention.run()


@shared_task
def send_issue(issue_id: int) -> None:
    """Hand over due copies for at most CLAIM_SECONDS, then wake a successor if work is left."""
    if delivery.send_due(issue_id, stop=is_ending) and issue_id in sweeper.issues_with_work():
        hint([issue_id], times=1)


def hint(issue_ids: list[int], *, times: int | None = None) -> None:
    """Wake workers for each issue, once what they are to find is committed."""
    transaction.on_commit(partial(_wake, issue_ids, times))


def _wake(issue_ids: list[int], times: int | None) -> None:
    """A broker that is away costs only time, since `sweep` asks the database."""
    for issue_id in issue_ids:
        for _n in range(times or settings.SEND_TASKS):
            try:
                send_issue.delay(issue_id)
            except OperationalError as error:
                logger.warning("the broker can't be reached, issue %s waits for the next sweep: %s", issue_id, error)
                return
