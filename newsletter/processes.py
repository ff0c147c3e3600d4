"""Child processes of the demo: each in a session of its own, so Ctrl-C reaches the parent alone, which stops them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Child:
    """A running child and the log it writes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


def start(name: str, command: list[str], *, env: dict[str, str], logs: Path) -> Child:
    """Start `command`; the kernel sends it SIGTERM if this process dies, however it dies."""
    log = logs / f"{name}.log"
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig=TERM", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own words, no shell
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(name, process, log)


def stop_all(children: list[Child], *, grace: float = GRACE_SECONDS) -> None:
    """Ask each child to end, all at once, and end by force what is left of their sessions after `grace` seconds."""
    for child in children:
        if not child.is_dead:
            child.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + grace
    for child in children:
        try:
            child.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(child)


def _end(child: Child) -> None:
    """Kill the whole session: a child that ignores us may have children of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
