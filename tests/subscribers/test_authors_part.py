"""What the author gives new readers and learns of them: the welcome mail, the daily note, the form for other sites."""

import datetime as dt
import html
import re
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import html5lib
import pytest
import time_machine
from django.contrib.auth.models import Permission, User
from django.core import mail
from django.test import Client
from django.utils import timezone

from newsletter import sweeper
from posts.models import Publication
from subscribers import emails, submissions
from subscribers.models import Consent, Subscriber, SystemMail

WELCOME = """Hello, and **thank you**.

- Begin with [the archive](/posts/)
- <script>alert(1)</script>Write to me
"""
LONDON = ZoneInfo("Europe/London")


@pytest.fixture
def author(client: Client, publication: Publication) -> Client:
    client.force_login(User.objects.create_superuser("author", "author@example.org", "a long password"))
    return client


# The welcome mail


def sent_welcome(reader: Subscriber) -> tuple[str, str]:
    emails.send_due(emails.owe(SystemMail.Kind.WELCOME, subscriber=reader).pk)
    message = mail.outbox[-1]
    return str(message.body), str(message.alternatives[0][0])  # type: ignore[attr-defined]  # it has two parts


def test_the_welcome_is_what_the_author_wrote_in_both_parts(
    publication: Publication, alice: Subscriber, settings: Any
) -> None:
    publication.welcome = WELCOME
    publication.save()
    text, page = sent_welcome(alice)
    assert "<strong>thank you</strong>" in page
    assert f'href="{settings.SITE_URL}/posts/"' in page
    assert "<script" not in page
    assert f"the archive <{settings.SITE_URL}/posts/>" in " ".join(text.split())
    assert not re.search(r"</?(?:p|strong|ul|li|script)>", text)
    for part in (text, page):
        assert f"/u/{alice.unsubscribe_id}/" in part
        assert "You are subscribed to" not in part


def test_without_a_text_of_the_authors_the_standard_one_goes(publication: Publication, alice: Subscriber) -> None:
    assert all("You are subscribed to Query Notes" in part for part in sent_welcome(alice))


def test_a_text_that_can_not_be_rendered_is_refused_beside_its_field(author: Client) -> None:
    page = author.get("/admin/posts/publication/1/change/")
    form = page.context["adminform"].form
    posted = {name: value for name, value in form.initial.items() if value} | {"welcome": "x" * 250_001}
    answer = author.post("/admin/posts/publication/1/change/", posted)
    assert answer.context["adminform"].form.errors["welcome"]


def test_the_author_sees_both_parts_in_the_admin(author: Client, publication: Publication) -> None:
    publication.welcome = WELCOME
    publication.save()
    page = author.get("/admin/welcome/").text
    frame = re.search(r'<iframe sandbox title="The mail" srcdoc="([^"]*)"', page)
    assert frame
    assert "<strong>thank you</strong>" in html.unescape(frame[1])
    assert "Welcome to Query Notes" in page
    assert not mail.outbox
    assert not SystemMail.objects.exists()


# The daily note


@pytest.fixture
def daily(publication: Publication) -> Publication:
    publication.new_reader_note = Publication.Note.DAILY
    publication.save()
    return publication


def confirm(reader: Subscriber, at: dt.datetime, kind: str = Consent.Kind.CONFIRMED) -> None:
    Consent.objects.create(subscriber=reader, kind=kind, at=at)


def swept(at: dt.datetime) -> list[SystemMail]:
    with time_machine.travel(at, tick=False):
        sweeper.notes.tell_of_new_readers()
    return list(SystemMail.objects.filter(kind=SystemMail.Kind.NEW_READERS))


def test_the_note_counts_the_day_before_by_the_publications_clock_and_comes_once(
    daily: Publication, alice: Subscriber, carol: Subscriber
) -> None:
    Subscriber.objects.filter(pk=alice.pk).update(source="blog")
    confirm(alice, dt.datetime(2026, 7, 1, 0, 30, tzinfo=LONDON))  # the day before, by UTC
    confirm(alice, dt.datetime(2026, 7, 1, 9, 0, tzinfo=LONDON))
    confirm(carol, dt.datetime(2026, 7, 1, 23, 59, tzinfo=LONDON))
    confirm(carol, dt.datetime(2026, 7, 1, 23, 59, tzinfo=LONDON), Consent.Kind.UNSUBSCRIBED)
    assert swept(dt.datetime(2026, 7, 2, 6, 59, tzinfo=LONDON)) == []
    (note,) = swept(dt.datetime(2026, 7, 2, 7, 0, tzinfo=LONDON))
    assert note.address == "author@example.org"
    assert (note.context["joined"], note.context["left"], note.context["readers"]) == (2, 1, 1)
    assert len(swept(dt.datetime(2026, 7, 2, 12, 0, tzinfo=LONDON))) == 1
    emails.send_due(note.pk)
    message = mail.outbox[-1]
    assert message.subject == "Query Notes: 2 new readers"
    assert "On Wednesday 1 July, 2 readers confirmed." in str(message.body)
    assert "- blog: 1" in str(message.body)
    assert alice.address not in message.message().as_string()


def test_a_day_without_new_readers_has_no_note(daily: Publication, carol: Subscriber) -> None:
    confirm(carol, dt.datetime(2026, 7, 1, 12, 0, tzinfo=LONDON), Consent.Kind.UNSUBSCRIBED)
    assert swept(dt.datetime(2026, 7, 2, 12, 0, tzinfo=LONDON)) == []


def test_who_did_not_ask_for_the_note_gets_none(publication: Publication, alice: Subscriber) -> None:
    confirm(alice, dt.datetime(2026, 7, 1, 12, 0, tzinfo=LONDON))
    assert swept(dt.datetime(2026, 7, 2, 12, 0, tzinfo=LONDON)) == []


# The form for other sites


def copied(page: str) -> str:
    found = re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_abu_12_the_form_to_copy_signs_up_from_another_site(author: Client, settings: Any) -> None:
    source = 'my "blog" & more'
    page = author.get("/admin/sign-up-form/", {"source": source, "utm_campaign": "spring"}).text
    form = html5lib.parse(copied(page), namespaceHTMLElements=False).find(".//form")
    assert form is not None
    assert form.get("action") == f"{settings.SITE_URL}/subscribe/form/"
    assert not form.findall(".//script")
    fields = {field.get("name"): field.get("value", "") for field in form.findall(".//input")}
    fields["address"] = "ada@example.org"
    with time_machine.travel(timezone.now() + dt.timedelta(days=400)):
        answer = Client().post("/subscribe/form/", fields, headers={"Origin": "https://blog.example.com"})
        assert answer.status_code == 302
        submissions.decide_waiting()
    ada = Subscriber.objects.get()
    assert ada.source == source
    assert ada.consents.get().detail == {"source": source, "utm_campaign": "spring"}


def test_abu_12_the_form_speaks_the_publications_language(author: Client, publication: Publication) -> None:
    publication.language = "de"
    publication.save()
    page = author.get("/admin/sign-up-form/").text
    assert "Ich kann jederzeit abbestellen." in copied(page)
    assert "Copy this HTML" in page


def test_the_link_to_the_form_keeps_the_campaign(author: Client, join: Callable[..., Any], settings: Any) -> None:
    page = author.get("/admin/sign-up-form/", {"source": "talk", "utm_campaign": "spring"}).text
    link = re.search(r"<code>(http[^<]*/subscribe/\?[^<]*)</code>", page)
    assert link
    address = html.unescape(link[1])
    assert 'name="source" value="talk"' in Client().get(address.removeprefix(settings.SITE_URL)).text
    answer = Client().post("/subscribe/form/", {"address": "ada@example.org"}, headers={"Referer": address})
    assert 'name="utm_campaign" value="spring"' in answer.text


@pytest.mark.parametrize("path", ["/admin/sign-up-form/", "/admin/welcome/"])
def test_the_pages_are_for_those_who_may_see_readers(client: Client, publication: Publication, path: str) -> None:
    assert client.get(path).status_code == 302
    helper = User.objects.create_user("helper", "helper@example.org", "a long password", is_staff=True)
    client.force_login(helper)
    assert client.get(path).status_code == 403
    helper.user_permissions.add(Permission.objects.get(codename="view_subscriber"))
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/", "/posts/", "/search/", "/about/", "/privacy/", "/issues/", "/nowhere/"])
def test_the_sign_up_form_stands_on_every_page(client: Client, publication: Publication, path: str) -> None:
    assert client.get(path).text.count('action="/subscribe/form/"') == 1
