"""Send one issue in this process, with progress, and print its equation."""

import sys
import time
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter import delivery, sweeper
from newsletter.models import Delivery, Issue


class Command(BaseCommand):
    help = "Send issue NUMBER now, without Celery: a scheduled one is started, one under way goes on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("number", type=int, help="the issue's number, as the archive shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        issue = Issue.objects.filter(number=options["number"]).first()
        if issue is None:
            raise CommandError(f"There is no issue {options['number']}: schedule it first, which gives it its number.")
        try:
            self.start(issue)
        except ValidationError as error:
            raise CommandError("\n".join(error.messages)) from error
        self.send(issue)
        issue.refresh_from_db()
        self.stdout.write(f"{issue}: {issue.get_state_display()}\n{issue.counts()}")

    def start(self, issue: Issue) -> None:
        delivery.check_armed()
        if issue.state in Issue.EDITABLE:
            delivery.send_now(issue)
        elif issue.state == Issue.State.FROZEN:
            delivery.start(issue.pk)
        elif issue.state != Issue.State.SENDING:
            raise CommandError(f"{issue} is “{issue.get_state_display()}”: there is nothing to send.")

    def send(self, issue: Issue) -> None:
        while issue.pk in sweeper.issues_with_work() or self.others_at_work(issue):
            if not delivery.send_due(issue.pk, progress=self.show):
                time.sleep(1)
                sweeper.end_leases()
        delivery.settle_issue(issue.pk)

    def others_at_work(self, issue: Issue) -> bool:
        return issue.deliveries.filter(state__in=[Delivery.State.CLAIMED, Delivery.State.HANDING_OVER]).exists()

    def show(self, settled: int) -> None:
        """Show on a terminal how many copies this worker has settled; asks no database, for the event loop calls it."""
        if sys.stderr.isatty():
            self.stderr.write(f"\r{settled}", ending="")
