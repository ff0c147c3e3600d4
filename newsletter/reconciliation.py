"""Find out about copies of which nobody knows whether the relay took them, or leave them shown as unknown.

Nothing is concluded before UNKNOWN_SETTLE_SECONDS: longer than an intent lives and a relay may think. Each source of
evidence answers the same question; what none can answer is held for the author, or sent again under its old Message-ID
where UNKNOWN_POLICY says so.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from newsletter.models import Delivery, DeliveryEvent, Issue
from newsletter.relaylog import Finding, Verdict, open_log, read_postfix_log

logger = logging.getLogger(__name__)
State = Delivery.State
Source = Callable[[Sequence[Delivery]], dict[int, Finding]]

# What can only happen to a copy that the relay took (anymail's names of events).
PROOFS = ("delivered", "deferred", "bounced", "opened", "clicked", "complained")
ISSUES_IN_DOUBT = (Issue.State.SENDING, Issue.State.PAUSED, Issue.State.NEEDS_REVIEW, Issue.State.CANCELLED)
AT_ONCE = 1000
LOOK_FOR = dt.timedelta(hours=24)  # so long a source that can't answer yet is asked again


def settle_unknown() -> int:
    """Ask every source about the uncertain copies whose time has come; return how many were looked at."""
    due = Delivery.objects.filter(state=State.UNCERTAIN, next_attempt_at__lte=Now(), issue__state__in=ISSUES_IN_DOUBT)
    doubts = list(due.select_related("issue", "lease").order_by("issue_id", "next_attempt_at")[:AT_ONCE])
    findings: dict[int, Finding] = {}
    for source in SOURCES:
        open_questions = [doubt for doubt in doubts if doubt.pk not in findings]
        findings |= source(open_questions) if open_questions else {}
    for doubt in doubts:
        conclude(doubt, findings.get(doubt.pk))
    return len(doubts)


def ask_events(doubts: Sequence[Delivery]) -> dict[int, Finding]:
    """Look for what was heard of the copies since: a bounce or an opening proves that the relay took them."""
    heard = DeliveryEvent.objects.filter(delivery__in=[doubt.pk for doubt in doubts], kind__in=PROOFS)
    return {
        event.delivery_id: Finding(Verdict.TAKEN, f"{event.kind} at {event.at.isoformat()} ({event.provider_id})")
        for event in heard
        if event.delivery_id is not None
    }


def ask_relay_log(doubts: Sequence[Delivery]) -> dict[int, Finding]:
    """Look into the log of a Postfix on this machine (RELAY_LOG); without one, or if it can't be read, know nothing."""
    if not settings.RELAY_LOG:
        return {}
    wanted = {doubt.message_id: (_earliest(doubt), doubt.updated_at) for doubt in doubts}
    try:
        found = read_postfix_log(open_log(Path(settings.RELAY_LOG)), wanted=wanted)
    except OSError as error:
        logger.error("RELAY_LOG can't be read, unknown copies stay unknown: %s", error)
        return {}
    known = {message_id: finding for message_id, finding in found.items() if finding.verdict != Verdict.UNKNOWN}
    return {doubt.pk: known[doubt.message_id] for doubt in doubts if doubt.message_id in known}


SOURCES: list[Source] = [ask_events, ask_relay_log]


def _earliest(doubt: Delivery) -> dt.datetime:
    started = doubt.lease.started_at if doubt.lease else doubt.issue.started_at
    assert started is not None
    return started


def conclude(doubt: Delivery, finding: Finding | None) -> None:
    """Write down what was found; without a finding, hold, look again later, or send again, as the policy says."""
    if finding and finding.verdict == Verdict.TAKEN:
        _move(doubt, State.ACCEPTED, finding.evidence)
    elif finding and finding.verdict == Verdict.NOT_TAKEN:
        _move(doubt, State.PENDING, finding.evidence)
    elif settings.UNKNOWN_POLICY == "resend":
        _move(doubt, State.PENDING, "UNKNOWN_POLICY is resend: again, under the same Message-ID")
    elif settings.RELAY_LOG and _is_fresh(doubt):
        later = Now() + dt.timedelta(seconds=settings.UNKNOWN_SETTLE_SECONDS)
        Delivery.objects.filter(pk=doubt.pk, state=State.UNCERTAIN).update(next_attempt_at=later)
    else:
        _move(doubt, State.UNCERTAIN_FINAL, "no source of evidence could tell")


def decide(issue: Issue, ids: Iterable[int], decision: str, *, by: str) -> int:
    """Settle unknown copies as the author decides: `sent`, `again` or `leave`; return how many.

    Raises ValidationError for another word. `again` uses the same Message-ID, so that many mail stores show it once.
    """
    if decision not in DECISIONS:
        raise ValidationError(_("Choose what to do with the unknown copies."))
    issue.refresh_from_db(fields=["state"])
    if decision == "again" and issue.state == Issue.State.CANCELLED:
        raise ValidationError(_("The issue was cancelled: nothing of it is sent again."))
    rows = list(issue.deliveries.unknown().filter(pk__in=list(ids)))
    return sum(_move(row, DECISIONS[decision], f"decided by {by}: {decision}") for row in rows)


DECISIONS = {"sent": State.ACCEPTED, "again": State.PENDING, "leave": State.UNCERTAIN_FINAL}


def _is_fresh(doubt: Delivery) -> bool:
    return Delivery.objects.filter(pk=doubt.pk, updated_at__gt=Now() - LOOK_FOR).exists()


def _move(row: Delivery, state: str, evidence: str) -> bool:
    """Take a row from unknown to `state`, with its evidence on record; False if it has moved meanwhile."""
    values = {"state": state, "next_attempt_at": Now() if state == State.PENDING else None, "updated_at": Now()}
    if state == State.ACCEPTED:
        values |= {"accepted_at": Now(), "phase": "reconciled"}
    with transaction.atomic():
        if not Delivery.objects.filter(pk=row.pk, state=row.state, fence=row.fence).update(**values):
            return False
        if state == State.PENDING:
            Issue.objects.filter(pk=row.issue_id, state=Issue.State.NEEDS_REVIEW).update(state=Issue.State.SENDING)
        DeliveryEvent.objects.create(
            delivery=row,
            kind="reconciled",
            provider_id=f"reconciled:{row.pk}:{row.fence}:{row.events.count()}",
            detail={"from": row.state, "to": str(state), "evidence": evidence},
        )
    logger.info("delivery %s: %s to %s (%s)", row.pk, row.state, state, evidence)
    return True
