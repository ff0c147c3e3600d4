"""Real worker and beat processes on the test's own database and broker."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from django.conf import settings
from django.db import connection

from newsletter import processes
from newsletter.celery import app
from newsletter.processes import Child
from tests.smtpd import SmtpServer

CELERY = str(Path(sys.executable).parent / "celery")
COMMANDS = {
    "worker": ["worker", "--queues=bulk", "--concurrency=2", "--hostname=bulk@%h"],
    "worker-system": ["worker", "--queues=system", "--concurrency=1", "--hostname=system@%h"],
    "beat": ["beat", "--pidfile=", "--schedule={logs}/schedule"],
}


def database_url() -> str:
    """Return the address of the database that this test runs on."""
    values = connection.settings_dict
    host = quote(str(values["HOST"]), safe="")
    login = values["USER"] + (f":{quote(values['PASSWORD'])}" if values["PASSWORD"] else "")
    return f"postgres://{login}@{host}:{values['PORT'] or 5432}/{values['NAME']}"


def redis_url() -> str:
    """Return the address of the broker that this test runs on, as REDIS_URL wants it."""
    url = str(app.conf.broker_url)
    return url.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")


@dataclass
class Workers:
    """Worker, system worker and beat with times so short that a test can wait for them."""

    relay: SmtpServer
    logs: Path
    names: tuple[str, ...] = ("worker", "worker-system", "beat")
    env: dict[str, str] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Workers:
        with app.connection_for_write() as broker:  # hints of tests before this one
            for queue in ("bulk", "system"):
                broker.default_channel.queue_declare(queue)
                broker.default_channel.queue_purge(queue)
        for name in self.names:
            self.launch(name)
        self.await_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        processes.stop_all(self.children, grace=15)

    def start(self, name: str) -> Child:
        """Start one more child and wait until it is at work."""
        child = self.launch(name)
        self.await_ready()
        return child

    def await_ready(self) -> None:
        for child in self.children:
            if child.name != "beat":
                wait_until(lambda child=child: " ready." in child.log.read_text(), seconds=60, why=child.last_words)

    def launch(self, name: str) -> Child:
        words = [word.format(logs=self.logs) for word in COMMANDS[name]]
        command = [CELERY, "-A", "newsletter", *words, "--loglevel=INFO"]
        child = processes.start(name, command, env=self.environment(), logs=self.logs)
        self.children.append(child)
        return child

    def kill(self, child: Child) -> None:
        """Kill a child and all processes of its session, as a power cut would."""
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        self.children.remove(child)

    def environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": database_url(),
            "REDIS_URL": redis_url(),
            "SECRET_KEY": settings.SECRET_KEY,
            "PEPPER": settings.PEPPER,
            "INSTANCE_ID": settings.INSTANCE_ID,
            "SITE_URL": settings.SITE_URL,
            "MEDIA_ROOT": str(settings.MEDIA_ROOT),
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.relay.port),
            "ALLOW_TEST_ADDRESSES": "true",
            "DISPATCH_SECONDS": "0.5",
            "SWEEP_SECONDS": "0.5",
            "LEASE_SECONDS": "6",
            "RENEW_SECONDS": "1",
            "CLAIM_SECONDS": "5",
            **self.env,
        }


def wait_until(condition: Callable[[], object], *, seconds: float = 30, why: Callable[[], object] = str) -> None:
    """Wait until `condition` holds; fail with what `why` says after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s: {why()}"
        time.sleep(0.1)
