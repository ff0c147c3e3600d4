"""The calendar and the beat: slots, due issues, missed ones, and many ticks at once."""

import datetime as dt
import threading
from collections import Counter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection
from django.utils import timezone

from newsletter import alarms, delivery, sweeper, tasks
from newsletter.models import Delivery, Issue, Slot
from posts.models import Post, Publication
from subscribers import emails
from subscribers.models import Subscriber, SystemMail
from tests.factories import make_issue, make_post, make_readers, make_slot
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")


def make_due(issue: Issue, *, hours: float = 0.01) -> None:
    """Move a scheduled issue's instant, and its slot's, into the past."""
    due_at = timezone.now() - dt.timedelta(hours=hours)
    Issue.objects.filter(pk=issue.pk).update(due_at=due_at)
    Slot.objects.filter(issue=issue).update(due_at=due_at)


def scheduled() -> Issue:
    issue = make_issue()
    issue.schedule(make_slot())
    return issue


def test_eight_slots_stand_on_mondays_at_nine_in_london() -> None:
    sweeper.ensure_slots()
    sweeper.ensure_slots()
    slots = list(Slot.objects.upcoming())
    local = [slot.due_at.astimezone(ZoneInfo("Europe/London")) for slot in slots]
    assert len(slots) == 8
    assert {(at.weekday(), at.hour, at.minute) for at in local} == {(0, 9, 0)}


def test_a_new_time_zone_moves_slot_and_issue_once() -> None:
    sweeper.ensure_slots()
    slot = Slot.objects.upcoming()[0]
    issue = make_issue()
    issue.schedule(slot)
    Publication.objects.update(time_zone="Asia/Tokyo")
    sweeper.ensure_slots()
    issue.refresh_from_db()
    slot.refresh_from_db()
    assert issue.due_at == slot.due_at
    assert slot.due_at.astimezone(ZoneInfo("Asia/Tokyo")).hour == 9


def test_a_new_weekday_replaces_open_dates_and_keeps_taken_ones() -> None:
    sweeper.ensure_slots()
    taken = Slot.objects.upcoming()[1]
    make_issue().schedule(taken)
    Publication.objects.update(send_weekday=3)
    sweeper.ensure_slots()
    weekdays = Counter(slot.local_date.weekday() for slot in Slot.objects.upcoming())
    assert weekdays == {3: 8, 0: 1}


def test_a_moved_slot_keeps_its_instant() -> None:
    sweeper.ensure_slots()
    slot = Slot.objects.upcoming()[0]
    issue = make_issue()
    issue.schedule(slot)
    slot.move(slot.due_at + dt.timedelta(hours=3))
    sweeper.ensure_slots()
    issue.refresh_from_db()
    assert issue.due_at == Slot.objects.get(pk=slot.pk).due_at == slot.due_at


def test_a_due_issue_is_frozen_started_and_handed_to_workers() -> None:
    issue = scheduled()
    make_due(issue)
    assert sweeper.dispatch_due() == [issue.pk]
    issue.refresh_from_db()
    assert (issue.state, issue.late) == (Issue.State.SENDING, False)
    assert sweeper.dispatch_due() == []


def test_nothing_starts_before_its_instant() -> None:
    issue = scheduled()
    assert sweeper.dispatch_due() == []
    assert not delivery.freeze(issue.pk)


def test_inside_the_catch_up_window_an_issue_goes_late_and_says_so() -> None:
    issue = scheduled()
    make_due(issue, hours=2)
    sweeper.dispatch_due()
    issue.refresh_from_db()
    assert (issue.state, issue.late) == (Issue.State.SENDING, True)


def test_after_the_catch_up_window_the_slot_is_missed_and_the_author_is_asked() -> None:
    issue = scheduled()
    slot = issue.slot
    assert slot is not None
    make_due(issue, hours=72)
    assert sweeper.dispatch_due() == []
    issue.refresh_from_db()
    slot.refresh_from_db()
    assert (issue.state, slot.state) == (Issue.State.DRAFT, Slot.State.MISSED)
    assert SystemMail.objects.get().context["event"] == "missed"
    delivery.send_now(issue)
    assert issue.state == Issue.State.SENDING


def test_an_empty_slot_within_a_day_warns_once() -> None:
    make_slot(days=1)
    Slot.objects.update(due_at=timezone.now() + dt.timedelta(hours=20))
    alarms.warn_of_empty_slots()
    alarms.warn_of_empty_slots()
    assert [mail.context["event"] for mail in SystemMail.objects.all()] == ["empty_slot"]


def test_a_second_issue_for_a_taken_slot_is_refused_by_the_field() -> None:
    slot = make_slot()
    make_issue().schedule(slot)
    with pytest.raises(ValidationError) as refused:
        make_issue().schedule(slot)
    assert "slot" in refused.value.message_dict


def test_a_held_slot_and_a_past_slot_are_refused() -> None:
    held, past = make_slot(), make_slot(days=-1)
    held.hold()
    for slot in (held, past):
        with pytest.raises(ValidationError):
            make_issue().schedule(slot)


def test_taking_an_issue_back_frees_its_slot() -> None:
    slot = make_slot()
    issue = make_issue()
    issue.schedule(slot)
    issue.unschedule()
    slot.refresh_from_db()
    assert (issue.state, slot.state) == (Issue.State.DRAFT, Slot.State.OPEN)


def test_one_local_date_has_one_slot() -> None:
    slot = make_slot()
    with pytest.raises(IntegrityError):
        Slot.objects.create(local_date=slot.local_date, due_at=slot.due_at)


def test_a_scheduled_post_appears_when_its_instant_comes() -> None:
    post = make_post(status=Post.Status.SCHEDULED, published_at=timezone.now() + dt.timedelta(hours=1))
    sweeper.publish_scheduled_posts()
    assert not Post.objects.listed().exists()
    Post.objects.filter(pk=post.pk).update(published_at=timezone.now() - dt.timedelta(seconds=1))
    sweeper.publish_scheduled_posts()
    assert Post.objects.listed().exists()


def test_a_wrong_clock_on_this_machine_sends_nothing_early() -> None:
    issue = scheduled()
    with time_machine.travel(timezone.now() + dt.timedelta(days=30), tick=True):
        assert not Issue.objects.due().exists()
        assert not delivery.freeze(issue.pk)


@pytest.mark.django_db(transaction=True)
def test_two_beats_and_twenty_ticks_at_a_slot_make_one_send(
    relay: SmtpServer, alice: Subscriber, settings: Any
) -> None:
    settings.CELERY_TASK_ALWAYS_EAGER = False
    make_readers(40)
    issue = scheduled()
    make_due(issue)
    started: list[int] = []
    barrier = threading.Barrier(22)

    def tick() -> None:
        barrier.wait()
        try:
            started.extend(sweeper.dispatch_due())
            delivery.send_due(issue.pk)
        finally:
            connection.close()

    threads = [threading.Thread(target=tick) for _n in range(22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    issue.refresh_from_db()
    assert started == [issue.pk]
    assert (issue.candidates, Delivery.objects.count()) == (41, 41)
    assert Counter(relay.recipients.values()) == {1: 41}
    assert issue.state == Issue.State.COMPLETED


@pytest.mark.django_db(transaction=True)
def test_a_sweep_finishes_what_nobody_hinted_at(relay: SmtpServer, alice: Subscriber) -> None:
    issue = scheduled()
    make_due(issue)
    delivery.freeze(issue.pk)
    assert sweeper.sweep() == [issue.pk]
    tasks.send_issue(issue.pk)
    issue.refresh_from_db()
    assert issue.state == Issue.State.COMPLETED


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("state", "found"), [("sending", {"pending", "uncertain"}), ("cancelled", {"skipped", "uncertain"})]
)
def test_what_a_worker_that_left_still_holds_is_taken_back_while_others_wait(state: str, found: set[str]) -> None:
    make_readers(3)
    issue = make_issue()
    delivery.send_now(issue)
    lease = issue.leases.create(owner="gone", expires_at=timezone.now(), ended_at=timezone.now())
    for row, held in zip(issue.deliveries.order_by("pk"), ["claimed", "handing_over"], strict=False):
        Delivery.objects.filter(pk=row.pk).update(state=held, fence=1, lease=lease)
    Issue.objects.update(state=state)
    sweeper.sweep()
    assert set(issue.deliveries.values_list("state", flat=True)) == found


def test_an_issue_that_can_not_be_made_ready_is_told_once_and_holds_up_no_other(alice: Subscriber) -> None:
    broken, sound = scheduled(), make_issue()
    sound.schedule_at(timezone.now() - dt.timedelta(seconds=1))
    make_due(broken)
    Issue.objects.filter(pk=broken.pk).update(introduction="x" * 600_000)
    assert [sweeper.dispatch_due(), sweeper.dispatch_due()] == [[sound.pk], []]
    assert [mail.context["event"] for mail in SystemMail.objects.all()] == ["freeze_failed"]
    broken.refresh_from_db()
    assert broken.state == Issue.State.SCHEDULED


def test_a_broker_that_is_away_costs_no_error(settings: Any, alice: Subscriber) -> None:
    issue = scheduled()
    make_due(issue)
    tasks.hint([issue.pk])


def test_a_step_that_fails_holds_up_no_other_and_the_sweep_is_known_to_have_been(
    alice: Subscriber, settings: Any
) -> None:
    settings.RELAY_LOG = "not a path\0"
    doubtful, issue = make_issue(), make_issue()
    for sent in (doubtful, issue):
        delivery.send_now(sent)
    doubtful.deliveries.update(state=Delivery.State.UNCERTAIN, fence=1, next_attempt_at=timezone.now())
    emails.owe("nonsense", subscriber=alice)
    owed = emails.owe(SystemMail.Kind.WELCOME, subscriber=alice)
    assert issue.pk in sweeper.sweep()
    assert not sweeper.is_overdue()
    owed.refresh_from_db()
    assert owed.sent_at
