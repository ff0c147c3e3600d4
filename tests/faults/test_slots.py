"""A slot's instant: many who see it at once, nobody who sees it for hours or days, and clocks that are put forward."""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
import zoneinfo
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from newsletter import delivery, sweeper
from newsletter.models import Issue, Slot
from newsletter.schedule import instant
from posts.models import Publication
from subscribers.models import SystemMail
from tests.factories import make_issue, make_post, make_readers, make_slot
from tests.faults.conftest import assert_promise, is_through, logged
from tests.smtpd import SmtpServer
from tests.workers import Workers, wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "200"))
TICKS = 50
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


@pytest.fixture
def env(scaled: dict[str, str]) -> dict[str, str]:
    """Name what workers get; alerts to the author are no copies, so they stay out of the relay's ledger."""
    return {**scaled, "SMTP_CONNECTIONS": "4", "EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend"}


def scheduled(slot: Slot | None = None) -> Issue:
    make_readers(RECIPIENTS)
    issue = make_issue(make_post())
    issue.schedule(slot or make_slot())
    return issue


def make_due(issue: Issue, *, since: dt.timedelta) -> None:
    """Let the issue's instant, and its slot's, be so long ago."""
    due_at = timezone.now() - since
    Slot.objects.filter(issue=issue).update(due_at=due_at)
    Issue.objects.filter(pk=issue.pk).update(due_at=due_at)


def assert_sent_once(issue: Issue, relay: SmtpServer) -> None:
    assert_promise(issue, relay, unknown_at_most=0)
    assert (len(logged(relay)), issue.state) == (RECIPIENTS, Issue.State.COMPLETED)


@pytest.mark.long
def test_fi_17_two_beats_two_sweepers_and_fifty_ticks_at_once_make_one_send(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = scheduled()
    slot = issue.slot
    assert slot is not None
    (tmp_path / "second").mkdir()
    often = {**env, "DISPATCH_SECONDS": "0.5", "SWEEP_SECONDS": "0.5"}
    with (
        Workers(relay, tmp_path / "second", names=("beat",), env=often),
        Workers(relay, tmp_path, env=often),
    ):
        slot.move(timezone.now() + dt.timedelta(seconds=3))
        started = tick_all_at(slot.due_at)
        wait_until(lambda: is_through(issue), seconds=100, why=issue.counts)
    assert_sent_once(issue, relay)
    assert len(started) <= 1  # a worker may have been the first
    assert issue.started_at is not None
    assert issue.started_at >= slot.due_at
    assert Slot.objects.filter(local_date=slot.local_date).count() == 1
    print(f"started {(issue.started_at - slot.due_at).total_seconds():.2f} s after the instant")


def tick_all_at(due_at: dt.datetime) -> list[int]:
    """Tick in many threads, and sweep in two, from just before `due_at` until just after; return what was started."""
    started: list[int] = []

    def tick(number: int) -> None:
        time.sleep(max(0.0, (due_at - timezone.now()).total_seconds() - 0.2))
        try:
            while timezone.now() < due_at + dt.timedelta(seconds=0.2):
                started.extend(sweeper.dispatch_due() if number < TICKS else [])
                sweeper.sweep() if number >= TICKS else None
        finally:
            connection.close()

    threads = [threading.Thread(target=tick, args=[number]) for number in range(TICKS + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return started


def test_fi_18_nothing_running_until_two_hours_after_the_slot_sends_once_and_late(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str]
) -> None:
    issue = scheduled()
    make_due(issue, since=dt.timedelta(hours=2))
    with Workers(relay, tmp_path, env=env):
        wait_until(lambda: is_through(issue), seconds=100, why=issue.counts)
    assert_sent_once(issue, relay)
    assert issue.late
    assert issue.slot is not None
    assert issue.slot.state == Slot.State.TAKEN


@pytest.mark.long
def test_fi_19_nothing_running_until_three_days_after_the_slot_asks_instead_of_sending(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str], admin_user: User
) -> None:
    issue = scheduled()
    slot = issue.slot
    assert slot is not None
    make_due(issue, since=dt.timedelta(days=3))
    author = Client()
    author.force_login(admin_user)
    with Workers(relay, tmp_path, env=env) as workers:
        wait_until(lambda: missed().exists(), why=workers.children[-1].last_words)
        ticks = heard(workers, "dispatch_due")
        wait_until(lambda: heard(workers, "dispatch_due") >= ticks + 2)
        issue.refresh_from_db()
        slot.refresh_from_db()
        assert (issue.state, issue.slot, slot.state) == (Issue.State.DRAFT, None, Slot.State.MISSED)
        assert (missed().count(), issue.deliveries.count(), logged(relay)) == (1, 0, {})
        author.post(reverse("admin:newsletter_issue_act", args=[issue.pk]), {"act": "now", "sure": "1"})
        wait_until(lambda: issue.deliveries.exists() and is_through(issue), seconds=100, why=issue.counts)
    assert_sent_once(issue, relay)
    assert (issue.late, missed().count()) == (False, 1)


def missed() -> Any:
    return SystemMail.objects.filter(kind=SystemMail.Kind.ALERT, context__event="missed")


def heard(workers: Workers, task: str) -> int:
    return sum(child.log.read_text().count(f"Task newsletter.tasks.{task}[") for child in workers.children)


# Clocks that are put forward and back

FIRST, DAYS = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC), 5 * 366
SECOND = dt.timedelta(seconds=1)
ZONES = sorted(zoneinfo.available_timezones())


def changes(zone: ZoneInfo) -> Iterator[tuple[dt.datetime, dt.datetime, dt.datetime]]:
    """Give each instant within five years at which the clocks of `zone` jump, and the wall times before and after."""
    days = [FIRST + n * dt.timedelta(days=1) for n in range(DAYS)]
    for day, next_day in pairwise(days):
        if offset(day, zone) != offset(next_day, zone):
            low, high = day, next_day
            while high - low > SECOND:
                middle = low + (high - low) // 2
                low, high = (middle, high) if offset(middle, zone) == offset(day, zone) else (low, middle)
            high = high.replace(microsecond=0)
            yield high, wall(high, zone) - (offset(high, zone) - offset(low, zone)), wall(high, zone)


def offset(at: dt.datetime, zone: ZoneInfo) -> dt.timedelta:
    found = at.astimezone(zone).utcoffset()
    assert found is not None
    return found


def wall(at: dt.datetime, zone: ZoneInfo) -> dt.datetime:
    return at.astimezone(zone).replace(tzinfo=None)


def test_fi_20_each_jump_of_any_zone_s_clocks_for_five_years_gives_the_first_instant_that_shows_the_time() -> None:
    gaps = overlaps = 0
    for zone in map(ZoneInfo, ZONES):
        for jump, before, after in changes(zone):
            gaps, overlaps = gaps + (after > before), overlaps + (after < before)
            early, late = min(before, after), max(before, after)
            for at in (early - SECOND, early, early + (late - early) / 2, late - SECOND, late, late + SECOND):
                found = instant(at.date(), at.time(), zone)
                assert wall(found, zone) >= at > wall(found - SECOND, zone), (zone, at, found)
                assert found <= jump or wall(jump - SECOND, zone) < at, "shown before, and that was the first time"
                assert wall(found, zone) == at or found == jump, "a time left out gives the end of the gap"
    print(f"{gaps} gaps and {overlaps} overlaps in {len(ZONES)} zones")
    assert min(gaps, overlaps) > 500


NIGHTS = {
    "gap": (dt.date(2027, 3, 28), dt.datetime(2027, 3, 28, 1, 0, tzinfo=dt.UTC)),
    "overlap": (dt.date(2027, 10, 31), dt.datetime(2027, 10, 31, 0, 30, tzinfo=dt.UTC)),
}


@pytest.mark.parametrize(("night", "due_at"), NIGHTS.values(), ids=NIGHTS)
def test_fi_20_a_slot_at_half_past_one_in_the_night_that_clocks_change_is_one_and_goes_out_once(
    publication: Publication, relay: SmtpServer, night: dt.date, due_at: dt.datetime
) -> None:
    Publication.objects.update(time_zone="Europe/London", send_weekday=6, send_time=dt.time(1, 30))
    with time_machine.travel(due_at - dt.timedelta(days=20)):
        sweeper.ensure_slots()
        sweeper.ensure_slots()
        slot = Slot.objects.get(local_date=night)
        assert slot.due_at == due_at
        issue = scheduled(slot)
    make_due(issue, since=dt.timedelta(seconds=1))
    for started in ([issue.pk], []):
        assert sweeper.dispatch_due() == started
        delivery.send_due(issue.pk)
    assert is_through(issue)
    assert_sent_once(issue, relay)
    assert Slot.objects.get(local_date=night).state == Slot.State.TAKEN


def test_fi_21_a_new_time_zone_moves_a_scheduled_issue_once_and_the_old_instant_sends_nothing(
    publication: Publication, relay: SmtpServer
) -> None:
    soon = (timezone.now() + dt.timedelta(seconds=4)).replace(microsecond=0)
    rhythm = {"time_zone": "Etc/GMT", "send_weekday": soon.weekday(), "send_time": soon.time()}
    Publication.objects.update(**rhythm)
    sweeper.ensure_slots()
    slot = Slot.objects.get(local_date=soon.date())
    assert slot.due_at == soon
    issue = scheduled(slot)
    Publication.objects.update(time_zone="Etc/GMT+1")  # an hour behind, as POSIX writes it
    new = soon + dt.timedelta(hours=1)
    while timezone.now() < soon + dt.timedelta(seconds=1):
        assert sweeper.dispatch_due() == []
        sweeper.sweep()
        assert [slot.due_at for slot in Slot.objects.filter(local_date=soon.date())] == [new]
        time.sleep(0.1)
    issue.refresh_from_db()
    assert (issue.state, issue.due_at) == (Issue.State.SCHEDULED, new)
    make_due(issue, since=dt.timedelta(seconds=1))  # an hour later
    assert sweeper.dispatch_due() == [issue.pk]
    delivery.send_due(issue.pk)
    assert_sent_once(issue, relay)
