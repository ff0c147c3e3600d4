"""Prove the ledger's promises and print each issue's equation; ends with 1 where something contradicts them."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter import audit
from newsletter.models import Issue


class Command(BaseCommand):
    help = (
        "Prove from the ledger's rows that nobody is planned twice, nobody was forgotten and every equation comes out. "
        "Changes nothing; fit to be run every night. Exit code 1 where something contradicts the promise."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("number", type=int, nargs="?", help="one issue's number; without it, all that were frozen")
        parser.add_argument("--json", action="store_true", help="print JSON alone")

    def handle(self, *args: Any, **options: Any) -> None:
        issues = Issue.objects.filter(prepared_at__isnull=False).order_by("number")
        if options["number"] is not None and not (issues := issues.filter(number=options["number"])):
            raise CommandError(f"There is no issue {options['number']} that was frozen: nothing of it was sent yet.")
        found = [self.one(issue, quiet=options["json"]) for issue in issues]
        if options["json"]:
            self.stdout.write(json.dumps([each.as_dict() for each in found], indent=2))
        if broken := sum(bool(each.violations) for each in found):
            self.stderr.write(f"{broken} of {len(found)} issues contradict the promise.")
            sys.exit(1)
        if not options["json"]:
            self.stdout.write(f"{len(found)} issues: every equation comes out, nobody is planned twice or forgotten.")

    def one(self, issue: Issue, *, quiet: bool) -> audit.Audit:
        found = audit.audit(issue)
        if not quiet:
            self.stdout.write(f"{issue} ({issue.get_state_display()})\n  {found.line}")
            for violation in found.violations:
                self.stdout.write(f"  ! {violation}")
        return found
