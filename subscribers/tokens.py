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
FORM_DAYS, FORM_SECONDS = 3, 24 * 3600
MIN_SECONDS = 2  # no person is as quick with a form that was made for him


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
    return _keyed("form", form, str(day or timezone.now().date()))


def timed_form_token(form: str) -> str:
    """Return the token of a form on a page that is made anew for each visitor: it tells when that was."""
    now = int(timezone.now().timestamp())
    return f"{now}.{_keyed('timed', form, str(now))}"


def embedded_form_token(form: str) -> str:
    """Return the token of a form that stands in another site's page for good."""
    return _keyed("embedded", form)


def is_form_token(token: str, form: str) -> bool:
    """Tell whether `token` is one of `form` and has not grown too old.

    A timed one counts for a day; that of a day on it and the two days after (or the one before, by another clock); that
    of an embedded form always, also under a former SECRET_KEY.
    """
    issued, dot, signature = token.partition(".")
    if dot:
        return constant_time_compare(signature, _keyed("timed", form, issued)) and _age(issued) < FORM_SECONDS
    today = timezone.now().date()
    daily = [form_token(form, day=today - dt.timedelta(days=n)) for n in range(-1, FORM_DAYS)]
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    embedded = [_keyed("embedded", form, key=key) for key in keys]
    return any(constant_time_compare(token, known) for known in [*daily, *embedded])


def is_too_quick(token: str) -> bool:
    """Tell whether a form's timed token came back sooner than a person could have sent it."""
    issued, dot, _signature = token.partition(".")
    return bool(dot) and _age(issued) < MIN_SECONDS


def _age(issued: str) -> float:
    return timezone.now().timestamp() - int(issued)


def _keyed(kind: str, *words: str, key: str | None = None) -> str:
    value = "|".join([settings.SITE_URL, kind, *words])
    return salted_hmac("subscribers.form", value, secret=key, algorithm="sha256").hexdigest()[:32]
