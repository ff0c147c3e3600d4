"""The broker is flushed, killed, full, behind the times, or wrong about all it carries: mail comes later, no worse."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu import Connection, pools

from newsletter import delivery, embedded
from newsletter.celery import app
from newsletter.models import Issue
from posts.models import Publication
from subscribers import tokens
from tests.factories import make_issue, make_post, make_readers, make_slot
from tests.faults.conftest import assert_promise, is_through, logged
from tests.smtpd import SmtpServer
from tests.workers import Workers, wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "300"))
CONNECTIONS = 4
PAUSE = 0.1  # seconds the relay thinks over each copy, so that a run lasts long enough to break something in it
QUEUES = ("bulk", "system")
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


class Valkey:
    """A Valkey of the test's own on a loopback port, without anything on disk: killed, it has forgotten all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir()

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), "save": ""}
        command = [str(embedded._valkey()), *(word for pair in options.items() for word in (f"--{pair[0]}", pair[1]))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        wait_until(self.answers, why=(self.folder / "log").read_text)

    def answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Valkey]:
    """A broker that this test may break: this process and its workers use it."""
    with Valkey(tmp_path / "valkey") as valkey, broker_at(valkey.url):
        yield valkey


@contextlib.contextmanager
def broker_at(url: str) -> Iterator[None]:
    before = app.conf.broker_url
    change_broker(url)
    try:
        yield
    finally:
        change_broker(before)


def change_broker(url: str) -> None:
    """Let this process publish elsewhere: connections that Celery keeps are given up."""
    pools.reset()
    app._pool = app.amqp._producer_pool = None
    app.conf.broker_url = url


def sending(relay: SmtpServer, *, pause: float = PAUSE) -> Issue:
    issue = made(relay, pause=pause)
    delivery.send_now(issue)
    return issue


def made(relay: SmtpServer, *, pause: float = PAUSE) -> Issue:
    relay.script["final_dot"] = lambda session: pause
    make_readers(RECIPIENTS)
    return make_issue(make_post())


def await_taken(relay: SmtpServer, issue: Issue, share: float) -> None:
    wait_until(lambda: len(relay.recipients) > share * RECIPIENTS, seconds=120, why=issue.counts)


def await_end(issue: Issue, relay: SmtpServer, workers: Workers) -> None:
    """Wait until the issue is through, and see that everyone got one copy and nothing is unknown."""
    wait_until(lambda: is_through(issue), seconds=200, why=lambda: (issue.counts(), last_words(workers)))
    assert_promise(issue, relay, unknown_at_most=0)
    assert (len(logged(relay)), issue.state) == (RECIPIENTS, Issue.State.COMPLETED)


def last_words(workers: Workers) -> str:
    return "\n".join(child.last_words() for child in workers.children)


def logs(workers: Workers) -> str:
    return "".join(child.log.read_text(errors="replace") for child in workers.children)


@pytest.fixture
def env(scaled: dict[str, str]) -> dict[str, str]:
    """Name what workers get; alerts to the author are no copies, so they stay out of the relay's ledger."""
    no_mail = "django.core.mail.backends.dummy.EmailBackend"
    return {**scaled, "SMTP_CONNECTIONS": str(CONNECTIONS), "EMAIL_BACKEND": no_mail}


@pytest.mark.long
def test_fi_08_a_broker_flushed_again_and_again_in_a_run_costs_only_time(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with Workers(relay, tmp_path, env=env) as workers:
        for share in (0.2, 0.4, 0.6):
            await_taken(relay, issue, share)
            broker.client.flushall()
        await_end(issue, relay, workers)


@pytest.mark.long
def test_fi_09_a_broker_killed_in_a_run_and_started_with_nothing_costs_only_time(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with Workers(relay, tmp_path, env=env) as workers:
        await_taken(relay, issue, 0.3)
        broker.kill()
        await_taken(relay, issue, 0.5)
        broker.start()
        await_end(issue, relay, workers)


@pytest.mark.long
def test_fi_09_a_broker_killed_as_a_slot_comes_lets_its_issue_go_once(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = made(relay, pause=0)
    with Workers(relay, tmp_path, env=env) as workers:
        slot = make_slot()
        issue.schedule(slot)
        slot.move(timezone.now() + dt.timedelta(seconds=1))
        time.sleep(max(0.0, (slot.due_at - timezone.now()).total_seconds()))
        broker.kill()
        time.sleep(1)
        broker.start()
        await_end(issue, relay, workers)
    assert issue.started_at is not None
    print(f"started {(issue.started_at - slot.due_at).total_seconds():.1f} s after its instant")
    assert issue.started_at >= slot.due_at


@pytest.mark.long
def test_fi_10_a_failover_to_a_broker_that_lags_behind_costs_only_time(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with Valkey(tmp_path / "replica") as replica, Switch(broker.port) as switch, broker_at(switch.url):
        replica.client.replicaof("127.0.0.1", broker.port)
        with Workers(relay, tmp_path, env=env) as workers:
            await_taken(relay, issue, 0.2)
            wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
            replica.client.replicaof("NO", "ONE")  # what it holds from here on is old
            await_taken(relay, issue, 0.5)
            switch.turn(replica.port)
            broker.kill()
            await_end(issue, relay, workers)


class Switch:
    """A port that leads to one broker and, once turned, to another; what was connected is cut."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.pairs: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"

    def __enter__(self) -> Switch:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def turn(self, target: int) -> None:
        self.target = target
        self.cut()

    def cut(self) -> None:
        while self.pairs:
            with contextlib.suppress(OSError):
                self.pairs.pop().shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self.join, args=[client], daemon=True).start()

    def join(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            self.pairs += [client, server]
            back = threading.Thread(target=pump, args=[server, client], daemon=True)
            back.start()
            pump(client, server)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.mark.long
def test_fi_11_a_broker_that_is_full_refuses_nobody_who_signs_up_and_holds_up_no_issue(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with Workers(relay, tmp_path, env={**env, "EMAIL_BACKEND": ""}) as workers:
        await_taken(relay, issue, 0.2)
        broker.client.config_set("maxmemory", "1")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            broker.client.lpush("bulk", "refused")
        assert sign_up("zoe@example.org").status_code == 302
        wait_until(lambda: relay.recipients["zoe@example.org"] == 1, seconds=60, why=lambda: last_words(workers))
        wait_until(lambda: is_through(issue), seconds=200, why=lambda: (issue.counts(), last_words(workers)))
        print(f"swept by a worker {logs(workers).count('nobody has swept')} times")
        broker.client.config_set("maxmemory", "0")
        sweep_heard = "Task newsletter.tasks.sweep["
        before = logs(workers).count(sweep_heard)
        wait_until(lambda: logs(workers).count(sweep_heard) > before, seconds=60, why=lambda: last_words(workers))
        assert not [child.name for child in workers.children if child.is_dead]
    assert copies(relay) == {1: RECIPIENTS}
    assert (issue.counts().sent, issue.state) == (RECIPIENTS, Issue.State.COMPLETED)


def copies(relay: SmtpServer) -> dict[int, int]:
    """Count how many readers got one mail, and how many more, among those whom the issue goes to."""
    return Counter(times for address, times in logged(relay).items() if address.startswith("reader"))


def sign_up(address: str) -> Any:
    form = {"address": address, "token": tokens.form_token("subscribe"), "website": ""}
    return Client().post(reverse("subscribers:subscribe_form"), form)


@pytest.mark.long
def test_fi_12_each_message_twice_and_in_the_wrong_order_changes_nothing(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with Valkey(tmp_path / "sent") as sent, Post(sent, broker, twice_and_backwards) as post:
        with Workers(relay, tmp_path, env={**env, **post.environment}) as workers:
            await_end(issue, relay, workers)
        assert post.passed["bulk"] == 2 * post.posted["bulk"] > 0
        times = Counter(re.findall(r"Task newsletter\.tasks\.\w+\[([\w-]+)\] received", logs(workers)))
    print(f"{post.posted} posted, {sum(n > 1 for n in times.values())} of {len(times)} received twice")
    assert sum(n > 1 for n in times.values()) > len(times) // 2


@pytest.mark.long
def test_fi_13_with_every_message_lost_a_worker_s_watchman_sends_all_there_is(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = made(relay)
    issue.schedule_at(timezone.now())
    sign_up("zoe@example.org")
    with Valkey(tmp_path / "sent") as sent, Post(sent, broker, lose) as post:
        with Workers(relay, tmp_path, env={**env, **post.environment, "EMAIL_BACKEND": ""}) as workers:
            wait_until(lambda: is_through(issue), seconds=200, why=lambda: (issue.counts(), last_words(workers)))
            wait_until(lambda: relay.recipients["zoe@example.org"] == 1, why=lambda: last_words(workers))
            assert "received" not in logs(workers)
        print(f"{post.posted} lost; swept by a worker {logs(workers).count('nobody has swept')} times")
        assert post.posted["system"] > 0
    assert (issue.counts().sent, issue.state) == (RECIPIENTS, Issue.State.COMPLETED)
    assert copies(relay) == {1: RECIPIENTS}


@pytest.mark.long
def test_fi_13_a_watchman_s_sending_ends_with_its_worker_and_leaves_nothing_unknown(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay)
    with (
        Valkey(tmp_path / "sent") as sent,
        Post(sent, broker, lose) as post,
        Workers(relay, tmp_path, names=("worker",), env={**env, **post.environment}) as workers,
    ):
        await_taken(relay, issue, 0.2)
        worker = workers.children[0]
        assert len(sweeps_of(worker.process.pid)) == 1
        (sweep,) = sweeps_of(worker.process.pid)
        began = time.monotonic()
        worker.process.terminate()
        worker.process.wait(30)
        assert not Path(f"/proc/{sweep}").exists()
        print(f"ended after {time.monotonic() - began:.1f} s, {issue.counts()}")
    taken = len(relay.recipients)
    counts = issue.counts()
    assert (counts.sent, counts.unknown) == (taken, 0)
    assert 0 < taken < RECIPIENTS
    assert not issue.deliveries.filter(state__in=["claimed", "handing_over"]).exists()


def sweeps_of(pid: int) -> list[int]:
    """Return the processes of `manage.py sweep` that process `pid` has started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for path in children for child in path.read_text().split()]
    return [pid for pid in pids if b"\0sweep\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


Treatment = Callable[[list[bytes]], list[bytes]]


def twice_and_backwards(messages: list[bytes]) -> list[bytes]:
    return [message for message in reversed(messages) for _n in range(2)]


def lose(messages: list[bytes]) -> list[bytes]:
    return []


class Post:
    """Carries every message from the broker it was sent to into the one that workers read, treated on the way."""

    def __init__(self, sent: Valkey, read: Valkey, treat: Treatment) -> None:
        self.sent, self.read, self.treat = sent, read, treat
        self.posted: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    @property
    def environment(self) -> dict[str, str]:
        """Return what makes Celery send to one broker and read from another."""
        return {"CELERY_BROKER_WRITE_URL": self.sent.url, "CELERY_BROKER_READ_URL": self.read.url}

    def __enter__(self) -> Post:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            for queue in QUEUES:
                self.carry(queue)

    def carry(self, queue: str) -> None:
        """Take what has come; the newest stands on the left, and the right end is read first."""
        messages = self.sent.client.rpop(queue, 1000) or []
        treated = self.treat(messages)
        self.posted[queue] += len(messages)
        self.passed[queue] += len(treated)
        if treated:
            self.read.client.lpush(queue, *treated)


@pytest.mark.long
def test_fi_14_a_task_that_outlives_the_broker_s_patience_is_done_again_and_harms_nobody(
    publication: Publication, relay: SmtpServer, broker: Valkey, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = sending(relay, pause=CONNECTIONS * 2 * 25 / RECIPIENTS)  # the run lasts some 25 seconds
    with Workers(relay, tmp_path, env={**env, "CLAIM_SECONDS": "60"}) as workers, Impatience(broker.url):
        await_end(issue, relay, workers)
        times = Counter(re.findall(r"Task newsletter\.tasks\.send_issue\[([\w-]+)\] received", logs(workers)))
    print(f"tasks received: {sorted(times.values())}")
    assert max(times.values()) > 1


class Impatience:
    """Another user of the broker, who gives back what is not done within five seconds: the shortest patience wins."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url, transport_options={"visibility_timeout": 5, "unacked_restore_throttle": 1})
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> Impatience:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()

    def run(self) -> None:
        with self.connection as connection:
            while not self.ended.wait(1):
                connection.default_channel.qos.restore_visible(interval=1)
