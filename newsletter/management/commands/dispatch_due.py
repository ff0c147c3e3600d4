"""Freeze and start the issues that are due; what beat does each minute."""

from typing import Any

from django.core.management.base import BaseCommand

from newsletter import sweeper, tasks


class Command(BaseCommand):
    help = "Freeze and start the issues that are due, once; safe to run at any time and any number of times."

    def handle(self, *args: Any, **options: Any) -> None:
        started = sweeper.dispatch_due()
        tasks.hint(started)
        self.stdout.write(f"{len(started)} issue(s) started")
