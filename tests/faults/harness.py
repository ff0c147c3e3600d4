"""What the tests of faults break things with: proxies, locks, signals to the right process, a relay's own log."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from newsletter.models import Delivery, Issue, Lease
from newsletter.processes import Child
from tests.faults.conftest import assert_promise, is_through, logged
from tests.smtpd import MESSAGE_ID, Answer, Session, SmtpServer
from tests.workers import Workers, database_url, wait_until

MANAGE = [sys.executable, str(settings.BASE_DIR / "manage.py")]
TLS_OR_GSS = b"\x04\xd2"  # how the codes of SSLRequest and GSSENCRequest begin: what follows is the true first message
PROCESSES, CONNECTIONS = 2, 4  # of the worker that sends issues, and of each of its processes
LINKS = PROCESSES * CONNECTIONS
SENDER = "masthead-sender"  # what a worker's own connections to the database call themselves
FETCH_SECONDS = 300
RESTART_SECONDS = 60.0  # for processes that start at this machine's own pace
State = Delivery.State


# Processes


def prefork_children(worker: Child) -> list[int]:
    """Return the pids of the living processes that a Celery worker has forked, as the kernel knows them."""
    tasks = Path(f"/proc/{worker.process.pid}/task").glob("*/children")
    return [pid for task in tasks for pid in map(int, task.read_text().split()) if is_alive(pid)]


def at_work(issue: Issue) -> set[int]:
    """Return the pids of the processes that hold copies of the issue now, as they wrote them into their leases."""
    held = issue.deliveries.filter(state__in=[State.CLAIMED, State.HANDING_OVER]).values("lease_id")
    owners = Lease.objects.filter(pk__in=held, ended_at=None).values_list("owner", flat=True)
    return {int(owner.rpartition(":")[2]) for owner in owners}


def kill(pids: Iterable[int], signum: int = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, signum)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still while the block lasts, as a machine that swaps or is suspended would."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@cache
def faketime() -> str:
    """Return the library that shows a process another time than the machine's; installed where that can be done."""
    found = preloaded()
    if not found and os.geteuid() == 0 and Path("/etc/debian_version").exists():
        for words in (["update"], ["install", "--no-install-recommends", "faketime"]):
            subprocess.run(["apt-get", "-y", "-q", *words], capture_output=True, timeout=FETCH_SECONDS, check=False)
        found = preloaded()
    return found


def preloaded() -> str:
    return str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), ""))


def wrong_clock(offset: Path) -> dict[str, str]:
    """Return the environment of processes whose clock is wrong by what the file says at each moment, such as +10m."""
    if not faketime():
        pytest.skip("faketime is missing and could not be installed")
    return {
        "LD_PRELOAD": faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def workers(relay: SmtpServer, logs: Path, scaled: dict[str, str], **env: str) -> Workers:
    """Return worker, system worker and beat with scaled times and few connections, not started yet.

    What they have to tell the author goes nowhere: the relay of the test sees copies of the issue alone.
    """
    own = {"SMTP_CONNECTIONS": str(CONNECTIONS), "EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend"}
    return Workers(relay, logs, env={**scaled, **own, **env})


@dataclass
class Cron:
    """Runs `manage.py sweep --send` again and again as cron would, until the issue has come to its end."""

    issue: Issue
    env: dict[str, str]
    log: Path
    runs: int = 0

    def run(self) -> subprocess.Popen[bytes]:
        self.runs += 1
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [*MANAGE, "sweep", "--send"], env={**os.environ, **self.env}, stdout=output, stderr=output
            )

    def run_to_the_end(self, *, most: int = 10) -> None:
        while not is_through(self.issue):
            assert self.runs < most, f"{self.issue.counts()}\n{self.log.read_text()[-3000:]}"
            self.run().wait(60)


def cron(relay: SmtpServer, issue: Issue, logs: Path, scaled: dict[str, str], **env: str) -> Cron:
    return Cron(issue, workers(relay, logs, scaled, **env).environment(), logs / "cron.log")


# The database


@contextmanager
def own_connection() -> Iterator[psycopg.Connection[Any]]:
    """Give the test a connection of its own beside Django's, in a transaction that comes to nothing."""
    with psycopg.connect(database_url()) as own:
        yield own
        own.rollback()


@contextmanager
def intents_held(issue: Issue) -> Iterator[None]:
    """Lock the issue's row: intents get as far as the database and wait there; claims and leases go on."""
    with own_connection() as own:
        own.execute("SELECT 1 FROM newsletter_issue WHERE id = %s FOR NO KEY UPDATE", [issue.pk])
        yield


def intents_waiting() -> int:
    return ask(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        " AND wait_event_type = 'Lock'",
        SENDER,
    )


def senders() -> int:
    """Return how many connections of processes that hand copies over there are."""
    return ask(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s", SENDER
    )


def ask(sql: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()[0]


def database_now() -> datetime:
    now: datetime = ask("SELECT clock_timestamp()")
    return now


def end_database_connections(application: str = "%") -> int:
    """Let PostgreSQL end every connection to this database but the test's own, as a restart would; return how many."""
    return ask(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name LIKE %s",
        application,
    )


# The issue


def states(issue: Issue, *wanted: str) -> set[str]:
    """Return the addresses whose copy is in one of these states."""
    return set(issue.deliveries.filter(state__in=wanted).values_list("address", flat=True))


def all_answered(issue: Issue, relay: SmtpServer) -> bool:
    """Tell whether the relay has taken every copy whose hand-over is under way, and that there are some."""
    under_way = states(issue, State.HANDING_OVER)
    return bool(under_way) and under_way <= set(relay.recipients)


def wait_until_completed(issue: Issue) -> None:
    def is_completed() -> bool:
        issue.refresh_from_db()
        return issue.state == Issue.State.COMPLETED

    wait_until(is_completed, seconds=RESTART_SECONDS, why=lambda: f"{issue.state}: {issue.counts()}")


def assert_completed(issue: Issue, relay: SmtpServer) -> None:
    """Everybody has his copy, once, and nothing is left open or unknown."""
    assert_promise(issue, relay, unknown_at_most=0)
    assert (len(logged(relay)), issue.state) == (issue.planned, Issue.State.COMPLETED)


# The relay


def pace(session: Session) -> Answer:
    """Answer DATA so slowly that a test finds the run in its midst."""
    return 0.1


@dataclass
class Stall:
    """A script for one phase: while it is on, each connection that comes to it waits there; `seen` names them."""

    told: Answer
    on: bool = True
    seen: list[int] = field(default_factory=list)

    def __call__(self, session: Session) -> Answer:
        if not self.on:
            return None
        self.seen.append(session.number)
        return self.told


def write_relay_log(relay: SmtpServer, path: Path) -> None:
    """Write what the relay has taken until now as a Postfix would have logged it; it must keep the contents."""
    now = datetime.now(UTC).isoformat()
    lines = ["2001-01-01T00:00:00+00:00 relay postfix/master[1]: daemon started"]
    for number, mail in enumerate(list(relay.mails)):
        found = MESSAGE_ID.search(mail.content)
        assert found
        file = f"{number:010X}"
        lines += [
            f"{now} relay postfix/smtpd[2]: {file}: client=localhost[127.0.0.1]",
            f"{now} relay postfix/cleanup[3]: {file}: message-id={found[1].decode()}",
            f"{now} relay postfix/qmgr[4]: {file}: from=<{mail.sender}>, size=1000, nrcpt=1 (queue active)",
        ]
    lines.append(f"{now} relay postfix/anvil[5]: statistics: max connection count 8")
    draft = path.with_suffix(".draft")
    draft.write_text("\n".join(lines) + "\n")
    draft.rename(path)


# Proxies


class End(asyncio.Protocol):
    """One end of a passage: towards the client or towards the server."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.passage.connected(self)

    def data_received(self, data: bytes) -> None:
        self.passage.read(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.passage.cut()


class Passage:
    """A connection through a proxy, both ways."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client, self.server = End(self), End(self)
        self.is_cut = False

    def connected(self, end: End) -> None:
        assert end.transport
        if end is self.server:
            self.flow(not self.proxy.held)
        elif self.proxy.refusing:
            end.transport.abort()
        else:
            self.proxy.passages.add(self)
            end.transport.pause_reading()
            self.proxy.spawn(self.reach_server())

    async def reach_server(self) -> None:
        try:
            await self.proxy.connect(lambda: self.server)
        except OSError:
            self.cut()

    def flow(self, on: bool) -> None:
        for end in (self.client, self.server):
            if end.transport and not end.transport.is_closing():
                (end.transport.resume_reading if on else end.transport.pause_reading)()

    def read(self, end: End, data: bytes) -> None:
        other = self.server if end is self.client else self.client
        if other.transport and not other.transport.is_closing():
            other.transport.write(data)

    def cut(self) -> None:
        self.is_cut = True
        self.proxy.passages.discard(self)
        for end in (self.client, self.server):
            if end.transport:
                end.transport.abort()


class Proxy:
    """Stands on 127.0.0.1 before a server on a port: cuts what goes through it, holds it up, or lets nobody in."""

    passage: type[Passage] = Passage

    def __init__(self, port: int = 0) -> None:
        self.upstream = port
        self.port = 0
        self.refusing = self.held = False
        self.passages: set[Passage] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Any:
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=[ready], daemon=True)
        self.thread.start()
        assert ready.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(
            self.loop.create_server(lambda: self.passage(self).client, "127.0.0.1", 0, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()
        server.close()
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    def spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, protocol: Any) -> None:
        await self.loop.create_connection(protocol, "127.0.0.1", self.upstream)

    def cut(self) -> None:
        """Cut all that goes through it at this moment."""
        self._do(self._cut)

    def refuse(self) -> None:
        """Cut everything and let nobody in."""
        self.refusing = True
        self.cut()

    def hold(self) -> None:
        """Hold up what is said, both ways, without a word to anybody."""
        self.held = True
        self._do(lambda: [passage.flow(False) for passage in self.passages])

    def open(self) -> None:
        """Go on as if nothing had been."""
        self.refusing = self.held = False
        self._do(lambda: [passage.flow(True) for passage in self.passages])

    def _cut(self) -> None:
        for passage in list(self.passages):
            passage.cut()

    def _do(self, act: Any) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (act(), done.set()))
        assert done.wait(5)


@dataclass
class Strike:
    """Cut all connections when a statement with these words comes by: before the database has it, or after it is done.

    It counts from a statement with the words `behind` on; `skip` of those with `words` pass, and once it has fallen
    nobody is let in for `seconds`.
    """

    words: bytes
    when: Literal["before", "after"]
    behind: bytes
    skip: int
    seconds: float = 0.5
    counts: bool = False
    fell: threading.Event = field(default_factory=threading.Event)

    def meets(self, statement: bytes) -> bool:
        self.counts = self.counts or self.behind in statement
        if self.fell.is_set() or not self.counts or self.words not in statement:
            return False
        self.skip -= 1
        return self.skip < 0


class DatabasePassage(Passage):
    """A connection to PostgreSQL: reads what is asked (Frontend/Backend Protocol 3.0, chapter “Message Formats”)."""

    proxy: DatabaseProxy

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self.unread = b""
        self.has_begun = False
        self.statements: dict[bytes, bytes] = {}
        self.struck = False  # all is to be cut once the answer is here

    def read(self, end: End, data: bytes) -> None:
        if end is self.server:
            self.hear(data)
            return
        strikes = [strike for statement in self.asked(data) for strike in self.proxy.strikes if strike.meets(statement)]
        for strike in strikes:
            strike.fell.set()
            self.proxy.shut_for(strike.seconds)
        self.struck = any(strike.when == "after" for strike in strikes)
        if strikes and not self.struck:
            self.proxy._cut()
        else:
            super().read(end, data)

    def hear(self, data: bytes) -> None:
        """Pass an answer on, unless it must not arrive: then cut as soon as it says that all is done and committed."""
        if not self.struck:
            super().read(self.server, data)
        elif data[-6:-1] == b"Z\0\0\0\5":  # ReadyForQuery
            self.proxy._cut()

    def asked(self, data: bytes) -> list[bytes]:
        """Return the statements that are executed by what was read."""
        self.unread += data
        statements = []
        while message := self.next_message():
            kind, body = message
            if kind == b"P":
                name, text = body.split(b"\0")[:2]
                self.statements[name] = text
            elif kind == b"B":
                statements.append(self.statements.get(body.split(b"\0")[1], b""))
            elif kind == b"Q":
                statements.append(body)
        return statements

    def next_message(self) -> tuple[bytes, bytes] | None:
        skip = 1 if self.has_begun else 0  # the first message has no letter for its kind
        if len(self.unread) < skip + 4:
            return None
        end = skip + int.from_bytes(self.unread[skip : skip + 4], "big")
        if len(self.unread) < end:
            return None
        kind, body, self.unread = self.unread[:skip], self.unread[skip + 4 : end], self.unread[end:]
        self.has_begun = body[:2] != TLS_OR_GSS
        return kind or b"startup", body


class DatabaseProxy(Proxy):
    """Stands before the PostgreSQL of this test; `url` is what others take for the database's address."""

    passage = DatabasePassage

    def __init__(self) -> None:
        super().__init__()
        self.strikes: list[Strike] = []
        self.database = urlsplit(database_url())

    @property
    def url(self) -> str:
        login = self.database.netloc.rpartition("@")[0]
        return f"postgres://{login}@127.0.0.1:{self.port}{self.database.path}?sslmode=disable"

    async def connect(self, protocol: Any) -> None:
        host, _, port = self.database.netloc.rpartition("@")[2].rpartition(":")
        if host.startswith("%2F"):
            await self.loop.create_unix_connection(protocol, f"{unquote(host)}/.s.PGSQL.{port}")
        else:
            await self.loop.create_connection(protocol, host, int(port))

    def strike(self, words: str, when: Literal["before", "after"], *, behind: str = "", skip: int = 0) -> Strike:
        strike = Strike(words.encode(), when, behind.encode(), skip)
        self.strikes.append(strike)
        return strike

    def shut_for(self, seconds: float) -> None:
        self.refusing = True
        self.loop.call_later(seconds, setattr, self, "refusing", False)
