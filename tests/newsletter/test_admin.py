"""The author's desk: every refusal in words, every move by POST, and nothing that goes round the ledger."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from newsletter import delivery
from newsletter.models import Issue, Slot
from posts.models import Post, Publication
from subscribers.models import Subscriber, Suppression
from tests.factories import make_issue, make_post, make_slot
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")


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
        "newsletter/deliveryevent/",
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
    assert "Send now to 1 readers" in act(author, issue, "now")
    issue.refresh_from_db()
    assert issue.state == Issue.State.DRAFT
    act(author, issue, "now", sure="1")
    issue.refresh_from_db()
    assert issue.state == Issue.State.SENDING


def test_pause_resume_and_cancel_and_a_second_click(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    assert "Paused" in act(author, issue, "pause")
    assert "can&#x27;t become" in act(author, issue, "pause")
    assert "Sending" in act(author, issue, "resume")
    assert "for good?" in act(author, issue, "cancel")
    assert "Cancelled" in act(author, issue, "cancel", sure="1")


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
