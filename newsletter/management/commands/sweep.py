"""Repair what a crash or a lost message left behind; what beat does every 30 seconds."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from newsletter import delivery, sweeper, tasks


class Command(BaseCommand):
    help = (
        "End expired leases, settle finished issues, send system mail that is owed and tell the author what he should "
        "know; safe to run at any time, by cron too."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--send",
            action="store_true",
            help="freeze, start and hand over what is due in this process, without beat and without the broker",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["send"]:
            self.send()
            return
        with_work = sweeper.sweep()
        tasks.hint(with_work)
        self.stdout.write(f"{len(with_work)} issue(s) have copies due")

    def send(self) -> None:
        """Go on until nothing is due, or until SIGTERM or SIGINT: then what is under way is finished."""
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_signal: ended.set())
        sweeper.dispatch_due()
        while (with_work := sweeper.sweep()) and not ended.is_set():
            settled = sum(delivery.send_due(issue_id, stop=ended.is_set) for issue_id in with_work)
            self.stdout.write(f"{settled} copies settled")
            if not settled and ended.wait(1):
                break
