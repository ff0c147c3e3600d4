"""Bring readers along from a CSV file: read and judge every row first, then write all of it in one transaction.

An import may add a person or leave him as he is, never raise his state: whoever left stays away.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from django.db import transaction
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from subscribers import addresses
from subscribers.models import Consent, Subscriber

ADDRESS_COLUMNS = ("email", "e-mail", "email address", "address", "subscriber", "mail")
NAME_COLUMNS = ("name", "full name", "first name", "first_name")
STATE_COLUMNS = ("status", "state", "subscribed")
# The words for a state that we know to mean "confirmed and wants mail"; whatever is not here is not mailable.
ACTIVE_WORDS = {"active", "subscribed", "confirmed", "enabled", "true", "yes", "1"}
LEFT_WORDS = {
    "unsubscribed",
    "cancelled",
    "canceled",
    "inactive",
    "bounced",
    "complained",
    "false",
    "no",
    "0",
    "deleted",
}
PENDING_WORDS = {"pending", "unconfirmed", "not activated"}
CHUNK = 5000


class UnreadableFile(ValueError):
    """The file as a whole can't be taken; the message says where and what to do."""


@dataclass
class Report:
    """What an import did, or would do."""

    rows: int = 0
    created: int = 0
    unchanged: int = 0
    refused: list[dict[str, str | int]] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    unknown_states: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "created": self.created,
            "unchanged": self.unchanged,
            "refused": self.refused,
            "states": dict(self.states),
            "unknown_states": dict(self.unknown_states),
        }


def import_csv(path: Path, *, attestation: str = "") -> Report:
    """Import the readers of a CSV file (UTF-8, with a header line); raises UnreadableFile, and then nothing is done."""
    report = Report()
    found = {subscriber.key: subscriber for subscriber in _read(_text(path), report)}
    report.unchanged += report.rows - len(report.refused) - len(found)
    with transaction.atomic():
        for keys in _chunks(list(found), CHUNK):
            _write([found[key] for key in keys], report, attestation or path.name)
    return report


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(
            f"{path.name} is not UTF-8: line {row} has the byte 0x{data[error.start]:02x}. "
            "Save it as “CSV UTF-8” and import it again; nothing was imported."
        ) from error


def _read(text: str, report: Report) -> Iterator[Subscriber]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = {(name or "").strip().lower(): name for name in rows.fieldnames or []}
    address = next((columns[name] for name in ADDRESS_COLUMNS if name in columns), None)
    if address is None:
        known = ", ".join(ADDRESS_COLUMNS)
        raise UnreadableFile(f"No column holds the address. The first line must name one of: {known}.")
    try:
        for row in rows:
            report.rows += 1
            subscriber = _subscriber(row, address, columns, rows.line_num, report)
            if subscriber:
                yield subscriber
    except csv.Error as error:
        raise UnreadableFile(f"Line {rows.line_num} is no CSV: {error}. Nothing was imported.") from error


def _subscriber(
    row: dict[str, str | None], address: str, columns: dict[str, str], line: int, report: Report
) -> Subscriber | None:
    typed = (row.get(address) or "").strip()
    try:
        key = addresses.canonical(typed)
    except addresses.InvalidAddress as error:
        report.refused.append({"line": line, "address": typed[:100], "reason": str(error)})
        return None
    name = next((row.get(columns[column]) or "" for column in NAME_COLUMNS if column in columns), "")
    status = _status(row, columns, report)
    return Subscriber(
        address=typed,
        key=key,
        address_hash=addresses.keyed_hash(key),
        name="".join(c for c in name if c.isprintable())[:100].strip(),
        status=status,
        confirmed_at=_confirmed_at(row, columns) if status != Subscriber.Status.PENDING else None,
        unsubscribed_at=timezone.now() if status == Subscriber.Status.UNSUBSCRIBED else None,
        source="import",
    )


def _status(row: dict[str, str | None], columns: dict[str, str], report: Report) -> str:
    """Say what a row's word for its state means here; a file without such a column vouches for all its rows."""
    column = next((columns[name] for name in STATE_COLUMNS if name in columns), None)
    if column is None:
        return Subscriber.Status.ACTIVE
    word = (row.get(column) or "").strip().lower()
    if word in ACTIVE_WORDS:
        return Subscriber.Status.ACTIVE
    if word in LEFT_WORDS:
        return Subscriber.Status.UNSUBSCRIBED
    if word not in PENDING_WORDS:
        report.unknown_states[word] += 1
    return Subscriber.Status.PENDING


def _confirmed_at(row: dict[str, str | None], columns: dict[str, str]) -> dt.datetime:
    for name in ("confirmed_at", "confirmed", "subscribed_at", "created_at"):
        value = (row.get(columns[name]) or "").strip() if name in columns else ""
        try:
            moment = parse_datetime(value)
            day = parse_date(value)
        except ValueError:
            continue
        if moment:
            return moment if timezone.is_aware(moment) else timezone.make_aware(moment)
        if day:
            return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    return timezone.now()


def _write(subscribers: list[Subscriber], report: Report, attestation: str) -> None:
    keys = [subscriber.key for subscriber in subscribers]
    known = set(Subscriber.objects.filter(key__in=keys).values_list("key", flat=True))
    fresh = [subscriber for subscriber in subscribers if subscriber.key not in known]
    Subscriber.objects.bulk_create(fresh, ignore_conflicts=True)
    stored = Subscriber.objects.in_bulk([subscriber.key for subscriber in fresh], field_name="key")
    Consent.objects.bulk_create(
        [
            Consent(subscriber=subscriber, kind=Consent.Kind.IMPORTED, detail={"attestation": attestation})
            for subscriber in stored.values()
        ]
    )
    report.created += len(fresh)
    report.unchanged += len(known)
    report.states.update(str(subscriber.status) for subscriber in fresh)


def _chunks(keys: list[str], size: int) -> Iterator[list[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
