"""Run real PostgreSQL and Valkey from wheels as children of this process, where the environment names no servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Servers:
    """Where the embedded servers of one directory live and how to reach them."""

    directory: Path
    postgres_bin: str = ""

    @property
    def database_url(self) -> str:
        return "postgres://masthead@127.0.0.1:5432/test"

    @property
    def redis_url(self) -> str:
        return "redis://127.0.0.1:6379/0"

    def celery_url(self, redis_url: str) -> str:
        return redis_url

    def secret(self, name: str) -> str:
        return name


@contextlib.contextmanager
def for_command(argv: list[str]) -> Iterator[None]:
    yield
