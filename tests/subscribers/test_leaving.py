"""Leaving: one press, no redirect, no cookie, no broker; and coming back by one's own act."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.test import Client

from newsletter import sweeper
from newsletter.celery import app
from subscribers import links, spool, subscription
from subscribers.models import Consent, MagicLink, Subscriber, SystemMail

Status = Subscriber.Status
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = '--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'
ONE_CLICK = "List-Unsubscribe=One-Click"
BODIES = {
    "urlencoded": (ONE_CLICK, URLENCODED),
    "multipart": (MULTIPART, "multipart/form-data; boundary=b"),
    "of no kind": (b"\xff\x00One-Click", "application/octet-stream"),
    "broken": ("--x", "multipart/form-data"),
    "empty": ("", URLENCODED),
    "with too many fields": ("&".join(f"f{n}=1" for n in range(2000)), URLENCODED),
}


@pytest.fixture
def path(alice: Subscriber, publication: object) -> str:
    return f"/u/{alice.unsubscribe_id}"


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.conf, "broker_url", "redis://127.0.0.1:9/0")
    monkeypatch.setattr(app.amqp, "_producer_pool", None)


def is_plain(response: Any) -> bool:
    assert response.status_code == 200
    assert "Location" not in response.headers
    assert not response.cookies
    return bool(response.headers["Content-Type"].startswith("text/plain"))


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("body", BODIES)
def test_uns_1_one_click_answers_200_to_whatever_a_mail_program_sends(
    path: str, alice: Subscriber, slash: str, body: str
) -> None:
    junk = {"origin": "null", "cookie": "junk=1; csrftoken=x; sessionid=y; reader=z", "user-agent": ""}
    client = Client(enforce_csrf_checks=True, headers=junk)
    data, kind = BODIES[body]
    assert is_plain(client.post(path + slash, data, content_type=kind, REMOTE_ADDR="2001:db8::1"))
    alice.refresh_from_db()
    assert (alice.status, alice.consents.get().ip) == (Status.UNSUBSCRIBED, "2001:db8::1")


def test_uns_1_a_hundred_times_are_as_once(path: str, alice: Subscriber) -> None:
    client = Client(enforce_csrf_checks=True)
    assert all(is_plain(client.post(path, ONE_CLICK, content_type=URLENCODED)) for _n in range(100))
    assert alice.consents.count() == 1


def test_uns_1_leaving_works_at_once_without_a_broker(path: str, client: Client, no_broker: None) -> None:
    began = time.monotonic()
    assert is_plain(client.post(path, ONE_CLICK, content_type=URLENCODED))
    assert time.monotonic() - began < 1
    assert not SystemMail.objects.exists()


@pytest.mark.parametrize("method", ["get", "head", "options"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_uns_2_looking_changes_nothing(
    path: str, client: Client, database: Callable[[], dict[str, str]], method: str, slash: str
) -> None:
    before = database()
    for purpose in ("prefetch", "prerender"):
        response = getattr(client, method)(path + slash, headers={"sec-purpose": purpose})
    assert database() == before
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Robots-Tag"] == "noindex"
    assert not response.cookies


def test_uns_2_the_page_has_one_plain_button_and_a_way_to_subscribe(path: str, client: Client) -> None:
    page = client.get(path + "/").text
    assert page.count(">Unsubscribe</button>") == 1
    assert page.index(">Unsubscribe</button>") < page.index("Or take a break")
    assert 'href="/subscribe/"' in page
    assert "alice@example.org" not in page


def test_uns_3_the_link_outlives_every_rotation_of_keys(
    path: str, client: Client, alice: Subscriber, settings: Any
) -> None:
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", []
    assert is_plain(client.post(path, ONE_CLICK, content_type=URLENCODED))
    alice.refresh_from_db()
    assert alice.status == Status.UNSUBSCRIBED


def test_uns_3_the_link_says_nothing_of_the_reader_or_his_neighbour(alice: Subscriber, bob: Subscriber) -> None:
    assert alice.unsubscribe_id.version == bob.unsubscribe_id.version == 4  # 122 random bits
    assert "alice" not in str(alice.unsubscribe_id)


def test_an_unknown_address_is_not_found(client: Client, publication: object) -> None:
    assert client.post("/u/00000000-0000-4000-8000-000000000000/").status_code == 404


def test_uns_6_maintenance_closes_every_page_but_this(
    path: str, client: Client, alice: Subscriber, settings: Any
) -> None:
    settings.MAINTENANCE = True
    for closed in ("/", "/subscribe/", "/preferences/", "/admin/", "/feed.xml", "/nowhere/"):
        response = client.get(closed)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "600")
        assert "being worked on" in response.text
    assert client.get("/healthz/").status_code == 200
    assert client.get(path).status_code == 200
    assert is_plain(client.post(path, ONE_CLICK, content_type=URLENCODED))
    alice.refresh_from_db()
    assert alice.status == Status.UNSUBSCRIBED


@pytest.fixture
def spooled(settings: Any, tmp_path: Path) -> Path:
    settings.SPOOL_DIR = tmp_path / "spool"
    return tmp_path / "spool/unsubscribes"


@pytest.fixture
def read_only(transactional_db: None) -> Any:
    """Let the database be one that may only be read, as a stand-by is, until what is returned is called."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    yield lambda: connection.cursor().execute("SET default_transaction_read_only = off")
    connection.cursor().execute("SET default_transaction_read_only = off")


@pytest.mark.django_db(transaction=True)
def test_uns_6_a_database_that_only_reads_loses_nobody_who_leaves(
    path: str, client: Client, alice: Subscriber, bob: Subscriber, spooled: Path, read_only: Any
) -> None:
    for reader in (alice, bob):
        assert is_plain(client.post(f"/u/{reader.unsubscribe_id}", ONE_CLICK, content_type=URLENCODED))
    read_only()
    assert "alice" not in spooled.read_text()
    sweeper.unsubscribe_late()
    assert set(Subscriber.objects.values_list("status", flat=True)) == {Status.UNSUBSCRIBED}
    assert spooled.read_text() == ""


@pytest.mark.django_db(transaction=True)
def test_uns_6_a_database_that_is_away_loses_nobody_who_leaves(
    path: str, client: Client, alice: Subscriber, spooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "HOST", "/nowhere")
        assert is_plain(client.post(path, ONE_CLICK, content_type=URLENCODED))
        client.raise_request_exception = False
        assert client.get(path).status_code == 503
    assert spool.replay(subscription.unsubscribe_late) == 1
    alice.refresh_from_db()
    assert alice.status == Status.UNSUBSCRIBED


def test_uns_6_who_came_back_since_is_not_unsubscribed_late(alice: Subscriber, spooled: Path) -> None:
    spool.keep(alice.unsubscribe_id)
    Consent.objects.create(subscriber=alice, kind=Consent.Kind.RESUBSCRIBED)
    assert spool.replay(subscription.unsubscribe_late) == 1
    alice.refresh_from_db()
    assert alice.status == Status.ACTIVE


def test_uns_6_what_could_not_be_carried_out_is_kept(alice: Subscriber, spooled: Path) -> None:
    def fails(*_line: object) -> None:
        raise psycopg.OperationalError

    spool.keep(alice.unsubscribe_id)
    with pytest.raises(psycopg.OperationalError):
        spool.replay(fails)
    assert spool.replay(subscription.unsubscribe_late) == 1


def test_uns_6_a_disk_that_takes_nothing_is_said(
    path: str, client: Client, spooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled.parent.touch()  # a file where the folder should be
    client.raise_request_exception = False
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "HOST", "/nowhere")
        assert client.post(path, ONE_CLICK, content_type=URLENCODED).status_code == 503


def test_the_button_leaves_and_offers_one_undo(path: str, client: Client, alice: Subscriber) -> None:
    page = client.post(path + "/", {"button": "1"})
    key = page.context["undo"]
    assert client.post("/subscribe/undo/", {"key": key}).status_code == 200
    alice.refresh_from_db()
    assert alice.status == Status.ACTIVE
    subscription.unsubscribe(alice.pk)
    assert client.post("/subscribe/undo/", {"key": key}).status_code == 410
    alice.refresh_from_db()
    assert alice.status == Status.UNSUBSCRIBED


def test_a_pause_on_the_page_can_be_undone_and_never_made_shorter(path: str, client: Client, alice: Subscriber) -> None:
    client.post(path + "/", {"weeks": "8"})
    alice.refresh_from_db()
    first = alice.paused_until
    page = client.post(path + "/", {"weeks": "2"})
    alice.refresh_from_db()
    assert (alice.status, alice.paused_until) == (Status.ACTIVE, first)
    client.post("/subscribe/undo/", {"key": page.context["undo"], "of": "pause"})
    alice.refresh_from_db()
    assert alice.paused_until is None


def test_a_digest_instead_of_leaving_can_be_undone(path: str, client: Client, alice: Subscriber) -> None:
    page = client.post(path + "/", {"digest": "1"})
    alice.refresh_from_db()
    assert (alice.status, alice.frequency) == (Status.ACTIVE, "monthly")
    assert "digest" not in client.get(path + "/").text
    assert 'name="of" value="digest"' in page.text
    assert client.post("/subscribe/undo/", {"key": page.context["undo"], "of": "digest"}).status_code == 200
    alice.refresh_from_db()
    assert alice.frequency == "every"


@pytest.mark.parametrize("weeks", ["", "3", "-2", "x", "2 weeks"])
def test_no_other_pause_is_taken_and_nobody_is_unsubscribed_by_it(
    path: str, client: Client, alice: Subscriber, weeks: str
) -> None:
    assert client.post(path + "/", {"weeks": weeks}).status_code == 200
    alice.refresh_from_db()
    assert (alice.status, alice.paused_until) == (Status.ACTIVE, None)


def test_why_is_asked_afterwards_and_need_not_be_said(path: str, client: Client, alice: Subscriber) -> None:
    page = client.post(path + "/", {"button": "1"})
    for reason in Subscriber.LeftBecause.values:
        assert f'<option value="{reason}">' in page.text
    thanks = client.post(path + "/", {"because": "often", "key": page.context["undo"]})
    alice.refresh_from_db()
    assert alice.left_because == "often"
    assert client.post("/subscribe/undo/", {"key": thanks.context["undo"]}).status_code == 200
    client.post(path + "/", {"because": "never"})  # he reads on: nothing to explain
    alice.refresh_from_db()
    assert (alice.status, alice.left_because) == (Status.ACTIVE, "often")


def test_a_reason_that_is_none_is_not_kept(path: str, client: Client, alice: Subscriber) -> None:
    client.post(path + "/", {"button": "1"})
    assert client.post(path + "/", {"because": "<script>"}).status_code == 200
    alice.refresh_from_db()
    assert alice.left_because == ""


def test_leaving_revokes_keys_and_mail_under_way(alice: Subscriber) -> None:
    links.new_link(alice, MagicLink.Purpose.PREFERENCES)
    SystemMail.objects.create(kind="welcome", subscriber=alice)
    subscription.unsubscribe(alice.pk)
    assert not MagicLink.objects.live().exists()
    assert not SystemMail.objects.due().exists()


def test_nobody_who_never_confirmed_is_brought_back(carol: Subscriber, bob: Subscriber) -> None:
    subscription.unsubscribe(bob.pk)
    assert not subscription.resubscribe(bob.pk)
    assert subscription.resubscribe(carol.pk)


def test_a_suppressed_reader_is_not_brought_back(dave: Subscriber) -> None:
    subscription.unsubscribe(dave.pk)
    assert not subscription.resubscribe(dave.pk)


def test_no_address_in_clear_is_logged(
    path: str, client: Client, alice: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    client.post(path, ONE_CLICK, content_type=URLENCODED)
    assert alice.address not in caplog.text


def test_the_page_with_the_button_needs_no_cookie(path: str, client: Client) -> None:
    assert not client.get(path).cookies
