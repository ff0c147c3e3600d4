"""Joining, confirming, leaving, coming back: each one transaction with its line of consent and its mail owed."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import models, transaction
from django.utils import timezone

from posts.models import Tag
from subscribers import addresses, disposable, emails, links, throttling, tokens
from subscribers.models import Consent, Subscriber, Suppression, SystemMail

Status, Kind = Subscriber.Status, Consent.Kind
REMIND_AFTER, FORGET_AFTER = dt.timedelta(hours=24), dt.timedelta(days=tokens.CONFIRM_DAYS)


@dataclass(frozen=True)
class Circumstances:
    """Where and in which words a consent was given: what its record keeps (GDPR, Art. 7(1))."""

    page: str = ""
    ip: str | None = None
    user_agent: str = ""
    wording: str = ""
    language: str = ""
    at: dt.datetime | None = None  # None: now

    @property
    def origin(self) -> str:
        """Return a keyed hash of who asked, for the row of a one-time key."""
        return tokens.origin(self.ip, self.user_agent)

    def record(self, subscriber: Subscriber, kind: str, **detail: str) -> Consent:
        return Consent.objects.create(
            subscriber=subscriber,
            kind=kind,
            at=self.at or timezone.now(),
            page=self.page[:500],
            ip=self.ip,
            user_agent=self.user_agent[:300],
            wording=self.wording,
            language=self.language,
            detail=detail,
        )


NOWHERE = Circumstances()


@transaction.atomic
def join(
    address: str, circumstances: Circumstances, *, source: str = "", campaign: dict[str, str] | None = None
) -> SystemMail | None:
    """Ask `address` to confirm, or tell its owner what keeps him from joining; return the mail owed, if any.

    `campaign` holds the utm_ parameters of the page he came by. Raises addresses.InvalidAddress.
    """
    key = addresses.canonical(address)
    address_hash = addresses.keyed_hash(key)
    if Suppression.objects.filter(address_hash=address_hash).exclude(reason=Suppression.Reason.ERASED).exists():
        return None
    if not throttling.mailbox_allows(key, SystemMail.Kind.CONFIRM):
        return None
    if disposable.is_refused(key):
        return emails.owe(SystemMail.Kind.DISPOSABLE, address=address.strip())
    Subscriber.objects.bulk_create(
        [Subscriber(address=address.strip(), key=key, address_hash=address_hash, source=source)],
        ignore_conflicts=True,
    )
    subscriber = Subscriber.objects.select_for_update().get(key=key)
    if _is_confirmed(subscriber):
        return emails.owe(SystemMail.Kind.ALREADY, subscriber=subscriber)
    circumstances.record(subscriber, Kind.REQUESTED, source=source, **(campaign or {}))
    if subscriber.status == Status.PENDING:
        emails.owe_reminder(subscriber, after=REMIND_AFTER)
    return emails.owe(SystemMail.Kind.CONFIRM, subscriber=subscriber)


@transaction.atomic
def send_link(address: str, circumstances: Circumstances) -> SystemMail | None:
    """Owe the reader at `address` a link to his preferences; None if there is no such reader or he has had enough.

    Raises addresses.InvalidAddress.
    """
    subscriber = Subscriber.objects.with_address(address).exclude(status=Status.ERASED).first()
    kind = SystemMail.Kind.MAGIC_LINK
    if subscriber is None or subscriber.suppressed or not throttling.mailbox_allows(subscriber.key, kind):
        return None
    return emails.owe(kind, subscriber=subscriber, context={"asked_from": circumstances.origin})


@transaction.atomic
def confirm(token: str, circumstances: Circumstances = NOWHERE) -> tuple[Subscriber, SystemMail | None] | None:
    """Confirm the reader that a token names; return him and the welcome owed, None if the token is worth nothing.

    Confirming again changes nothing and owes no second welcome.
    """
    subscriber = confirmable(token, lock=True)
    if subscriber is None:
        return None
    if _is_confirmed(subscriber):
        return subscriber, None
    return subscriber, _activate(subscriber, Kind.CONFIRMED, circumstances)


@transaction.atomic
def forget_unconfirmed(*, after: dt.timedelta = FORGET_AFTER, limit: int = 1000) -> int:
    """Delete up to `limit` readers who were asked to confirm and have not for so long; return how many.

    Whoever came by an import stays: he was asked elsewhere. Of the mails only what throttling counts is left.
    """
    since = timezone.now() - after
    of_reader = Consent.objects.filter(subscriber=models.OuterRef("pk"))
    stale = (
        Subscriber.objects.filter(status=Status.PENDING, confirmed_at=None, created_at__lte=since)
        .exclude(models.Exists(of_reader.filter(kind=Kind.IMPORTED)))
        .exclude(models.Exists(of_reader.filter(kind=Kind.REQUESTED, at__gt=since)))
    )
    gone = list(stale.select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True)[:limit])
    SystemMail.objects.filter(subscriber__in=gone, sent_at=None).delete()
    Subscriber.objects.filter(pk__in=gone).forget()
    return len(gone)


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


def unsubscribe_late(unsubscribe_id: UUID, at: dt.datetime) -> None:
    """Carry out an unsubscribe of `at`, when the database could not write; not where the reader came back since."""
    subscriber = Subscriber.objects.filter(unsubscribe_id=unsubscribe_id).first()
    came_back = [Kind.CONFIRMED, Kind.RESUBSCRIBED]
    if subscriber and not subscriber.consents.filter(kind__in=came_back, at__gt=at).exists():
        unsubscribe(subscriber.pk)


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
def change(subscriber_id: int, circumstances: Circumstances = NOWHERE, **wishes: Any) -> bool:
    """Write down what a reader wishes, such as his `name` or `topics`; record what is new, False if nothing is."""
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    changed = {field: value for field, value in wishes.items() if getattr(subscriber, field) != value}
    for field, value in changed.items():
        setattr(subscriber, field, value)
    if changed:
        subscriber.save(update_fields=list(changed))
        circumstances.record(
            subscriber, Kind.CHANGED, **{field: _in_words(field, value) for field, value in changed.items()}
        )
    return bool(changed)


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
    return _suppress(addresses.keyed_hash(addresses.canonical(address)), reason=reason, note=note)


@transaction.atomic
def never_again(subscriber_id: int, address_hash: str, circumstances: Circumstances = NOWHERE) -> None:
    """Suppress the address of the hash, given in hexadecimal digits, and let its reader go, if he still has it."""
    digest = bytes.fromhex(address_hash)
    if Subscriber.objects.filter(pk=subscriber_id, address_hash=digest).exists():
        unsubscribe(subscriber_id, circumstances)
    _suppress(digest, reason=Suppression.Reason.ASKED)


def _suppress(address_hash: bytes, *, reason: str, note: str = "") -> Suppression:
    suppression, _created = Suppression.objects.get_or_create(
        address_hash=address_hash, defaults={"reason": reason, "note": note}
    )
    return suppression


def _is_confirmed(subscriber: Subscriber) -> bool:
    """Tell whether there is nothing to confirm: an import does not speak for somebody who had himself erased."""
    erased = Suppression.objects.filter(address_hash=subscriber.address_hash, reason=Suppression.Reason.ERASED)
    return subscriber.status == Status.ACTIVE and not erased.exists()


def _activate(subscriber: Subscriber, kind: str, circumstances: Circumstances) -> SystemMail:
    subscriber.status, subscriber.confirmed_at = Status.ACTIVE, timezone.now()
    subscriber.save(update_fields=["status", "confirmed_at"])
    Suppression.objects.filter(address_hash=subscriber.address_hash, reason=Suppression.Reason.ERASED).delete()
    circumstances.record(subscriber, kind)
    return emails.owe(SystemMail.Kind.WELCOME, subscriber=subscriber)
