"""Two faults of the list at random in one run: SEEDS=n tries so many pairs, -k "seed7]" one of them again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from newsletter import delivery, processes
from newsletter.celery import app
from newsletter.models import Issue
from newsletter.processes import Child
from posts.models import Publication
from tests.factories import make_issue, make_post, make_readers
from tests.faults import harness
from tests.faults.conftest import FACTOR, assert_promise, is_through, logged
from tests.faults.harness import CONNECTIONS, LINKS, RESTART_SECONDS, Proxy
from tests.smtpd import DROP, Answer, Session, SmtpServer
from tests.workers import CELERY, Workers, wait_until

SEEDS = int(os.environ.get("SEEDS", "2"))
RECIPIENTS = int(os.environ.get("RECIPIENTS", "200"))
RECOVERY_SECONDS = 300 / FACTOR  # five minutes in production's time; processes start at this machine's own pace
# Replies for a time, at a random phase: one in twenty is this one.
BAD_SHARE = 0.05
PHASES = ("greeting", "ehlo", "mail", "rcpt", "data", "final_dot")
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300), pytest.mark.long]


@dataclass
class Scene:
    """A run under way, what may be broken in it, and how many copies may be unknown or refused because of that."""

    issue: Issue
    relay: SmtpServer
    wire: Proxy
    workers: Workers
    chance: random.Random
    unknown: int = 0
    refused: list[int] = field(default_factory=list)

    @property
    def worker(self) -> Child:
        return next(child for child in self.workers.children if child.name == "worker")


def kill_child(scene: Scene) -> None:
    """Kill one of the processes that send."""
    wait_until(lambda: harness.prefork_children(scene.worker))
    harness.kill([scene.chance.choice(harness.prefork_children(scene.worker))])
    scene.unknown += CONNECTIONS


def kill_worker(scene: Scene) -> None:
    """Kill the worker with all its processes, and start another."""
    scene.workers.kill(scene.worker)
    scene.unknown += LINKS
    scene.workers.start("worker")


def end_worker(scene: Scene) -> None:
    """Tell the worker to end, as a deployment does, and start another."""
    worker = scene.worker
    scene.workers.children.remove(worker)
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(30)
    scene.workers.start("worker")


def cut_smtp(scene: Scene) -> None:
    """Cut every connection to the relay."""
    scene.unknown += len(scene.wire.passages)
    scene.wire.cut()


def cut_database(scene: Scene) -> None:
    """End every connection to the database."""
    harness.end_database_connections()


def flush_broker(scene: Scene) -> None:
    """Let the broker forget everything."""
    with app.connection_for_write() as broker:
        broker.default_channel.client.flushall()


def pause(scene: Scene) -> None:
    """Pause the issue and resume it."""
    scene.issue.refresh_from_db()
    if scene.issue.state == Issue.State.SENDING:
        scene.issue.pause()
        time.sleep(scene.chance.uniform(0, 1))
        scene.issue.resume()


def second_beat(scene: Scene) -> None:
    """Start a second beat beside the first, as on another machine."""
    elsewhere = scene.workers.logs / "elsewhere"
    elsewhere.mkdir()
    command = [CELERY, "-A", "newsletter", "beat", "--pidfile=", f"--schedule={elsewhere}/schedule"]
    beat = processes.start("beat", command, env=scene.workers.environment(), logs=elsewhere)
    scene.workers.children.append(beat)


def bad_replies(kind: str) -> Callable[[Scene], None]:
    """Return a fault: from now on the relay answers one in twenty times in this way, at a random phase."""

    def fault(scene: Scene) -> None:
        phase = scene.chance.choice(PHASES)
        usual = scene.relay.script.get(phase)

        def script(session: Session) -> Answer:
            if scene.chance.random() > BAD_SHARE:
                return usual(session) if usual else None
            if kind == "drop" and phase == "final_dot":
                scene.unknown += 1
            if kind == "5xx" and phase not in ("greeting", "ehlo"):
                scene.refused.append(session.number)
            return {"drop": DROP, "4xx": "450 4.2.0 Try later", "5xx": "550 5.1.1 Unknown"}[kind]

        scene.relay.script[phase] = script

    fault.__doc__ = f"{kind} of the relay, now and then"
    return fault


FAULTS: dict[str, Callable[[Scene], None]] = {
    "kill a child": kill_child,
    "kill the worker": kill_worker,
    "SIGTERM": end_worker,
    "cut SMTP": cut_smtp,
    "cut the database": cut_database,
    "FLUSHALL": flush_broker,
    "pause": pause,
    "second beat": second_beat,
    "drops": bad_replies("drop"),
    "4xx": bad_replies("4xx"),
    "5xx": bad_replies("5xx"),
}


@pytest.fixture
def wire(relay: SmtpServer) -> Iterator[Proxy]:
    """What runs between the workers and the relay."""
    with Proxy(relay.port) as wire:
        yield wire


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}")
def test_fi_46_two_random_faults_in_one_run_lose_and_double_nothing(
    publication: Publication,
    relay: SmtpServer,
    wire: Proxy,
    tmp_path: Path,
    scaled: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    chance = random.Random(seed)
    names = chance.sample(sorted(FAULTS), 2)
    instants = sorted(chance.uniform(0, 0.8) for _ in names)
    relay.keep_content = True
    relay.script["data"] = harness.pace
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 400))
    delivery.send_now(issue)
    log = tmp_path / "relay-mail.log"
    # A first retry after five minutes would come after ten seconds; here it comes after one.
    hurried = {"RETRY_FIRST_SECONDS": "1", "UNKNOWN_SETTLE_SECONDS": "2", "RELAY_LOG": str(log)}
    with harness.workers(relay, tmp_path, scaled, **hurried, SMTP_PORT=str(wire.port)) as workers:
        scene = Scene(issue, relay, wire, workers, chance)
        for name, instant in zip(names, instants, strict=True):
            wait_until(
                lambda at=instant: len(relay.recipients) >= at * RECIPIENTS or is_through(issue), why=issue.counts
            )
            FAULTS[name](scene)
        broken = time.monotonic()
        wait_until(lambda: is_through(issue), seconds=RECOVERY_SECONDS + RESTART_SECONDS, why=issue.counts)
        took, counts = time.monotonic() - broken, issue.counts()
        assert_promise(issue, relay, unknown_at_most=scene.unknown)
        assert counts.failed <= len(scene.refused)
        relay.script.clear()
        harness.write_relay_log(relay, log)
        wait_until(lambda: is_settled(issue), seconds=RESTART_SECONDS, why=issue.counts)
    assert_promise(issue, relay, unknown_at_most=0)
    assert len(logged(relay)) + counts.failed == RECIPIENTS
    with capsys.disabled():
        print(f"\nseed {seed}: {names[0]}, {names[1]}: through after {took:.1f} s; {counts}; then {issue.counts()}")


def is_settled(issue: Issue) -> bool:
    """Tell whether nothing is unknown any more, by the relay's own log, and nothing else is left to do."""
    return is_through(issue) and issue.state != Issue.State.NEEDS_REVIEW
