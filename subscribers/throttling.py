"""How often one mailbox may be sent a mail that anyone can ask for, and how often a network and everybody may ask.

Counted from the rows themselves, so the counters survive the loss of Valkey. What a network or the whole site may do
does not depend on the address that was entered, so it may be said openly; a mailbox's limit is never told.
"""

import datetime as dt
import time
from typing import NamedTuple

from django.conf import settings
from django.db import connection, models
from django.utils import timezone

from subscribers import addresses
from subscribers.models import Consent, Submission, SystemMail

# A mailbox: at most this many in each of these spans.
MAILBOX_LIMITS = [(dt.timedelta(minutes=15), 1), (dt.timedelta(hours=24), 3), (dt.timedelta(days=30), 5)]
COUNTED = MAILBOX_LIMITS[-1][0]  # no mail counts for longer
SPAN = dt.timedelta(hours=1)  # in which a network's and the site's sign-ups are counted
Kind = SystemMail.Kind
ASKED_FOR = [Kind.CONFIRM, Kind.REMINDER, Kind.ALREADY, Kind.DISPOSABLE, Kind.NEW_ADDRESS]


def mailbox_allows(key: str, kind: str, *, beside: SystemMail | None = None) -> bool:
    """Tell whether the mailbox of a canonical address may be sent one more mail of `kind`, `beside` not counted.

    Two who ask at once for two spellings of one mailbox wait for each other until the caller's transaction ends.
    """
    mailbox, now = addresses.mailbox_hash(key), timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [mailbox])
    kinds = [Kind.MAGIC_LINK] if kind == Kind.MAGIC_LINK else ASKED_FOR
    sent = SystemMail.objects.filter(mailbox=mailbox, kind__in=kinds)
    sent = sent.exclude(models.Q(kind=Kind.REMINDER, due_at__gt=now))  # it counts from when it goes
    if beside:
        sent = sent.exclude(pk=beside.pk)
    return all(sent.filter(created_at__gt=now - span).count() < most for span, most in MAILBOX_LIMITS)


def network_allows(ip: str | None) -> bool:
    """Tell whether the network of `ip` may send a form once more this hour."""
    if ip is None:
        return True
    recent = Submission.objects.filter(network=addresses.network(ip), created_at__gt=timezone.now() - SPAN)
    return recent.count() < settings.SIGNUPS_PER_NETWORK


def site_allows() -> bool:
    """Tell whether anybody may send a form this hour."""
    return last_hour().forms < settings.SIGNUPS_PER_HOUR


def is_flooded() -> bool:
    """Tell whether hardly anybody of those who sign up confirms: as when machines enter the addresses of others."""
    now = last_hour()
    return now.joined >= settings.CHALLENGE_FROM and now.joined > settings.CHALLENGE_RATIO * now.confirmed


class LastHour(NamedTuple):
    """What everybody together did within the last hour."""

    forms: int
    joined: int  # of the forms, those that sign up
    confirmed: int


class _Counted:
    """The last hour as this process counted it, and when: no visitor waits for a count that another just made."""

    at: float | None = None
    found = LastHour(0, 0, 0)


def last_hour() -> LastHour:
    """Count the last hour, at most once in SIGNUP_COUNT_SECONDS."""
    now = time.monotonic()
    if _Counted.at is None or now - _Counted.at >= settings.SIGNUP_COUNT_SECONDS:
        _Counted.at, _Counted.found = now, _count()
    return _Counted.found


def _count() -> LastHour:
    since = timezone.now() - SPAN
    join = models.Count("pk", filter=models.Q(kind=Submission.Kind.JOIN))
    sent = Submission.objects.filter(created_at__gt=since).aggregate(forms=models.Count("pk"), joined=join)
    confirmed = Consent.objects.filter(kind=Consent.Kind.CONFIRMED, at__gt=since).count()
    return LastHour(sent["forms"], sent["joined"], confirmed)
