"""Run all of Masthead on this machine, with a publication to look at and an issue that goes out before your eyes."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from newsletter import processes
from newsletter.demo import seed
from newsletter.models import Issue
from newsletter.processes import Child

SECONDS_TO_START = 60
SECONDS_TO_SEND = 300


class Stopped(Exception):
    """The demo was asked to end."""


class Command(BaseCommand):
    help = "Start everything on embedded servers: web, workers, beat and a mailbox. Ctrl-C ends it; data is kept."

    def handle(self, *args: Any, **options: Any) -> None:
        self.port, self.mailbox_port = _free("PORT"), _free("MAILBOX_PORT")
        if not settings.EMBEDDED:
            raise CommandError("The demo runs on servers of its own: unset DATABASE_URL and REDIS_URL for it.")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _stop)
        children: list[Child] = []
        try:
            self.run(children)
        except Stopped:
            self.stdout.write("\nStopping …")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            processes.stop_all(children)
        self.stdout.write("Stopped; the data is kept. `make demo-reset` begins anew.")

    def run(self, children: list[Child]) -> None:
        call_command("migrate", verbosity=0)
        if seed.is_empty():
            self.stdout.write("Filling a publication: twelve posts, 1,500 readers, three past issues …")
            seed.fill()
        self.start(children)
        self.await_answers(children)
        self.welcome()
        self.send(children)
        while True:
            self.see_alive(children)
            time.sleep(1)

    def start(self, children: list[Child]) -> None:
        logs = settings.EMBEDDED_DIR / "logs"
        logs.mkdir(exist_ok=True)
        smtp_port = _free_port()
        env = self.environment(smtp_port)
        for name, command in self.commands(smtp_port).items():
            children.append(processes.start(name, command, env=env, logs=logs))

    def environment(self, smtp_port: int) -> dict[str, str]:
        return {
            "SITE_URL": f"http://127.0.0.1:{self.port}",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp_port),
            # Whatever a .env names: no mail of the demo leaves this machine.
            "SMTP_USER": "",
            "SMTP_PASSWORD": "",
            "SMTP_SECURITY": "none",
            "EMAIL_BACKEND": "",
            "SEND_BACKEND": "",
            "ALERT_WEBHOOK_URL": "",
            "RELAY_LOG": "",
            "ALLOW_TEST_ADDRESSES": "true",
            "SECOND_FACTOR_REQUIRED": "false",
            "DISPATCH_SECONDS": "2",
            "SWEEP_SECONDS": "2",
            "CLAIM_SECONDS": "5",
            "PYTHONUNBUFFERED": "1",
        }

    def commands(self, smtp_port: int) -> dict[str, list[str]]:
        python, manage = sys.executable, str(Path(settings.BASE_DIR) / "manage.py")
        programs = Path(python).parent
        worker = [str(programs / "celery"), "-A", "newsletter", "worker", "--loglevel=INFO", "--without-gossip"]
        mailbox = [python, manage, "mailbox", f"--smtp-port={smtp_port}", f"--port={self.mailbox_port}"]
        granian = [str(programs / "granian"), "--interface=wsgi", "--blocking-threads=8", "--host=127.0.0.1"]
        granian.append(f"--port={self.port}")
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
                self.see_alive(children)
                if time.monotonic() > until:
                    raise CommandError(f"{url} does not answer; the logs are in {settings.EMBEDDED_DIR / 'logs'}.")
                time.sleep(0.2)
        workers = [child for child in children if child.name.startswith("worker")]
        while not all(" ready." in child.last_words() for child in workers):
            self.see_alive(children)
            time.sleep(0.2)

    def see_alive(self, children: list[Child]) -> None:
        for child in children:
            if child.is_dead:
                raise CommandError(f"The process {child.name} has ended:\n{child.last_words()}")

    def welcome(self) -> None:
        site = f"http://127.0.0.1:{self.port}"
        self.stdout.write(
            f"\nMasthead is ready: {site}/  admin: {site}/{settings.ADMIN_PATH}/ "
            f"(login {seed.LOGIN}, password {seed.PASSWORD})  mailbox: http://127.0.0.1:{self.mailbox_port}/\n"
            "In the demo a password is enough; elsewhere the admin asks for a second factor.\n"
        )
        self.stdout.flush()

    def send(self, children: list[Child]) -> None:
        """Put the waiting issue into this instant, and watch beat and the workers take it from there."""
        issue = Issue.objects.filter(state=Issue.State.DRAFT, number=None).order_by("pk").first()
        if issue is None or Issue.objects.count() > seed.ZONE_WEEKS + 1:
            self.stdout.write("All issues have gone out. Write the next one in the admin. Ctrl-C ends the demo.")
            return
        self.stdout.write(f"“{issue.subject}” is due now:")
        issue.schedule_at(timezone.now())
        self.watch(issue, children)

    def watch(self, issue: Issue, children: list[Child]) -> None:
        until = time.monotonic() + SECONDS_TO_SEND
        ended = {Issue.State.COMPLETED, Issue.State.COMPLETED_WITH_FAILURES, Issue.State.NEEDS_REVIEW}
        while issue.state not in ended and time.monotonic() < until:
            time.sleep(0.5)
            self.see_alive(children)
            issue.refresh_from_db()
            if sys.stdout.isatty():
                counts = issue.counts()
                self.stdout.write(f"\r  {counts.sent:,} of {counts.audience - counts.skipped:,} sent ", ending="")
                self.stdout.flush()
        counts, mailbox = issue.counts(), self.asked(issue)
        self.stdout.write(
            f"\r  {issue.get_state_display()}: {counts}\n"
            f"  The mailbox has {mailbox['recipients']} distinct recipients, {mailbox['twice']} of them twice.\n"
            "Ctrl-C ends the demo."
        )
        self.stdout.flush()

    def asked(self, issue: Issue) -> dict[str, int]:
        """Ask the mailbox what it counted for itself."""
        url = f"http://127.0.0.1:{self.mailbox_port}/count.json?feedback={issue.pk}:"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found


def _stop(number: int, frame: object) -> None:
    raise Stopped


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
