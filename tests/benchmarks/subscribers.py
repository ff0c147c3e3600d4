"""How fast readers come along and are listed and taken out: the import beside a plain INSERT ... SELECT and COPY."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.test import Client

from posts.models import Publication
from subscribers import exporter
from subscribers.importer import import_csv
from tests.benchmarks import database, signups
from tests.benchmarks.progress import say, table
from tests.benchmarks.senders import peak_rss_mb
from tests.workers import database_url, redis_url

MOST_MB, LEAST_RATIO, SLOW_MS = 200, 0.5, 1000
PAGE_TURNS = 5

COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attname <> ALL(%s)
"""
EMPTY = "TRUNCATE subscribers_subscriber, subscribers_suppression, subscribers_import, subscribers_importrow CASCADE"


def measure(rows: int, pairs: int, *, requests: int, seconds: int) -> dict[str, Any]:
    """Run the benchmark, and that of signing up with as many readers; return what --json prints."""
    return {**signups.measure(signups.Plan(rows, requests, seconds)), **_measure(rows, pairs)}


def _measure(rows: int, pairs: int) -> dict[str, Any]:
    with database.own() as durability, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        say(f"inventing a file of {rows:,} rows; a warm-up that does not count")
        path = write_file(home / "readers.csv", rows)
        take_turns(write_file(home / "warm.csv", min(rows, 1000)), min(rows, 1000), home)
        turns = []
        for number in range(1, pairs + 1):
            turn = take_turns(path, rows, home)
            turns.append(turn)
            say(f"pair {number} of {pairs}: " + ", ".join(f"{name} {value:,.2f}" for name, value in turn.items()))
        say("listing and exporting")
        return {**durability, "rows": rows, "pairs": turns, **medians(turns), **listed(), **exported(rows)}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    found = {name: median(turn[name] for turn in turns) for name in turns[0]}
    return {
        "import_rows_per_s": round(found["import_rows_per_s"], 1),
        "ratio_insert_select": round(found["ratio_insert_select"], 3),
        "ratio_copy": round(found["ratio_copy"], 3),
        "peak_rss_mb": round(max(turn["peak_rss_mb"] for turn in turns), 1),
    }


def errors(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the figures."""
    wrong = signups.errors(found)
    if found["ratio_insert_select"] < LEAST_RATIO:
        wrong.append(f"The import is {found['ratio_insert_select']} as fast as INSERT ... SELECT")
    if found["peak_rss_mb"] > MOST_MB:
        wrong.append(f"The import took {found['peak_rss_mb']} MB")
    return wrong + [f"{name} took {ms} ms" for name, ms in found["lists"].items() if ms > SLOW_MS]


def show(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    head = f"{found['rows']:,} rows; fsync {found['fsync']}; peak memory {found['peak_rss_mb']} MB\n"
    names = ("import_rows_per_s", "insert_rows_per_s", "copy_rows_per_s", "ratio_insert_select", "ratio_copy")
    rows = {name: [turn[name] for turn in found["pairs"]] for name in names}
    lists = {f"{name}, ms": [ms] for name, ms in found["lists"].items()}
    ours = head + table({**rows, **lists, "export, rows a second": [found["export_rows_per_s"]]})
    return f"{ours}\n{signups.show(found)}"


def bring_along(name: str) -> None:
    """Be the importing process: report on standard output how long it took and how much memory."""
    connection.ensure_connection()
    began = time.monotonic()
    report = import_csv(Path(name), attestation="Signed up at blog.example.com, confirmed by mail")
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, "created": report.created, "peak_rss_mb": peak_rss_mb()}), flush=True)


def write_file(path: Path, rows: int) -> Path:
    """Write a file as Kit exports it: one in ten has left, one in five a tag."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first_name", "email", "created_at", "status", "tags"])
        for n in range(rows):
            name, tag = ("Zoë" if n % 8 == 0 else "Ada") + f" Reader-{n}", "sql, vacuum" if n % 5 == 0 else ""
            day, state = f"{2015 + n % 11}-09-{1 + n % 28:02}T11:12:13Z", "cancelled" if n % 10 == 3 else "active"
            writer.writerow([name, f"Reader.{n * 7919 % rows}@mail{n % 97}.example.org", day, state, tag])
    return path


def take_turns(path: Path, rows: int, home: Path) -> dict[str, float]:
    """Import the file, then write the very rows that this made once more: by a plain statement, and by COPY."""
    database.execute(EMPTY)
    database.checkpoint()
    ours = imported(path, rows)
    keep_bare()
    plain, copied = rate(insert_select, rows), copy_rate(home, rows)
    database.execute("DROP TABLE bare")
    speed = rows / ours["seconds"]
    return {
        "import_rows_per_s": speed,
        "insert_rows_per_s": plain,
        "copy_rows_per_s": copied,
        "ratio_insert_select": speed / plain,
        "ratio_copy": speed / copied,
        "peak_rss_mb": ours["peak_rss_mb"],
    }


def imported(path: Path, rows: int) -> dict[str, float]:
    names = {"DATABASE_URL": database_url(), "REDIS_URL": redis_url(), "ALLOW_TEST_ADDRESSES": "true"}
    secrets = {"SECRET_KEY": settings.SECRET_KEY, "PEPPER": settings.PEPPER}
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "benchmark", "importer", str(path)]
    ended = subprocess.run(command, env={**os.environ, **names, **secrets}, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CommandError(f"The importing process failed: {ended.stderr[-1500:]}")
    found: dict[str, float] = json.loads(ended.stdout)
    if found["created"] != rows:
        raise CommandError(f"{found['created']} of {rows} rows came in.")
    return found


def columns(name: str, *without: str) -> str:
    return str(database.fetch_one(COLUMNS, [name, list(without)]))


def keep_bare() -> None:
    """Copy what was made into a table without indexes, in the file's order: readers, each with his line of consent."""
    reader, consent = columns("subscribers_subscriber", "id"), columns("subscribers_consent", "id", "subscriber_id")
    named = ", ".join(f"s.{name.strip()}" for name in reader.split(","))
    lines = ", ".join(f"c.{name.strip()} AS c_{name.strip()}" for name in consent.split(","))
    database.execute(f"""
        CREATE TABLE bare AS SELECT {named}, {lines} FROM subscribers_subscriber s
          JOIN subscribers_consent c ON c.subscriber_id = s.id ORDER BY s.id""")
    database.execute("VACUUM ANALYZE bare")


def insert_select() -> None:
    reader, consent = columns("subscribers_subscriber", "id"), columns("subscribers_consent", "id", "subscriber_id")
    lines = ", ".join(f"b.c_{name.strip()}" for name in consent.split(","))
    with transaction.atomic():
        database.execute(f"""
            INSERT INTO subscribers_subscriber ({reader}) SELECT {reader} FROM bare ON CONFLICT (key) DO NOTHING""")
        database.execute(f"""
            INSERT INTO subscribers_consent (subscriber_id, {consent})
            SELECT s.id, {lines} FROM bare b JOIN subscribers_subscriber s ON s.key = b.key""")


def copy_rate(home: Path, rows: int) -> float:
    """Write both tables to files, and time how they are read back."""
    tables = ("subscribers_subscriber", "subscribers_consent")
    for name in tables:
        out = f"COPY {name} TO STDOUT"
        with connection.cursor() as cursor, (home / name).open("wb") as file, cursor.copy(out) as copy:
            file.writelines(copy)

    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for name in tables:
                with cursor.copy(f"COPY {name} FROM STDIN") as copy, (home / name).open("rb") as file:
                    while block := file.read(1 << 16):
                        copy.write(block)

    return rate(work, rows)


def rate(work: Callable[[], object], rows: int) -> float:
    """Let `work` fill the tables from the same state of the disk; return rows a second. Raises CommandError."""
    database.execute(EMPTY)
    database.checkpoint()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    for name in ("subscribers_subscriber", "subscribers_consent"):
        if (written := database.fetch_one(f"SELECT count(*) FROM {name}")) != rows:
            raise CommandError(f"{written} rows are in {name} for {rows}.")
    return rows / seconds


def listed() -> dict[str, Any]:
    """Open the list of readers as the author does: first and last page, filters, an address's beginning."""
    database.execute("VACUUM (ANALYZE) subscribers_subscriber")
    Publication.current()
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    settings.SECOND_FACTOR_REQUIRED = False
    found = {}
    queries = ["", "p=2", "p=last", "status__exact=active", "status__exact=unsubscribed", "suppressed__exact=1",
               "source=import", "q=reader.77"]  # fmt: skip
    for query in queries:
        address = f"/{settings.ADMIN_PATH}/subscribers/subscriber/?{query}"
        found[query or "first page"] = min(_open(client, address) for _turn in range(PAGE_TURNS))
    return {"lists": found, "list_ms": max(found.values())}


def _open(client: Client, address: str) -> float:
    began = time.monotonic()
    response = client.get(address, headers={"host": "127.0.0.1"})
    seconds = time.monotonic() - began
    if response.status_code != 200:
        raise CommandError(f"{address} answered {response.status_code}.")
    return round(seconds * 1000, 1)


def exported(rows: int) -> dict[str, float]:
    began = time.monotonic()
    length = sum(len(piece) for piece in exporter.as_csv())
    speed = rows / (time.monotonic() - began)
    if not length:
        raise CommandError("Nothing was exported.")
    return {"export_rows_per_s": round(speed, 1)}
