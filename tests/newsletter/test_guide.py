"""The guide through the first hour: each step saves at once, any may be skipped, and nobody is led twice."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from newsletter.demo import seed
from newsletter.models import Issue, Slot
from posts.models import AuditEntry, Publication
from tests.factories import make_issue, make_post, make_readers
from tests.smtpd import SmtpServer

CARD = "Set up your publication"


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


@pytest.fixture
def fresh(db: None) -> Publication:
    return Publication.current()


def step(author: Client, name: str, /, **values: Any) -> Any:
    return author.post(f"/admin/guide/{name}/", values)


def test_an_empty_installation_is_led_from_the_desk_to_the_end(
    author: Client, fresh: Publication, relay: SmtpServer
) -> None:
    assert CARD in author.get("/admin/").text
    assert author.get("/admin/guide/").headers["Location"] == "/admin/guide/name/"
    named = step(author, "name", name="Slow Query", tagline="A letter a week", byline="Robin Sample")
    assert named.headers["Location"] == "/admin/guide/sender/"
    sender = {
        "sender_name": "",
        "sender_address": "robin@example.org",
        "reply_to": "",
        "postal_address": "1 Example St",
    }
    assert step(author, "sender", **sender).headers["Location"] == "/admin/guide/when/"
    when = {"send_weekday": "3", "send_time": "07:30", "time_zone": "Europe/Berlin"}
    assert step(author, "when", **when).headers["Location"] == "/admin/guide/test/"
    assert step(author, "test", to="robin@example.org").headers["Location"] == "/admin/guide/test/"
    assert relay.recipients["robin@example.org"] == 1
    assert "Subject: [Test] It arrives" in relay.mails[0].content.decode()
    assert "Your first date is Thursday" in author.get("/admin/guide/done/").text
    assert step(author, "done").headers["Location"] == "/admin/"
    fresh.refresh_from_db()
    assert (fresh.name, fresh.byline, fresh.sender_address) == ("Slow Query", "Robin Sample", "robin@example.org")
    assert (fresh.send_weekday, fresh.send_time, fresh.time_zone) == (3, dt.time(7, 30), "Europe/Berlin")
    assert fresh.set_up_at
    assert Slot.objects.upcoming().count() == 8
    assert not Issue.objects.exists()
    assert [entry.actor for entry in AuditEntry.objects.filter(act="publication.change")] == ["admin"] * 3
    assert CARD not in author.get("/admin/").text


def test_it_is_left_and_taken_up_where_it_was(author: Client, fresh: Publication) -> None:
    step(author, "name", name="Slow Query")
    author.get("/admin/guide/sender/")
    assert "/admin/guide/sender/" in author.get("/admin/").text
    assert author.get("/admin/guide/").headers["Location"] == "/admin/guide/sender/"
    elsewhere = Client()
    elsewhere.force_login(User.objects.get(username="admin"))
    assert elsewhere.get("/admin/guide/").headers["Location"] == "/admin/guide/sender/"
    assert CARD in elsewhere.get("/admin/").text


def test_every_step_may_be_skipped_and_nothing_is_saved_then(author: Client, fresh: Publication) -> None:
    for name, after in (("name", "sender"), ("sender", "when"), ("when", "test"), ("test", "done")):
        assert f'href="/admin/guide/{after}/"' in author.get(f"/admin/guide/{name}/").text
    assert "postal address is still missing" in author.get("/admin/guide/done/").text
    step(author, "done")
    fresh.refresh_from_db()
    assert (fresh.name, bool(fresh.set_up_at)) == ("My newsletter", True)


def test_what_is_wrong_is_said_beside_its_field_and_what_was_typed_stays(author: Client, fresh: Publication) -> None:
    page = step(author, "sender", sender_name="Robin", sender_address="nonsense", postal_address="1 Example St")
    assert page.status_code == 200
    assert "Enter a valid email address" in page.text
    assert 'value="nonsense"' in page.text
    assert "1 Example St" in page.text
    fresh.refresh_from_db()
    assert fresh.sender_name == ""
    odd = step(author, "sender", sender_address="a@[127.0.0.1]")
    assert "go to or come from this address" in odd.text or "valid email" in odd.text
    assert "not one of the available choices" in step(author, "when", time_zone="Mars/Olympus").text
    assert (
        "control characters" in step(author, "name", name="a\x07b").text or "Null" in step(author, "name", name="").text
    )


def test_a_test_that_the_mail_server_refuses_is_told(author: Client, fresh: Publication, settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT, settings.SMTP_TIMEOUT = "127.0.0.1", 1, 2
    page = step(author, "test", to="robin@example.org")
    assert page.status_code == 200
    assert "The mail server did not take the test" in page.text
    assert 'value="robin@example.org"' in page.text
    assert "valid email" in step(author, "test", to="nonsense").text


def test_the_test_goes_to_the_address_of_who_asks_unless_he_says_otherwise(author: Client, fresh: Publication) -> None:
    User.objects.update(email="me@example.org")
    assert 'value="me@example.org"' in author.get("/admin/guide/test/").text


@pytest.mark.parametrize("what", ["issue", "post", "readers"])
def test_where_work_has_begun_nobody_is_led(author: Client, fresh: Publication, what: str) -> None:
    if what != "issue":
        Publication.objects.update(name="Query Notes")
    {"issue": make_issue, "post": make_post, "readers": lambda: make_readers(1)}[what]()
    assert CARD not in author.get("/admin/").text


def test_an_installation_with_a_name_alone_is_still_led(author: Client, fresh: Publication) -> None:
    Publication.objects.update(name="Query Notes")
    assert CARD in author.get("/admin/").text


def test_who_set_it_up_once_is_not_led_again(author: Client, fresh: Publication) -> None:
    Publication.objects.update(set_up_at=timezone.now())
    assert CARD not in author.get("/admin/").text
    author.get("/admin/guide/name/")
    assert CARD not in author.get("/admin/").text


def test_the_demo_is_set_up(fresh: Publication) -> None:
    seed.make_publication()
    fresh.refresh_from_db()
    assert fresh.set_up_at


def test_the_guide_is_for_those_who_may_change_the_publication(client: Client, fresh: Publication) -> None:
    assert client.get("/admin/guide/").status_code == 302
    helper = User.objects.create_user("helper", is_staff=True)
    client.force_login(helper)
    assert CARD not in client.get("/admin/").text
    assert client.get("/admin/guide/name/").status_code == 403
    assert client.post("/admin/guide/done/").status_code == 403
    helper.user_permissions.set(Permission.objects.filter(codename__in=["change_publication", "view_publication"]))
    assert client.get("/admin/guide/name/").status_code == 200
    assert "needs the right to send issues" in client.get("/admin/guide/test/").text
    assert client.post("/admin/guide/test/", {"to": "a@example.org"}).status_code == 403


def test_an_unknown_step_is_not_found(author: Client, fresh: Publication) -> None:
    assert author.get("/admin/guide/nonsense/").status_code == 404
    assert author.post("/admin/guide/nonsense/").status_code == 404


def test_steps_are_posts_with_a_token(fresh: Publication) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_superuser("strict", "strict@example.org"))
    assert strict.post("/admin/guide/name/", {"name": "Taken over"}).status_code == 403
    fresh.refresh_from_db()
    assert fresh.name == "My newsletter"
