"""How fast an issue is frozen: the real transaction beside a plain INSERT ... SELECT of the same rows, turn by turn."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

from newsletter import delivery
from newsletter.models import Issue
from posts.models import Post
from tests.benchmarks import database, material
from tests.benchmarks.progress import say, table

BODY_KB = 40
WARM_UP = 100

# All columns but the key, in order: what the ledger's own rows hold, whatever columns it has.
COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
 WHERE attrelid = 'newsletter_delivery'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'id'
"""

# LIKE copies defaults, constraints and indexes, but not the table's own storage parameters.
STORAGE = (
    "SELECT coalesce(array_to_string(reloptions, ', '), '') FROM pg_class WHERE oid = 'newsletter_delivery'::regclass"
)


@dataclass(frozen=True)
class Pair:
    """One turn: rows a second of each."""

    freeze: float
    insert_select: float

    @property
    def ratio(self) -> float:
        return self.freeze / self.insert_select


def measure(subscribers: int, pairs: int) -> dict[str, Any]:
    """Run the benchmark; return what --json prints."""
    with database.own() as durability:
        say("writing the issue; a warm-up that does not count")
        post = material.write_post(BODY_KB)
        make_plain_table()
        material.fill_readers(min(WARM_UP, subscribers))
        take_turns(post, min(WARM_UP, subscribers))
        say(f"inventing {subscribers:,} readers")
        material.fill_readers(subscribers)
        found = []
        for number in range(1, pairs + 1):
            pair = take_turns(post, subscribers)
            found.append(pair)
            say(
                f"pair {number} of {pairs}: freeze {pair.freeze:,.0f}, INSERT ... SELECT {pair.insert_select:,.0f} "
                f"rows a second (ratio {pair.ratio:.2f})"
            )
    return {**durability, **result(subscribers, found)}


def make_plain_table() -> None:
    """Make an empty table that is the ledger in all but name."""
    database.execute("CREATE TABLE plain (LIKE newsletter_delivery INCLUDING ALL)")
    if storage := database.fetch_one(STORAGE):
        database.execute(f"ALTER TABLE plain SET ({storage})")


def take_turns(post: Post, subscribers: int) -> Pair:
    """Freeze an issue, then insert the very rows that this made into the plain table, from a bare copy of them."""
    issue = due(post)
    freeze = rate("newsletter_delivery", lambda: delivery.freeze(issue.pk), subscribers)
    columns = database.fetch_one(COLUMNS)
    database.execute(f"CREATE TABLE bare AS SELECT {columns} FROM newsletter_delivery ORDER BY id")
    database.execute("VACUUM bare")
    insert = f"INSERT INTO plain ({columns}) SELECT * FROM bare"
    insert_select = rate("plain", lambda: database.execute(insert), subscribers)
    database.execute("DROP TABLE bare")
    return Pair(freeze, insert_select)


def due(post: Post) -> Issue:
    """Return an issue whose instant has just come."""
    issue = material.draft(post)
    issue.schedule_at(timezone.now() - dt.timedelta(seconds=1))
    return issue


def rate(name: str, work: Callable[[], object], rows: int) -> float:
    """Let `work` fill the table `name` from the same state of the disk; return rows a second. Raises CommandError."""
    database.execute("TRUNCATE newsletter_delivery, plain CASCADE")
    database.checkpoint()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    if (written := database.fetch_one(f"SELECT count(*) FROM {name}")) != rows:
        raise CommandError(f"{written} rows are in {name} for {rows} readers.")
    return rows / seconds


def result(subscribers: int, pairs: list[Pair]) -> dict[str, Any]:
    return {
        "rows_per_s": round(median(pair.freeze for pair in pairs), 1),
        "ratio_insert_select": round(median(pair.ratio for pair in pairs), 3),
        "subscribers": subscribers,
        "pairs": [
            {
                "freeze": round(pair.freeze, 1),
                "insert_select": round(pair.insert_select, 1),
                "ratio": round(pair.ratio, 3),
            }
            for pair in pairs
        ],
    }


def show(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    pairs = found["pairs"]
    head = f"{found['subscribers']:,} readers; fsync {found['fsync']}, {len(pairs)} pairs\n"
    return head + table(
        {
            "freeze, rows a second": [pair["freeze"] for pair in pairs],
            "INSERT ... SELECT": [pair["insert_select"] for pair in pairs],
            "freeze to INSERT ... SELECT": [pair["ratio"] for pair in pairs],
        }
    )
