"""Signed tokens, each with a salt of its own so that one can never stand in for another, and keyed form tokens."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from uuid import UUID

from django.conf import settings
from django.core import signing
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac

CONFIRM, NEVER = "subscribers.confirm", "subscribers.never"
CONFIRM_DAYS = 7
FORM_DAYS = 3


def sign(subscriber_id: int, stamp: str, *, purpose: str) -> str:
    """Return a token for one reader and purpose; `stamp` ties it to a state of his row."""
    return signing.dumps([subscriber_id, stamp], salt=purpose)


def read(token: str, *, purpose: str, max_age: dt.timedelta | None = None) -> tuple[int, str] | None:
    """Return what `sign` put into a token, or None if it is forged, of another purpose or too old."""
    try:
        subscriber_id, stamp = signing.loads(token, salt=purpose, max_age=max_age)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return int(subscriber_id), str(stamp)


def hash_token(token: str) -> bytes:
    """Return the SHA-256 that is kept of a one-time key."""
    return hashlib.sha256(token.encode()).digest()


def origin(ip: str | None, user_agent: str) -> str:
    """Return a keyed hash, in hexadecimal digits, of who asks: the same for the same browser on the same network."""
    return hmac.digest(settings.PEPPER.encode(), f"origin:{ip}|{user_agent}".encode(), hashlib.sha256).hex()


def probe_id() -> UUID:
    """Return an unsubscribe address that is no reader's: a POST there shows that this site hears the button."""
    return UUID(bytes=salted_hmac("subscribers.probe", settings.SITE_URL, algorithm="sha256").digest()[:16], version=4)


def form_token(form: str, *, day: dt.date | None = None) -> str:
    """Return the token of a form for a day: the same for everybody, so that a cached page can carry it."""
    value = f"{settings.SITE_URL}|{form}|{day or timezone.now().date()}"
    return salted_hmac("subscribers.form", value, algorithm="sha256").hexdigest()[:32]


def is_form_token(token: str, form: str) -> bool:
    """Tell whether `token` is that of `form` today or on one of the two days before (or tomorrow, by another clock)."""
    today = timezone.now().date()
    days = [today - dt.timedelta(days=n) for n in range(-1, FORM_DAYS)]
    return any(constant_time_compare(token, form_token(form, day=day)) for day in days)
