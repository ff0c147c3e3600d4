"""PostgreSQL goes away at each step of an issue: while it is frozen, claimed from, handed over and written down."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from django.db import connection
from django.utils import timezone

from newsletter import sweeper
from newsletter.models import Delivery, Issue
from posts.models import Publication
from subscribers.models import Subscriber, Suppression
from tests.factories import make_issue, make_post, make_readers
from tests.faults import harness
from tests.faults.conftest import is_through
from tests.faults.harness import CONNECTIONS, MANAGE, DatabaseProxy, assert_completed, pace, states
from tests.smtpd import SmtpServer
from tests.workers import wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "200"))
FROZEN = 2000
WAIT = """
CREATE FUNCTION pg_temp_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(39);
    RETURN NEW;
END $$;
"""
RESTARTS = 5
State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

PLAN, INTEND = "INSERT INTO newsletter_delivery", "ELSE 'handing_over' END"
# The statement by which each step is known to the proxy, and how many of them pass before the blow: an intent writes
# down what was taken before it, so a later one is where acceptances are on their way.
STEPS: dict[str, dict[str, Any]] = {
    "freeze": {"words": PLAN},
    "commit of the freeze": {"words": "COMMIT", "behind": PLAN},
    "claim": {"words": "SET state = 'claimed'"},
    "intent": {"words": INTEND},
    "accept": {"words": INTEND, "skip": 10},
}


@pytest.fixture
def proxy(publication: Publication) -> Iterator[DatabaseProxy]:
    with DatabaseProxy() as proxy:
        yield proxy


@pytest.fixture
def due(publication: Publication) -> Issue:
    """An issue whose instant has come and of which nothing is done yet."""
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 200))
    issue.schedule_at(harness.database_now())
    return issue


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step in ("intent", "accept") else pytest.mark.long) for step in STEPS]
)
def test_fi_23_all_connections_are_cut_before_or_after_a_step_is_done(
    due: Issue,
    relay: SmtpServer,
    tmp_path: Path,
    scaled: dict[str, str],
    proxy: DatabaseProxy,
    step: str,
    when: Literal["before", "after"],
) -> None:
    cron = harness.cron(relay, due, tmp_path, scaled, DATABASE_URL=proxy.url)
    blow = proxy.strike(when=when, **STEPS[step])
    cron.run_to_the_end()
    assert blow.fell.is_set()
    assert_completed(due, relay)


@pytest.mark.long
def test_fi_23_workers_go_on_after_each_restart_of_the_database(
    due: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    relay.script["data"] = pace
    with harness.workers(relay, tmp_path, scaled) as workers:
        for n in range(RESTARTS):
            wait_until(lambda n=n: len(relay.recipients) > n * RECIPIENTS // (RESTARTS + 1), why=due.counts)
            assert harness.end_database_connections() > 0
        wait_until(lambda: is_through(due), seconds=60, why=due.counts)
        assert not any(child.is_dead for child in workers.children)
    assert_completed(due, relay)


@pytest.mark.long
def test_fi_25_answers_are_kept_while_the_database_is_away_for_longer_than_a_lease(
    due: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], proxy: DatabaseProxy
) -> None:
    """Another machine, here this test, reaches the database all the time and sweeps."""
    relay.script["data"] = pace
    worker = harness.cron(relay, due, tmp_path, scaled, DATABASE_URL=proxy.url).run()
    wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=due.counts)
    with harness.intents_held(due):
        wait_until(lambda: harness.all_answered(due, relay) and harness.intents_waiting() > 0, why=due.counts)
        answered = states(due, State.HANDING_OVER)
        proxy.refuse()
        harness.end_database_connections(harness.SENDER)
    assert 0 < len(answered) <= CONNECTIONS
    wait_until(lambda: sweeper.sweep() is not None and states(due, State.UNCERTAIN) == answered, why=due.counts)
    proxy.open()
    wait_until(lambda: answered <= states(due, State.ACCEPTED), why=due.counts)
    worker.wait(60)
    harness.cron(relay, due, tmp_path, scaled).run_to_the_end()
    assert_completed(due, relay)


@pytest.mark.long
def test_fi_25_a_database_that_is_silent_for_longer_than_a_lease_hears_the_answers_afterwards(
    due: Issue, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], proxy: DatabaseProxy
) -> None:
    relay.script["data"] = pace
    worker = harness.cron(relay, due, tmp_path, scaled, DATABASE_URL=proxy.url).run()
    wait_until(lambda: len(relay.recipients) > RECIPIENTS // 4, why=due.counts)
    proxy.hold()
    held = (State.CLAIMED, State.HANDING_OVER)
    wait_until(lambda: sweeper.sweep() is not None and not states(due, *held), why=due.counts)
    in_doubt = states(due, State.UNCERTAIN)
    assert 0 < len(in_doubt) <= CONNECTIONS
    proxy.open()
    wait_until(lambda: not states(due, State.UNCERTAIN), why=due.counts)
    worker.wait(60)
    harness.cron(relay, due, tmp_path, scaled).run_to_the_end()
    assert_completed(due, relay)


@pytest.fixture
def crowd(publication: Publication) -> list[Subscriber]:
    """Readers of every kind: one in ten has paused, is suppressed, has left or has not confirmed."""
    readers = make_readers(FROZEN)
    paused, suppressed, left, unconfirmed = (readers[n::40] for n in range(4))
    of = Subscriber.objects.filter
    of(pk__in=[reader.pk for reader in paused]).update(paused_until=timezone.now() + dt.timedelta(days=9))
    of(pk__in=[reader.pk for reader in left]).update(status=Subscriber.Status.UNSUBSCRIBED)
    of(pk__in=[reader.pk for reader in unconfirmed]).update(status=Subscriber.Status.PENDING, confirmed_at=None)
    for reader in suppressed:
        Suppression.objects.create(address_hash=reader.address_hash, reason=Suppression.Reason.BOUNCED)
    return readers


@contextmanager
def barrier(issue: Issue, share: int) -> Iterator[None]:
    """Let the database wait in the midst of a freeze, at the row of that many in a hundred readers.

    At 100 it waits in the COMMIT, when every row is written.
    """
    ids = list(Subscriber.objects.filter(status="active").order_by("id").values_list("pk", flat=True))
    at = ids[min(len(ids) * share // 100, len(ids) - 1)]
    trigger = (
        "CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON newsletter_issue DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        if share == 100
        else f"CREATE TRIGGER wait BEFORE INSERT ON newsletter_delivery FOR EACH ROW WHEN (NEW.subscriber_id = {at})"
    )
    with connection.cursor() as cursor:
        cursor.execute(f"{WAIT} {trigger} EXECUTE FUNCTION pg_temp_wait()")
    try:
        with harness.own_connection() as own:
            own.execute("SELECT pg_advisory_xact_lock(39)")
            yield
        wait_until(lambda: not freezing())
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION pg_temp_wait CASCADE")


def freezing() -> int:
    """Return how many other connections of this database are in the midst of something."""
    return harness.ask(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state <> 'idle'"
    )


def at_barrier() -> int:
    return harness.ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'")


@pytest.mark.parametrize("share", [0, 25, 50, 99, 100])
def test_fi_39_a_freeze_killed_on_its_way_is_done_again_as_a_whole(
    crowd: list[Subscriber], relay: SmtpServer, tmp_path: Path, scaled: dict[str, str], share: int
) -> None:
    issue = make_issue()
    issue.schedule_at(harness.database_now())
    environment = harness.cron(relay, issue, tmp_path, scaled).env
    with barrier(issue, share):
        freezer = subprocess.Popen([*MANAGE, "dispatch_due"], env={**os.environ, **environment})
        wait_until(at_barrier, why=issue.counts)
        freezer.kill()
        freezer.wait()
    is_whole = share == 100  # PostgreSQL had the COMMIT already, and did it though nobody was left to hear
    assert issue.deliveries.exists() == is_whole
    planned = set(Subscriber.objects.mailable().values_list("pk", flat=True))
    audience = set(Subscriber.objects.filter(status="active").values_list("pk", flat=True))
    sweeper.dispatch_due()
    issue.refresh_from_db()
    print(f"\n{issue.candidates} candidates = {issue.planned} planned + {issue.excluded} excluded")
    rows = issue.deliveries
    assert issue.state == Issue.State.SENDING
    assert set(rows.filter(state=State.PENDING).values_list("subscriber_id", flat=True)) == planned
    assert set(rows.exclude(reason="").values_list("subscriber_id", flat=True)) == audience - planned
    assert rows.count() == issue.candidates == (issue.planned or 0) + (issue.excluded or 0) == len(audience)
