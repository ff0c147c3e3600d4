"""The ledger's statements, as a worker speaks them: claim, intend, settle, release, on connections of its own.

Every write names the fence of the claim under which it is made, and the state it expects to find: a worker that lost a
row changes nothing. All instants are the database's. What each state may become stands in `Delivery.MOVES`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from django.conf import settings
from django.db import connection
from psycopg.pq import ConnStatus, ExecStatus

from newsletter.models import Delivery
from newsletter.replies import Class, Reply
from newsletter.transport import Window
from subscribers import instance

State = Delivery.State

# A few rows are looked up by their keys, always: the plan must not depend on statistics, which a freeze has just made
# wrong, nor walk an index from its beginning for a merge, nor be compiled.
OPTIONS = " ".join(
    f"-c {setting}"
    for setting in (
        "jit=off",
        "enable_seqscan=off",
        "enable_mergejoin=off",
        "enable_hashjoin=off",
        "plan_cache_mode=force_generic_plan",
        "synchronous_commit=on",
    )
)

# A connection whose other end is gone is found out within half a minute; the settings' own word on it wins.
ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}

# What the issue's last worker was answered goes along, unless the issue was paused since or that was long ago.
OPEN_LEASE = """
INSERT INTO newsletter_lease (issue_id, owner, expires_at, looked, faults, slow, doubts)
SELECT i.id, %(owner)s, now() + make_interval(secs => %(seconds)s), coalesce(l.looked, 0), coalesce(l.faults, 0),
       coalesce(l.slow, 0), coalesce(l.doubts, 0)
  FROM newsletter_issue i LEFT JOIN LATERAL (
    SELECT looked, faults, slow, doubts FROM newsletter_lease
     WHERE issue_id = i.id AND started_at >= i.state_since AND renewed_at > now() - interval '1 hour' AND looked > 0
     ORDER BY renewed_at DESC LIMIT 1) l ON true
 WHERE i.id = %(issue)s
RETURNING id, looked, faults, slow, doubts
"""

RENEW_LEASE = """
UPDATE newsletter_lease
   SET expires_at = now() + make_interval(secs => %(seconds)s), renewed_at = now(), settled = %(settled)s,
       looked = %(looked)s, faults = %(faults)s, slow = %(slow)s, doubts = %(doubts)s,
       settled_at = CASE WHEN settled < %(settled)s THEN now() ELSE settled_at END
 WHERE id = %(lease)s AND ended_at IS NULL
RETURNING (SELECT count(*) FROM newsletter_lease WHERE ended_at IS NULL AND expires_at > now())
"""

# A lease under which something is still held is left for the sweeper to end.
LET_GO = """
UPDATE newsletter_lease
   SET expires_at = now(), ended_at = CASE WHEN %(clean)s THEN now() END, renewed_at = now(), settled = %(settled)s,
       looked = %(looked)s, faults = %(faults)s, slow = %(slow)s, doubts = %(doubts)s,
       settled_at = CASE WHEN settled < %(settled)s THEN now() ELSE settled_at END
 WHERE id = %(lease)s AND ended_at IS NULL
"""

# Nothing is claimed for an issue that does not send, under a lease that has ended, or in a copy of the database.
# The lease is locked, so that the sweeper which ends it sees everything that was claimed under it.
CLAIM = """
WITH allowed AS MATERIALIZED (
    SELECT l.id FROM newsletter_lease l JOIN newsletter_issue i ON i.id = l.issue_id
      JOIN subscribers_instance a ON a.system_identifier = (SELECT system_identifier FROM pg_control_system())::text
       AND a.database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND a.installation = %(installation)s
     WHERE l.id = %(lease)s AND l.ended_at IS NULL AND l.expires_at > now() AND i.state = 'sending'
       FOR SHARE OF l
), again AS MATERIALIZED (
    SELECT id, subscriber_id FROM newsletter_delivery
     WHERE issue_id = %(issue)s AND next_attempt_at <= now() AND state IN ('pending', 'deferred')
       AND EXISTS (SELECT 1 FROM allowed)
     ORDER BY next_attempt_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), frontier AS MATERIALIZED (
    SELECT issue_id, subscriber_id FROM newsletter_frontier
     WHERE issue_id = %(issue)s AND EXISTS (SELECT 1 FROM allowed) FOR UPDATE
), fresh AS MATERIALIZED (
    SELECT id, subscriber_id FROM newsletter_delivery
     WHERE issue_id = %(issue)s AND subscriber_id > (SELECT subscriber_id FROM frontier)
       AND fence = 0 AND state = 'pending'
     ORDER BY subscriber_id LIMIT (%(limit)s - (SELECT count(*) FROM again))
), moved AS (
    UPDATE newsletter_frontier f SET subscriber_id = n.last
      FROM (SELECT max(subscriber_id) AS last FROM fresh) n
     WHERE f.issue_id = %(issue)s AND n.last > f.subscriber_id
)
UPDATE newsletter_delivery d
   SET state = 'claimed', fence = d.fence + 1, lease_id = %(lease)s, next_attempt_at = NULL, updated_at = now()
  FROM (SELECT * FROM again UNION ALL SELECT * FROM fresh) due
  LEFT JOIN subscribers_subscriber s ON s.id = due.subscriber_id
 WHERE d.id = due.id AND d.state IN ('pending', 'deferred')
RETURNING d.id, d.subscriber_id, d.fence, d.attempt, d.address, d.name, s.unsubscribe_id::text, d.render_sha256
"""

# The readers' rows and the issue's are locked and looked at anew: an unsubscribe or a pause that committed first wins,
# one that comes later waits until these intents are committed. A reader's row that somebody is changing at this moment
# is passed over and his copy handed back, so that one slow transaction holds up nobody else.
# The same statement writes down the copies that the relay has taken since: see DESIGN.md, "Why is the final dot ...".
INTEND = """
WITH i AS MATERIALIZED (
    SELECT id FROM newsletter_issue WHERE id = $1::bigint AND state = 'sending' FOR SHARE
), s AS MATERIALIZED (
    SELECT id FROM subscribers_subscriber
     WHERE id = ANY($2::bigint[]) AND status = 'active' AND NOT suppressed
       AND (paused_until IS NULL OR paused_until <= now()) AND EXISTS (SELECT 1 FROM i)
     ORDER BY id FOR SHARE SKIP LOCKED
), moved AS (
    UPDATE newsletter_delivery d
       SET state = CASE WHEN w.taken THEN 'accepted' ELSE 'handing_over' END, updated_at = now(),
           smtp_code = CASE WHEN w.taken THEN w.code ELSE d.smtp_code END,
           enhanced_code = CASE WHEN w.taken THEN w.enhanced ELSE d.enhanced_code END,
           reply_text = CASE WHEN w.taken THEN w.text ELSE d.reply_text END,
           reply_class = CASE WHEN w.taken THEN '' ELSE d.reply_class END,
           phase = CASE WHEN w.taken THEN 'final_dot' ELSE d.phase END,
           provider_id = CASE WHEN w.taken THEN w.provider ELSE d.provider_id END,
           attempt = d.attempt + w.taken::int, accepted_at = CASE WHEN w.taken THEN now() END, next_attempt_at = NULL
      FROM (
        SELECT n.id, n.fence, false, NULL, NULL, NULL, NULL FROM unnest($9::bigint[], $10::int[], $11::bigint[])
            AS n(id, fence, subscriber) WHERE n.subscriber = ANY(ARRAY(SELECT id FROM s))
        UNION ALL
        SELECT o.id, o.fence, true, o.code, o.enhanced, o.text, o.provider
          FROM unnest($3::bigint[], $4::int[], $5::int[], $6::text[], $7::text[], $8::text[])
            AS o(id, fence, code, enhanced, text, provider)
      ) w(id, fence, taken, code, enhanced, text, provider)
     WHERE d.id = w.id AND d.fence = w.fence
       AND CASE WHEN w.taken THEN d.state IN ('handing_over', 'uncertain') ELSE d.state = 'claimed' END
    RETURNING d.id, w.taken
)
SELECT coalesce(array_agg(id) FILTER (WHERE NOT taken), '{}'), coalesce(array_agg(id) FILTER (WHERE taken), '{}')
  FROM moved
"""

# Why an intent was refused, in the words of the ledger: the copy is left out for good, or handed back.
REFUSE = """
UPDATE newsletter_delivery d
   SET state = CASE WHEN r.reason <> '' THEN 'skipped' ELSE 'pending' END, reason = r.reason,
       next_attempt_at = CASE WHEN r.reason <> '' THEN NULL WHEN r.sending THEN now() + make_interval(secs => %(delay)s)
                              ELSE now() END,
       updated_at = now()
  FROM unnest(%(ids)s::bigint[], %(fences)s::int[]) AS n(id, fence), LATERAL (
    SELECT i.state = 'sending' AS sending,
           CASE WHEN i.state = 'cancelled' THEN 'cancelled' WHEN s.id IS NULL OR s.status = 'erased' THEN 'erased'
                WHEN s.status <> 'active' THEN 'unsubscribed' WHEN s.suppressed THEN 'suppressed'
                WHEN s.paused_until > now() THEN 'paused' ELSE '' END AS reason
      FROM newsletter_delivery x JOIN newsletter_issue i ON i.id = x.issue_id
      LEFT JOIN subscribers_subscriber s ON s.id = x.subscriber_id WHERE x.id = n.id) r
 WHERE d.id = n.id AND d.fence = n.fence AND d.state = 'claimed'
RETURNING r.sending
"""

# A holder of the fence may still settle its own row that the sweeper has meanwhile called uncertain.
# A copy put off is given up RETRY_FOR_SECONDS after it was put off first, pauses not counted, and left out where the
# issue was cancelled meanwhile.
SETTLE = """
UPDATE newsletter_delivery d
   SET state = w.state, reason = CASE WHEN w.state = 'skipped' THEN 'cancelled' ELSE d.reason END,
       smtp_code = %(code)s, enhanced_code = %(enhanced)s, reply_text = %(text)s, reply_class = %(class)s,
       phase = %(phase)s, provider_id = %(provider)s, render_sha256 = %(sha256)s, attempt = d.attempt + 1,
       updated_at = now(), accepted_at = CASE WHEN w.state = 'accepted' THEN now() END,
       first_try_at = CASE WHEN w.state = 'deferred' THEN coalesce(d.first_try_at, w.at) ELSE d.first_try_at END,
       next_attempt_at = CASE WHEN w.state IN ('deferred', 'pending') THEN now() + make_interval(secs => %(delay)s)
                              WHEN w.state = 'uncertain' THEN now() + make_interval(secs => %(doubt)s) END
  FROM (SELECT i.id, now() - make_interval(secs => i.paused_seconds) AS at,
               CASE WHEN %(state)s::text NOT IN ('deferred', 'pending') THEN %(state)s::text
                    WHEN i.state = 'cancelled' THEN 'skipped'
                    WHEN %(state)s::text = 'deferred'
                     AND x.first_try_at + make_interval(secs => i.paused_seconds + %(retry_for)s) <= now()
                    THEN 'expired' ELSE %(state)s::text END AS state
          FROM newsletter_issue i JOIN newsletter_delivery x ON x.id = %(id)s WHERE i.id = %(issue)s) w
 WHERE d.id = %(id)s AND d.fence = %(fence)s AND d.state = ANY(%(expected)s) AND d.issue_id = w.id
"""

RELEASE = """
UPDATE newsletter_delivery d
   SET state = CASE WHEN i.state = 'cancelled' THEN 'skipped' ELSE 'pending' END,
       reason = CASE WHEN i.state = 'cancelled' THEN 'cancelled' ELSE d.reason END,
       next_attempt_at = CASE WHEN i.state <> 'cancelled' THEN now() + make_interval(secs => %(delay)s) END,
       updated_at = now()
  FROM unnest(%(ids)s::bigint[], %(fences)s::int[]) AS n(id, fence), newsletter_issue i
 WHERE i.id = %(issue)s AND d.id = n.id AND d.fence = n.fence AND d.state = ANY(%(expected)s)
"""

PAUSE = """
UPDATE newsletter_issue SET state = 'paused', pause_reason = %(reason)s,
       resume_at = CASE WHEN %(seconds)s::float8 IS NOT NULL THEN now() + make_interval(secs => %(seconds)s) END
 WHERE id = %(issue)s AND state = 'sending'
"""


class Copy(NamedTuple):
    """A claimed row: what it takes to hand one reader's copy over and to write down the outcome."""

    id: int
    subscriber_id: int
    fence: int
    attempt: int
    address: str
    name: str
    unsubscribe_id: str | None
    render_sha256: str


class Outcome(NamedTuple):
    """What became of a copy, not yet written down; `delay` is the seconds to wait where it is tried again."""

    copy: Copy
    state: str
    reply: Reply
    kind: Class | str = ""
    delay: float = 0.0
    sha256: str = ""


class Away(Exception):
    """The database can't be reached: nothing more is known of what was just said to it."""


class Ledger:
    """A worker's own two connections to the ledger of one issue: one for intents, one for all else."""

    def __init__(self, issue_id: int) -> None:
        self.issue_id = issue_id
        self.owner = f"{socket.gethostname()[:60]}:{os.getpid()}"
        self.lease: int | None = None
        self.settled = 0
        self.workers = 1  # live leases, this one included
        self._held: set[int] = set()  # copies claimed and not yet settled, refused or released
        self._claiming = False
        self._installation = instance.installation()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._intents: Statement | None = None

    async def open(self) -> Window:
        """Take a lease; return what the issue's last worker was answered. Raises Away."""
        values = {"issue": self.issue_id, "owner": self.owner, "seconds": settings.LEASE_SECONDS}
        ((self.lease, *counts),) = await self._run(OPEN_LEASE, values)
        return Window(*counts)

    async def renew(self, window: Window) -> bool:
        """Lengthen the lease and note what was answered; False if the sweeper has ended it. Raises Away."""
        values = {**self._leased(), **window._asdict(), "seconds": settings.LEASE_SECONDS}
        found = await self._run(RENEW_LEASE, values)
        self.workers = found[0][0] if found else self.workers
        return bool(found)

    async def claim(self, limit: int) -> list[Copy]:
        """Take up to `limit` due copies, those to be tried again first. Raises Away."""
        values = {**self._leased(), "issue": self.issue_id, "limit": limit, "installation": self._installation}
        self._claiming = True  # until the answer is here: a claim may be committed whose answer is lost
        copies = sorted(Copy(*row) for row in await self._run(CLAIM, values))
        self._claiming = False
        self._held.update(copy.id for copy in copies)
        return copies

    async def intend(self, copies: Sequence[Copy], accepted: Sequence[Outcome]) -> tuple[set[int], set[int]]:
        """In one transaction commit the intent to hand over `copies` and write down those that were `accepted`.

        Returns the ids that may be handed over now, and those written down. Raises Away.
        """
        replies = [outcome.reply for outcome in accepted]
        taken = [outcome.copy for outcome in accepted]
        subscribers = _array(copy.subscriber_id for copy in copies)
        values = [
            str(self.issue_id),
            subscribers,
            _array(copy.id for copy in taken),
            _array(copy.fence for copy in taken),
            _array(reply.code for reply in replies),
            _texts(reply.enhanced_code for reply in replies),
            _texts(reply.text for reply in replies),
            _texts(reply.provider_id for reply in replies),
            _array(copy.id for copy in copies),
            _array(copy.fence for copy in copies),
            subscribers,
        ]
        up, done = await self._intend(values)
        self.settled += len(done)
        self._held.difference_update(copy.id for copy in taken)
        return up, done

    async def _intend(self, values: list[str]) -> tuple[set[int], set[int]]:
        try:
            if self._intents is None:
                self._intents = await Statement.prepare(INTEND)
            up, done = await self._intents.execute(values)
        except asyncio.CancelledError:  # its answer is still to come, and must not be taken for that of another
            await self._close_intents()
            raise
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            await self._close_intents()
            raise Away(f"{type(error).__name__}: {error}") from error
        return _numbers(up), _numbers(done)

    async def _close_intents(self) -> None:
        lost, self._intents = self._intents, None
        if lost:
            await lost.close()

    async def refuse(self, copies: Sequence[Copy], *, delay: float) -> bool:
        """Write down why copies may not be handed over; return whether the issue is still sending. Raises Away.

        A copy whose reader's row was locked by somebody else is due again after `delay` seconds.
        """
        found = await self._run(REFUSE, {**_fenced(copies), "delay": delay})
        self._held.difference_update(copy.id for copy in copies)
        return all(sending for (sending,) in found)

    async def settle(self, outcome: Outcome) -> bool:
        """Write an outcome into the row if it is still this worker's. Raises Away."""
        copy, reply = outcome.copy, outcome.reply
        values = {
            "issue": self.issue_id,
            "id": copy.id,
            "fence": copy.fence,
            "state": str(outcome.state),
            "code": reply.code or None,
            "enhanced": reply.enhanced_code,
            "text": reply.text,
            "class": str(outcome.kind),
            "phase": reply.phase,
            "provider": reply.provider_id,
            "sha256": outcome.sha256,
            "delay": outcome.delay,
            "retry_for": settings.RETRY_FOR_SECONDS,
            "doubt": settings.UNKNOWN_SETTLE_SECONDS,
            "expected": [*_expected(outcome.state)],
        }
        written: bool = await self._run(SETTLE, values) > 0
        self.settled += written
        self._held.discard(copy.id)
        return written

    async def release(self, copies: Sequence[Copy], *, delay: float = 0.0, cut: bool = False) -> None:
        """Give copies back, due again after `delay` seconds; `cut`: the hand-over had been intended. Raises Away."""
        if copies:
            expected = ["claimed", "handing_over", "uncertain"] if cut else ["claimed"]
            await self._run(RELEASE, {**_fenced(copies), "issue": self.issue_id, "delay": delay, "expected": expected})
            self._held.difference_update(copy.id for copy in copies)

    async def pause(self, reason: str, *, seconds: float | None) -> None:
        """Pause the issue for `reason`, to go on by itself after `seconds` where they are given. Raises Away."""
        await self._run(PAUSE, {"issue": self.issue_id, "reason": reason, "seconds": seconds})

    async def let_go(self, window: Window) -> None:
        """End the lease; one under which something is still held only expires. Raises Away."""
        clean = not (self._held or self._claiming)
        await self._run(LET_GO, {**self._leased(), **window._asdict(), "clean": clean})

    async def close(self) -> None:
        await self._close_intents()
        await self._close_connection()

    async def _run(self, statement: str, values: Any) -> Any:
        """Run one statement in a transaction of its own; return its rows, or the count where it returns none."""
        try:
            if self._connection is None:
                self._connection = await psycopg.AsyncConnection.connect(**parameters())
            cursor = await self._connection.execute(statement.encode(), values, prepare=True)
            return await cursor.fetchall() if cursor.description else cursor.rowcount
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            await self._close_connection()
            raise Away(f"{type(error).__name__}: {error}") from error

    async def _close_connection(self) -> None:
        lost, self._connection = self._connection, None
        if lost:
            await lost.close()

    def _leased(self) -> dict[str, Any]:
        return {"lease": self.lease, "settled": self.settled}


class Statement:
    """One prepared statement on a connection of its own, run without the driver's cursors: a third of their cost.

    Hundreds of intents a second make this the hottest call to the database. One execution is under way at a time; all
    values and results are text.
    """

    NAME = b"statement"

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._socket = connection.pgconn.socket  # -1 once nobody listens; libpq forgets a lost one's number
        self._answer: asyncio.Future[list[bytes | None]] | None = None

    @classmethod
    async def prepare(cls, statement: str) -> Statement:
        """Open the connection and prepare `statement`, whose values are $1, $2 ... Raises psycopg's errors."""
        made = cls(await psycopg.AsyncConnection.connect(**parameters()))
        made._libpq.nonblocking = 1
        asyncio.get_running_loop().add_reader(made._socket, made._read)
        try:
            made._libpq.send_prepare(cls.NAME, statement.encode())
            await made._answered()
        except BaseException:
            await made.close()
            raise
        return made

    async def execute(self, values: list[str]) -> list[bytes]:
        """Run it in a transaction of its own; return its one row. Raises psycopg's errors."""
        self._libpq.send_query_prepared(self.NAME, [value.encode() for value in values])
        return [value or b"" for value in await self._answered()]

    async def close(self) -> None:
        self._listen_no_more()
        await self._connection.close()

    def _listen_no_more(self) -> None:
        """Take the socket out of the loop: at once, since the next to be opened may get a lost one's number."""
        lost, self._socket = self._socket, -1
        if lost >= 0:
            asyncio.get_running_loop().remove_reader(lost)
            asyncio.get_running_loop().remove_writer(lost)

    async def _answered(self) -> list[bytes | None]:
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        if self._libpq.flush():  # more than the socket takes at once
            loop.add_writer(self._socket, self._flush)
        return await self._answer

    def _flush(self) -> None:
        try:
            if self._libpq.flush():
                return
        except psycopg.Error as error:
            self._listen_no_more()
            self._tell(error)
        else:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _read(self) -> None:
        """Take what the server sent; hand it to whoever waits once it is whole."""
        try:
            self._libpq.consume_input()
            if self._libpq.is_busy():
                return
            row: list[bytes | None] = []
            while result := self._libpq.get_result():
                if result.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
                row = [result.get_value(0, n) for n in range(result.nfields)] if result.ntuples else row
        except psycopg.Error as error:
            if self._libpq.status != ConnStatus.OK:
                self._listen_no_more()
            self._tell(error)
            return
        self._tell(row)

    def _tell(self, found: list[bytes | None] | psycopg.Error) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return  # the server went, or spoke, while nothing was asked
        if isinstance(found, psycopg.Error):
            answer.set_exception(found)
        else:
            answer.set_result(found)


def parameters() -> dict[str, Any]:
    """Return what it takes to open one more connection to Django's database."""
    known = connection.get_connection_params()
    found = {key: known[key] for key in ("dbname", "user", "password", "host", "port") if known.get(key)}
    kept = {key: known[key] for key in known if key.startswith(("ssl", "target_", "keepalives", "channel_", "tcp_"))}
    return {
        **ALIVE,
        **found,
        **kept,
        "autocommit": True,
        "connect_timeout": 5,
        "options": f"{known.get('options') or ''} {OPTIONS}".strip(),
        "application_name": "masthead-sender",
    }


def _expected(state: str) -> Iterable[str]:
    """Return the states that a holder's row may be in for it to become `state`."""
    held = ("claimed", "handing_over", "uncertain")
    return [old for old in held if state in Delivery.MOVES[State(old)] or state == old]


def _fenced(copies: Sequence[Copy]) -> dict[str, Any]:
    return {"ids": _array(copy.id for copy in copies), "fences": _array(copy.fence for copy in copies)}


def _array(numbers: Iterable[int]) -> str:
    """Return an array in PostgreSQL's own words, whose type the statement names: one plan for every size."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _texts(texts: Iterable[str]) -> str:
    """Return an array of texts in PostgreSQL's own words."""
    return "{" + ",".join(['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts]) + "}"


def _numbers(array: bytes) -> set[int]:
    return set(map(int, array[1:-1].split(b","))) if len(array) > 2 else set()
