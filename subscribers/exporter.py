"""Take all readers out, as CSV or JSON, in bounded memory; an import of the file gives the same readers back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from django.db import connection

from subscribers.layouts import formula_safe

PAGE = 5000  # rows
COLUMNS = ("email", "name", "state", "created_at", "confirmed_at", "unsubscribed_at", "source", "tags", "fields")
# Why an address is never mailed stands in the place of the state. Nobody is in the row of who was erased.
READERS = """
SELECT s.id, s.address, s.name,
       CASE p.reason WHEN 'manual' THEN 'blocked' WHEN 'erased' THEN 'pending' ELSE coalesce(p.reason, s.status) END,
       s.created_at, s.confirmed_at, s.unsubscribed_at, s.source, s.fields::text
  FROM subscribers_subscriber s LEFT JOIN subscribers_suppression p ON p.address_hash = s.address_hash
 WHERE s.id > %s AND s.status <> 'erased' ORDER BY s.id LIMIT %s
"""


def as_csv() -> Iterator[str]:
    """Yield a CSV file (RFC 4180, UTF-8) piece by piece; no cell of it is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for page in _pages():
        writer.writerows(_cells(reader) for reader in page)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def as_json() -> Iterator[str]:
    """Yield a JSON array piece by piece, one reader a line."""
    before = "[\n"
    for page in _pages():
        yield before + ",\n".join(json.dumps(reader, ensure_ascii=False) for reader in page)
        before = ",\n"
    yield ("[\n" if before == "[\n" else "") + "\n]\n"


FORMATS = {"csv": as_csv, "json": as_json}


def _pages() -> Iterator[list[dict[str, Any]]]:
    """Yield the readers in the order of their rows, without holding a snapshot open meanwhile."""
    last = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(READERS, [last, PAGE])
            rows = cursor.fetchall()
        if not rows:
            return
        yield [_reader(row[1:]) for row in rows]
        last = rows[-1][0]


def _reader(row: tuple[Any, ...]) -> dict[str, Any]:
    address, name, state, created_at, confirmed_at, left_at, source, fields = row
    more = json.loads(fields) if fields != "{}" else {}
    tags = more.pop("tags", [])
    left_at = left_at if state == "unsubscribed" else None
    moments = [moment.isoformat() if moment else "" for moment in (created_at, confirmed_at, left_at)]
    return dict(zip(COLUMNS, (address, name, state, *moments, source, tags, more), strict=True))


def _cells(reader: dict[str, Any]) -> list[str]:
    """Return a reader as cells: tags as a CSV of their own, further fields as JSON."""
    tags, fields = reader["tags"], reader["fields"]
    cells = [formula_safe(text) for text in list(reader.values())[:-2]]
    return [*cells, formula_safe(_joined(tags)), json.dumps(fields, ensure_ascii=False) if fields else ""]


def _joined(tags: list[str]) -> str:
    if not any(character in tag for tag in tags for character in '",;'):
        return ",".join(tags)
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(tags)
    return text.getvalue()
