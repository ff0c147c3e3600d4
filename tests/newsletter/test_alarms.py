"""What the author is told: each event once, whoever notices it and however often, by mail and by webhook."""

import datetime as dt
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection
from django.utils import timezone

from newsletter import alarms, delivery, sweeper
from newsletter.models import Delivery, Issue, Lease, Slot
from posts.models import Publication
from subscribers import emails
from subscribers.models import SystemMail
from tests.factories import make_issue, make_readers, make_slot
from tests.smtpd import SmtpServer
from tests.webhook import Webhook

pytestmark = pytest.mark.usefixtures("publication")
State, Kind = Issue.State, SystemMail.Kind
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def webhook(settings: Any) -> Any:
    with Webhook() as webhook:
        settings.ALERT_WEBHOOK_URL = webhook.url
        yield webhook


def told() -> list[dict[str, Any]]:
    """Return what the author is owed, as the mails' contexts."""
    return [row.context for row in SystemMail.objects.filter(kind=Kind.ALERT).order_by("pk")]


def ago(seconds: float) -> dt.datetime:
    return timezone.now() - dt.timedelta(seconds=seconds)


def sending(readers: int = 3, **changes: Any) -> Issue:
    make_readers(readers)
    issue = make_issue()
    delivery.send_now(issue)
    Issue.objects.filter(pk=issue.pk).update(**changes)
    return issue


# Each alarm


def test_a_date_without_an_issue_is_told_a_day_before_and_no_earlier() -> None:
    make_slot()
    Slot.objects.update(due_at=timezone.now() + 24.1 * HOUR)
    alarms.look()
    assert told() == []
    Slot.objects.update(due_at=timezone.now() + 23.9 * HOUR)
    alarms.look()
    alarms.look()
    (context,) = told()
    slot = Slot.objects.get()
    assert (context["event"], context["date"], context["due_at"]) == ("empty_slot", str(slot), slot.due_at.isoformat())


@pytest.mark.parametrize("state", [Slot.State.TAKEN, Slot.State.HELD])
def test_a_date_that_is_taken_or_held_is_not_told(state: str) -> None:
    make_slot(days=1, state=state)
    Slot.objects.update(due_at=timezone.now() + HOUR)
    alarms.look()
    assert told() == []


@pytest.mark.parametrize("state", [State.SCHEDULED, State.FROZEN])
def test_an_issue_that_has_not_begun_is_told_five_minutes_after_its_instant(settings: Any, state: str) -> None:
    issue = make_issue()
    issue.schedule(make_slot())
    frozen = {"prepared_at": timezone.now(), "candidates": 0, "planned": 0, "excluded": 0}
    Issue.objects.update(state=state, **(frozen if state == State.FROZEN else {}))
    Issue.objects.update(due_at=ago(settings.LATE_SECONDS - 5))
    alarms.look()
    assert told() == []
    Issue.objects.update(due_at=ago(settings.LATE_SECONDS + 1))
    alarms.look()
    alarms.look()
    (context,) = told()
    issue.refresh_from_db()
    assert issue.due_at is not None
    assert (context["event"], context["issue"], context["due_at"]) == ("late", str(issue), issue.due_at.isoformat())
    assert context["url"].endswith(f"/newsletter/issue/{issue.pk}/change/")


def test_an_issue_is_told_as_late_by_the_sweep_though_nothing_else_works(settings: Any) -> None:
    issue = make_issue()
    issue.schedule(make_slot())
    Issue.objects.update(due_at=ago(settings.LATE_SECONDS + 1))
    sweeper.sweep()
    assert [context["event"] for context in told()] == ["late"]


def test_an_issue_that_makes_no_progress_is_told_after_ten_minutes(settings: Any) -> None:
    issue = sending(state_since=ago(settings.STALL_SECONDS - 5))
    alarms.look()
    assert told() == []
    Issue.objects.update(state_since=ago(settings.STALL_SECONDS + 1))
    alarms.look()
    alarms.look()
    issue.refresh_from_db()
    assert [(context["event"], context["since"]) for context in told()] == [("stalled", issue.state_since.isoformat())]


def test_a_worker_that_settles_copies_is_no_stall_and_one_that_hangs_is(settings: Any) -> None:
    issue = sending(state_since=ago(10 * settings.STALL_SECONDS))
    lease = Lease.objects.create(
        issue=issue, owner="a", expires_at=timezone.now() + HOUR, settled=5, settled_at=ago(settings.STALL_SECONDS - 5)
    )
    alarms.look()
    assert told() == []
    since = ago(settings.STALL_SECONDS + 1)
    Lease.objects.filter(pk=lease.pk).update(started_at=since, settled_at=since)
    issue.deliveries.update(state=Delivery.State.CLAIMED, lease=lease)
    alarms.look()
    assert [(context["event"], context["since"]) for context in told()] == [("stalled", since.isoformat())]


def test_a_second_stall_is_told_anew(settings: Any) -> None:
    issue = sending(state_since=ago(10 * settings.STALL_SECONDS))
    alarms.look()
    Lease.objects.create(
        issue=issue, owner="a", expires_at=timezone.now(), settled=1, settled_at=ago(2 * settings.STALL_SECONDS)
    )
    alarms.look()
    assert [context["event"] for context in told()] == ["stalled", "stalled"]


def test_copies_put_off_for_hours_are_no_stall_not_even_at_the_moment_they_fall_due(settings: Any) -> None:
    issue = sending(state_since=ago(10 * settings.STALL_SECONDS))
    put_off(issue, until=timezone.now() + HOUR)
    alarms.look()
    put_off(issue, until=ago(1))
    alarms.look()
    assert told() == []
    put_off(issue, until=ago(settings.STALL_SECONDS + 1))
    alarms.look()
    assert [context["event"] for context in told()] == ["stalled"]


def test_what_goes_on_after_a_long_rest_is_no_stall(settings: Any) -> None:
    long_ago = ago(10 * settings.STALL_SECONDS)
    issue = sending(started_at=long_ago, state_since=long_ago)
    issue.pause()
    Issue.objects.update(state_since=long_ago)
    issue.resume()
    sweeper.sweep()
    assert told() == []


def put_off(issue: Issue, *, until: dt.datetime) -> None:
    issue.deliveries.update(state=Delivery.State.DEFERRED, fence=1, attempt=1, next_attempt_at=until)


@pytest.mark.parametrize("resume_at", [None, dt.datetime(2999, 1, 1, tzinfo=dt.UTC)], ids=["for good", "for a while"])
def test_a_pause_by_itself_is_told_with_its_reason_and_one_by_the_author_is_not(resume_at: dt.datetime | None) -> None:
    issue = sending()
    issue.pause()
    alarms.look()
    assert told() == []
    Issue.objects.update(pause_reason="550 5.7.26 Not authenticated", resume_at=resume_at)
    alarms.look()
    alarms.look()
    (context,) = told()
    assert (context["event"], context["error"]) == ("paused", "550 5.7.26 Not authenticated")
    assert context["resumes_at"] == (resume_at.isoformat() if resume_at else "")


def test_a_second_pause_for_the_same_reason_is_told_anew(transactional_db: None) -> None:
    issue = sending()
    for _time in range(2):
        Issue.objects.update(state=State.PAUSED, pause_reason="550 5.7.26 Not authenticated")
        alarms.look()
        alarms.look()
        issue.resume()
    assert [context["event"] for context in told()] == ["paused", "paused"]


def test_a_relay_that_blames_the_sender_pauses_and_the_author_is_told_what_it_said(
    relay: SmtpServer, transactional_db: None
) -> None:
    relay.script["mail"] = lambda session: "550 5.7.26 This mail is unauthenticated"
    issue = sending(30)
    delivery.send_due(issue.pk)
    sweeper.sweep()
    issue.refresh_from_db()
    assert issue.state == State.PAUSED
    assert [context["event"] for context in told()] == ["paused"]
    assert "5.7.26" in told()[0]["error"]


def test_the_result_is_told_once_with_the_whole_equation(relay: SmtpServer, transactional_db: None) -> None:
    relay.script["rcpt"] = lambda session: "550 5.1.1 Unknown" if session.recipient.startswith("reader2") else None
    issue = sending(5)
    delivery.send_due(issue.pk)
    sweeper.sweep()
    sweeper.sweep()
    (context,) = told()
    assert (context["event"], context["state"]) == ("result", State.COMPLETED_WITH_FAILURES)
    terms = ("audience", "sent", "skipped", "failed", "unknown", "open")
    assert [context[name] for name in terms] == [5, 4, 0, 1, 0, 0]


def test_sending_once_more_to_those_it_failed_for_tells_a_new_result(relay: SmtpServer, transactional_db: None) -> None:
    relay.script["rcpt"] = lambda session: "550 5.1.1 Unknown" if session.recipient.startswith("reader2") else None
    issue = sending(5)
    delivery.send_due(issue.pk)
    sweeper.sweep()
    relay.script.clear()
    issue.refresh_from_db()
    assert delivery.resend_failed(issue) == 1
    delivery.send_due(issue.pk)
    sweeper.sweep()
    assert [(context["state"], context["sent"]) for context in told()] == [
        (State.COMPLETED_WITH_FAILURES, 4),
        (State.COMPLETED, 5),
    ]


def test_an_issue_of_long_ago_is_not_told_again() -> None:
    sending(0, state=State.COMPLETED, started_at=ago(8 * 24 * 3600))
    alarms.look()
    assert told() == []


# Once, whoever notices


def everything_at_once(settings: Any) -> None:
    """Let there be something to tell of every kind."""
    make_slot(days=1)
    Slot.objects.update(due_at=timezone.now() + HOUR)
    waiting = make_issue(subject="Late")
    waiting.schedule_at(ago(settings.LATE_SECONDS + 1))
    sending(state_since=ago(settings.STALL_SECONDS + 1))
    paused, through = make_issue(subject="Paused"), make_issue(subject="Through")
    for issue, changes in (
        (paused, {"state": State.PAUSED, "pause_reason": "the relay wants a rest"}),
        (through, {"state": State.COMPLETED}),
    ):
        delivery.send_now(issue)
        Issue.objects.filter(pk=issue.pk).update(**changes)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", [alarms.look, sweeper.sweep], ids=["look", "sweep"])
def test_many_who_notice_at_once_tell_each_event_once(
    settings: Any, webhook: Webhook, act: Callable[[], object]
) -> None:
    everything_at_once(settings)
    barrier = threading.Barrier(6)

    def notice() -> None:
        barrier.wait()
        try:
            act()
            act()
        finally:
            connection.close()

    threads = [threading.Thread(target=notice) for _n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    emails.send_all_due(limit=50)
    events = ["empty_slot", "late", "paused", "result", "stalled"]
    assert sorted(context["event"] for context in told()) == events
    assert sorted(message["event"] for message in webhook.messages) == events
    assert len(mail.outbox) == 5


def test_the_author_is_written_to_where_he_reads_replies() -> None:
    Publication.objects.update(reply_to="desk@example.org")
    alarms.alert("stalled", {"issue": "#1"}, once="stalled:1")
    assert SystemMail.objects.get().address == "desk@example.org"


# By webhook


def test_without_a_webhook_only_a_mail_is_owed(settings: Any) -> None:
    settings.ALERT_WEBHOOK_URL = ""
    alarms.alert("stalled", {"issue": "#1"}, once="stalled:1")
    assert [row.kind for row in SystemMail.objects.all()] == [Kind.ALERT]


def test_a_webhook_gets_the_alert_as_json_once(webhook: Webhook, settings: Any) -> None:
    alarms.alert("late", {"issue": "#7 “Späte” Post", "due_at": "2026-01-05T09:00:00+00:00"}, once="late:7")
    emails.send_all_due(limit=10)
    emails.send_all_due(limit=10)
    row = SystemMail.objects.get(kind=Kind.WEBHOOK)
    assert webhook.messages == [
        {
            "id": row.pk,
            "event": "late",
            "issue": "#7 “Späte” Post",
            "due_at": "2026-01-05T09:00:00+00:00",
            "site": settings.SITE_URL,
        }
    ]
    assert row.sent_at is not None


def test_a_webhook_that_is_dead_is_asked_again_later_and_holds_up_no_mail(settings: Any) -> None:
    with Webhook() as gone:
        settings.ALERT_WEBHOOK_URL = gone.url
    alarms.alert("late", {"issue": "#7"}, once="late:7")
    emails.send_all_due(limit=10)
    owed = SystemMail.objects.get(kind=Kind.WEBHOOK)
    assert (owed.sent_at, owed.failed_at, owed.attempts) == (None, None, 1)
    assert owed.due_at > timezone.now()
    assert "refused" in owed.error
    assert SystemMail.objects.get(kind=Kind.ALERT).sent_at is not None


def test_a_webhook_that_came_back_gets_what_it_was_owed(webhook: Webhook) -> None:
    webhook.status = 503
    alarms.alert("late", {"issue": "#7"}, once="late:7")
    emails.send_all_due(limit=10)
    assert SystemMail.objects.get(kind=Kind.WEBHOOK).sent_at is None
    webhook.status = 204
    emails.send_all_due(limit=10)
    assert len(webhook.messages) == 1, "not before its time"
    SystemMail.objects.update(due_at=ago(1))
    emails.send_all_due(limit=10)
    assert SystemMail.objects.get(kind=Kind.WEBHOOK).sent_at is not None
    assert Counter(message["id"] for message in webhook.messages).most_common(1)[0][1] == 2


def test_a_wrong_clock_is_told_once_a_day(publication: Publication) -> None:
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=10)):
        for _sweep in range(2):
            alarms.tell_of_wrong_clock()
    alarms.tell_of_wrong_clock()
    (owed,) = SystemMail.objects.filter(kind=SystemMail.Kind.ALERT)
    assert (owed.context["event"], 595 < owed.context["seconds"] < 605) == ("clock", True)
