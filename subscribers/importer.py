"""Bring readers along from a file of another tool: rows are read as a stream, and written a chunk at a time by SQL.

An import may add a person, complete what is not known of him, or lower what mail he gets; it never raises it. Each
chunk is one transaction with the count of the rows that are done, so a run that was killed is taken up after it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from tempfile import NamedTemporaryFile
from typing import IO, Any

from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from subscribers import addresses, layouts
from subscribers.csvfile import Opener, Row, Table
from subscribers.layouts import SUPPRESSED, Interpreter, Mapping, Person
from subscribers.models import Import, ImportPart, ImportRow

CHUNK = 20_000  # rows
REFUSED_SHOWN = 1000  # in a report; the rows themselves keep all
TEXT_LENGTH = 2000
LOCK = 0x696D706F7274  # one chunk at a time, so that two imports never wait for each other crosswise
EXTRA_ATTESTATION = 50  # from so many addresses on, somebody says where they agreed (ABU-15)
SHORTEST_ATTESTATION = 15  # letters

STAGE = """
CREATE TEMPORARY TABLE IF NOT EXISTS staged (
    line integer, turn smallint, key text, hash bytea, address text, name text, status text, firm boolean, reason text,
    note text, text text, source text, created_at timestamptz, confirmed_at timestamptz, left_at timestamptz, ip inet,
    fields jsonb
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS judged (
    LIKE staged, outcome text, subscriber_id bigint, target text, marks boolean
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS seen (key text PRIMARY KEY, status text);
CREATE INDEX IF NOT EXISTS judged_change ON judged (subscriber_id) WHERE outcome IN ('lowered', 'updated');
"""
UNSTAGE = "DROP TABLE IF EXISTS staged, judged, seen"
COPY = "COPY staged FROM STDIN"

# Without statistics of the staged rows a plan would read all readers for each chunk; or, where readers were counted
# while the first of them were not committed yet, all of them for each row. So everybody is looked up by an index.
PLANS = "".join(f"SET LOCAL enable_{way} = off;" for way in ("hashjoin", "mergejoin", "material", "seqscan"))

# What becomes of each row, looked up only. His own confirmation here is newer than a leaving elsewhere that is dated
# before it, and worth more than "not confirmed" from elsewhere. `seen` stands for what a trial run would have written.
# Who is not here but on the list of addresses never to mail was erased, or must not be stored: the row is refused.
JUDGE = """
INSERT INTO judged
SELECT st.*, CASE WHEN st.note <> '' AND st.key IS NULL THEN 'refused'
                  WHEN s.id IS NULL AND NOT seen THEN CASE WHEN known.blocked THEN 'refused' ELSE 'created' END
                  WHEN move.target IS NOT NULL OR move.marks THEN 'lowered'
                  WHEN s.status IN ('active', 'pending') AND (
                       (s.name = '' AND st.name <> '')
                       OR (st.fields - 'tags') || s.fields <> s.fields
                       OR NOT coalesce(s.fields -> 'tags', '[]') @> coalesce(st.fields -> 'tags', '[]')
                  ) THEN 'updated'
                  ELSE 'unchanged' END,
       CASE WHEN s.id IS NOT NULL OR seen OR known.blocked OR st.key IS NULL OR %(trial)s THEN s.id
            ELSE nextval(pg_get_serial_sequence('subscribers_subscriber', 'id')) END,
       move.target, move.marks
  FROM staged st
  LEFT JOIN subscribers_subscriber s ON s.key = st.key
  LEFT JOIN seen before ON before.key = st.key
 CROSS JOIN LATERAL (SELECT before.key IS NOT NULL AS seen, coalesce(before.status, s.status) AS status) was
 CROSS JOIN LATERAL (
       SELECT s.id IS NULL
              AND EXISTS (SELECT FROM subscribers_suppression p WHERE p.address_hash = st.hash) AS blocked,
       s.id IS NOT NULL AND st.left_at IS NOT NULL AND EXISTS (
              SELECT FROM subscribers_consent c WHERE c.subscriber_id = s.id
                 AND c.kind IN ('confirmed', 'resubscribed') AND c.at > st.left_at) AS came_back
 ) known
 CROSS JOIN LATERAL (
       SELECT CASE WHEN st.status = 'unsubscribed' AND was.status IN ('active', 'pending') AND NOT came_back
                   THEN 'unsubscribed'
                   WHEN st.status = 'pending' AND st.firm AND was.status = 'active' AND NOT EXISTS (
                        SELECT FROM subscribers_consent c WHERE c.subscriber_id = s.id
                           AND c.kind IN ('confirmed', 'resubscribed'))
                   THEN 'pending' END AS target,
              st.reason <> '' AND NOT came_back AND NOT seen AND NOT EXISTS (
                  SELECT FROM subscribers_suppression p WHERE p.address_hash = st.hash) AS marks
 ) move
 WHERE st.turn = %(turn)s
"""
REMEMBER = """
INSERT INTO seen SELECT key, coalesce(target, status) FROM judged
 WHERE outcome IN ('created', 'lowered') AND (outcome = 'created' OR target IS NOT NULL)
    ON CONFLICT (key) DO UPDATE SET status = excluded.status
"""
SUPPRESS = """
INSERT INTO subscribers_suppression (address_hash, reason, note, created_at)
SELECT hash, reason, %(note)s, now() FROM judged WHERE marks AND outcome IN ('created', 'lowered')
    ON CONFLICT (address_hash) DO NOTHING
"""
CREATE = """
INSERT INTO subscribers_subscriber
       (id, address, key, address_hash, name, status, suppressed, unsubscribe_id, source, created_at, confirmed_at,
        unsubscribed_at, fields)
SELECT subscriber_id, address, key, hash, name, status, false, gen_random_uuid(), source,
       coalesce(created_at, confirmed_at, now()),
       CASE status WHEN 'active' THEN coalesce(confirmed_at, created_at, now())
                   WHEN 'unsubscribed' THEN coalesce(confirmed_at, created_at) END,
       CASE status WHEN 'unsubscribed' THEN coalesce(left_at, now()) END, fields
  FROM judged WHERE outcome = 'created'
    ON CONFLICT (key) DO NOTHING
"""
# Somebody joined by himself in this very moment: his row is judged anew.
OVERTAKEN = """
DELETE FROM judged WHERE outcome = 'created'
   AND NOT EXISTS (SELECT FROM subscribers_subscriber s WHERE s.id = judged.subscriber_id) RETURNING line
"""
CONSENT = """
INSERT INTO subscribers_consent (subscriber_id, kind, at, wording, language, page, ip, user_agent, detail)
SELECT subscriber_id, 'imported', now(), '', '', '', ip, '', %(detail)s::jsonb FROM judged WHERE outcome = 'created'
"""
LOWER = """
WITH lowered AS (
    UPDATE subscribers_subscriber s
       SET status = j.target,
           unsubscribed_at = CASE j.target WHEN 'unsubscribed' THEN coalesce(j.left_at, now())
                                           ELSE s.unsubscribed_at END
      FROM judged j
     WHERE j.outcome = 'lowered' AND j.target IS NOT NULL
       AND s.id = j.subscriber_id AND s.status IN ('active', 'pending')
    RETURNING s.id, s.status
), links AS (
    UPDATE subscribers_magiclink m SET revoked_at = now() FROM lowered
     WHERE m.subscriber_id = lowered.id AND lowered.status = 'unsubscribed'
       AND m.used_at IS NULL AND m.revoked_at IS NULL
), mail AS (
    UPDATE subscribers_systemmail m SET failed_at = now(), error = 'an import says that the reader left' FROM lowered
     WHERE m.subscriber_id = lowered.id AND m.sent_at IS NULL AND m.failed_at IS NULL
)
INSERT INTO subscribers_consent (subscriber_id, kind, at, wording, language, page, user_agent, detail)
SELECT id, CASE status WHEN 'unsubscribed' THEN 'unsubscribed' ELSE 'changed' END, now(), '', '', '', '',
       %(detail)s::jsonb FROM lowered
"""
COMPLETE = """
UPDATE subscribers_subscriber s
   SET name = CASE s.name WHEN '' THEN j.name ELSE s.name END,
       fields = j.fields || s.fields || CASE WHEN j.fields -> 'tags' IS NULL THEN '{}' ELSE jsonb_build_object('tags', (
           SELECT jsonb_agg(DISTINCT tag)
             FROM jsonb_array_elements(coalesce(s.fields -> 'tags', '[]') || (j.fields -> 'tags')) AS tag)) END
  FROM judged j
 WHERE j.outcome = 'updated' AND s.id = j.subscriber_id AND s.status <> 'erased'
"""
# An address that is never to be mailed is not written down here either.
KEEP = """
INSERT INTO subscribers_importrow (of_id, line, outcome, note, subscriber_id, text)
SELECT %(import)s, line, outcome, CASE WHEN outcome = 'refused' AND note = '' THEN %(blocked)s ELSE note END,
       subscriber_id, CASE WHEN outcome = 'refused' AND key IS NULL THEN text ELSE '' END
  FROM judged
"""
OUTCOMES = "SELECT outcome, count(*) FROM judged GROUP BY outcome"
REFUSED = """
SELECT line, CASE WHEN key IS NULL THEN address ELSE '' END, note FROM judged
 WHERE outcome = 'refused' ORDER BY line LIMIT %(limit)s
"""
BLOCKED = "This address is on the list of those never to be mailed, and its reader is not here (any more)."


class Stopped(RuntimeError):
    """Another process goes on with this import."""


@dataclass
class Report:
    """What an import did, or would do."""

    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    lowered: int = 0
    refused_rows: int = 0
    refused: list[dict[str, str | int]] = field(default_factory=list)  # the first of them
    states: Counter[str] = field(default_factory=Counter)
    unknown_states: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Report:
        counters = {name: Counter(values.get(name, {})) for name in ("states", "unknown_states")}
        return cls(**{**values, **counters})

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "states": dict(self.states), "unknown_states": dict(self.unknown_states)}

    @classmethod
    def of(cls, found: Import) -> Report:
        """Return the report of what is done or, while the file waits, would be.

        Of what is done the refused rows stand among the rows alone, where they are forgotten in time.
        """
        if found.state == Import.State.WAITING:
            return cls.from_json(found.report)
        refused = ImportRow.objects.filter(of=found.pk, outcome=ImportRow.Outcome.REFUSED).order_by("line")
        rows = refused.values_list("line", "text", "note")[:REFUSED_SHOWN]
        named = [{"line": line, "address": text[:100], "reason": note} for line, text, note in rows]
        return cls.from_json({**found.report, "refused": named})

    def kept(self) -> dict[str, Any]:
        return {**self.as_json(), "refused": []}

    def count(self, outcome: str, rows: int) -> None:
        name = "refused_rows" if outcome == ImportRow.Outcome.REFUSED else outcome
        setattr(self, name, getattr(self, name) + rows)


def import_csv(
    path: Path,
    *,
    attestation: str = "",
    columns: dict[str, str] | None = None,
    words: dict[str, str] | None = None,
    by: str = "",
    trial: bool = False,
) -> Report:
    """Import the readers of a file; take up a run of the same file that did not come to its end.

    `columns` says what columns are (by their header) where that is not found out, `words` what words of the state mean.
    `trial` writes nothing and tells what would happen. Raises UnreadableFile, and then nothing is done.
    """

    def open_file() -> IO[bytes]:
        return path.open("rb")

    table = Table(open_file)
    mapping = layouts.changed(layouts.guess(table, path.name), table, columns or {}, words or {})
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found = Import(
        name=path.name[:200],
        size=path.stat().st_size,
        sha256=sha256,
        mapping=mapping.as_json(),
        attestation=attestation[:300],
        by=by,
    )
    if not trial:
        found = _cut_off(found) or found
        found.save()
    return run(found, open_file, trial=trial)


def _cut_off(new: Import) -> Import | None:
    same = {name: getattr(new, name) for name in ("sha256", "mapping", "attestation")}
    return Import.objects.filter(**same, state=Import.State.RUNNING, parts=None).first()


@transaction.atomic
def keep(file: Iterable[bytes], name: str, *, by: str) -> Import:
    """Keep an uploaded file until it is imported, and guess what its columns are. Raises UnreadableFile."""
    found, digest = Import.objects.create(name=PurePath(name).name[:200], by=by, size=0), hashlib.sha256()
    for number, block in enumerate(file):
        ImportPart.objects.create(of=found, number=number, data=zlib.compress(block, 1))
        digest.update(block)
        found.size += len(block)
    found.sha256 = digest.hexdigest()
    with kept_file(found) as open_file:
        found.mapping = layouts.guess(Table(open_file), found.name).as_json()
    found.save()
    return found


@contextmanager
def kept_file(found: Import) -> Iterator[Opener]:
    """Lay down the file that an import keeps, as long as the block lasts; yield how to open it."""
    with NamedTemporaryFile() as spool:
        for data in found.parts.order_by("number").values_list("data", flat=True).iterator(chunk_size=1):
            spool.write(zlib.decompress(data))
        spool.flush()
        path = Path(spool.name)
        yield lambda: path.open("rb")


def run(found: Import, open_file: Opener, *, trial: bool = False) -> Report:
    """Import the rows that are not done yet and return the report of all; with `trial` only tell what would happen.

    Raises UnreadableFile; Stopped, where another process goes on with the same import.
    """
    table, mapping = Table(open_file), Mapping.from_json(found.mapping)
    run = _Run(found, Interpreter(table.header, mapping, now=timezone.now()), trial=trial)
    if not trial:
        Import.objects.filter(pk=found.pk).exclude(state=Import.State.DONE).update(state=Import.State.RUNNING, error="")
    rows = table.rows()
    for _row in islice(rows, run.report.rows):  # done before
        pass
    with connection.cursor() as cursor:
        cursor.execute(STAGE)
    try:
        with ThreadPoolExecutor(1) as ahead:  # the next rows are read while PostgreSQL writes
            coming = ahead.submit(run.read, rows)
            while chunk := coming.result():
                coming = ahead.submit(run.read, rows)
                run.take(chunk)
    finally:
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute(UNSTAGE)
    run.end()
    return run.report


@dataclass
class _Chunk:
    """Rows as the staging table takes them, and what they say."""

    staged: list[tuple[Any, ...]] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)  # how often each person is among them
    states: Counter[str] = field(default_factory=Counter)
    unknown_states: Counter[str] = field(default_factory=Counter)


class _Run:
    """One run over a file's rows."""

    def __init__(self, found: Import, interpreter: Interpreter, *, trial: bool) -> None:
        self.found, self.interpreter, self.trial = found, interpreter, trial
        self.report = Report() if trial else Report.of(found)
        detail = {"import": found.pk, "file": found.name, "attestation": found.attestation}
        self.values = {
            "import": found.pk,
            "trial": trial,
            "note": f"import {found.pk}",
            "detail": json.dumps(detail),
            "blocked": BLOCKED,
            "limit": REFUSED_SHOWN,
        }

    def read(self, rows: Iterator[Row]) -> _Chunk | None:
        """Understand the next rows; None after the last."""
        chunk = _Chunk()
        for row in islice(rows, CHUNK):
            person = self.interpreter.person(row)
            if person.key:
                chunk.turns[person.key] += 1
                chunk.states[person.state] += 1
                if person.word:
                    chunk.unknown_states[person.word[:100]] += 1
            chunk.staged.append(_staged(row, person, chunk.turns[person.key]))
        return chunk if chunk.staged else None

    def take(self, chunk: _Chunk) -> None:
        """Write one chunk, its report and the count of the rows that are done, or none of it."""
        report = deepcopy(self.report)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("TRUNCATE staged, judged")
            cursor.execute(PLANS)
            if not self.trial:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                self._check_place()
            with cursor.copy(COPY) as copy:
                for row in chunk.staged:
                    copy.write_row(row)
            for turn in range(1, max(chunk.turns.values(), default=1) + 1):
                self._write(cursor, turn, report)
            report.rows += len(chunk.staged)
            report.states += chunk.states
            report.unknown_states += chunk.unknown_states
            if not self.trial:
                Import.objects.filter(pk=self.found.pk).update(read=report.rows, report=report.kept())
        self.report = report

    def end(self) -> None:
        """Note that it is done; the file is not kept any longer."""
        found = Import.objects.filter(pk=self.found.pk)
        if self.trial:
            found.update(is_judged=True, report=self.report.as_json())
            return
        with transaction.atomic():
            found.update(state=Import.State.DONE, ended_at=timezone.now(), report=self.report.kept())
            ImportPart.objects.filter(of=self.found).delete()

    def _check_place(self) -> None:
        place = Import.objects.select_for_update().values_list("read", flat=True).get(pk=self.found.pk)
        if place != self.report.rows:
            raise Stopped(f"Another process goes on with import {self.found.pk}, which is at row {place}.")

    def _write(self, cursor: Any, turn: int, report: Report) -> None:
        """Judge the rows in which a person comes for the `turn`th time, and do what that says."""
        values = {**self.values, "turn": turn}
        cursor.execute("TRUNCATE judged")
        cursor.execute(JUDGE, values)
        for statement in (REMEMBER,) if self.trial else (SUPPRESS, CREATE):
            cursor.execute(statement, values)
        if not self.trial:
            self._after_create(cursor, values)
        cursor.execute(OUTCOMES)
        for outcome, rows in cursor.fetchall():
            report.count(outcome, rows)
        room = REFUSED_SHOWN - len(report.refused)
        if room > 0:
            cursor.execute(REFUSED, {"limit": room})
            names = ("line", "address", "reason")
            report.refused += [dict(zip(names, (row[0], row[1], row[2] or BLOCKED), strict=True)) for row in cursor]

    def _after_create(self, cursor: Any, values: dict[str, Any]) -> None:
        cursor.execute(OVERTAKEN)
        if overtaken := [line for (line,) in cursor.fetchall()]:
            cursor.execute(f"{JUDGE} AND st.line = ANY(%(lines)s)", {**values, "lines": overtaken})
        for statement in (CONSENT, LOWER, COMPLETE, KEEP):
            cursor.execute(statement, values)


def _staged(row: Row, person: Person, turn: int) -> tuple[Any, ...]:
    """Return the columns of the staging table."""
    if person.refusal:
        text = row.text[:TEXT_LENGTH].rstrip("\r\n")
        return (row.line, 1, None, None, person.address[:254], *[None] * 4, person.refusal[:300], text, *[None] * 6)
    state = person.state
    note = f"The state “{person.word[:100]}” is not known: no mail." if person.word else ""
    return (
        row.line,
        turn,
        person.key,
        addresses.keyed_hash(person.key),
        person.address,
        person.name,
        state if state in ("active", "pending") else "pending" if state == "unknown" else "unsubscribed",
        state != "unknown",
        SUPPRESSED.get(state, ""),
        note,
        "",
        person.source,
        person.created_at,
        person.confirmed_at,
        person.left_at,
        person.ip or None,
        json.dumps(person.fields) if person.fields else "{}",
    )
