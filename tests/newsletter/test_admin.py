"""The author's desk: every refusal in words, every move by POST, and nothing that goes round the ledger."""

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from newsletter import delivery
from newsletter.models import Delivery, DeliveryEvent, Issue, Lease, Slot
from posts.models import AuditEntry, Post, Publication
from subscribers import addresses, subscription
from subscribers.models import Instance, Subscriber, Suppression
from tests.factories import make_issue, make_post, make_readers, make_slot
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")
State = Delivery.State
SOON = dt.timedelta(hours=1)


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


def act(client: Client, issue: Issue, name: str, **values: Any) -> str:
    """Press a button and return the page that follows, as text."""
    return client.post(f"/admin/newsletter/issue/{issue.pk}/act/", {"act": name, **values}, follow=True).text


@pytest.mark.parametrize(
    "path",
    [
        "", "posts/post/", "posts/post/add/", "posts/publication/1/change/", "posts/tag/", "posts/featuredpost/add/",
        "posts/redirect/", "subscribers/subscriber/", "subscribers/suppression/add/", "subscribers/systemmail/",
        "newsletter/slot/", "newsletter/issue/", "newsletter/issue/add/", "newsletter/delivery/?q=a",
        "newsletter/delivery/history/", "newsletter/deliveryevent/",
    ],
)  # fmt: skip
def test_every_page_opens(author: Client, path: str, alice: Subscriber) -> None:
    response = author.get(f"/admin/{path}")
    assert response.status_code == 200
    assert "'unsafe-eval'" in response.headers["Content-Security-Policy"]


def test_the_publication_is_one_page(author: Client) -> None:
    assert author.get("/admin/posts/publication/").headers["Location"] == "/admin/posts/publication/1/change/"
    assert author.get("/admin/posts/publication/add/").status_code == 403


def test_an_issue_is_scheduled_into_a_date_and_taken_back(author: Client, alice: Subscriber) -> None:
    issue, slot = make_issue(), make_slot()
    assert "Scheduled" in act(author, issue, "schedule", slot=slot.pk)
    slot.refresh_from_db()
    assert slot.state == Slot.State.TAKEN
    assert "Draft" in act(author, issue, "unschedule")
    slot.refresh_from_db()
    assert slot.state == Slot.State.OPEN


def test_a_taken_date_and_an_empty_postal_address_are_refused_in_words(author: Client) -> None:
    slot = make_slot()
    make_issue().schedule(slot)
    assert "Another issue has taken this date" in act(author, make_issue(), "schedule", slot=slot.pk)
    Publication.objects.update(postal_address="")
    assert "has no postal address" in act(author, make_issue(), "schedule", slot=Slot.objects.upcoming().open()[0].pk)


def test_sending_now_asks_first(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    assert "Send now to 1 reader<" in act(author, issue, "now")
    issue.refresh_from_db()
    assert issue.state == Issue.State.DRAFT
    act(author, issue, "now", sure="1")
    issue.refresh_from_db()
    assert issue.state == Issue.State.SENDING


def test_pause_resume_and_cancel_are_harmless_when_clicked_twice(author: Client, alice: Subscriber) -> None:
    issue = sending()
    for name, words in (("pause", "Paused"), ("resume", "Sending"), ("cancel", "Cancelled")):
        for _click in range(2):
            assert f"the issue is now “{words}”" in act(author, issue, name, sure="1")
    assert str(issue.counts()) == "1 = 0 sent + 1 skipped + 0 failed + 0 unknown + 0 open"


def test_cancelling_says_how_many_copies_will_never_go(author: Client) -> None:
    make_readers(3)
    issue = sending()
    assert "3 copies of “#1 This week” that have not gone yet will never be sent" in act(author, issue, "cancel")
    issue.refresh_from_db()
    assert issue.state == Issue.State.SENDING


def test_sending_and_scheduling_twice_plan_each_reader_once(author: Client, alice: Subscriber) -> None:
    issue, slot = make_issue(), make_slot()
    for _click in range(2):
        assert "“Scheduled”" in act(author, issue, "schedule", slot=slot.pk)
    for _click in range(2):
        act(author, issue, "now", sure="1")
    assert issue.deliveries.count() == 1


def test_an_unknown_button_changes_nothing(author: Client) -> None:
    issue = make_issue()
    assert "not known" in act(author, issue, "delete")
    assert "not known" in act(author, issue, "save")


def test_moves_are_posts_of_those_who_may_send(client: Client, author: Client) -> None:
    issue = make_issue()
    assert author.get(f"/admin/newsletter/issue/{issue.pk}/act/").status_code == 405
    editor = User.objects.create_user("editor", is_staff=True)
    editor.user_permissions.set(Permission.objects.filter(codename__in=["change_issue", "view_issue"]))
    client.force_login(editor)
    assert client.post(f"/admin/newsletter/issue/{issue.pk}/act/", {"act": "now", "sure": "1"}).status_code == 403
    assert "Send now" not in client.get(f"/admin/newsletter/issue/{issue.pk}/change/").text


def test_a_test_goes_to_one_address(author: Client, relay: SmtpServer) -> None:
    assert "A test went to me@example.org" in act(author, make_issue(), "test", to="me@example.org")
    assert list(relay.recipients) == ["me@example.org"]
    assert "valid email" in act(author, make_issue(), "test", to="nonsense")


def test_a_test_to_an_address_that_can_not_be_written_is_refused_in_words(author: Client) -> None:
    assert "go to this address" in act(author, make_issue(), "test", to="a@[127.0.0.1]")


@pytest.mark.parametrize("slot", ["x", "", "-1", "9" * 30])
def test_a_date_that_is_none_is_not_found(author: Client, slot: str) -> None:
    path = f"/admin/newsletter/issue/{make_issue().pk}/act/"
    assert author.post(path, {"act": "schedule", "slot": slot, "sure": "1"}).status_code == 404


def test_counts_are_answered_for_the_live_page(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    found = author.get(f"/admin/newsletter/issue/{issue.pk}/counts/").json()
    assert (found["audience"], found["open"], found["sent"]) == (1, 1, 0)


def test_an_issue_under_way_can_not_be_edited(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    author.post(f"/admin/newsletter/issue/{issue.pk}/change/", {"subject": "Changed"})
    issue.refresh_from_db()
    assert issue.subject == "This week"


def test_the_preview_runs_nothing(author: Client) -> None:
    response = author.get(f"/admin/newsletter/issue/{make_issue(make_post()).pk}/preview/")
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert "script-src" not in response.headers["Content-Security-Policy"]
    assert "On vacuum" in response.text


def test_a_taken_slug_and_a_broken_cover_are_told_beside_their_fields(author: Client) -> None:
    make_post(slug="taken")
    data = {"title": "Two", "slug": "taken", "status": "draft", "visibility": "public", "body": "x"}
    page = author.post("/admin/posts/post/add/", {**data, "cover": not_an_image()})
    assert "choose a different slug" in page.text
    assert "not an image that can be read" in page.text
    assert Post.objects.count() == 1


def not_an_image() -> Any:
    return SimpleUploadedFile("x.png", b"<svg onload=alert(1)>", content_type="image/png")


def test_a_text_that_can_not_be_rendered_is_told_beside_its_field(author: Client) -> None:
    endless = "x" * 300_000
    page = author.post("/admin/newsletter/issue/add/", {"subject": "x", "introduction": endless})
    assert page.status_code == 200
    assert "introduction" in page.context["adminform"].form.errors
    about = author.post("/admin/posts/publication/1/change/", {"name": "x", "about": endless})
    assert "about" in about.context["adminform"].form.errors


def test_an_unknown_time_zone_is_told_beside_its_field(author: Client) -> None:
    page = author.post("/admin/posts/publication/1/change/", {"name": "x", "time_zone": "Mars/Olympus"})
    assert "is not a time zone" in page.text


def test_an_address_is_suppressed_by_hand_once(author: Client, alice: Subscriber) -> None:
    data = {"address": "ALICE@example.org", "reason": "manual", "note": "asked by phone"}
    author.post("/admin/subscribers/suppression/add/", data)
    alice.refresh_from_db()
    assert alice.suppressed
    assert "suppressed already" in author.post("/admin/subscribers/suppression/add/", data).text
    assert Suppression.objects.count() == 1


def test_readers_are_found_in_any_spelling_and_unsubscribed_by_the_action(author: Client, alice: Subscriber) -> None:
    assert "alice@example.org" in author.get("/admin/subscribers/subscriber/?q=ALICE@Example.org").text
    data = {"action": "unsubscribe", "_selected_action": [alice.pk]}
    author.post("/admin/subscribers/subscriber/", data)
    alice.refresh_from_db()
    assert alice.status == "unsubscribed"


def test_a_date_is_held_and_opened(author: Client) -> None:
    slot = make_slot()
    for action, state in (("hold", "held"), ("release", "open")):
        author.post("/admin/newsletter/slot/", {"action": action, "_selected_action": [slot.pk]})
        slot.refresh_from_db()
        assert slot.state == state
    assert noted_of_dates() == ["slot.hold", "slot.release"]


def noted_of_dates() -> list[str]:
    return list(AuditEntry.objects.filter(act__startswith="slot.").order_by("pk").values_list("act", flat=True))


@pytest.mark.parametrize(("hours", "noted"), [(1, ["slot.move"]), (-24 * 30, [])])
def test_who_moved_a_date_is_noted_and_a_refused_move_is_not(author: Client, hours: int, noted: list[str]) -> None:
    slot = make_slot()
    before, to = slot.due_at, slot.due_at + dt.timedelta(hours=hours)
    typed = {"due_at_0": f"{to:%Y-%m-%d}", "due_at_1": f"{to:%H:%M:%S}"}
    author.post(f"/admin/newsletter/slot/{slot.pk}/change/", typed)
    slot.refresh_from_db()
    assert (noted_of_dates(), slot.due_at != before) == (noted, bool(noted))
    for entry in AuditEntry.objects.filter(act="slot.move"):
        assert (entry.actor, entry.detail) == ("admin", {"was": str(before)})


def test_the_ledger_can_only_be_read(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    row = issue.deliveries.get()
    assert author.get("/admin/newsletter/delivery/add/").status_code == 403
    assert author.post(f"/admin/newsletter/delivery/{row.pk}/change/", {"state": "accepted"}).status_code == 403
    assert author.post(f"/admin/newsletter/delivery/{row.pk}/delete/", {"post": "yes"}).status_code == 403


def test_what_was_numbered_stays(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    assert author.post(f"/admin/newsletter/issue/{issue.pk}/delete/", {"post": "yes"}).status_code == 403
    assert issue.started_at
    assert issue.started_at <= timezone.now()


def sending(readers: int = 0) -> Issue:
    make_readers(readers)
    issue = make_issue()
    delivery.send_now(issue)
    return issue


def settle(issue: Issue, *states: str, **values: Any) -> list[Delivery]:
    """Put the issue's copies into these states, in turn, as if a worker had."""
    rows = list(issue.deliveries.order_by("pk")[: len(states)])
    assert len(rows) == len(states)
    for row, state in zip(rows, states, strict=True):
        again = timezone.now() + SOON if state in (State.DEFERRED, State.UNCERTAIN) else None
        changes = {"state": state, "fence": 1, "attempt": 1, "next_attempt_at": again, **values}
        Delivery.objects.filter(pk=row.pk).update(**changes)
    return list(Delivery.objects.filter(pk__in=[row.pk for row in rows]).order_by("pk"))


def end(issue: Issue, state: str) -> None:
    Issue.objects.filter(pk=issue.pk).update(state=state)
    issue.refresh_from_db()


def panel(client: Client, issue: Issue) -> str:
    """Return the text of the issue's page, without its markup and with single spaces."""
    return plain(client.get(f"/admin/newsletter/issue/{issue.pk}/change/").text)


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def live(client: Client, issue: Issue) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/admin/newsletter/issue/{issue.pk}/counts/").json()
    return found


def ask_about(client: Client, words: str) -> str:
    return plain(client.get("/admin/newsletter/delivery/history/", {"q": words}).text)


def editor(client: Client, *codenames: str) -> Client:
    user = User.objects.create_user("editor", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


# The page of an issue under way


def test_the_live_page_gets_the_equation_the_pace_and_the_words(author: Client) -> None:
    issue = sending(readers=8)
    settle(issue, State.ACCEPTED, State.ACCEPTED, State.REJECTED, State.UNCERTAIN)
    found = live(author, issue)
    assert [found[name] for name in ("audience", "sent", "skipped", "failed", "unknown", "open")] == [8, 2, 0, 1, 1, 4]
    assert (found["state"], found["label"], found["percent"], found["live"]) == ("sending", "Sending", 50, True)
    assert found["summary"] == "Sending, 50 % done"
    assert re.fullmatch(r"\d\d:\d\d:\d\d", found["at"])
    assert set(found["parts"]) == {"live", "acts"}
    assert "Pause" in found["parts"]["acts"]


def test_the_pace_is_that_of_the_last_minute_and_says_what_is_left(author: Client) -> None:
    issue = sending(readers=10)
    settle(issue, State.ACCEPTED, State.ACCEPTED, updated_at=timezone.now())
    before = timezone.now() - dt.timedelta(minutes=5)
    Delivery.objects.filter(state=State.PENDING).update(updated_at=before)
    third = issue.deliveries.filter(state=State.PENDING).first()
    assert third
    Delivery.objects.filter(pk=third.pk).update(state=State.ACCEPTED, updated_at=before)
    Issue.objects.update(started_at=before)
    assert live(author, issue)["pace"] == 2
    words = panel(author, issue)
    assert "2 copies a minute" in words
    assert "about 4 minutes left" in words
    assert "on average 1 a minute since it began" in words


def test_answers_are_told_by_kind_with_an_example_of_the_words(author: Client) -> None:
    issue = sending(readers=5)
    settle(issue, State.DEFERRED, State.DEFERRED, reply_class="rate", smtp_code=452, reply_text="4.3.1 <b>Slow</b>")
    others = issue.deliveries.filter(state=State.PENDING).values_list("pk", flat=True)[:2]
    Delivery.objects.filter(pk__in=list(others)).update(
        state=State.REJECTED, reply_class="hard_address", smtp_code=550, reply_text="5.1.1 Nobody", fence=1
    )
    page = live(author, issue)["parts"]["live"]
    assert "&lt;b&gt;Slow&lt;/b&gt;" in page
    words = plain(page)
    assert "2 put off: asked for a slower pace 452 4.3.1" in words
    assert "2 rejected: there is no such mailbox 550 5.1.1 Nobody" in words


def test_retries_tell_how_many_wait_and_when_the_next_is_due(author: Client) -> None:
    issue = sending(readers=3)
    first, *_others = settle(issue, State.DEFERRED, State.DEFERRED)
    at = timezone.localtime(first.next_attempt_at, Publication.current().zone)
    shown = at.strftime("%H:%M")
    assert re.search(rf"2 copies are tried again, the next at [\w ,]*{shown}", panel(author, issue))
    Delivery.objects.filter(pk=first.pk).update(next_attempt_at=timezone.now())
    assert "2 copies are tried again, the next is due now" in panel(author, issue)


def test_workers_at_work_are_named_and_their_absence_is(author: Client) -> None:
    issue = sending(readers=1)
    assert "No worker is at work on it" in panel(author, issue)
    now = timezone.now()
    Lease.objects.create(issue=issue, owner="host:7", expires_at=now + SOON, settled=1204)
    Lease.objects.create(issue=issue, owner="host:8", expires_at=now - SOON)
    Lease.objects.create(issue=issue, owner="host:9", expires_at=now + SOON, ended_at=now)
    words = panel(author, issue)
    assert "Worker host:7 at work since" in words
    assert "1,204 copies settled" in words
    assert "host:8" not in words
    assert "host:9" not in words


@pytest.mark.parametrize(
    ("resume_at", "words"),
    [("2026-12-01T09:30Z", "It resumes by itself: Tuesday 1 December"), (None, "when you press")],
)
def test_a_pause_tells_its_reason_and_when_it_ends(author: Client, resume_at: str | None, words: str) -> None:
    issue = sending(readers=1)
    Issue.objects.update(state="paused", pause_reason="The relay wants DKIM", resume_at=resume_at)
    page = panel(author, issue)
    assert "The relay wants DKIM" in page
    assert words in page
    assert "Go on sending" in page


def test_a_copy_of_the_database_is_warned_of(author: Client) -> None:
    issue = sending(readers=1)
    assert "looks like a copy" not in panel(author, issue)
    Instance.objects.update(installation="another")
    assert "looks like a copy and sends nothing" in panel(author, issue)


@pytest.mark.parametrize(
    ("state", "shown", "hidden"),
    [
        ("sending", ["pause", "cancel"], ["resume", "resend", "joined", "schedule"]),
        ("paused", ["resume", "cancel"], ["pause", "resend", "joined"]),
        ("needs_review", ["cancel", "resend", "joined"], ["pause", "resume"]),
        ("completed", ["joined"], ["pause", "resume", "cancel"]),
        ("completed_with_failures", ["resend", "joined"], ["pause", "resume", "cancel"]),
        ("cancelled", [], ["pause", "resume", "cancel", "resend", "joined", "now"]),
    ],
)
def test_each_state_has_its_buttons(author: Client, state: str, shown: list[str], hidden: list[str]) -> None:
    issue = sending(readers=2)
    settle(issue, State.REJECTED)
    end(issue, state)
    buttons = re.findall(r'name="act" value="(\w+)"', author.get(f"/admin/newsletter/issue/{issue.pk}/change/").text)
    assert [name for name in shown if name not in buttons] == []
    assert [name for name in hidden if name in buttons] == []


def test_the_page_asks_no_more_once_the_issue_is_through(author: Client) -> None:
    issue = sending(readers=1)
    assert 'data-live="1"' in author.get(f"/admin/newsletter/issue/{issue.pk}/change/").text
    settle(issue, State.ACCEPTED)
    end(issue, "completed")
    assert live(author, issue)["live"] is False
    assert 'data-live=""' in author.get(f"/admin/newsletter/issue/{issue.pk}/change/").text


def test_the_live_answer_takes_few_queries(author: Client) -> None:
    issue = sending(readers=3)
    settle(issue, State.DEFERRED, State.REJECTED, State.UNCERTAIN)
    with CaptureQueriesContext(connection) as queries:
        live(author, issue)
    about_copies = [query for query in queries if "newsletter_delivery" in query["sql"]]
    assert len(about_copies) == 2
    assert len(queries) <= 8


def test_who_may_not_see_issues_sees_nothing_of_one(client: Client) -> None:
    issue = sending(readers=1)
    editor(client, "view_post")
    for page in ("counts", "preview", "text", "unknown"):
        assert client.get(f"/admin/newsletter/issue/{issue.pk}/{page}/").status_code == 403
    assert client.get("/admin/newsletter/delivery/history/?q=a").status_code == 403


# Sending more


def test_sending_again_to_the_rejected_says_to_how_many_and_does_it_once(author: Client) -> None:
    issue = sending(readers=4)
    settle(issue, State.REJECTED, State.REJECTED, State.EXPIRED, State.FAILED)
    subscription.suppress("reader0@example.org", reason=Suppression.Reason.MANUAL)
    end(issue, "completed_with_failures")
    assert "Send again to the 3 whose copy was rejected or given up" in panel(author, issue)
    asked = plain(act(author, issue, "resend"))
    assert "It concerns 2 readers." in asked
    assert "1 more has left, paused or must not be mailed" in asked
    assert issue.deliveries.filter(state=State.PENDING).count() == 0
    assert "2 copies are on their way" in act(author, issue, "resend", sure="1")
    assert "There is nobody to send it to." in act(author, issue, "resend", sure="1")
    assert issue.deliveries.filter(state=State.PENDING).count() == 2
    issue.refresh_from_db()
    assert issue.state == Issue.State.SENDING


def test_those_who_joined_since_get_it_once(author: Client) -> None:
    issue = sending(readers=2)
    settle(issue, State.ACCEPTED, State.ACCEPTED)
    end(issue, "completed")
    assert "There is nobody to send it to." in act(author, issue, "joined")
    Subscriber.objects.create(address="late@example.org", status="active", confirmed_at=timezone.now())
    Subscriber.objects.create(address="not-yet@example.org", status="pending")
    asked = plain(act(author, issue, "joined"))
    assert "It concerns 1 reader who may be mailed and has no copy" in asked
    assert "Send to the 1 who joined since" in asked
    assert "1 copy is on its way" in act(author, issue, "joined", sure="1")
    assert "There is nobody to send it to." in act(author, issue, "joined", sure="1")
    assert issue.deliveries.filter(address="late@example.org").count() == 1


# Unknown copies


def decide(client: Client, issue: Issue, decision: str, whom: str = "all", **values: Any) -> str:
    data = {"decision": decision, "whom": whom, **values}
    return plain(client.post(f"/admin/newsletter/issue/{issue.pk}/unknown/decide/", data, follow=True).text)


def in_doubt(readers: int = 3) -> Issue:
    issue = sending(readers=readers)
    settle(issue, *[State.UNCERTAIN] * readers, phase="final_dot", reply_text="the connection broke")
    end(issue, "needs_review")
    return issue


def test_unknown_copies_are_shown_with_all_that_is_known(author: Client) -> None:
    issue = in_doubt()
    row = issue.deliveries.order_by("pk")[0]
    Delivery.objects.filter(pk=row.pk).update(state=State.UNCERTAIN_FINAL, next_attempt_at=None)
    DeliveryEvent.objects.create(delivery=row, kind="reconciled", provider_id="x", detail={"evidence": "no trace <i>"})
    assert "Of 3 copies nobody knows whether the mail server took them." in panel(author, issue)
    page = author.get(f"/admin/newsletter/issue/{issue.pk}/unknown/").text
    assert row.message_id.strip("<>") in page
    assert "no trace &lt;i&gt;" in page
    words = plain(page)
    for expected in (row.address, "the connection broke", "at final_dot", "Nothing could be found out"):
        assert expected in words
    assert "Still looked into, next at" in words


@pytest.mark.parametrize(
    ("decision", "warning", "state", "issue_state"),
    [
        ("sent", "its reader never gets this issue", State.ACCEPTED, "completed"),
        ("again", "Somebody may get it twice", State.PENDING, "sending"),
        ("leave", "nothing is looked into any more", State.UNCERTAIN_FINAL, "needs_review"),
    ],
)
def test_the_author_decides_on_all_unknown_copies(
    author: Client, decision: str, warning: str, state: str, issue_state: str
) -> None:
    issue = in_doubt()
    assert warning in decide(author, issue, decision)
    assert issue.deliveries.unknown().filter(state=State.UNCERTAIN).count() == 3
    assert "3 copies decided" in decide(author, issue, decision, sure="3")
    decide(author, issue, decision, sure="3")
    assert set(issue.deliveries.values_list("state", flat=True)) == {state}
    issue.refresh_from_db()
    assert issue.state == issue_state
    event = DeliveryEvent.objects.filter(kind="reconciled").order_by("pk")[0]
    assert event.detail["evidence"] == f"decided by admin: {decision}"


def test_the_author_decides_on_the_ticked_copies_alone(author: Client) -> None:
    issue = in_doubt()
    rows = list(issue.deliveries.order_by("pk"))
    ticked = [rows[0].pk, rows[2].pk]
    assert "Count 2 copies as sent?" in decide(author, issue, "sent", "ticked", id=ticked)
    decide(author, issue, "sent", "ticked", id=ticked, sure="2")
    assert list(issue.deliveries.unknown()) == [rows[1]]
    assert "Choose copies that are still unknown" in decide(author, issue, "sent", "ticked", id=ticked, sure="2")
    assert "Choose copies that are still unknown" in decide(author, issue, "sent", "ticked", id=["x", "9" * 30])


def test_all_means_also_those_of_other_pages_and_is_asked_anew_when_their_number_changed(author: Client) -> None:
    issue = in_doubt(readers=101)
    page = plain(author.get(f"/admin/newsletter/issue/{issue.pk}/unknown/").text)
    assert "Page 1 of 2" in page
    assert "Do so for all 101" in page
    assert "Count 101 copies as sent?" in decide(author, issue, "sent", sure="100")
    assert "Nothing is unknown" in decide(author, issue, "sent", sure="101")
    assert issue.counts().sent == 101


def test_unknown_copies_are_decided_by_post_and_by_those_who_may_send(client: Client, author: Client) -> None:
    issue = in_doubt()
    assert author.get(f"/admin/newsletter/issue/{issue.pk}/unknown/decide/").status_code == 405
    editor(client, "view_issue", "view_delivery", "view_subscriber")
    url = f"/admin/newsletter/issue/{issue.pk}/unknown/"
    assert client.post(f"{url}decide/", {"decision": "sent", "whom": "all", "sure": "3"}).status_code == 403
    page = client.get(url)
    assert page.status_code == 200
    assert 'name="decision"' not in page.text


@pytest.mark.parametrize("codenames", [["view_issue"], ["view_issue", "send_issue", "view_delivery"]])
def test_who_may_not_see_readers_sees_no_unknown_copies(client: Client, codenames: list[str]) -> None:
    url = f"/admin/newsletter/issue/{in_doubt().pk}/unknown/"
    editor(client, *codenames)
    assert client.get(url).status_code == 403
    assert client.post(f"{url}decide/", {"decision": "sent", "whom": "all"}).status_code == 403
    page = client.get(url.replace("unknown/", "change/"))
    assert (page.status_code, url in page.content.decode()) == (200, False)


def test_who_may_see_readers_is_led_to_the_unknown_copies(author: Client) -> None:
    url = f"/admin/newsletter/issue/{in_doubt().pk}/unknown/"
    assert url in author.get(url.replace("unknown/", "change/")).content.decode()


# What happened to a@b


def test_one_search_tells_what_happened_to_an_address_in_any_spelling(author: Client, alice: Subscriber) -> None:
    Subscriber.objects.filter(pk=alice.pk).update(source="post", paused_until="2999-01-01T12:00Z")
    first = make_issue(subject="The first")
    delivery.send_now(first)
    Subscriber.objects.filter(pk=alice.pk).update(paused_until=None)
    second = make_issue(subject="The second")
    delivery.send_now(second)
    (row,) = settle(second, State.REJECTED, reply_class="hard_address", smtp_code=550, reply_text="5.1.1 Nobody")
    DeliveryEvent.objects.create(delivery=row, kind="bounced", provider_id="y", detail={})
    subscription.suppress(alice.address, reason=Suppression.Reason.BOUNCED, note="5.1.1 by mail")
    with CaptureQueriesContext(connection) as queries:
        words = ask_about(author, "  ALICE@Example.org ")
    assert len([query for query in queries if "auth" not in query["sql"] and "session" not in query["sql"]]) <= 6
    for expected in ("Active", "Source post", "Hard bounce", "5.1.1 by mail", "Skipped: Paused", "Failed: Rejected"):
        assert expected in words
    for expected in ("550 5.1.1 Nobody", "bounced"):
        assert expected in words
    assert words.index("The second") < words.index("The first")


def test_a_reader_is_found_by_the_beginning_of_his_address(author: Client, alice: Subscriber) -> None:
    assert "Asked to join" in ask_about(author, "ali")
    make_readers(25)
    words = ask_about(author, "reader")
    assert "Readers whose address begins with “reader”" in words
    assert "reader0@example.org · Active" in words
    assert "And more" in words


def test_an_address_that_has_changed_since_is_found_by_the_old_and_the_new(author: Client, alice: Subscriber) -> None:
    issue = sending()
    settle(issue, State.ACCEPTED, accepted_at=timezone.now())
    alice.address = "alice@new.example.org"
    alice.save()
    for address in ("alice@example.org", "alice@new.example.org"):
        words = ask_about(author, address)
        assert "alice@new.example.org" in words
        assert "Sent to alice@example.org" in words


def test_what_was_never_heard_of_and_what_is_only_suppressed_are_told_apart(author: Client) -> None:
    assert "We have never heard of it" in ask_about(author, "nobody@example.org")
    assert "We have never heard of it" in ask_about(author, "<script>")
    Suppression.objects.create(
        address_hash=addresses.keyed_hash("gone@example.org"), reason=Suppression.Reason.ASKED, note="by letter"
    )
    words = ask_about(author, "Gone@example.org")
    assert "No reader has this address now" in words
    assert "Asked never to be mailed" in words
    assert "by letter" in words


def test_the_search_stands_on_the_first_page_in_the_menu_and_on_a_readers_page(
    author: Client, alice: Subscriber
) -> None:
    front = author.get("/admin/").text
    assert 'action="/admin/newsletter/delivery/history/"' in front
    assert 'href="/admin/newsletter/delivery/history/"' in front
    page = author.get(f"/admin/subscribers/subscriber/{alice.pk}/change/").text
    assert f"/admin/newsletter/delivery/history/?q={alice.address.replace('@', '%40')}" in page


def test_a_copys_page_shows_its_message_id_its_answer_and_its_events(author: Client, alice: Subscriber) -> None:
    issue = sending()
    (row,) = settle(issue, State.ACCEPTED, provider_id="prov-77", reply_class="rate")
    DeliveryEvent.objects.create(delivery=row, kind="delivered", provider_id="event-88", detail={})
    page = author.get(f"/admin/newsletter/delivery/{row.pk}/change/").text
    for expected in (row.message_id.strip("<>"), "prov-77", "rate", "event-88"):
        assert expected in page
    found = author.get("/admin/newsletter/delivery/?q=ALICE@example.org").text
    assert "alice@example.org" in found
    assert "rate" in found
    assert "alice@example.org" not in author.get("/admin/newsletter/delivery/?q=bob").text


@pytest.mark.parametrize(("codename", "status"), [("view_tag", 403), ("view_issue", 200)])
def test_a_sent_issue_tells_its_subject_only_to_those_who_may_see_it(
    client: Client, alice: Subscriber, codename: str, status: int
) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    answer = editor(client, codename).post(f"/admin/newsletter/issue/{issue.pk}/change/", {"subject": "Typed late"})
    assert (answer.status_code, issue.subject in answer.text) == (status, status == 200)


@pytest.mark.parametrize("page", ["delivery/history/?q=%00alice", "issue/{pk}/preview/?as=%00alice@example.org"])
def test_a_byte_that_no_text_can_hold_breaks_no_look_up(author: Client, alice: Subscriber, page: str) -> None:
    shown = author.get("/admin/newsletter/" + page.format(pk=make_issue().pk))
    assert (shown.status_code, "alice@" in shown.text or "Hello." in shown.text) == (200, True)
