"""Who unsubscribed while the database could not write: a line each in a file, carried out once it can (UNS-6)."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.utils import timezone

MOST_BYTES = 64 * 1024 * 1024  # a million lines: whether an address is a reader's can't be asked meanwhile


class SpoolFull(OSError):
    """The file has grown so long that somebody must be filling it."""


def path() -> Path:
    return Path(settings.SPOOL_DIR) / "unsubscribes"


def keep(unsubscribe_id: UUID) -> None:
    """Write down that this address was pressed; it is on the disk when this returns. Raises OSError."""
    path().parent.mkdir(parents=True, exist_ok=True)
    with _locked("ab") as file:
        if file.tell() > MOST_BYTES:
            raise SpoolFull(f"{path()} is full")
        file.write(f"{unsubscribe_id} {timezone.now().isoformat()}\n".encode())
        os.fsync(file.fileno())


def replay(act: Callable[[UUID, dt.datetime], None]) -> int:
    """Carry out what was kept and forget it; return how much. If `act` fails all is kept, and carried out once more."""
    if not path().exists():
        return 0
    with _locked("r+b") as file:
        lines = file.read().decode().splitlines()
        for line in lines:
            unsubscribe_id, _space, at = line.partition(" ")
            act(UUID(unsubscribe_id), dt.datetime.fromisoformat(at))
        file.truncate(0)
    return len(lines)


@contextmanager
def _locked(mode: str) -> Iterator[IO[Any]]:
    """Open the file without a buffer, for one process at a time."""
    with open(path(), mode, buffering=0) as file:  # Path.open has no such overload
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END if "a" in mode else os.SEEK_SET)
        yield file
