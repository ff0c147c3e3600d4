"""One-time keys by mail, and the short session that such a key is swapped for; of each only the SHA-256 is kept.

Keys have 256 random bits and are found by their hash, so what an attacker could learn from the time that a comparison
takes is worth nothing.
"""

from __future__ import annotations

import datetime as dt
import secrets

from django.db import transaction
from django.utils import timezone

from subscribers import tokens
from subscribers.models import MagicLink, ReaderSession, Subscriber

# The key by which the old address takes a change back outlives the change, and the leaving of whoever asked for it.
REVOKE_FOR = dt.timedelta(days=7)
LINK_LIFETIME = dt.timedelta(minutes=MagicLink.MINUTES)
SEEN_EACH = dt.timedelta(minutes=1)  # how exactly it is known when a session was last used


def new_link(
    subscriber: Subscriber,
    purpose: str,
    lifetime: dt.timedelta = LINK_LIFETIME,
    *,
    asked_from: str = "",
    change: int | None = None,
) -> str:
    """Keep the hash of a fresh one-time key and return the key.

    `asked_from` tells who asked, see `tokens.origin`; `change` names the change of address that it is for.
    """
    token = secrets.token_urlsafe(32)
    MagicLink.objects.create(
        subscriber=subscriber,
        purpose=purpose,
        token_hash=tokens.hash_token(token),
        expires_at=timezone.now() + lifetime,
        asked_from=bytes.fromhex(asked_from),
        change_id=change,
    )
    return token


def redeem(token: str, purpose: str) -> Subscriber | None:
    """Use up a one-time key as `take` does, and return whose it was."""
    link = take(token, purpose)
    return link.subscriber if link else None


@transaction.atomic
def take(token: str, purpose: str) -> MagicLink | None:
    """Use up a one-time key, and with it every other of its reader; None if it is worth nothing for `purpose`.

    The reader's row is locked first, as by all that changes him, so that of two presses at once one finds it used.
    """
    link = find(token, purpose)
    if link is None:
        return None
    link.subscriber = Subscriber.objects.select_for_update().get(pk=link.subscriber_id)
    if not MagicLink.objects.live().filter(pk=link.pk).update(used_at=timezone.now()):
        return None
    revoke(link.subscriber)
    return link


def find(token: str, purpose: str) -> MagicLink | None:
    """Return the one-time key if it is known, of this purpose, and neither used, revoked nor expired."""
    return MagicLink.objects.live().filter(token_hash=tokens.hash_token(token), purpose=purpose).first()


def revoke(subscriber: Subscriber) -> None:
    """Make the keys that are still out worth nothing, but for those that only take a change of address back."""
    subscriber.magic_links.live().exclude(purpose=MagicLink.Purpose.OLD_ADDRESS).update(revoked_at=timezone.now())


def shut_out(subscriber: Subscriber) -> None:
    """Make keys and sessions worth nothing, wherever they are: after leaving, or when the address changes."""
    revoke(subscriber)
    subscriber.sessions.all().delete()


def begin_session(subscriber: Subscriber, *, instead_of: str = "") -> str:
    """Open a session under a fresh key and return the key; the one that the browser had before ends."""
    end_session(instead_of)
    key = secrets.token_urlsafe(32)
    ReaderSession.objects.create(subscriber=subscriber, key_hash=tokens.hash_token(key))
    return key


def session_reader(key: str) -> Subscriber | None:
    """Return whose session this is; None if it is unknown, ended, or was not used for half an hour."""
    session = ReaderSession.objects.live().select_related("subscriber").filter(key_hash=tokens.hash_token(key)).first()
    if session is None:
        return None
    if session.seen_at < timezone.now() - SEEN_EACH:
        ReaderSession.objects.filter(pk=session.pk).update(seen_at=timezone.now())
    return session.subscriber


def end_session(key: str) -> None:
    ReaderSession.objects.filter(key_hash=tokens.hash_token(key)).delete()
