"""Run the mailbox that takes every mail of the demo."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from newsletter.mailbox import Server


class Command(BaseCommand):
    help = "Take every mail on a loopback SMTP port and show it on a page; nothing leaves this machine."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--smtp-port", type=int, default=1025)
        parser.add_argument("--port", type=int, default=8025)

    def handle(self, *args: Any, **options: Any) -> None:
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_received: ended.set())
        with Server(options["smtp_port"], options["port"]):
            self.stdout.write(f"mailbox on http://127.0.0.1:{options['port']}, SMTP on {options['smtp_port']}")
            ended.wait()
