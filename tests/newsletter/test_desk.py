"""The desk: figures of known data, exact; what can't be known is not made up."""

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from newsletter import delivery, desk, figures, preflight
from newsletter.models import Delivery, Issue, Link, Slot
from posts.models import Publication
from subscribers import subscription
from subscribers.models import Consent, Subscriber, Suppression
from tests.factories import make_issue, make_post, make_readers, make_slot

pytestmark = pytest.mark.usefixtures("publication")
State = Delivery.State
LONDON = ZoneInfo("Europe/London")
NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)  # a Wednesday


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


def day(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def reader(
    name: str, confirmed: str = "", *events: tuple[str, str], status: str = "active", **values: Any
) -> Subscriber:
    """Make a reader with a consent log of (kind, date)."""
    confirmed_at = day(confirmed) if confirmed else None
    found = Subscriber.objects.create(address=f"{name}@example.org", status=status, confirmed_at=confirmed_at, **values)
    for kind, at in events:
        consent(found, kind, day(at))
    return found


def consent(subscriber: Subscriber, kind: str, at: dt.datetime) -> None:
    """Write a line of the consent log as it would have been written then; it can't be changed later."""
    with time_machine.travel(at, tick=False):
        Consent.objects.create(subscriber=subscriber, kind=kind)


def growth(readers: int = 0, *, now: dt.datetime = NOW, zone: ZoneInfo = LONDON) -> figures.Growth:
    return figures.growth(readers=readers, now=now, zone=zone)


def moves(found: figures.Growth) -> dict[str, tuple[int, int]]:
    """Return joined and left of the weeks in which anything happened."""
    return {str(week.begins): (week.joined, week.left) for week in found.weeks if week.joined or week.left}


def sources(found: figures.Growth) -> list[tuple[str, int, int]]:
    return [(source.name, source.joined, source.left) for source in found.sources]


# Readers over time


def test_a_year_of_weeks_ends_with_the_present_one(db: None) -> None:
    found = growth(7)
    assert len(found.weeks) == 53
    assert (found.weeks[0].begins, found.weeks[-1].begins) == (dt.date(2025, 11, 24), dt.date(2026, 11, 23))
    assert {week.readers for week in found.weeks} == {7}


def test_who_joined_and_left_stands_in_the_week_of_it(db: None) -> None:
    reader("new", "2026-11-24", source="profile")
    reader("old", "2024-01-01", source="profile")
    reader("gone", "2026-11-02", ("unsubscribed", "2026-11-16"), status="unsubscribed", source="post")
    reader("oldgone", "2024-01-01", ("unsubscribed", "2026-11-10"), status="unsubscribed", source="post")
    found = growth(2)
    assert moves(found) == {
        "2026-11-02": (1, 0), "2026-11-09": (0, 1), "2026-11-16": (0, 1), "2026-11-23": (1, 0),
    }  # fmt: skip
    assert [week.readers for week in found.weeks[-6:]] == [2, 2, 3, 2, 1, 2]
    assert sources(found) == [("post", 1, 2), ("profile", 1, 0)]
    assert (found.joined, found.left) == (2, 2)


def test_a_week_begins_on_monday_at_the_publication_s_midnight(db: None) -> None:
    reader("late", "2026-11-22T23:30:00")
    assert moves(growth(1)) == {"2026-11-16": (1, 0)}
    assert moves(growth(1, zone=ZoneInfo("Asia/Tokyo"))) == {"2026-11-23": (1, 0)}


def test_who_came_back_is_counted_each_time(db: None) -> None:
    reader(
        "back",
        "2024-05-01",
        ("confirmed", "2024-05-01"),
        ("unsubscribed", "2026-10-06"),
        ("resubscribed", "2026-10-20"),
    )
    reader(
        "again", "2026-11-10", ("confirmed", "2026-09-01"), ("unsubscribed", "2026-09-08"),
        ("confirmed", "2026-11-10T00:00:01"),
    )  # fmt: skip
    found = growth(2)
    assert moves(found) == {
        "2026-08-31": (1, 0), "2026-09-07": (0, 1), "2026-10-05": (0, 1), "2026-10-19": (1, 0), "2026-11-09": (1, 0),
    }  # fmt: skip
    assert [week.readers for week in found.weeks[:3]] == [1, 1, 1]


def test_who_never_read_here_is_in_no_figure(db: None) -> None:
    reader("pending", status="pending")
    reader(
        "brought", "2026-06-01", ("imported", "2026-11-20"), status="unsubscribed", unsubscribed_at=day("2026-11-20")
    )
    reader("shy", "", ("requested", "2026-11-18"), ("unsubscribed", "2026-11-19"), status="unsubscribed")
    reader("erased", "2026-10-01", status="erased")
    assert moves(growth()) == {}
    assert sources(growth()) == []


def test_who_left_before_he_confirmed_left_nothing(db: None) -> None:
    reader("wavering", "2026-11-11", ("unsubscribed", "2026-11-03"), ("confirmed", "2026-11-11T00:00:01"))
    assert moves(growth(1)) == {"2026-11-09": (1, 0)}


def test_what_people_really_do_is_counted(alice: Subscriber) -> None:
    subscription.unsubscribe(alice.pk)
    subscription.resubscribe(alice.pk)
    found = figures.growth(readers=1, now=timezone.now(), zone=LONDON)
    assert (found.joined, found.left, found.weeks[-1].readers, found.weeks[0].readers) == (2, 1, 1, 0)


def test_small_sources_stand_together(db: None) -> None:
    for number in range(10):
        for each in range(10 - number):
            reader(f"r{number}x{each}", "2026-11-02", source=f"s{number}")
    found = growth(55)
    assert sources(found)[:2] == [("s0", 10, 0), ("s1", 9, 0)]
    assert sources(found)[-1] == ("", 3 + 2 + 1, 0)
    assert (len(found.sources), found.other_sources) == (8, 3)


def test_the_audience_says_why_some_are_not_mailed(
    alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    later = timezone.now() + dt.timedelta(days=3)
    reader("paused", "2026-01-01", paused_until=later)
    both = reader("both", "2026-01-01", paused_until=later)
    Suppression.objects.create(address_hash=both.address_hash, reason="bounced")
    reader("erased", "2026-10-01", status="erased")
    found = figures.audience()
    assert found == figures.Audience(readers=4, suppressed=2, paused=1, monthly=0, waiting=1, erased=1)
    assert found.mailable == Subscriber.objects.mailable().count() == 1


# Issues


def sent(
    count: int, *, days_ago: float, subject: str = "This week", states: tuple[str, ...] = (), **values: Any
) -> Issue:
    """Make an issue that was sent so many days ago to `count` new readers; the last of them fared as `states` say."""
    readers = make_readers_of(subject, count)
    issue = make_issue(subject=subject, **values)
    delivery.send_now(issue)
    rows = list(issue.deliveries.filter(subscriber__in=readers).order_by("pk"))
    issue.deliveries.exclude(pk__in=[row.pk for row in rows]).delete()
    issue.deliveries.update(state=State.ACCEPTED)
    for row, state in zip(reversed(rows), states, strict=False):
        reason = "suppressed" if state == State.SKIPPED else ""
        Delivery.objects.filter(pk=row.pk).update(state=state, reason=reason)
    started = timezone.now() - dt.timedelta(days=days_ago)
    state = Issue.State.COMPLETED_WITH_FAILURES if State.REJECTED in states else Issue.State.COMPLETED
    Issue.objects.filter(pk=issue.pk).update(state=state, started_at=started, completed_at=started)
    issue.refresh_from_db()
    return issue


def make_readers_of(subject: str, count: int) -> list[Subscriber]:
    word = subject.replace(" ", "").lower()
    return [reader(f"{word}{number}", "2026-01-01") for number in range(count)]


def leave(issue: Issue, number: int, *, days_after: float) -> None:
    """Let the reader of the issue's copy `number` leave so many days after it began."""
    row = issue.deliveries.order_by("pk")[number]
    assert issue.started_at
    with time_machine.travel(issue.started_at + dt.timedelta(days=days_after), tick=False):
        subscription.unsubscribe(row.subscriber_id)


def test_an_issue_s_copies_are_counted_as_its_equation_has_them(db: None) -> None:
    issue = sent(6, days_ago=20, states=(State.REJECTED, State.EXPIRED, State.SKIPPED, State.UNCERTAIN_FINAL))
    (past,) = figures.past_issues(5)
    assert past.issue == issue
    assert str(past.counts) == "6 = 2 sent + 1 skipped + 2 failed + 1 unknown + 0 open"
    assert past.counts == issue.counts()


@pytest.mark.django_db(transaction=True)
def test_an_issue_that_went_on_is_counted_anew(publication: Publication) -> None:
    issue = sent(3, days_ago=2, states=(State.REJECTED,))
    assert [past.counts.failed for past in figures.past_issues(5)] == [1]
    delivery.resend_failed(issue)
    assert figures.past_issues(5) == []
    issue.deliveries.update(state=State.ACCEPTED)
    delivery.settle_issue(issue.pk)
    assert [(past.counts.sent, past.counts.failed) for past in figures.past_issues(5)] == [(3, 0)]


def test_who_left_within_a_week_of_an_issue_that_he_got_is_counted(db: None) -> None:
    issue = sent(6, days_ago=20, states=(State.REJECTED,))
    for number, days in enumerate((0.0, 6.9, 7.1, -0.1)):
        leave(issue, number, days_after=days)
    leave(issue, 5, days_after=1)  # whose copy was rejected
    other = reader("other", "2026-01-01")  # who got no copy
    assert issue.started_at
    consent(other, "unsubscribed", issue.started_at)
    assert figures.left_after([issue.pk]) == {issue.pk: 2}


def test_a_reader_who_leaves_twice_in_a_week_is_one(db: None) -> None:
    issue = sent(2, days_ago=20)
    leave(issue, 0, days_after=1)
    subscription.resubscribe(issue.deliveries.order_by("pk")[0].subscriber_id)
    leave(issue, 0, days_after=2)
    assert figures.left_after([issue.pk]) == {issue.pk: 1}


def test_the_last_issues_stand_newest_first_with_clicks_where_they_were_counted(author: Client) -> None:
    sent(3, days_ago=14, subject="Older")
    counted = sent(4, days_ago=2, subject="Newer", count_clicks=True)
    Link.objects.bulk_create(
        [Link(issue=counted, number=90 + n, url=f"https://{n}.example.com/", clicks=n) for n in (3, 4)]
    )
    leave(counted, 1, days_after=1)
    page = author.get("/admin/")
    found = page.context["past"]["issues"]
    assert [(past.issue.subject, past.counts.sent, past.left, past.clicks, past.is_young) for past in found] == [
        ("Newer", 4, 1, 7, True),
        ("Older", 3, 0, None, False),
    ]
    assert "not counted" in page.text
    assert page.text.index("https://4.example.com/") < page.text.index("https://3.example.com/")


def test_without_counting_nothing_is_said_of_clicks(author: Client) -> None:
    sent(1, days_ago=3)
    assert "Clicks" not in author.get("/admin/").text


def test_what_is_under_way_shows_its_equation_and_what_is_unknown(author: Client) -> None:
    make_readers(5)
    issue = make_issue(subject="Under way")
    delivery.send_now(issue)
    rows = list(issue.deliveries.values_list("pk", flat=True))
    Delivery.objects.filter(pk__in=rows[:2]).update(state=State.ACCEPTED)
    Delivery.objects.filter(pk=rows[2]).update(state=State.UNCERTAIN, fence=1)
    page = author.get("/admin/")
    ((found, counts),) = page.context["busy"]
    assert (found, str(counts)) == (issue, "5 = 2 sent + 0 skipped + 0 failed + 1 unknown + 2 open")
    assert "Of 1 copy nobody knows whether it was taken." in page.text
    assert page.context["past"]["issues"] == []


# The next date


def test_the_next_date_says_that_nothing_is_there_and_what_might_be(author: Client) -> None:
    slot = make_slot(days=3)
    make_issue(subject="Half done")
    make_post(ready=True)
    page = author.get("/admin/")
    found = page.context["upcoming"]
    assert (found.due_at, found.issue, found.is_ready) == (slot.due_at, None, False)
    assert "Nothing is scheduled for this date yet." in page.text
    assert "Half done" in page.text
    assert "1 post is marked as ready" in page.text
    assert f"{slot.due_at:%H:%M} UTC" in page.text
    assert "in 2\xa0days, 23\xa0hours" in page.text  # without a script; with one it goes on by itself


def test_a_scheduled_issue_is_ready_with_its_number_of_readers(
    author: Client, alice: Subscriber, dave: Subscriber
) -> None:
    issue = make_issue(make_post())
    delivery.schedule(issue, make_slot(days=3))
    page = author.get("/admin/")
    assert page.context["upcoming"].is_ready
    assert "Ready: it goes by itself, to 1 reader as of now." in page.text


def test_a_scheduled_issue_that_lost_something_says_what(author: Client, alice: Subscriber) -> None:
    issue = make_issue(make_post())
    delivery.schedule(issue, make_slot(days=3))
    Publication.objects.update(postal_address="")
    page = author.get("/admin/")
    assert not page.context["upcoming"].is_ready
    assert "has no postal address" in page.text


def test_a_scheduled_issue_that_preflight_blocks_says_why_until_it_is_waived(author: Client, alice: Subscriber) -> None:
    issue = make_issue(make_post(body="[See](http://localhost:8000/x)"))
    issue.schedule(make_slot(days=3))
    page = author.get("/admin/")
    assert not page.context["upcoming"].is_ready
    (finding,) = preflight.blocking(issue)
    assert finding.check_id in page.text
    preflight.waive(issue, finding.check_id, finding.place, "It is meant so.", "author")
    assert author.get("/admin/").context["upcoming"].is_ready


def test_an_issue_outside_the_rhythm_comes_first_where_it_is_due_first(alice: Subscriber) -> None:
    make_slot(days=3)
    issue = make_issue(make_post())
    issue.schedule_at(timezone.now() + dt.timedelta(days=1))
    found = desk.upcoming()
    assert found
    assert found.issue == issue
    issue.schedule_at(timezone.now() + dt.timedelta(days=5))
    again = desk.upcoming()
    assert again
    assert again.issue is None


def test_a_held_date_is_passed_over_and_an_empty_calendar_said(author: Client) -> None:
    assert "The calendar is made" in author.get("/admin/").text
    make_slot(days=1, state=Slot.State.HELD)
    assert desk.upcoming() is None


# Who sees what


def test_a_colleague_sees_what_he_may(client: Client, alice: Subscriber) -> None:
    make_slot()
    client.force_login(User.objects.create_user("helper", is_staff=True))
    nothing = client.get("/admin/").text
    assert "Next issue" not in nothing
    assert "Confirmed readers" not in nothing
    user = User.objects.get(username="helper")
    user.user_permissions.set(Permission.objects.filter(codename="view_issue"))
    issues = client.get("/admin/").text
    assert "Next issue" in issues
    assert "Confirmed readers" not in issues
    assert "Compose an issue" not in issues
    user.user_permissions.set(Permission.objects.filter(codename="view_subscriber"))
    assert "Confirmed readers" in client.get("/admin/").text


def test_the_desk_asks_as_much_of_many_issues_as_of_one(author: Client) -> None:
    sent(1, days_ago=3, subject="one", count_clicks=True)
    author.get("/admin/")
    with CaptureQueriesContext(connection) as few:
        author.get("/admin/")
    for number in range(5):
        sent(1, days_ago=4 + number, subject=f"more{number}", count_clicks=True)
    author.get("/admin/")  # counts the copies of each ended issue once
    with CaptureQueriesContext(connection) as many:
        author.get("/admin/")
    assert len(many) == len(few)
    assert not [query for query in many.captured_queries if '"newsletter_issue"."source"' in query["sql"]]


def test_the_charts_have_the_figures_of_the_tables(author: Client, alice: Subscriber) -> None:
    page = author.get("/admin/")
    charts = page.context["charts"]
    assert charts["readers"]["series"][0]["values"] == [week.readers for week in page.context["growth"].weeks]
    assert charts["readers"]["series"][0]["values"][-1] == 1
    assert charts["sources"]["labels"] == ["not known"]
    assert page.text.count('<tr><th scope="row">') >= 53
    assert 'id="desk-charts" type="application/json"' in page.text


def test_erased_readers_are_said_to_be_left_out(author: Client, alice: Subscriber) -> None:
    assert "none of these figures" not in author.get("/admin/").text
    reader("erased", "2026-10-01", status="erased")
    assert "1 erased reader is in none of these figures" in author.get("/admin/").text
