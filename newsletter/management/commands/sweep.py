"""Repair what a crash or a lost message left behind; what beat does every 30 seconds."""

from typing import Any

from django.core.management.base import BaseCommand

from newsletter import sweeper, tasks


class Command(BaseCommand):
    help = "End expired leases, settle finished issues and send system mail that is owed; safe to run at any time."

    def handle(self, *args: Any, **options: Any) -> None:
        with_work = sweeper.sweep()
        tasks.hint(with_work)
        self.stdout.write(f"{len(with_work)} issue(s) have copies due")
