"""What happened to an address: the reader, and his copies of all issues, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from newsletter.models import Delivery
from subscribers import addresses
from subscribers.models import Subscriber, Suppression

ALIKE_SHOWN = 20
COPIES_SHOWN = 200
State = Delivery.State


def key_of(words: str) -> str:
    """Return the canonical form of an address, or nothing where it is none."""
    try:
        return addresses.canonical(words)
    except addresses.InvalidAddress:
        return ""


def alike(words: str) -> list[Subscriber]:
    return list(Subscriber.objects.filter(key__startswith=words.lower()).order_by("key")[: ALIKE_SHOWN + 1])


@dataclass(frozen=True)
class Copy:
    """A row of the ledger, and what became of it in words."""

    row: Delivery
    words: str

    def is_of(self, reader: Subscriber) -> bool:
        return self.row.subscriber_id == reader.pk


@dataclass(frozen=True)
class History:
    """One reader's copies, newest issue first; the reader is None where only an address is known."""

    reader: Subscriber | None
    suppression: Suppression | None
    copies: list[Copy]


TERMS = {
    State.SKIPPED: _("Skipped"),
    **dict.fromkeys(Delivery.FAILURES, _("Failed")),
    **dict.fromkeys(Delivery.OPEN, _("Open")),
}


def look_up(words: str) -> dict[str, Any]:
    """Return the histories of those who have the address or had it, or the readers among whom to choose."""
    key = key_of(words)
    mailed = set(Delivery.objects.filter(address_key=key).values_list("subscriber_id", flat=True)) if key else set()
    readers = list(Subscriber.objects.filter(Q(key=key) | Q(pk__in=mailed)).order_by("pk")) if key else []
    others = [] if readers or mailed else alike(words)
    if len(others) > 1:
        return {"alike": others[:ALIKE_SHOWN], "more_alike": len(others) > ALIKE_SHOWN}
    return {"histories": _histories(readers or others, key)}


def _histories(readers: list[Subscriber], key: str) -> list[History]:
    """Put together what is known of these readers, and of the address where it is nobody's."""
    hashes = {reader.pk: bytes(reader.address_hash) for reader in readers}
    stray = addresses.keyed_hash(key) if key else b""
    known = Suppression.objects.filter(address_hash__in=[*hashes.values(), stray])
    suppressions = {bytes(suppression.address_hash): suppression for suppression in known}
    copies = _copies(list(hashes), key)
    found = [
        History(reader, suppressions.get(hashes[reader.pk]), [copy for copy in copies if copy.is_of(reader)])
        for reader in readers
    ]
    rest = [copy for copy in copies if copy.row.subscriber_id not in hashes]
    nobodys = None if stray in hashes.values() else suppressions.get(stray)
    return found + ([History(None, nobodys, rest)] if rest or nobodys else [])


def _copies(readers: list[int], key: str) -> list[Copy]:
    """Return the copies that went to these readers or to the address, newest issue first."""
    whose = Q(subscriber__in=readers) | (Q(address_key=key) if key else Q(subscriber__in=[]))
    rows = Delivery.objects.filter(whose).select_related("issue").defer("issue__source").prefetch_related("events")
    return [Copy(row, _in_words(row)) for row in rows.order_by("-issue_id", "-pk")[:COPIES_SHOWN]]


def _in_words(row: Delivery) -> str:
    """Say what became of a copy in the words of the equation, and how."""
    state = State(row.state)
    if state in Delivery.UNKNOWN or state == State.ACCEPTED:
        return str(state.label)
    detail = row.get_reason_display() if state == State.SKIPPED else state.label
    return f"{TERMS[state]}: {detail}"
