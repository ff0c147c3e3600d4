"""A whole run of an issue in this process: sweeping and sending in turn, as beat and a worker do."""

from __future__ import annotations

from collections.abc import Callable

from newsletter import delivery, sweeper
from newsletter.models import Issue
from tests.factories import make_issue, make_post, make_readers
from tests.faults.conftest import PRODUCTION
from tests.workers import wait_until

S = Issue.State
THROUGH = (S.COMPLETED, S.COMPLETED_WITH_FAILURES, S.NEEDS_REVIEW, S.CANCELLED)
# What a run waits for, once more divided: a first retry after five minutes comes after one second.
WAITS = ("RECONNECT_SECONDS", "RETRY_FIRST_SECONDS", "RETRY_MAX_SECONDS", "QUOTA_SECONDS", "UNKNOWN_SETTLE_SECONDS")
HURRY = {name: PRODUCTION[name] / 300 for name in WAITS}


def sending(recipients: int) -> Issue:
    """Return an issue that is sending to reader0@example.org and so many others."""
    make_readers(recipients)
    return begin()


def begin() -> Issue:
    """Return an issue that is sending to the readers there are."""
    issue = make_issue(make_post(body="Word " * 200))
    delivery.send_now(issue)
    return issue


def number(address: str) -> int:
    """Return the n of reader<n>@example.org, or -1."""
    name = address.partition("@")[0]
    return int(name[6:]) if name.startswith("reader") else -1


def step(issue: Issue) -> None:
    """Sweep and send once, as far as it goes."""
    sweeper.sweep()
    delivery.send_due(issue.pk, seconds=60)
    issue.refresh_from_db()


def run_until(issue: Issue, condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Sweep and send in turn until the condition holds."""

    def reached() -> bool:
        step(issue)
        return bool(condition())

    wait_until(reached, seconds=seconds, why=lambda: f"{issue.state}: {issue.counts()}")


def run(issue: Issue, *, seconds: float = 60) -> None:
    """Sweep and send in turn until the issue is through; one that paused by itself goes on by itself."""
    run_until(issue, lambda: issue.state in THROUGH, seconds=seconds)
