"""One-time keys and the session that one is swapped for: a log, a table or an old mail gives nothing away."""

import datetime as dt
import io
import logging
import logging.config
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.test import Client
from django.utils import timezone

from subscribers import links, subscription, tokens
from subscribers.models import MagicLink, ReaderSession, Subscriber
from subscribers.views.doors import SESSION_COOKIE

Purpose = MagicLink.Purpose
pytestmark = pytest.mark.usefixtures("publication")


@pytest.fixture
def key(alice: Subscriber) -> str:
    return links.new_link(alice, Purpose.PREFERENCES)


def opened(client: Client, key: str) -> Any:
    return client.post(f"/preferences/open/{key}/")


@pytest.fixture
def session(client: Client, key: str) -> str:
    """Alice's browser with her desk open; its key."""
    return str(opened(client, key).cookies[SESSION_COOKIE].value)


def test_abu_8_a_key_has_256_bits_and_only_its_hash_is_kept(alice: Subscriber) -> None:
    keys = {links.new_link(alice, Purpose.PREFERENCES) for _n in range(50)}
    assert {len(key) for key in keys} == {43}  # 32 bytes in base64
    assert len(keys) == 50
    rows = MagicLink.objects.values_list("token_hash", flat=True)
    assert {bytes(row) for row in rows} == {tokens.hash_token(key) for key in keys}


def test_abu_8_the_row_tells_who_asked_but_not_his_address(client: Client, alice: Subscriber) -> None:
    from_here = tokens.origin("127.0.0.1", "Browser")
    links.new_link(alice, Purpose.PREFERENCES, asked_from=from_here)
    assert bytes(MagicLink.objects.get().asked_from).hex() == from_here
    assert from_here != tokens.origin("127.0.0.2", "Browser")


def test_abu_8_looking_uses_nothing_up(client: Client, key: str) -> None:
    for method in (client.get, client.head, client.options):
        method(f"/preferences/open/{key}/")
    assert MagicLink.objects.get().used_at is None
    assert opened(client, key).status_code == 302


def test_abu_8_a_key_opens_once_and_then_all_others_are_worth_nothing(client: Client, alice: Subscriber) -> None:
    first, second, undo = (links.new_link(alice, Purpose(p)) for p in ("preferences", "preferences", "undo"))
    assert opened(client, first).status_code == 302
    assert [opened(Client(), key).status_code for key in (first, second)] == [410, 410]
    assert links.redeem(undo, Purpose.UNDO) is None


def test_abu_8_a_key_dies_after_half_an_hour(client: Client, key: str) -> None:
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=29)):
        assert links.find(key, Purpose.PREFERENCES)
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=31)):
        assert opened(client, key).status_code == 410


def test_abu_8_leaving_revokes_every_key(client: Client, alice: Subscriber, key: str) -> None:
    subscription.unsubscribe(alice.pk)
    assert opened(client, key).status_code == 410


def test_abu_8_a_key_is_for_one_purpose(client: Client, alice: Subscriber, key: str) -> None:
    undo = links.new_link(alice, Purpose.UNDO)
    assert opened(client, undo).status_code == 410
    assert client.post("/subscribe/undo/", {"key": key}).status_code == 410
    assert opened(client, key).status_code == 302


def test_abu_8_pages_with_a_key_are_kept_by_nobody_and_tell_nobody(client: Client, key: str) -> None:
    for response in (client.get(f"/preferences/open/{key}/"), opened(client, key), opened(client, key)):
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Robots-Tag"] == "noindex"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_abu_8_no_key_is_logged_not_even_with_an_error(client: Client, alice: Subscriber, key: str, join: Any) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        logging.config.DictConfigurator({}).configure_formatter(settings.LOGGING["formatters"]["line"])
    )
    logging.getLogger("django").addHandler(handler)
    try:
        paths = [f"/preferences/open/{key}/", f"/u/{key}", f"/never/{key}/", f"/subscribe/confirm/{key}/"]
        for path in (*paths, f"/preferences/open/{key}/more/"):
            client.post(path)
            client.put(path)
        logging.getLogger("django.request").error("failed: %s", paths[0], exc_info=ValueError(f"at {paths[1]}?a=1"))
    finally:
        logging.getLogger("django").removeHandler(handler)
    assert key not in out.getvalue()
    assert out.getvalue().count("[key]") > len(paths)


def test_abu_8_no_key_stands_in_the_consent_log(client: Client, bob: Subscriber, confirm_path: Any) -> None:
    client.post(confirm_path(bob))
    client.post(f"/u/{bob.unsubscribe_id}/")
    assert set(bob.consents.values_list("page", flat=True)) == {"/subscribe/confirm/[key]/", "/u/[key]/"}


def test_abu_9_the_session_has_a_cookie_of_its_own_for_these_pages_alone(client: Client, key: str) -> None:
    cookie = opened(client, key).cookies[SESSION_COOKIE]
    assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == ("/preferences/", True, "Lax")
    assert int(cookie["max-age"]) == 30 * 60
    assert settings.SESSION_COOKIE_NAME not in client.cookies


def test_abu_9_the_cookie_is_secure_where_the_site_is(client: Client, key: str, settings: Any) -> None:
    settings.SECURE = True
    assert opened(client, key).cookies[SESSION_COOKIE]["secure"] is True


def test_abu_9_only_the_hash_of_a_sessions_key_is_kept(client: Client, session: str) -> None:
    assert bytes(ReaderSession.objects.get().key_hash) == tokens.hash_token(session)


def test_abu_9_a_key_that_was_planted_before_is_rotated(client: Client, alice: Subscriber, key: str) -> None:
    client.cookies[SESSION_COOKIE] = "planted"
    assert opened(client, key).cookies[SESSION_COOKIE].value != "planted"
    known = links.begin_session(alice)
    client.cookies[SESSION_COOKIE] = known
    again = opened(client, links.new_link(alice, Purpose.PREFERENCES)).cookies[SESSION_COOKIE].value
    assert again != known
    assert links.session_reader(known) is None


def test_abu_9_a_session_lasts_while_it_is_used_and_ends_half_an_hour_after(client: Client, session: str) -> None:
    now = timezone.now()
    for minutes in (20, 40, 60, 89):
        with time_machine.travel(now + dt.timedelta(minutes=minutes), tick=False):
            page = client.get("/preferences/")
            assert b"alice@example.org" in page.content
            assert int(page.cookies[SESSION_COOKIE]["max-age"]) == 30 * 60
    with time_machine.travel(now + dt.timedelta(minutes=120), tick=False):
        assert links.session_reader(session) is None


def test_abu_9_a_session_ends_after_half_a_day_however_much_it_is_used(client: Client, session: str) -> None:
    ReaderSession.objects.update(started_at=timezone.now() - dt.timedelta(hours=12, minutes=1))
    assert b"alice@example.org" not in client.get("/preferences/").content


@pytest.mark.parametrize("act", ["leave", "close"])
def test_abu_9_leaving_and_closing_end_the_session(client: Client, session: str, act: str) -> None:
    response = client.post("/preferences/", {"act": act})
    assert response.cookies[SESSION_COOKIE]["max-age"] == 0
    client.cookies[SESSION_COOKIE] = session
    assert b"alice@example.org" not in client.get("/preferences/").content


def test_abu_9_leaving_elsewhere_ends_every_session(client: Client, session: str, alice: Subscriber) -> None:
    Client().post(f"/u/{alice.unsubscribe_id}")
    assert b"alice@example.org" not in client.get("/preferences/").content


def test_abu_10_the_unsubscribe_link_opens_no_preferences(client: Client, alice: Subscriber) -> None:
    client.cookies[SESSION_COOKIE] = str(alice.unsubscribe_id)
    assert b"alice@example.org" not in client.get("/preferences/").content
    assert opened(client, str(alice.unsubscribe_id)).status_code == 410
    assert b"alice@example.org" not in client.get(f"/u/{alice.unsubscribe_id}/").content
