"""Processes that are killed, stopped, told to end or given a wrong clock, each at the worst moment of a hand-over."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection

from newsletter import delivery
from newsletter.models import Delivery, Issue, Lease
from posts.models import Publication
from tests.factories import make_issue, make_post, make_readers
from tests.faults import harness
from tests.faults.conftest import assert_promise, is_through, logged
from tests.faults.harness import (
    CONNECTIONS,
    LINKS,
    PROCESSES,
    RESTART_SECONDS,
    Stall,
    assert_completed,
    pace,
    states,
    wait_until_completed,
)
from tests.smtpd import SmtpServer
from tests.workers import wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "300"))
KILLS = 20
GRACE_SECONDS = 10.0  # a worker told to end has finished what is under way
NOTICE_SECONDS = 1.0  # so long it may take to notice
Claims = Callable[[], list[dt.datetime]]
WATCH_CLAIMS = """
CREATE TABLE pg_temp_claims (at timestamptz);
CREATE FUNCTION pg_temp_note_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pg_temp_claims VALUES (clock_timestamp());
    RETURN NEW;
END $$;
CREATE TRIGGER note_claim BEFORE UPDATE OF state ON newsletter_delivery
    FOR EACH ROW WHEN (NEW.state = 'claimed') EXECUTE FUNCTION pg_temp_note_claim();
"""
UNWATCH_CLAIMS = "DROP FUNCTION pg_temp_note_claim CASCADE; DROP TABLE pg_temp_claims;"
State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300), pytest.mark.long]


@pytest.fixture
def issue(publication: Publication, relay: SmtpServer) -> Issue:
    """An issue that is being sent, though nobody is at work yet."""
    relay.keep_content = True  # its Message-IDs are asked for
    relay.script["data"] = pace
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 400))
    delivery.send_now(issue)
    return issue


@pytest.fixture
def reconciled(tmp_path: Path) -> dict[str, str]:
    """The environment of workers that look unknown copies up in the relay's log, once there is one."""
    return {"RELAY_LOG": str(tmp_path / "relay-mail.log"), "UNKNOWN_SETTLE_SECONDS": "2"}


@pytest.fixture
def claims(transactional_db: None) -> Iterator[Claims]:
    """Let the database write down when copies are claimed; returns how to read that."""
    with connection.cursor() as cursor:
        cursor.execute(WATCH_CLAIMS)
    yield lambda: harness.ask("SELECT coalesce(array_agg(at ORDER BY at), '{}') FROM pg_temp_claims")
    with connection.cursor() as cursor:
        cursor.execute(UNWATCH_CLAIMS)


def wait_for_the_end(issue: Issue) -> float:
    """Wait until the issue has come to its end by itself; return how many seconds that took."""
    began = time.monotonic()
    wait_until(lambda: is_through(issue), seconds=RESTART_SECONDS, why=issue.counts)
    return time.monotonic() - began


def look_up(issue: Issue, relay: SmtpServer, log: str) -> None:
    """Let the relay's log be found, and wait until every unknown copy is settled by it and the issue is complete."""
    harness.write_relay_log(relay, Path(log))
    wait_until_completed(issue)


def test_fi_01_a_child_killed_between_claim_and_connect_costs_nothing(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    greeting = relay.script["greeting"] = Stall(4.0)
    with harness.workers(relay, tmp_path, scaled):
        wait_until(lambda: len(greeting.seen) >= LINKS and harness.at_work(issue), why=issue.counts)
        assert not relay.recipients
        harness.kill([harness.at_work(issue).pop()])
        greeting.on = False
        print(f"\nended after {wait_for_the_end(issue):.1f} s")
    assert_completed(issue, relay)


def test_fi_02_a_child_killed_after_rcpt_costs_nothing(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    data = relay.script["data"] = Stall(4.0)
    with harness.workers(relay, tmp_path, scaled):
        wait_until(lambda: len(data.seen) >= LINKS and harness.at_work(issue), why=issue.counts)
        harness.kill([harness.at_work(issue).pop()])
        data.on = False
        print(f"\nended after {wait_for_the_end(issue):.1f} s")
    assert_completed(issue, relay)


def test_fi_03_copies_whose_dot_had_no_answer_are_unknown_until_the_relay_is_asked(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], reconciled: dict[str, str]
) -> None:
    taken, dropped = Stall([b"", 60.0, None]), Stall([60.0, "451 4.3.0 Not taken"])
    with harness.workers(relay, tmp_path, scaled, **reconciled) as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=issue.counts)
        relay.script["final_dot"] = lambda session: (taken if session.number % 2 else dropped)(session)
        wait_until(lambda: len(taken.seen) + len(dropped.seen) == LINKS, why=issue.counts)
        in_doubt = states(issue, State.HANDING_OVER)
        harness.kill(harness.at_work(issue))
        relay.script.clear()
        assert len(in_doubt) == LINKS
        wait_until(lambda: states(issue, State.UNCERTAIN) == in_doubt, why=issue.counts)
        wait_until(lambda: issue.counts().open == 0, why=issue.counts)
        assert_promise(issue, relay, unknown_at_most=LINKS)
        assert len(in_doubt & set(logged(relay))) == len(taken.seen)
        look_up(issue, relay, reconciled["RELAY_LOG"])
        assert workers.children
    assert_completed(issue, relay)


@pytest.mark.parametrize("commit", ["is lost", "comes through"])
def test_fi_04_a_worker_killed_before_it_wrote_the_250_down(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], reconciled: dict[str, str], commit: str
) -> None:
    with harness.workers(relay, tmp_path, scaled, **reconciled) as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=issue.counts)
        with harness.intents_held(issue):
            wait_until(lambda: harness.all_answered(issue, relay) and harness.intents_waiting() > 0, why=issue.counts)
            assert len(states(issue, State.HANDING_OVER)) <= LINKS
            workers.kill(workers.children[0])
            if commit == "is lost":
                harness.end_database_connections("masthead-sender")
        workers.start("worker")
        wait_until(lambda: issue.counts().open == 0, seconds=RESTART_SECONDS, why=issue.counts)
        assert_promise(issue, relay, unknown_at_most=LINKS)
        assert issue.counts().unknown > 0
        look_up(issue, relay, reconciled["RELAY_LOG"])
    assert_completed(issue, relay)


@pytest.mark.timeout(600)
def test_fi_05_twenty_kills_at_random_times_lose_and_double_nothing(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], reconciled: dict[str, str]
) -> None:
    chance = random.Random(5)
    kills = 0
    relay.script["data"] = lambda session: chance.uniform(0, 0.8)
    with harness.workers(relay, tmp_path, scaled, **reconciled) as workers:
        while kills < KILLS and issue.counts().open:
            time.sleep(chance.uniform(0, 2))
            workers.kill(workers.children[-1 if kills else 0])
            kills += 1
            workers.start("worker")
        wait_until(lambda: issue.counts().open == 0, seconds=RESTART_SECONDS, why=issue.counts)
        assert kills == KILLS
        assert_promise(issue, relay, unknown_at_most=kills * LINKS)
        look_up(issue, relay, reconciled["RELAY_LOG"])
    assert_completed(issue, relay)


def test_fi_06_a_worker_told_to_end_claims_nothing_more_and_gives_the_rest_back(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], claims: Claims
) -> None:
    with harness.workers(relay, tmp_path, scaled, CLAIM_BATCH="8") as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 6, why=issue.counts)
        worker = workers.children.pop(0)
        told = harness.database_now()
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(20)
        took, last = (harness.database_now() - told).total_seconds(), (claims()[-1] - told).total_seconds()
        print(f"\nended {took:.1f} s after SIGTERM, last claim {last:+.2f} s; {issue.counts()}")
        assert took < GRACE_SECONDS
        assert last < NOTICE_SECONDS
        counts = issue.counts()
        assert (counts.unknown, counts.sent + issue.deliveries.waiting().count()) == (0, RECIPIENTS)
        relay.script.clear()
        workers.start("worker")
        wait_for_the_end(issue)
    assert_completed(issue, relay)


def test_fi_07_a_worker_told_to_quit_at_once_sends_nothing_twice(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], reconciled: dict[str, str]
) -> None:
    relay.script["final_dot"] = lambda session: 0.2
    with harness.workers(relay, tmp_path, scaled, **reconciled) as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 6, why=issue.counts)
        worker = workers.children.pop(0)
        told = time.monotonic()
        worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(30)
        print(f"\nended {time.monotonic() - told:.1f} s after SIGQUIT; {issue.counts()}")
        relay.script.clear()
        workers.start("worker")
        wait_until(lambda: issue.counts().open == 0, seconds=RESTART_SECONDS, why=issue.counts)
        assert_promise(issue, relay, unknown_at_most=LINKS)
        look_up(issue, relay, reconciled["RELAY_LOG"])
    assert_completed(issue, relay)


@pytest.mark.parametrize("commit", ["is under way", "is done"])
def test_fi_07_a_child_that_exits_inside_the_commit_of_an_intent_sends_nothing_twice(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], reconciled: dict[str, str], commit: str
) -> None:
    """SIGTERM makes a Celery child raise SystemExit wherever it is, as a cold shutdown does."""
    with harness.workers(relay, tmp_path, scaled, **reconciled):
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 6, why=issue.counts)
        with harness.intents_held(issue):
            wait_until(lambda: harness.intents_waiting() == PROCESSES, why=issue.counts)
            children = harness.at_work(issue)
            harness.kill(children, signal.SIGTERM if commit == "is under way" else signal.SIGSTOP)
        wait_until(lambda: harness.intents_waiting() == 0, why=issue.counts)
        if commit == "is done":
            harness.kill(children, signal.SIGTERM)
            harness.kill(children, signal.SIGCONT)
        wait_until(lambda: not any(map(harness.is_alive, children)), why=issue.counts)
        wait_until(lambda: issue.counts().open == 0, seconds=RESTART_SECONDS, why=issue.counts)
        assert_promise(issue, relay, unknown_at_most=LINKS)
        look_up(issue, relay, reconciled["RELAY_LOG"])
    assert_completed(issue, relay)


def test_fi_15_a_process_that_wakes_before_the_dot_after_its_lease_sends_nothing(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    data = relay.script["data"] = Stall(3.0)
    with harness.workers(relay, tmp_path, scaled) as workers:
        wait_until(lambda: len(data.seen) >= LINKS and len(harness.at_work(issue)) == PROCESSES, why=issue.counts)
        sleeper = harness.at_work(issue).pop()
        with harness.stopped(sleeper):
            data.on = False
            wait_for_the_end(issue)
            assert_completed(issue, relay)
            taken = logged(relay)
        wait_until(lambda: harness.senders() == 0)
        assert "the lease on issue" in workers.children[0].log.read_text()
        assert logged(relay) == taken
    assert_completed(issue, relay)


def test_fi_16_a_process_that_wakes_between_intent_and_dot_takes_its_intent_back(
    issue: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    with harness.workers(relay, tmp_path, scaled):
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=issue.counts)
        with harness.intents_held(issue):
            wait_until(lambda: harness.intents_waiting() == PROCESSES, why=issue.counts)
            sleeper = harness.at_work(issue).pop()
            os.kill(sleeper, signal.SIGSTOP)
        with harness.stopped(sleeper):
            wait_until(lambda: issue.counts().open == 0, why=issue.counts)
            in_doubt = states(issue, State.UNCERTAIN)
            print(f"\n{issue.counts()}")
            assert 0 < len(in_doubt) <= CONNECTIONS
        wait_until_completed(issue)
    assert_completed(issue, relay)


@pytest.mark.parametrize("clock", ["+10m", "-10m", "step"])
def test_fi_22_a_worker_with_a_wrong_clock_keeps_to_the_databases(
    publication: Publication, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], clock: str
) -> None:
    """All its processes, the system worker's and the beat's go wrong by ten minutes, or step by twenty in mid-run."""
    offset = tmp_path / "clock"
    offset.write_text("+10m" if clock == "step" else clock)
    relay.script["data"] = pace
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 400))
    began = harness.database_now()
    with harness.workers(relay, tmp_path, scaled, **harness.wrong_clock(offset)):
        issue.schedule_at(harness.database_now() + dt.timedelta(seconds=3))
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=issue.counts)
        if clock == "step":
            offset.write_text("-10m")
        wait_for_the_end(issue)
    assert_completed(issue, relay)
    print(f"\nbegan {issue.started_at - issue.due_at} after its instant")
    assert issue.due_at <= issue.started_at < issue.due_at + dt.timedelta(seconds=5)
    instants = [issue.prepared_at, issue.started_at, issue.completed_at]
    for lease in Lease.objects.all():
        instants += [lease.started_at, lease.renewed_at, lease.ended_at]
    instants += issue.deliveries.values_list("accepted_at", flat=True)
    assert began <= min(instants)
    assert max(instants) <= harness.database_now()
