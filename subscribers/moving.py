"""A change of address: confirmed at the new one, announced at the old one, which counts until then (ABU-11)."""

from __future__ import annotations

import datetime as dt

from django.db import transaction
from django.utils import timezone

from subscribers import addresses, emails, links, throttling
from subscribers.models import AddressChange, Consent, MagicLink, Subscriber, Suppression, SystemMail
from subscribers.subscription import NOWHERE, Circumstances

Kind = SystemMail.Kind
MOST_A_DAY = 3


@transaction.atomic
def ask(subscriber_id: int, address: str, circumstances: Circumstances = NOWHERE) -> list[SystemMail] | None:
    """Owe a key to the new address and a word to the old one; None where it was asked for too often today.

    A new address that must not be mailed, or got enough such mail, gets none, and nobody is told. Raises
    addresses.InvalidAddress.
    """
    key = addresses.canonical(address)
    subscriber = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    now = timezone.now()
    if subscriber.address_changes.filter(asked_at__gt=now - dt.timedelta(days=1)).count() >= MOST_A_DAY:
        return None
    subscriber.address_changes.open().update(revoked_at=now)
    change = AddressChange.objects.create(
        subscriber=subscriber, old_address=subscriber.address, address=address.strip(), key=key
    )
    context = {"change": change.pk, "asked_from": circumstances.origin}
    owed = [emails.owe(Kind.OLD_ADDRESS, subscriber=subscriber, address=subscriber.address, context=context)]
    if _may_be_mailed(key):
        owed.append(emails.owe(Kind.NEW_ADDRESS, subscriber=subscriber, address=change.address, context=context))
    return owed


def _may_be_mailed(key: str) -> bool:
    suppressed = Suppression.objects.filter(address_hash=addresses.keyed_hash(key))
    return not suppressed.exists() and throttling.mailbox_allows(key, Kind.NEW_ADDRESS)


@transaction.atomic
def confirm(token: str, circumstances: Circumstances = NOWHERE) -> AddressChange | None:
    """Move the reader to his new address; None if the key is worth nothing.

    The change comes back open where the new address is a reader of its own: nothing is merged.
    """
    link = links.take(token, MagicLink.Purpose.NEW_ADDRESS)
    change = link.change if link else None
    if change is None or change.confirmed_at or change.revoked_at:
        return None
    if _make_way(change.key, for_reader=change.subscriber_id):
        _move(change.subscriber, change.address, circumstances)
        change.confirmed_at = timezone.now()
        change.save(update_fields=["confirmed_at"])
    return change


@transaction.atomic
def revoke(token: str, circumstances: Circumstances = NOWHERE) -> AddressChange | None:
    """Take a change back by the key that the old address got, and whatever was changed after it; None as above.

    Whoever asked for it is shut out. The old address counts again, unless it has become a reader of its own since.
    """
    link = links.take(token, MagicLink.Purpose.OLD_ADDRESS)
    change = link.change if link else None
    if change is None:
        return None
    subscriber = change.subscriber
    since = subscriber.address_changes.filter(pk__gte=change.pk)
    moved = since.filter(confirmed_at__isnull=False, revoked_at=None).exists()
    if moved and _make_way(addresses.canonical(change.old_address), for_reader=subscriber.pk):
        _move(subscriber, change.old_address, circumstances)
    since.update(revoked_at=timezone.now())
    links.shut_out(subscriber)
    return change


def _make_way(key: str, *, for_reader: int) -> bool:
    """Tell whether nobody else has the address; who only asked for it and never confirmed gives way."""
    other = Subscriber.objects.select_for_update().filter(key=key).exclude(pk=for_reader).first()
    if other is None:
        return True
    if other.status != Subscriber.Status.PENDING:
        return False
    Subscriber.objects.filter(pk=other.pk).forget()
    return True


def _move(subscriber: Subscriber, address: str, circumstances: Circumstances) -> None:
    subscriber.address = address
    subscriber.save(update_fields=["address", "key", "address_hash"])
    links.shut_out(subscriber)
    circumstances.record(subscriber, Consent.Kind.CHANGED, address=address)
