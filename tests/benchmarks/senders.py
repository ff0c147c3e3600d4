"""Processes that send as a worker would, and what it cost them and the database."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection

from newsletter import delivery
from newsletter.models import Issue
from tests.benchmarks import database
from tests.benchmarks.sinks import Address, tail
from tests.workers import database_url, redis_url

DAY = 86400.0


@dataclass(frozen=True)
class Fleet:
    """How many processes send over how many connections each, and whether one write holds content and next envelope."""

    processes: int
    connections: int
    overlap: bool = False


@dataclass(frozen=True)
class Run:
    """What one run took; times in seconds, `postgres_cpu` None where the server is on another machine."""

    seconds: float
    cpu: float
    postgres_cpu: float | None
    peak_rss_mb: float


def run(issue: Issue, fleet: Fleet, relay: Address, *, seconds: float) -> Run:
    """Send the issue and wait for its end; the clock starts when all processes are ready. Raises CommandError."""
    with started(issue, fleet, relay, seconds=seconds) as children:
        for child in children:
            child.await_ready()
        postgres_before, began = database.cpu_seconds(), time.monotonic()
        for child in children:
            child.go()
        reports = [child.report() for child in children]
        postgres_after = database.cpu_seconds()
    return Run(
        seconds=max(report["finished"] for report in reports) - began,
        cpu=sum(report["cpu"] for report in reports),
        postgres_cpu=None if postgres_before is None or postgres_after is None else postgres_after - postgres_before,
        peak_rss_mb=max(report["peak_rss_mb"] for report in reports),
    )


def send(issue_id: int) -> None:
    """Be one of the processes: say that all is loaded, wait for a line, send, and report on standard output."""
    connection.ensure_connection()
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    delivery.send_due(issue_id, seconds=DAY)
    report = {"finished": time.monotonic(), "cpu": time.process_time() - before, "peak_rss_mb": peak_rss_mb()}
    print(json.dumps(report), flush=True)


def peak_rss_mb() -> float:
    """Return this program's peak of resident memory; getrusage would count what forked us, too (proc(5), VmHWM)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


@dataclass(frozen=True)
class Sender:
    """A child and what it says."""

    process: subprocess.Popen[str]
    log: IO[bytes]

    def await_ready(self) -> None:
        self._read(lambda line: line == "ready\n")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def report(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._read(lambda line: line.startswith("{")))
        return found

    def _read(self, fits: Callable[[str], bool]) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not fits(line):
            raise CommandError(f"A sending process failed or took too long: {line}{tail(self.log)}")
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def started(issue: Issue, fleet: Fleet, relay: Address, *, seconds: float) -> Iterator[list[Sender]]:
    """Start the processes; they end with the block, with this process, or after `seconds`."""
    children: list[Sender] = []
    watch = threading.Timer(seconds, _kill, [children])
    watch.daemon = True
    with contextlib.ExitStack() as ends:
        watch.start()
        ends.callback(watch.cancel)
        for _ in range(fleet.processes):
            log = ends.enter_context(tempfile.TemporaryFile())
            children.append(_start(issue, _environment(fleet, relay), log))
            ends.callback(children[-1].end)
        yield children


def _kill(children: list[Sender]) -> None:
    for child in children:
        child.process.kill()


def _start(issue: Issue, env: dict[str, str], log: IO[bytes]) -> Sender:
    command = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "benchmark", "sender", str(issue.pk)]
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig=KILL", *command]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **env}, text=True,
        start_new_session=True,
    )  # fmt: skip
    return Sender(process, log)


def _environment(fleet: Fleet, relay: Address) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url(),
        "REDIS_URL": redis_url(),
        "SECRET_KEY": settings.SECRET_KEY,
        "PEPPER": settings.PEPPER,
        "INSTANCE_ID": settings.INSTANCE_ID,
        "SITE_URL": settings.SITE_URL,
        "MEDIA_ROOT": str(settings.MEDIA_ROOT),
        "SMTP_HOST": relay.host,
        "SMTP_PORT": str(relay.port),
        "SMTP_USER": "",
        "SMTP_PASSWORD": "",
        "SMTP_SECURITY": "none",
        "SMTP_CONNECTIONS": str(fleet.connections),
        "SMTP_OVERLAP": "true" if fleet.overlap else "false",
        "SEND_BACKEND": "",
        "SEND_RATE": "0",
        "CLAIM_SECONDS": str(DAY),
        "LOG_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
    }
