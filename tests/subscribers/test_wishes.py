"""What a reader wishes on his desk: topics, a break, a language; kept, recorded, and heeded by what is sent."""

import datetime as dt
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.test import Client
from django.utils import timezone

from posts.models import Publication, Tag
from subscribers import emails, links, subscription
from subscribers.models import Subscriber, SystemMail
from subscribers.views.doors import SESSION_COOKIE

pytestmark = pytest.mark.usefixtures("publication")


@pytest.fixture
def locks(db: None) -> Tag:
    return Tag.objects.create(name="Locks", offered=True)


@pytest.fixture
def desk(client: Client, alice: Subscriber) -> Client:
    """Alice's browser with her desk open."""
    client.cookies[SESSION_COOKIE] = links.begin_session(alice)
    return client


def save(desk: Client, **values: Any) -> Any:
    return desk.post("/preferences/", {"act": "save", "name": "Alice", "language": "", "frequency": "every", **values})


def test_only_topics_that_the_author_offers_can_be_chosen(desk: Client, alice: Subscriber, locks: Tag) -> None:
    hidden = Tag.objects.create(name="Gossip")
    page = desk.get("/preferences/").text
    assert "Locks" in page
    assert "Gossip" not in page
    assert save(desk, topics=[hidden.pk]).status_code == 422
    assert save(desk, topics=[locks.pk]).status_code == 302
    alice.refresh_from_db()
    assert alice.topics == [locks.pk]
    assert f'value="{locks.pk}" id="id_topics_0" checked' in desk.get("/preferences/").text


def test_without_offered_topics_nothing_is_said_of_them_and_a_choice_stays(desk: Client, alice: Subscriber) -> None:
    Subscriber.objects.update(topics=[7])
    assert "Topics" not in desk.get("/preferences/").text
    save(desk, name="Ada")
    alice.refresh_from_db()
    assert (alice.name, alice.topics) == ("Ada", [7])


def test_a_digest_is_chosen_and_nothing_else_is_taken_for_one(desk: Client, alice: Subscriber) -> None:
    save(desk, frequency="monthly")
    alice.refresh_from_db()
    assert alice.frequency == "monthly"
    assert "a digest once a month" in desk.get("/preferences/").text
    assert save(desk, frequency="daily").status_code == 422


def test_what_changed_is_recorded_in_words_and_only_that(desk: Client, alice: Subscriber, locks: Tag) -> None:
    save(desk, topics=[locks.pk])
    save(desk, topics=[locks.pk])
    assert [consent.detail for consent in alice.consents.all()] == [{"topics": "Locks"}]


def test_pages_and_mail_speak_the_language_that_was_chosen(desk: Client, alice: Subscriber) -> None:
    save(desk, language="de")
    page = desk.get("/preferences/").text
    assert '<html lang="de">' in page
    assert "Deine Einstellungen" in page
    assert '<html lang="de">' in Client().get(f"/u/{alice.unsubscribe_id}/").text
    assert '<html lang="en">' in Client().get("/preferences/").text
    alice.refresh_from_db()
    emails.owe(SystemMail.Kind.MAGIC_LINK, subscriber=alice)
    emails.send_all_due(limit=1)
    assert "Einstellungen" in mail.outbox[0].subject


@pytest.mark.parametrize("weeks", [2, 4, 8])
def test_a_pause_ends_at_midnight_where_the_publication_is(desk: Client, alice: Subscriber, weeks: int) -> None:
    Publication.objects.update(time_zone="America/New_York")
    with time_machine.travel(dt.datetime(2026, 3, 1, 2, 0, tzinfo=dt.UTC), tick=False):  # there it is still February
        desk.cookies[SESSION_COOKIE] = links.begin_session(alice)
        desk.post("/preferences/", {"act": "pause", "weeks": weeks})
        alice.refresh_from_db()
        assert alice.paused_until is not None
        local = alice.paused_until.astimezone(Publication.current().zone)
        assert (local.date(), local.time()) == (dt.date(2026, 2, 28) + dt.timedelta(weeks=weeks), dt.time())


def test_a_pause_until_a_date_and_back(desk: Client, alice: Subscriber) -> None:
    day = timezone.now().date() + dt.timedelta(days=40)
    desk.post("/preferences/", {"act": "pause", "until": day.isoformat()})
    alice.refresh_from_db()
    assert alice.is_paused
    assert not Subscriber.objects.mailable().exists()
    assert "Get mail again now" in desk.get("/preferences/").text
    desk.post("/preferences/", {"act": "go_on"})
    alice.refresh_from_db()
    assert not alice.is_paused
    assert Subscriber.objects.mailable().get() == alice


@pytest.mark.parametrize("until", ["", "yesterday", "2020-01-01", "2999-01-01"])
def test_a_day_that_is_none_is_asked_for_again(desk: Client, alice: Subscriber, until: str) -> None:
    page = desk.post("/preferences/", {"act": "pause", "until": until})
    assert page.status_code == 422
    assert page.context["pause"].errors["until"]
    alice.refresh_from_db()
    assert alice.paused_until is None


def test_a_longer_pause_is_not_made_shorter(alice: Subscriber) -> None:
    until = timezone.now() + dt.timedelta(days=90)
    subscription.pause(alice.pk, until)
    assert subscription.pause(alice.pk, timezone.now() + dt.timedelta(days=1))
    alice.refresh_from_db()
    assert alice.paused_until == until


def test_who_left_can_come_back_at_his_desk(desk: Client, carol: Subscriber) -> None:
    desk.cookies[SESSION_COOKIE] = links.begin_session(carol)
    assert "you get no mail" in desk.get("/preferences/").text
    desk.post("/preferences/", {"act": "return"})
    carol.refresh_from_db()
    assert carol.status == Subscriber.Status.ACTIVE
