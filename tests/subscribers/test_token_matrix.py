"""Whatever key is shown at whatever door: it opens that door for its own reader or nothing at all.

Made from the doors and the kinds of keys, so that a new door or kind is tried with all the others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import get_resolver, reverse
from django.utils import timezone

from posts.models import Post
from subscribers import emails, links, moving, tokens
from subscribers.models import AddressChange, MagicLink, Subscriber
from subscribers.views.doors import SESSION_COOKIE
from tests.factories import make_post
from tests.posts.test_doors import public_names

pytestmark = pytest.mark.usefixtures("publication")
LATER = dt.timedelta(days=15)  # longer than any key is good for


def of_path(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def a_link(purpose: str) -> Callable[[Subscriber], str]:
    def make(reader: Subscriber) -> str:
        changed = purpose in (MagicLink.Purpose.NEW_ADDRESS, MagicLink.Purpose.OLD_ADDRESS)
        return links.new_link(reader, purpose, change=a_change(reader).pk if changed else None)

    return make


def a_change(reader: Subscriber) -> AddressChange:
    new = f"new-{reader.pk}@example.com"
    return AddressChange.objects.create(subscriber=reader, old_address=reader.address, address=new, key=new)


# Each kind of key that a reader may have in his hands, or that stands in what he was sent.
KEYS: dict[str, Callable[[Subscriber], str]] = {
    "confirm": lambda reader: of_path(emails.confirm_url(reader)),
    "never": lambda reader: of_path(emails.never_url(reader)),
    "unsubscribe": lambda reader: str(reader.unsubscribe_id),
    "session": links.begin_session,
    "form": lambda reader: tokens.form_token("subscribe"),
    "preview": lambda reader: of_path(Post.objects.get().preview_url),
    **{str(purpose): a_link(purpose) for purpose in MagicLink.Purpose},
}


@dataclass(frozen=True)
class Door:
    """How a key is shown: in the path, in a form or as a cookie; and whose it is."""

    kind: str
    path: str = ""
    field: str = ""

    def show(self, key: str) -> list[Any]:
        client = Client()
        if self.field == "cookie":
            client.cookies[SESSION_COOKIE] = key
            paths = [reverse(name) for name in BEHIND_A_SESSION]
            acts = [{"act": act} for act in ("save", "leave", "return", "go_on", "close")]
            acts += [{"act": "pause", "weeks": "2"}, {"act": "address", "new_address": "thief@example.net"}]
            posted = [client.post("/preferences/", act) for act in acts]
            erased = client.post(reverse("newsletter:reader_erase"), {"keep_out": "on"})
            return [*(client.get(path) for path in paths), *posted, erased]
        if self.field:
            return [client.post(self.path, {self.field: key, "address": "x"})]
        path = self.path.replace("KEY", key)
        return [client.get(path), client.post(path), client.post(path, {"button": "1"})]


BEHIND_A_SESSION = [
    "subscribers:preferences", "newsletter:reader_data", "newsletter:reader_data_file", "newsletter:reader_issues",
    "newsletter:reader_erase",
]  # fmt: skip
DOORS = {
    "subscribers:confirm": Door("confirm", "/subscribe/confirm/KEY/"),
    "subscribers:never": Door("never", "/never/KEY/"),
    "subscribers:unsubscribe": Door("unsubscribe", "/u/KEY/"),
    "subscribers:undo": Door("undo", "/subscribe/undo/", "key"),
    "subscribers:preferences_open": Door("preferences", "/preferences/open/KEY/"),
    "subscribers:new_address": Door("new_address", "/preferences/new-address/KEY/"),
    "subscribers:old_address": Door("old_address", "/preferences/old-address/KEY/"),
    "posts:preview": Door("preview", "/preview/KEY/"),
    "newsletter:view_in_browser": Door("view", "/issues/view/KEY/"),
    "newsletter:click": Door("click", "/c/KEY/"),
    "a session": Door("session", field="cookie"),
}
# What takes no key, or one that is everybody's.
KEYLESS = {
    "healthz", "subscribers:subscribe", "subscribers:subscribe_form", "subscribers:check", "newsletter:issues",
    "newsletter:issue",
}  # fmt: skip


@pytest.fixture
def readers(db: None, alice: Subscriber, carol: Subscriber) -> tuple[Subscriber, Subscriber]:
    """Alice, whose keys are tried, and Carol, whom none of them may touch. A draft has a preview."""
    make_post()
    links.begin_session(carol)
    a_change(carol)
    return alice, carol


def held(reader: Subscriber) -> list[tuple[Any, ...]]:
    """Return all rows that hold anything of a reader."""
    found: list[tuple[Any, ...]] = list(Subscriber.objects.filter(pk=reader.pk).values_list())
    for name in ("consents", "magic_links", "sessions", "address_changes", "system_mail"):
        rows = getattr(reader, name).order_by("pk").values_list()
        found += [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in rows]
    return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found]


def changed(key: str) -> str:
    """Return the key with its first letter and one in the middle replaced."""
    at = len(key) // 2
    return ("b" if key[0] == "a" else "a") + key[1:at] + ("B" if key[at] == "A" else "A") + key[at + 1 :]


def test_each_public_address_is_among_the_doors_or_takes_no_key() -> None:
    found = set(public_names(get_resolver().url_patterns))
    of_posts = {name for name in found if name.startswith("posts:") and name != "posts:preview"}
    assert found - of_posts == (set(DOORS) - {"a session"}) | KEYLESS | set(BEHIND_A_SESSION)


def harms(kind: str) -> Iterator[str]:
    """Return what can become of a key of this kind, so that it is worth nothing."""
    yield from ("truncated", "changed")
    if kind in MagicLink.Purpose.values:
        yield from ("expired", "revoked", "used")
    elif kind == "session":
        yield from ("expired", "revoked")
    elif kind in ("confirm", "preview"):
        yield from ("expired", "of another secret")
    elif kind == "never":  # it is good for ever
        yield "of another secret"


OWN = [door for door in DOORS if DOORS[door].kind in KEYS]
STRANGE = [(door, kind) for door in DOORS for kind in KEYS if DOORS[door].kind != kind]
HARMED = [(door, harm) for door in OWN for harm in harms(DOORS[door].kind)]
REFUSED = (200, 302, 404, 405, 410, 422)  # 200: a page with a button that does nothing


@pytest.mark.parametrize(("door", "kind"), STRANGE)
def test_abu_8_a_key_of_another_kind_opens_nothing(
    readers: tuple[Subscriber, Subscriber], door: str, kind: str
) -> None:
    reader, other = readers
    key = KEYS[kind](reader)
    before = held(reader), held(other)
    for answer in DOORS[door].show(key):
        assert answer.status_code in REFUSED
        assert reader.address not in answer.text
        assert other.address not in answer.text
    assert (held(reader), held(other)) == before


@pytest.mark.parametrize(("door", "harm"), HARMED)
def test_abu_8_a_key_that_is_worth_nothing_opens_nothing(
    readers: tuple[Subscriber, Subscriber], settings: Any, door: str, harm: str
) -> None:
    reader, other = readers
    kind = DOORS[door].kind
    key = KEYS[kind](reader)
    match harm:
        case "truncated":
            key = key[:-3]
        case "changed":
            key = changed(key)
        case "of another secret":
            settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", []
        case "used":
            assert links.take(key, kind)
        case "revoked":
            links.shut_out(reader)
            MagicLink.objects.update(revoked_at=timezone.now())
    before = held(reader), held(other)
    with time_machine.travel(timezone.now() + (LATER if harm == "expired" else dt.timedelta()), tick=False):
        for answer in DOORS[door].show(key):
            assert answer.status_code in REFUSED
            assert reader.address not in answer.text
    assert (held(reader), held(other)) == before


@pytest.mark.parametrize("door", OWN)
def test_abu_8_a_key_reads_and_changes_nobody_but_its_own_reader(
    readers: tuple[Subscriber, Subscriber], door: str
) -> None:
    reader, other = readers
    key = KEYS[DOORS[door].kind](reader)
    before, own = held(other), held(reader)
    for answer in DOORS[door].show(key):
        assert other.address not in answer.text
    assert held(other) == before
    # She reads already: there is nothing to confirm, and a preview is of a post.
    assert (held(reader) != own) is (door not in ("posts:preview", "subscribers:confirm"))


def test_abu_8_a_session_beside_the_key_of_another_stays_its_own(readers: tuple[Subscriber, Subscriber]) -> None:
    alice, carol = readers
    client = Client()
    client.cookies[SESSION_COOKIE] = links.begin_session(carol)
    client.post(f"/u/{alice.unsubscribe_id}/")
    assert carol.address in client.get("/preferences/").text
    client.post(f"/preferences/open/{links.new_link(alice, 'preferences')}/")
    page = client.get("/preferences/").text
    assert alice.address in page
    assert carol.address not in page


def test_abu_8_a_change_of_address_is_confirmed_by_its_own_key_alone(readers: tuple[Subscriber, Subscriber]) -> None:
    alice, carol = readers
    hers = a_link(MagicLink.Purpose.NEW_ADDRESS)(alice)
    assert moving.confirm(hers)
    carol.refresh_from_db()
    assert carol.address == "carol@example.org"
    assert AddressChange.objects.get(subscriber=carol).confirmed_at is None
