"""Run all of Masthead on this machine, with a publication to look at and an issue that goes out before your eyes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from newsletter import processes
from newsletter.demo import seed
from newsletter.models import Issue
from newsletter.processes import Child

SECONDS_TO_START = 60
SECONDS_TO_SEND = 300
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# First those who hand mail over, so that no copy is cut off; then what they need.
STOPPED_TOGETHER = ({"beat", "worker", "worker-system"}, {"web"}, {"mailbox"})
UNDER_WAY = (Issue.State.SCHEDULED, Issue.State.FROZEN, Issue.State.SENDING)
ENDED = (Issue.State.COMPLETED, Issue.State.COMPLETED_WITH_FAILURES, Issue.State.NEEDS_REVIEW, Issue.State.CANCELLED)


class Stopped(Exception):
    """The demo was asked to end."""


class Command(BaseCommand):
    help = "Start everything on embedded servers: web, workers, beat and a mailbox. Ctrl-C ends it; data is kept."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.EMBEDDED or settings.REDIS_URL != settings.SERVERS.redis_url:
            raise CommandError("The demo runs on servers of its own: unset DATABASE_URL and REDIS_URL for it.")
        with _alone():
            self.port, self.mailbox_port = _free("PORT"), _free("MAILBOX_PORT")
            self.launchers = processes.launchers()
            self.run_until_stopped()

    def run_until_stopped(self) -> None:
        children: list[Child] = []
        for number in SIGNALS:
            signal.signal(number, _stop)
        try:
            self.run(children)
        except Stopped:
            self.say("\nStopping …")
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            for names in STOPPED_TOGETHER:
                processes.stop_all([child for child in children if child.name in names])
        self.say("Stopped; the data is kept. `make demo-reset` begins anew.")

    def run(self, children: list[Child]) -> None:
        call_command("migrate", verbosity=0)
        if seed.is_empty():
            self.say("Filling a publication: twelve posts, 1,500 readers, three past issues …")
            seed.fill()
        self.start(children)
        self.await_answers(children)
        self.welcome()
        self.send(children)
        while True:
            self.see_alive(children)
            time.sleep(1)

    def say(self, line: str, ending: str | None = None) -> None:
        """Print at once; a launcher that was killed may have taken our output along."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self.stdout.write(line, ending=ending)
            self.stdout.flush()

    def start(self, children: list[Child]) -> None:
        logs = settings.EMBEDDED_DIR / "logs"
        logs.mkdir(exist_ok=True)
        smtp_port = _free_port()
        env = self.environment(smtp_port)
        for name, command in self.commands(smtp_port).items():
            children.append(processes.start(name, command, env=env, logs=logs))

    def environment(self, smtp_port: int) -> dict[str, str]:
        """Name every setting of mail, so that none of a real relay reaches the demo: nothing may leave this machine."""
        return {
            "SITE_URL": f"http://127.0.0.1:{self.port}",
            "ALLOWED_HOSTS": "",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp_port),
            "SMTP_USER": "",
            "SMTP_PASSWORD": "",
            "SMTP_SECURITY": "none",
            "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "ALLOW_TEST_ADDRESSES": "true",
            "DISPATCH_SECONDS": "2",
            "SWEEP_SECONDS": "2",
            "CLAIM_SECONDS": "5",
            "LEASE_SECONDS": "30",
            "RENEW_SECONDS": "10",
            "LOG_LEVEL": "INFO",
            "PYTHONUNBUFFERED": "1",
        }

    def commands(self, smtp_port: int) -> dict[str, list[str]]:
        python, manage = sys.executable, str(Path(settings.BASE_DIR) / "manage.py")
        programs = Path(python).parent
        worker = [str(programs / "celery"), "-A", "newsletter", "worker", "--loglevel=INFO", "--without-gossip"]
        mailbox = [python, manage, "mailbox", f"--smtp-port={smtp_port}", f"--port={self.mailbox_port}"]
        granian = [str(programs / "granian"), "--interface=wsgi", "--host=127.0.0.1", f"--port={self.port}"]
        return {
            "mailbox": mailbox,
            "web": [*granian, "newsletter.wsgi:application"],
            "worker": [*worker, "--queues=bulk", "--concurrency=2", "--hostname=bulk@%h"],
            "worker-system": [*worker, "--queues=system", "--concurrency=1", "--hostname=system@%h"],
            "beat": [str(programs / "celery"), "-A", "newsletter", "beat", "--loglevel=WARNING", "--pidfile="],
        }

    def await_answers(self, children: list[Child]) -> None:
        until = time.monotonic() + SECONDS_TO_START
        for url in (f"http://127.0.0.1:{self.mailbox_port}/", f"http://127.0.0.1:{self.port}/"):
            while not _answers(url):
                self.wait_for(url, children, until)
        for worker in [child for child in children if child.name.startswith("worker")]:
            while " ready." not in worker.last_words():
                self.wait_for(worker.name, children, until)

    def wait_for(self, name: str, children: list[Child], until: float) -> None:
        self.see_alive(children)
        if time.monotonic() > until:
            raise CommandError(f"{name} does not answer; the logs are in {settings.EMBEDDED_DIR / 'logs'}.")
        time.sleep(0.2)

    def see_alive(self, children: list[Child]) -> None:
        """Raise CommandError if a child has ended, and Stopped if uv or make, which started us, is gone."""
        if processes.launchers() != self.launchers:
            raise Stopped
        for child in children:
            if child.is_dead:
                raise CommandError(f"The process {child.name} has ended:\n{child.last_words()}")

    def welcome(self) -> None:
        site = f"http://127.0.0.1:{self.port}"
        self.say(
            f"\nMasthead is ready: {site}/  admin: {site}/{settings.ADMIN_PATH}/ "
            f"(login {seed.LOGIN}, password {seed.PASSWORD})  mailbox: http://127.0.0.1:{self.mailbox_port}/\n"
        )

    def send(self, children: list[Child]) -> None:
        """Let an issue be due at this instant, and watch beat and the workers take it from there."""
        issue = Issue.objects.filter(state__in=UNDER_WAY, due_at__lte=timezone.now()).order_by("due_at").first()
        if issue:
            self.say(f"“{issue.subject}” was under way when the demo ended, and goes on:")
        else:
            issue = seed.make_due_issue()
            self.say(f"“{issue.subject}” is due now:")
            try:
                issue.schedule_at(timezone.now())
            except ValidationError as error:
                self.say(f"  It stays a draft: {' '.join(error.messages)}")
                return
        self.watch(issue, children)

    def watch(self, issue: Issue, children: list[Child]) -> None:
        until = time.monotonic() + SECONDS_TO_SEND
        while issue.state not in ENDED and time.monotonic() < until:
            time.sleep(0.5)
            self.see_alive(children)
            issue.refresh_from_db()
            if sys.stdout.isatty():
                counts = issue.counts()
                self.say(f"\r  {counts.sent:,} of {counts.audience - counts.skipped:,} sent ", ending="")
        mailbox = self.asked(issue)
        self.say(
            f"\r  {issue.get_state_display()}: {issue.counts()}\n"
            f"  The mailbox, which counts for itself: {mailbox['recipients']} distinct recipients, "
            f"{mailbox['twice']} of them twice.\n"
            "\nCtrl-C ends the demo."
        )

    def asked(self, issue: Issue) -> dict[str, int]:
        """Ask the mailbox what it counted for itself since it started."""
        url = f"http://127.0.0.1:{self.mailbox_port}/count.json?feedback={issue.pk}:"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found


def _stop(number: int, frame: object) -> None:
    raise Stopped


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Raise CommandError if another demo runs on the same data: its workers would mail to the other's mailbox."""
    with (settings.EMBEDDED_DIR / "demo.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError("The demo runs already: end it first, or set EMBEDDED_DIR to run another.") from error
        yield


def _free(name: str) -> int:
    """Return the port that the setting `name` names; raises CommandError if it can't be had."""
    port = int(getattr(settings, name))
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OverflowError as error:
        raise CommandError(f"{name}={port} is no port number: choose one up to 65535.") from error
    except OSError as error:
        raise CommandError(f"Port {port} is taken: choose another, as in `{name}={port + 10} make demo`.") from error
    return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310  our own loopback address
            return True
    except (urllib.error.URLError, OSError):
        return False
