"""Joining, confirming, leaving, coming back: each one transaction with its line of consent and its mail owed."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.utils import timezone

from posts.models import Tag
from subscribers import addresses, emails, links, throttling, tokens
from subscribers.models import Consent, Subscriber, Suppression, SystemMail

Status, Kind = Subscriber.Status, Consent.Kind


@dataclass(frozen=True)
class Circumstances:
    """Where and in which words a consent was given: what its record keeps (GDPR, Art. 7(1))."""

    page: str = ""
    ip: str | None = None
    user_agent: str = ""
    wording: str = ""
    language: str = ""

    @property
    def origin(self) -> str:
        """Return a keyed hash of who asked, for the row of a one-time key."""
        return tokens.origin(self.ip, self.user_agent)

    def record(self, subscriber: Subscriber, kind: str, **detail: str) -> Consent:
        return Consent.objects.create(
            subscriber=subscriber,
            kind=kind,
            page=self.page[:500],
            ip=self.ip,
            user_agent=self.user_agent[:300],
            wording=self.wording,
            language=self.language,
            detail=detail,
        )


NOWHERE = Circumstances()


@transaction.atomic
def join(address: str, circumstances: Circumstances, *, source: str = "") -> SystemMail | None:
    """Ask `address` to confirm, or tell its owner that he is a reader already; return the mail owed, if any.

    Raises addresses.InvalidAddress. What the caller may show is the same in every case.
    """
    key = addresses.canonical(address)
    Subscriber.objects.bulk_create(
        [Subscriber(address=address.strip(), key=key, address_hash=addresses.keyed_hash(key), source=source)],
        ignore_conflicts=True,
    )
    subscriber = Subscriber.objects.select_for_update().get(key=key)
    kind = SystemMail.Kind.ALREADY if subscriber.status == Status.ACTIVE else SystemMail.Kind.CONFIRM
    allowed = throttling.mailbox_allows(addresses.mailbox(key), kind) and throttling.network_allows(circumstances.ip)
    if subscriber.suppressed or not allowed:
        return None
    if kind == SystemMail.Kind.CONFIRM:
        circumstances.record(subscriber, Kind.REQUESTED, source=source)
    return emails.owe(kind, subscriber=subscriber)


@transaction.atomic
def confirm(token: str, circumstances: Circumstances = NOWHERE) -> tuple[Subscriber, SystemMail | None] | None:
    """Confirm the reader that a token names; return him and the welcome owed, None if the token is worth nothing.

    Confirming again changes nothing and owes no second welcome.
    """
    subscriber = confirmable(token, lock=True)
    if subscriber is None:
        return None
    if subscriber.status == Status.ACTIVE:
        return subscriber, None
    return subscriber, _activate(subscriber, Kind.CONFIRMED, circumstances)


def confirmable(token: str, *, lock: bool = False) -> Subscriber | None:
    """Return the reader whom a confirmation token names, if it is still worth anything."""
    found = tokens.read(token, purpose=tokens.CONFIRM, max_age=dt.timedelta(days=tokens.CONFIRM_DAYS))
    readers = Subscriber.objects.select_for_update() if lock else Subscriber.objects.all()
    subscriber = readers.filter(pk=found[0]).exclude(status=Status.ERASED).first() if found else None
    fresh = subscriber is not None and found is not None and subscriber.stamp == found[1]
    return subscriber if fresh else None


@transaction.atomic
def unsubscribe(subscriber_id: int, circumstances: Circumstances = NOWHERE) -> bool:
    """Stop all mail to a reader from this commit on; False if he had left before. Owes no mail, needs no broker."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    if subscriber.status not in (Status.ACTIVE, Status.PENDING):
        return False
    subscriber.status, subscriber.unsubscribed_at = Status.UNSUBSCRIBED, timezone.now()
    subscriber.save(update_fields=["status", "unsubscribed_at"])
    links.shut_out(subscriber)
    subscriber.system_mail.due().update(failed_at=timezone.now(), error="the reader left")
    circumstances.record(subscriber, Kind.UNSUBSCRIBED)
    return True


def note_reason(subscriber_id: int, because: str) -> None:
    """Keep why a reader who left did so, if he says it; a word that is none of the reasons is not kept."""
    if because in Subscriber.LeftBecause.values:
        Subscriber.objects.filter(pk=subscriber_id, status=Status.UNSUBSCRIBED).update(left_because=because)


@transaction.atomic
def resubscribe(subscriber_id: int, circumstances: Circumstances = NOWHERE) -> bool:
    """Bring back a reader who confirmed once and left, on his own act in his preferences or by the undo key."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    if subscriber.status != Status.UNSUBSCRIBED or subscriber.suppressed or subscriber.confirmed_at is None:
        return False
    subscriber.status = Status.ACTIVE
    subscriber.save(update_fields=["status"])
    circumstances.record(subscriber, Kind.RESUBSCRIBED)
    return True


@transaction.atomic
def change(subscriber_id: int, circumstances: Circumstances = NOWHERE, **wishes: Any) -> None:
    """Write down what a reader wishes, such as his `name` or `topics`; what is new is recorded."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    changed = {field: value for field, value in wishes.items() if getattr(subscriber, field) != value}
    for field, value in changed.items():
        setattr(subscriber, field, value)
    if changed:
        subscriber.save(update_fields=list(changed))
        circumstances.record(
            subscriber, Kind.CHANGED, **{field: _in_words(field, value) for field, value in changed.items()}
        )


def _in_words(field: str, value: Any) -> str:
    """Return what the record of a change says: topics by name, since their tags may go."""
    return (
        ", ".join(Tag.objects.filter(pk__in=value).values_list("name", flat=True)) if field == "topics" else str(value)
    )


@transaction.atomic
def pause(subscriber_id: int, until: dt.datetime, circumstances: Circumstances = NOWHERE) -> bool:
    """Send nothing to a reader before `until`; a pause that is longer already stays. False if he is no reader now."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    if subscriber.status != Status.ACTIVE:
        return False
    if subscriber.paused_until is None or subscriber.paused_until < until:
        subscriber.paused_until = until
        subscriber.save(update_fields=["paused_until"])
        circumstances.record(subscriber, Kind.CHANGED, paused_until=until.isoformat())
    return True


@transaction.atomic
def go_on(subscriber_id: int, circumstances: Circumstances = NOWHERE) -> bool:
    """End a reader's pause; False if there was none."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    if not subscriber.is_paused:
        return False
    subscriber.paused_until = None
    subscriber.save(update_fields=["paused_until"])
    circumstances.record(subscriber, Kind.CHANGED, paused_until="")
    return True


@transaction.atomic
def suppress(address: str, *, reason: str, note: str = "") -> Suppression:
    """Never mail `address` again, whoever asks; raises addresses.InvalidAddress. A trigger marks the reader's row."""
    key = addresses.canonical(address)
    suppression, _created = Suppression.objects.get_or_create(
        address_hash=addresses.keyed_hash(key), defaults={"reason": reason, "note": note}
    )
    return suppression


def _activate(subscriber: Subscriber, kind: str, circumstances: Circumstances) -> SystemMail:
    subscriber.status, subscriber.confirmed_at = Status.ACTIVE, timezone.now()
    subscriber.save(update_fields=["status", "confirmed_at"])
    circumstances.record(subscriber, kind)
    return emails.owe(SystemMail.Kind.WELCOME, subscriber=subscriber)
