"""Leaving: one press, no redirect, no cookie, no broker; and coming back by one's own act."""

from typing import Any

import pytest
from django.test import Client

from newsletter.celery import app
from subscribers import links, subscription
from subscribers.models import MagicLink, Subscriber, SystemMail

Status = Subscriber.Status
MULTIPART = '--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'
ONE_CLICK = "List-Unsubscribe=One-Click"


@pytest.fixture
def path(alice: Subscriber, publication: object) -> str:
    return f"/u/{alice.unsubscribe_id}"


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b"])
def test_one_click_answers_200_without_a_redirect(path: str, alice: Subscriber, slash: str, kind: str) -> None:
    body = ONE_CLICK if "url" in kind else MULTIPART
    client = Client(enforce_csrf_checks=True, headers={"origin": "null", "cookie": "junk=1; csrftoken=x"})
    for _n in range(3):
        response = client.post(path + slash, body, content_type=kind)
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        assert "Location" not in response.headers
        assert not response.cookies
    alice.refresh_from_db()
    assert (alice.status, alice.consents.count()) == (Status.UNSUBSCRIBED, 1)


def test_leaving_works_without_a_broker(
    path: str, client: Client, alice: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.conf, "broker_url", "redis://127.0.0.1:9/0")
    assert client.post(path, ONE_CLICK, content_type="application/x-www-form-urlencoded").status_code == 200
    assert not SystemMail.objects.exists()


@pytest.mark.parametrize("method", ["get", "head", "options"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_looking_changes_nothing(
    path: str, client: Client, alice: Subscriber, row: Any, method: str, slash: str
) -> None:
    before = row(alice)
    response = getattr(client, method)(path + slash)
    assert row(alice) == before
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Robots-Tag"] == "noindex"


def test_an_unknown_address_is_not_found(client: Client, publication: object) -> None:
    assert client.post("/u/00000000-0000-4000-8000-000000000000/").status_code == 404


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
    client.post(path, ONE_CLICK, content_type="application/x-www-form-urlencoded")
    assert alice.address not in caplog.text


def test_the_page_with_the_button_needs_no_cookie(path: str, client: Client) -> None:
    assert not client.get(path).cookies
