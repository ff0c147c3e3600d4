"""What the author is told without looking: an issue that is not ready, not started, stalled, paused, or through.

A dead-man's switch: each question is asked of the database's rows and clock, by whoever sweeps, so a worker or a beat
that died is noticed by the next one that lives. Each event is told once.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, models
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Greatest, Now
from django.urls import reverse
from django.utils import timezone

from newsletter.models import Delivery, Issue, Slot
from posts.models import Publication
from subscribers import emails, throttling
from subscribers.models import SystemMail

CLOCK_SECONDS = 2
THROUGH = (Issue.State.COMPLETED, Issue.State.COMPLETED_WITH_FAILURES, Issue.State.NEEDS_REVIEW)


def alert(event: str, context: dict[str, Any], *, once: str) -> None:
    """Owe the author a mail about `event`, and ALERT_WEBHOOK_URL a message; the same `once` is told once for ever."""
    publication = Publication.current()
    context = {"event": event, **context, "site": settings.SITE_URL}
    address = publication.reply_to or publication.sender_address
    emails.owe_once(SystemMail.Kind.ALERT, once=f"mail:{once}"[:200], address=address, context=context)
    if settings.ALERT_WEBHOOK_URL:
        emails.owe_once(SystemMail.Kind.WEBHOOK, once=f"webhook:{once}"[:200], context=context)


def look() -> None:
    """Ask every question once; the sweep does so every half minute."""
    warn_of_empty_slots()
    tell_of_late_issues()
    tell_of_stalled_issues()
    tell_of_pauses()
    tell_results()
    tell_of_wrong_clock()
    tell_of_flood()


def warn_of_empty_slots() -> None:
    """Tell, once a slot, that nothing is ready READY_SECONDS before it."""
    soon = Slot.objects.upcoming().open().filter(due_at__lte=Now() + _seconds(settings.READY_SECONDS))
    for slot in soon:
        alert("empty_slot", {"date": str(slot), "due_at": slot.due_at.isoformat()}, once=f"empty:{slot.local_date}")


def tell_of_late_issues() -> None:
    """Tell that an issue has not begun LATE_SECONDS after its instant: the beat or every worker may be dead."""
    waiting = Issue.objects.filter(state__in=[Issue.State.SCHEDULED, Issue.State.FROZEN])
    for issue in waiting.filter(due_at__lte=Now() - _seconds(settings.LATE_SECONDS)):
        assert issue.due_at is not None
        alert("late", {**about(issue), "due_at": issue.due_at.isoformat()}, once=f"late:{issue.pk}:{issue.due_at}")


def tell_of_stalled_issues() -> None:
    """Tell that a sending issue has work that is due and no copy was settled for STALL_SECONDS."""
    quiet = Now() - _seconds(settings.STALL_SECONDS)
    moved = Greatest(models.F("state_since"), models.Max("leases__settled_at"))
    for issue in Issue.objects.sending().annotate(moved_at=moved).filter(moved_at__lte=quiet):
        if _is_waiting(issue, quiet):
            alert(
                "stalled",
                {**about(issue), "since": issue.moved_at.isoformat()},
                once=f"stalled:{issue.pk}:{issue.moved_at}",
            )


def _is_waiting(issue: Issue, quiet: CombinedExpression) -> bool:
    """Tell whether copies wait to be claimed, or a worker was at them all the while.

    One that the relay put off for hours and that falls due now is no sign of a stall.
    """
    given_back = models.Q(state=Delivery.State.PENDING, next_attempt_at__lte=Now())
    return (
        issue.has_fresh()
        or issue.deliveries.again().filter(given_back | models.Q(next_attempt_at__lte=quiet)).exists()
        or issue.leases.filter(ended_at=None, started_at__lte=quiet).exists()
    )


def tell_of_pauses() -> None:
    """Tell that sending paused by itself, why, and when it goes on; short rests for one reason once an hour."""
    for issue in Issue.objects.filter(state=Issue.State.PAUSED).exclude(pause_reason=""):
        until = issue.resume_at.isoformat() if issue.resume_at else ""
        context = {**about(issue), "error": issue.pause_reason, "resumes_at": until}
        when = until[:13] or issue.state_since
        alert("paused", context, once=f"paused:{issue.pk}:{when}:{issue.pause_reason[:120]}")


def tell_results() -> None:
    """Tell how an issue came out: the week's result, and what failed or is unknown in it."""
    recent = Now() - timedelta(days=7)
    for issue in Issue.objects.filter(state__in=THROUGH, started_at__gte=recent):
        once = f"result:{issue.pk}:{issue.state}:{issue.state_since}"
        if not SystemMail.objects.filter(once=f"mail:{once}").exists():
            alert("result", {**about(issue), "state": issue.state, **issue.counts().as_dict()}, once=once)


def tell_unreachable(issue: Issue, error: str) -> None:
    """Tell, once an issue and error, that the relay can't be reached or does not let us in."""
    alert("unreachable", {**about(issue), "error": error}, once=f"unreachable:{issue.pk}:{error[:60]}")


def tell_before_sending(issue: Issue, found: list[str]) -> None:
    """Tell, once an issue and instant, what was found of an issue that is about to go."""
    alert("preflight", {**about(issue), "found": found}, once=f"preflight:{issue.pk}:{issue.due_at}")


def tell_of_wrong_clock() -> None:
    """Tell, once a day and machine, that this machine's clock and the database's differ by more than CLOCK_SECONDS.

    Nothing is sent by this machine's clock; what it writes into logs, and whether it trusts a certificate, goes by it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    seconds = round((timezone.now() - now).total_seconds())
    if abs(seconds) > CLOCK_SECONDS:
        host = socket.gethostname()
        alert("clock", {"host": host, "seconds": seconds}, once=f"clock:{host}:{now:%Y-%m-%d}")


def tell_of_flood() -> None:
    """Tell, once a day, that many sign up and hardly anybody confirms: each has to press once more while that lasts."""
    if throttling.is_flooded():
        now = throttling.last_hour()
        alert("flood", {"asked": now.joined, "confirmed": now.confirmed}, once=f"flood:{timezone.now():%Y-%m-%d}")


def about(issue: Issue) -> dict[str, str]:
    path = reverse("admin:newsletter_issue_change", args=[issue.pk])
    return {"issue": str(issue), "url": settings.SITE_URL + path}


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
