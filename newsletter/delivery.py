"""The ledger at work: freeze an issue, claim copies, hand each over once, and write down what became of it.

The one place where rendering and transport meet. Every write to a row that a worker holds carries the fence of its
claim, so a worker that lost its lease can neither change the row nor send.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from newsletter import message, rendering, transport
from newsletter.models import Delivery, Issue
from posts.models import Post, Publication

logger = logging.getLogger(__name__)
State = Delivery.State

FREEZE = """
WITH candidates AS MATERIALIZED (
    SELECT id, address, key,
           CASE WHEN suppressed THEN 'suppressed' WHEN paused_until > now() THEN 'paused' ELSE '' END AS reason
      FROM subscribers_subscriber WHERE status = 'active'
), planned AS (
    INSERT INTO newsletter_delivery
           (issue_id, subscriber_id, address, address_key, state, reason, at_freeze, next_attempt_at)
    SELECT %(issue)s, id, address, key, CASE WHEN reason = '' THEN 'pending' ELSE 'skipped' END, reason,
           reason <> '', CASE WHEN reason = '' THEN now() END
      FROM candidates ORDER BY id
    RETURNING state
)
SELECT (SELECT count(*) FROM candidates), count(*) FILTER (WHERE state = 'pending'),
       count(*) FILTER (WHERE state = 'skipped') FROM planned
"""

CLAIM = """
WITH due AS MATERIALIZED (
    SELECT d.id, d.subscriber_id FROM newsletter_delivery d
     WHERE d.issue_id = %(issue)s AND d.state IN ('pending', 'deferred') AND d.next_attempt_at <= now()
       AND EXISTS (SELECT 1 FROM newsletter_issue i WHERE i.id = %(issue)s AND i.state = 'sending')
     ORDER BY d.next_attempt_at, d.id LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
)
UPDATE newsletter_delivery d
   SET state = 'claimed', fence = d.fence + 1, lease_owner = %(owner)s, updated_at = now(),
       lease_until = now() + make_interval(secs => %(lease)s)
  FROM due LEFT JOIN subscribers_subscriber s ON s.id = due.subscriber_id
 WHERE d.id = due.id
RETURNING d.id, d.subscriber_id, d.fence, d.attempt, d.address, coalesce(s.name, ''), s.unsubscribe_id
"""

# The reader's row and the issue's are locked and looked at anew: an unsubscribe or a pause that committed first wins,
# one that comes later waits until this intent is committed.
INTENT = """
WITH i AS MATERIALIZED (
    SELECT id FROM newsletter_issue WHERE id = %(issue)s AND state = 'sending' FOR SHARE
), s AS MATERIALIZED (
    SELECT id FROM subscribers_subscriber
     WHERE id = %(subscriber)s AND status = 'active' AND NOT suppressed
       AND (paused_until IS NULL OR paused_until <= now()) AND EXISTS (SELECT 1 FROM i)
     ORDER BY id FOR SHARE
)
UPDATE newsletter_delivery d
   SET state = 'handing_over', phase = 'final_dot', message_id = %(message_id)s, render_sha256 = %(sha256)s,
       lease_until = now() + make_interval(secs => %(lease)s), updated_at = now()
  FROM s WHERE d.id = %(id)s AND d.subscriber_id = s.id AND d.state = 'claimed' AND d.fence = %(fence)s
RETURNING d.id
"""

# Why an intent was refused, in the words of the ledger.
REFUSAL = """
UPDATE newsletter_delivery d
   SET state = CASE WHEN i.state = 'cancelled' OR s.unmailable <> '' THEN 'skipped' ELSE 'pending' END,
       reason = CASE WHEN i.state = 'cancelled' THEN 'cancelled' ELSE s.unmailable END,
       next_attempt_at = CASE WHEN i.state = 'cancelled' OR s.unmailable <> '' THEN NULL ELSE now() END,
       lease_until = NULL, updated_at = now()
  FROM newsletter_issue i, (
    SELECT coalesce((
        SELECT CASE WHEN status = 'erased' THEN 'erased' WHEN status <> 'active' THEN 'unsubscribed'
                    WHEN suppressed THEN 'suppressed' WHEN paused_until > now() THEN 'paused' ELSE '' END
          FROM subscribers_subscriber WHERE id = %(subscriber)s), 'erased') AS unmailable) s
 WHERE d.id = %(id)s AND d.state = 'claimed' AND d.fence = %(fence)s AND i.id = d.issue_id
RETURNING d.state
"""

# A holder of the fence may still settle its own row that the sweeper has meanwhile called uncertain.
SETTLE = """
UPDATE newsletter_delivery
   SET state = %(state)s, smtp_code = %(code)s, enhanced_code = %(enhanced)s, reply_text = %(text)s, phase = %(phase)s,
       attempt = attempt + 1, lease_until = NULL, updated_at = now(),
       accepted_at = CASE WHEN %(state)s = 'accepted' THEN now() END,
       next_attempt_at = CASE WHEN %(state)s = 'deferred' THEN now() + make_interval(secs => %(delay)s) END
 WHERE id = %(id)s AND fence = %(fence)s AND state = ANY(%(expected)s)
"""

RELEASE = """
UPDATE newsletter_delivery
   SET state = 'pending', next_attempt_at = now() + make_interval(secs => %(delay)s), lease_until = NULL,
       updated_at = now()
 WHERE id = ANY(%(ids)s) AND lease_owner = %(owner)s AND state = 'claimed'
"""

RENEW = """
UPDATE newsletter_delivery SET lease_until = now() + make_interval(secs => %(lease)s)
 WHERE id = ANY(%(ids)s) AND lease_owner = %(owner)s AND state = 'claimed'
"""


@dataclass(frozen=True)
class Copy:
    """A claimed row: what it takes to hand one reader's copy over and to write down the outcome."""

    id: int
    subscriber_id: int
    fence: int
    attempt: int
    address: str
    name: str
    unsubscribe_id: UUID | None


@dataclass(frozen=True)
class Outcome:
    """What became of a copy, not yet written down."""

    copy: Copy
    state: str
    reply: transport.Reply


def freeze(issue_id: int) -> bool:
    """Fix the source and plan one delivery per active reader, in one transaction; False if it is not due or done."""
    with transaction.atomic():
        issue = Issue.objects.due().select_for_update(of=("self",)).filter(pk=issue_id).first()
        if issue is None:
            return False
        _publish_posts(issue)
        now = _database_now()
        issue.source = rendering.render_issue(issue, date=now)
        issue.source_sha256 = message.source_sha256(issue.source)
        issue.candidates, issue.planned, issue.excluded = _plan(issue.pk)
        issue.prepared_at = now
        assert issue.due_at is not None
        issue.late = now - issue.due_at > dt.timedelta(minutes=5)
        issue.state = Issue.State.FROZEN
        issue.save()
    logger.info("issue %s frozen: %s candidates, %s planned", issue.pk, issue.candidates, issue.planned)
    return True


def start(issue_id: int) -> bool:
    """Move a frozen issue to sending; False if it was not frozen."""
    return bool(
        Issue.objects.filter(pk=issue_id, state=Issue.State.FROZEN).update(
            state=Issue.State.SENDING, started_at=timezone.now()
        )
    )


def send_now(issue: Issue) -> None:
    """Schedule the issue for this instant, freeze it and start it. Raises ValidationError where it is not fit to go."""
    issue.schedule_at(_database_now())
    freeze(issue.pk)
    start(issue.pk)
    issue.refresh_from_db()


def send_test(issue: Issue, *, to: str) -> None:
    """Send the issue as it stands to one address, outside the ledger. Raises ValidationError if the relay won't."""
    source = rendering.render_issue(issue)
    template = message.Template({**source, "subject": f"[Test] {source['subject']}"})
    reader = message.Values(address=to, name="", unsubscribe_id=UUID(int=0), message_id=message.test_id(source))
    relay = transport.Connection()
    try:
        relay.begin(Publication.current().sender_address, to, template.fill(reader))
        relay.finish()
    except transport.TransportError as error:
        raise ValidationError(
            _("The mail server did not take the test: %(error)s"), params={"error": str(error)}
        ) from error
    finally:
        relay.close()


def send_due(issue_id: int, *, seconds: float | None = None, progress: Callable[[int], None] | None = None) -> int:
    """Claim and hand over due copies of a sending issue for at most `seconds`; return how many were claimed."""
    issue = Issue.objects.get(pk=issue_id)
    if issue.state != Issue.State.SENDING:
        return 0
    worker = Worker(issue)
    try:
        return worker.run(settings.CLAIM_SECONDS if seconds is None else seconds, progress)
    finally:
        worker.close()
        settle_issue(issue_id)


def settle_issue(issue_id: int) -> str:
    """Move an issue with nothing left to send to the state that its counts say; return its state."""
    with transaction.atomic():
        issue = Issue.objects.select_for_update(of=("self",)).get(pk=issue_id)
        if issue.state not in (Issue.State.SENDING, Issue.State.NEEDS_REVIEW):
            return issue.state
        counts = issue.counts()
        if counts.open:
            return issue.state
        issue.state = _final_state(counts.unknown, counts.failed)
        issue.completed_at = None if counts.unknown else timezone.now()
        issue.save(update_fields=["state", "completed_at"])
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


def _plan(issue_id: int) -> tuple[int, int, int]:
    with connection.cursor() as cursor:
        cursor.execute(FREEZE, {"issue": issue_id})
        candidates, planned, excluded = cursor.fetchone()
    return candidates, planned, excluded


def _database_now() -> dt.datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def _boottime() -> float:
    """Seconds that go on while the machine sleeps: a lease must not outlive a suspended laptop."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Worker:
    """One connection to the relay, working through claimed copies of one issue."""

    issue: Issue
    relay: transport.Connection = field(default_factory=transport.Connection)
    owner: str = field(
        default_factory=lambda: f"{socket.gethostname()[:40]}:{os.getpid()}:{time.monotonic_ns() % 10**9}"
    )
    unwritten: Outcome | None = None
    renewed_at: float = 0.0
    stopped: bool = False  # the issue was paused or cancelled, or the lease is lost

    def __post_init__(self) -> None:
        self.template = message.Template(self.issue.source)

    def run(self, seconds: float, progress: Callable[[int], None] | None = None) -> int:
        """Claim batch after batch until nothing is due or `seconds` have passed."""
        until, done = time.monotonic() + seconds, 0
        while not self.stopped and time.monotonic() < until and (copies := self.claim(settings.CLAIM_BATCH)):
            self.hand_over_all(copies, until)
            done += len(copies)
            if progress:
                progress(done)
        return done

    def claim(self, limit: int) -> list[Copy]:
        """Take up to `limit` due copies under a lease and a new fence."""
        rows = _execute(
            CLAIM,
            {"issue": self.issue.pk, "limit": limit, "owner": self.owner, "lease": settings.LEASE_SECONDS},
        )
        self.renewed_at = _boottime()
        return sorted((Copy(*row) for row in rows), key=lambda copy: copy.id)

    def hand_over_all(self, copies: list[Copy], until: float) -> None:
        """Hand over each copy; give back those that time or an unreachable relay leaves over."""
        waiting = list(copies)
        delay = 0.0
        while waiting and not self.stopped and time.monotonic() < until:
            try:
                self.hand_over(waiting[0])
            except transport.Unreachable as error:
                logger.warning("the relay can't be reached: %s", error)
                delay = settings.RECONNECT_SECONDS
                break
            waiting.pop(0)
            self.renew(waiting)
        self.write_down()
        self.release(waiting, delay)

    def hand_over(self, copy: Copy) -> None:
        """Give one copy to the relay: content, committed intent, final dot. Raises Unreachable: nothing was said."""
        try:
            content = self.template.fill(self._values(copy))
            self.relay.begin(self._sender(copy), copy.address, content)
        except transport.Unreachable:
            raise
        except transport.TransportError as error:
            self.settle(Outcome(copy, self._state_after(error, copy), error.reply), expected=[State.CLAIMED])
            return
        except (ValueError, LookupError) as error:
            self.settle(Outcome(copy, State.FAILED, transport.Reply(0, str(error)[:500], "render")), [State.CLAIMED])
            return
        if self._intend(copy, content):
            self._finish(copy)
        else:
            self.relay.abort()

    def renew(self, waiting: list[Copy]) -> None:
        """Lengthen the lease of what is still waiting, every RENEW_SECONDS."""
        if waiting and _boottime() - self.renewed_at > settings.RENEW_SECONDS:
            ids = [copy.id for copy in waiting]
            _execute(RENEW, {"ids": ids, "owner": self.owner, "lease": settings.LEASE_SECONDS})
            self.renewed_at = _boottime()

    def release(self, waiting: list[Copy], delay: float) -> None:
        """Give claimed copies back, due again after `delay` seconds."""
        if waiting:
            ids = [copy.id for copy in waiting]
            _execute(RELEASE, {"ids": ids, "owner": self.owner, "delay": delay})

    def settle(self, outcome: Outcome, expected: list[str]) -> None:
        """Write an outcome into the row if it is still this worker's."""
        copy, reply = outcome.copy, outcome.reply
        values = {
            "id": copy.id,
            "fence": copy.fence,
            "state": outcome.state,
            "code": reply.code or None,
            "enhanced": reply.enhanced_code,
            "text": reply.text,
            "phase": reply.phase,
            "expected": [str(state) for state in expected],
            "delay": retry_delay(copy.attempt),
        }
        if not _execute(SETTLE, values):
            logger.warning("delivery %s is no longer ours; outcome %s not written", copy.id, outcome.state)

    def write_down(self) -> None:
        """Write down the outcome of the copy that was handed over last."""
        if self.unwritten:
            self.settle(self.unwritten, [State.HANDING_OVER, State.UNCERTAIN])
            self.unwritten = None

    def close(self) -> None:
        try:
            self.write_down()
        finally:
            self.relay.close()

    def _intend(self, copy: Copy, content: bytes) -> bool:
        """Commit the intent to hand over, with the outcome of the copy before; False if the reader may not have it."""
        began = _boottime()
        with transaction.atomic():
            self.write_down()
            intended = bool(_execute(INTENT, self._intent(copy, content)))
            if not intended:
                values = {"id": copy.id, "fence": copy.fence, "subscriber": copy.subscriber_id}
                self.stopped = _execute(REFUSAL, values) != [(State.SKIPPED,)]
        if intended and _boottime() - began > settings.INTENT_TTL_SECONDS:
            too_late = Outcome(copy, State.DEFERRED, transport.Reply(0, "the intent grew too old", "intent"))
            self.settle(too_late, [State.HANDING_OVER, State.UNCERTAIN])
            return False
        return intended

    def _intent(self, copy: Copy, content: bytes) -> dict[str, Any]:
        return {
            "issue": self.issue.pk,
            "subscriber": copy.subscriber_id,
            "id": copy.id,
            "fence": copy.fence,
            "lease": settings.LEASE_SECONDS,
            "message_id": self._message_id(copy),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    def _finish(self, copy: Copy) -> None:
        try:
            self.unwritten = Outcome(copy, State.ACCEPTED, self.relay.finish())
        except transport.TransportError as error:
            self.unwritten = Outcome(copy, self._state_after(error, copy), error.reply)

    def _state_after(self, error: transport.TransportError, copy: Copy) -> str:
        if isinstance(error, transport.Uncertain):
            return State.UNCERTAIN
        if isinstance(error, transport.Refused):
            return State.REJECTED
        assert self.issue.started_at is not None
        given_up = timezone.now() - self.issue.started_at > dt.timedelta(seconds=settings.RETRY_FOR_SECONDS)
        return State.EXPIRED if given_up else State.DEFERRED

    def _values(self, copy: Copy) -> message.Values:
        return message.Values(
            address=copy.address,
            name=copy.name,
            unsubscribe_id=copy.unsubscribe_id or UUID(int=0),
            message_id=self._message_id(copy),
        )

    def _message_id(self, copy: Copy) -> str:
        return message.message_id(self.issue.pk, copy.subscriber_id, self.template.domain)

    def _sender(self, copy: Copy) -> str:
        return self.template.envelope_sender(self.issue.pk, copy.subscriber_id)


def retry_delay(attempt: int) -> float:
    """Return the seconds to wait after the `attempt`-th try (counted from 0): doubling, bounded (RFC 5321, 4.5.4.1)."""
    return float(min(settings.RETRY_FIRST_SECONDS * 2 ** min(attempt, 20), settings.RETRY_MAX_SECONDS))


def _execute(sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run one statement; return its rows, or one empty tuple per changed row where it returns none."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else [()] * cursor.rowcount
