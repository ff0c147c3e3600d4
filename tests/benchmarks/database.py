"""A database of the benchmarks' own, on servers that write to disk as production does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import ProgrammingError, connection
from psycopg import sql

from newsletter import embedded
from newsletter.celery import app

LOCK = 0x6D61737468656164  # one benchmark at a time on a server: two would measure each other
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def own() -> Iterator[dict[str, str]]:
    """Make a migrated database that ends with the block; yield how durable its server is.

    It lives on embedded servers of its own, or beside the database that DATABASE_URL names. Raises CommandError where
    fsync or synchronous_commit is off, since figures without them say nothing.
    """
    with _servers(), _fresh():
        found = durability()
        if wrong := [name for name, value in found.items() if value != "on"]:
            raise CommandError(f"{' and '.join(wrong)} must be on: without that the figures are worth nothing.")
        call_command("migrate", verbosity=0)
        yield found


def durability() -> dict[str, str]:
    return {name: str(fetch_one(f"SHOW {name}")) for name in ("fsync", "synchronous_commit")}


def checkpoint() -> None:
    """Begin each run from the same state, where the login may ask for that (role pg_checkpoint)."""
    with contextlib.suppress(ProgrammingError):
        execute("CHECKPOINT")


def execute(statement: str, values: list[Any] | None = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def fetch_one(statement: str, values: list[Any] | None = None) -> Any:
    """Return the first column of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()[0]


def cpu_seconds() -> float | None:
    """Return the processor time of the server's processes, ended ones too; None where it runs on another machine."""
    backend = _Process.read(fetch_one("SELECT pg_backend_pid()"))
    postmaster = _Process.read(backend.parent) if backend else None
    if postmaster is None or not postmaster.is_postgres:
        return None
    running = [_Process.read(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    children = [process for process in running if process and process.parent == postmaster.pid]
    return postmaster.own + postmaster.ended_children + sum(child.own for child in children)


class _Process:
    """What /proc says of one process; times in seconds (proc(5))."""

    def __init__(self, pid: int, words: list[str], command: bytes) -> None:
        self.pid, self.parent = pid, int(words[1])
        self.own = (int(words[11]) + int(words[12])) / TICKS
        self.ended_children = (int(words[13]) + int(words[14])) / TICKS
        self.is_postgres = b"postgres" in command

    @classmethod
    def read(cls, pid: int) -> _Process | None:
        with contextlib.suppress(OSError, IndexError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return cls(pid, words, Path(f"/proc/{pid}/cmdline").read_bytes())
        return None


@contextlib.contextmanager
def _servers() -> Iterator[None]:
    if not settings.EMBEDDED:
        yield
        return
    own_servers = embedded.Servers(settings.EMBEDDED_DIR / "benchmark", postgres_bin=settings.SERVERS.postgres_bin)
    with own_servers.running():
        connection.settings_dict["HOST"] = str(own_servers.run)
        app.conf.broker_url = own_servers.celery_url(own_servers.redis_url)
        yield


@contextlib.contextmanager
def _fresh() -> Iterator[None]:
    """Point Django at a new database beside the named one, and drop it afterwards."""
    named = connection.settings_dict["NAME"]
    name = sql.Identifier(f"{named}_benchmark")
    with psycopg.connect(**{**connection.get_connection_params(), "autocommit": True}) as keeper:
        row: Any = keeper.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()
        if not row[0]:
            raise CommandError("Another benchmark runs on this server: wait for its end.")
        keeper.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        keeper.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            connection.close()
            connection.settings_dict["NAME"] = f"{named}_benchmark"
            yield
        finally:
            connection.close()
            connection.settings_dict["NAME"] = named
            keeper.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
