"""An issue's way from its instant to its end: freeze it, send what is due, and call it what its counts say.

Who hands the copies over is `worker.py`; what it writes down, `ledger.py`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection, models, transaction
from django.db.models.functions import Greatest, Now
from django.utils.translation import gettext as _

from newsletter import alarms, clicks, message, preflight, rendering, testmode, transport
from newsletter.models import Delivery, Frontier, Issue, Slot
from newsletter.replies import TransportError, Unreachable
from newsletter.worker import Worker
from posts.models import Post
from subscribers import instance

logger = logging.getLogger(__name__)
State = Delivery.State

# Whoever wants digests gets no single issue, whoever chose topics what shares one of them; both stand in his own row.
# A domain that is not ASCII is written as its key has it (RFC 5890): no relay needs SMTPUTF8 for such a reader.
FREEZE = """
WITH candidates AS MATERIALIZED (
    SELECT id, key, name,
           CASE WHEN octet_length(address) = length(address) THEN address
                ELSE split_part(address, '@', 1) || '@' || split_part(key, '@', 2) END AS address,
           CASE WHEN suppressed THEN 'suppressed' WHEN paused_until > now() THEN 'paused' ELSE '' END AS reason
      FROM subscribers_subscriber s WHERE status = 'active'
       AND frequency = %(frequency)s AND (NOT topics && %(offered)s::bigint[] OR topics && %(shared)s::bigint[])
       AND (NOT %(joined)s OR (
            NOT EXISTS (SELECT 1 FROM newsletter_delivery d WHERE d.issue_id = %(issue)s AND d.subscriber_id = s.id)
            AND NOT EXISTS (SELECT 1 FROM newsletter_delivery d
                             WHERE d.issue_id = %(issue)s AND d.address_key = s.key)))
), planned AS (
    INSERT INTO newsletter_delivery (issue_id, subscriber_id, address, address_key, name, state, reason, at_freeze)
    SELECT %(issue)s, id, address, key, name, CASE WHEN reason = '' THEN 'pending' ELSE 'skipped' END, reason,
           reason <> ''
      FROM candidates ORDER BY id
    RETURNING state
)
SELECT (SELECT count(*) FROM candidates), count(*) FILTER (WHERE state = 'pending'),
       count(*) FILTER (WHERE state = 'skipped') FROM planned
"""

# Once more to those whose copy the relay refused or put off for too long, if they may still be mailed.
RESEND = """
UPDATE newsletter_delivery d
   SET state = 'pending', attempt = 0, next_attempt_at = now(), first_try_at = NULL, updated_at = now()
  FROM subscribers_subscriber s
 WHERE d.issue_id = %(issue)s AND d.state IN ('rejected', 'expired') AND s.id = d.subscriber_id
   AND s.status = 'active' AND NOT s.suppressed AND (s.paused_until IS NULL OR s.paused_until <= now())
"""

REFUSES_US = ("starttls", "tls", "auth")  # phases that go wrong until somebody mends something
LATE = dt.timedelta(minutes=5)


def freeze(issue_id: int) -> bool:
    """Fix the source and plan one delivery per active reader, in one transaction; False if it is not due or done."""
    with transaction.atomic():
        issue = Issue.objects.due().select_for_update(of=("self",)).filter(pk=issue_id).first()
        if issue is None:
            return False
        _publish_posts(issue)
        now = _database_now()
        issue.source = clicks.lead_through(issue, rendering.render_issue(issue, date=now))
        issue.source_sha256 = message.source_sha256(issue.source)
        issue.candidates, issue.planned, issue.excluded = _plan(issue)
        Frontier.objects.create(issue=issue)
        issue.prepared_at = now
        assert issue.due_at is not None
        issue.late = now - issue.due_at > LATE
        issue.state = Issue.State.FROZEN
        issue.save()
    logger.info("issue %s frozen: %s candidates, %s planned", issue.pk, issue.candidates, issue.planned)
    return True


def start(issue_id: int) -> bool:
    """Move a frozen issue to sending; False if it was not frozen."""
    frozen = Issue.objects.filter(pk=issue_id, state=Issue.State.FROZEN)
    return bool(frozen.update(state=Issue.State.SENDING, started_at=Now()))


def send_now(issue: Issue) -> None:
    """Schedule the issue for this instant, freeze it and start it. Raises ValidationError where it is not fit to go."""
    check_fit(issue)
    issue.schedule_at(_database_now())
    freeze(issue.pk)
    start(issue.pk)
    issue.refresh_from_db()


def schedule(issue: Issue, slot: Slot) -> None:
    """Put the issue into a slot. Raises ValidationError where it is not fit to go."""
    check_fit(issue)
    issue.schedule(slot)


def check_fit(issue: Issue) -> None:
    """Raise ValidationError where this installation may not send, or preflight found what blocks the issue."""
    check_armed()
    if issue.is_editable:
        if missing := issue.missing():
            raise ValidationError(missing)
        preflight.check_clear(issue)


def check_armed() -> None:
    """Raise ValidationError in a copy of the database, which may not send."""
    if reason := instance.why_not():
        raise ValidationError(reason)


def resend_failed(issue: Issue) -> int:
    """Hand over once more what was rejected or given up, to readers who may still be mailed; return how many.

    The relay said of each of these that it had not taken it, so nobody gets two. Raises ValidationError.
    """
    return _send_more(issue, lambda: _execute(RESEND, {"issue": issue.pk}))


def send_to_joined(issue: Issue) -> int:
    """Plan copies for the readers who joined since the issue was frozen; return how many. Raises ValidationError."""
    return _send_more(issue, lambda: _plan_joined(issue))


def _send_more(issue: Issue, act: Callable[[], int]) -> int:
    check_armed()
    with transaction.atomic():
        issue.reopen()
        if not (count := act()):
            raise ValidationError(_("There is nobody to send it to."))
    return count


def _plan_joined(issue: Issue) -> int:
    candidates, planned, excluded = _plan(issue, joined=True)
    Frontier.objects.filter(issue=issue).update(subscriber_id=0)  # who joined may have asked long ago
    Issue.objects.filter(pk=issue.pk).update(
        candidates=models.F("candidates") + candidates,
        planned=models.F("planned") + planned,
        excluded=models.F("excluded") + excluded,
    )
    return planned


def send_test(issue: Issue, *, to: str) -> None:
    """Send the issue as it stands to one address, outside the ledger. Raises ValidationError if the relay won't."""
    if failed := send_tests(issue, [to]):
        raise ValidationError(_("The mail server did not take the test: %(error)s"), params={"error": failed[to]})


def send_tests(issue: Issue, to: list[str]) -> dict[str, str]:
    """Send the issue as it stands to each address in a mail of its own, outside the ledger; return what went wrong.

    Once the relay can't be reached the rest is not tried. Raises ValidationError where no mail can be made.
    """
    check_armed()
    failed: dict[str, str] = {}
    for number, letter in enumerate(_tests(issue, to)):
        try:
            asyncio.run(_send_one(letter))
        except Unreachable as error:
            return failed | dict.fromkeys(to[number:], str(error))
        except TransportError as error:
            failed[to[number]] = str(error)
    return failed


def _tests(issue: Issue, to: list[str]) -> list[transport.Letter]:
    """Make the test mails; raises ValidationError where that fails, such as by a sender that is no address."""
    try:
        source = rendering.render_issue(issue)
        template = message.Template(testmode.source({**source, "subject": f"[Test] {source['subject']}"}))
        message_id = message.test_id(source)
        return [_test(template, message.Values(address, "", testmode.NOBODY, message_id)) for address in to]
    except ValueError as error:
        raise ValidationError(_("The mail can't be made: %(error)s"), params={"error": str(error)}) from error


def _test(template: message.Template, reader: message.Values) -> transport.Letter:
    if settings.TEST_MODE_ADDRESS:
        return testmode.letter(template, reader)
    return transport.Letter(template.from_address, reader.address, template.pieces(reader))


async def _send_one(letter: transport.Letter) -> None:
    link = await transport.open_link()
    try:
        await link.prepare(letter)
        await transport.hand_over(link, letter)
    finally:
        await link.close()


def send_due(
    issue_id: int,
    *,
    seconds: float | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Claim and hand over due copies of a sending issue for at most `seconds`; return how many were settled.

    `stop` is asked several times a second: once it says True nothing more is claimed, what is under way is finished
    and the rest given back.
    """
    issue = Issue.objects.get(pk=issue_id)
    if issue.state != Issue.State.SENDING or instance.why_not():
        return 0
    worker = Worker(issue, progress=progress, stop=stop)
    try:
        return asyncio.run(worker.run(settings.CLAIM_SECONDS if seconds is None else seconds))
    finally:
        if not connection.in_atomic_block:  # it may have been cut meanwhile
            connection.close_if_unusable_or_obsolete()
        settle_issue(issue_id)
        tell_of_trouble(worker)


def tell_of_trouble(worker: Worker) -> None:
    """Owe the author a mail where the relay could not be reached by any link, or does not let us in."""
    reply = worker.trouble
    if reply and (reply.phase in REFUSES_US or not worker.taken):
        alarms.tell_unreachable(worker.issue, f"{reply.phase}: {reply.code or ''} {reply.text}")


def settle_issue(issue_id: int) -> str:
    """Move an issue with nothing left to send to the state that its counts say; return its state."""
    with transaction.atomic():
        issue = Issue.objects.select_for_update(of=("self",)).get(pk=issue_id)
        if issue.state not in (Issue.State.SENDING, Issue.State.NEEDS_REVIEW):
            return issue.state
        if issue.has_work():
            return _rest_unreached(issue) or _go_on(issue)
        counts = issue.counts()
        if counts.open:
            _find_again(issue)
            return issue.state
        issue.state = _final_state(counts.unknown, counts.failed)
        issue.completed_at = None if counts.unknown else _database_now()
        issue.save(update_fields=["state", "completed_at"])
        return issue.state


def _find_again(issue: Issue) -> None:
    """Bring back copies that are open although nothing waits and nobody works: none can be, so it is told as an error.

    A row held under a lease that has ended goes back as the sweeper would have it; a fresh one is looked for anew.
    """
    Frontier.objects.filter(issue=issue).update(subscriber_id=0)
    held = issue.deliveries.filter(lease__ended_at__isnull=False)
    back = held.filter(state=State.CLAIMED).update(state=State.PENDING, next_attempt_at=Now(), updated_at=Now())
    doubt = Now() + dt.timedelta(seconds=settings.UNKNOWN_SETTLE_SECONDS)
    doubtful = held.filter(state=State.HANDING_OVER).update(
        state=State.UNCERTAIN, next_attempt_at=doubt, updated_at=Now()
    )
    if back or doubtful:
        logger.error("issue %s: %s claimed and %s doubtful copies were held by nobody", issue.pk, back, doubtful)


def _go_on(issue: Issue) -> str:
    """Send again where a slow worker gave a copy back after all others were through and it was called unknown."""
    if issue.state == Issue.State.NEEDS_REVIEW and issue.deliveries.again().exists():
        issue.state = Issue.State.SENDING
        issue.save(update_fields=["state"])
    return issue.state


def _rest_unreached(issue: Issue) -> str:
    """Pause an issue of which nothing came to an end for RETRY_FOR_SECONDS; "" where something did.

    Copies that no relay was there for are given back and have no time of their own: what nobody expects any more
    must not go to everybody on the day the relay comes back.
    """
    quiet = Now() - dt.timedelta(seconds=settings.RETRY_FOR_SECONDS)
    moved = Greatest(models.F("state_since"), models.Max("leases__settled_at"))
    found = Issue.objects.sending().filter(pk=issue.pk).annotate(moved_at=moved).filter(moved_at__lte=quiet)
    if not found.exists():
        return ""
    issue.state, issue.resume_at = Issue.State.PAUSED, None
    hours = round(settings.RETRY_FOR_SECONDS / 3600)
    issue.pause_reason = _("No copy could be handed over for %(hours)s hours. Should it still go?") % {"hours": hours}
    issue.save(update_fields=["state", "pause_reason", "resume_at"])
    logger.warning("issue %s pauses: %s", issue.pk, issue.pause_reason)
    return issue.state


def _final_state(unknown: int, failed: int) -> str:
    if unknown:
        return Issue.State.NEEDS_REVIEW
    return Issue.State.COMPLETED_WITH_FAILURES if failed else Issue.State.COMPLETED


def _publish_posts(issue: Issue) -> None:
    """Put the issue's posts on the web as it goes out, and take them off the list for the next issue."""
    for post in issue.posts.filter(status__in=[Post.Status.DRAFT, Post.Status.SCHEDULED]):
        post.ready = False
        post.publish(at=issue.due_at)
    issue.posts.update(ready=False)


def _plan(issue: Issue, *, joined: bool = False) -> tuple[int, int, int]:
    topics = issue.topics()
    values: dict[str, Any] = {
        "issue": issue.pk, "joined": joined, "frequency": issue.frequency,
        "offered": topics.offered, "shared": topics.shared,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(FREEZE, values)
        candidates, planned, excluded = cursor.fetchone()
    return candidates, planned, excluded


def _database_now() -> dt.datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def _execute(sql: str, values: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        count: int = cursor.rowcount
    return count
