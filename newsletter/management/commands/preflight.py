"""Say what is wrong with an issue before it goes; ends with 1 where something keeps it from going."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter import preflight
from newsletter.models import Issue


class Command(BaseCommand):
    help = "Check an issue as it stands and print what is found. Exit code 1 where something blocks it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("issue", help="its number, or “draft:ID” with the id in its page's address")
        parser.add_argument("--json", action="store_true", help="print JSON alone")
        parser.add_argument(
            "--links",
            action="store_true",
            help="ask each link, and the unsubscribe address from outside (20 s at most)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        issue = self.find(options["issue"])
        found = preflight.inspect(issue, links=options["links"])
        blocking = sum(each.blocks for each in found)
        if options["json"]:
            answer = {"issue": str(issue), "blocking": blocking, "findings": [each.as_dict() for each in found]}
            self.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False))
        else:
            self.show(issue, found, blocking)
        if blocking:
            sys.exit(1)

    def find(self, name: str) -> Issue:
        kind, _colon, number = name.rpartition(":")
        if not (number.isdecimal() and len(number) < 10 and kind in ("", "draft")):
            raise CommandError(f"“{name}” is neither an issue's number nor “draft:ID”.")
        issue = Issue.objects.filter(**{"pk" if kind else "number": int(number)}).first()
        if issue is None:
            raise CommandError(f"There is no issue {name}. A draft without a number is named “draft:ID”.")
        return issue

    def show(self, issue: Issue, found: list[preflight.Finding], blocking: int) -> None:
        for each in found:
            self.stdout.write(f"{each.severity.upper()} {each.check_id}: {each.location}\n    {each.message}")
            if each.waiver:
                self.stdout.write(f"    waived by {each.waiver.by}: {each.waiver.reason}")
        verdict = f"{blocking} of them block it" if blocking else "nothing blocks it"
        self.stdout.write(f"{issue}: {len(found)} findings, {verdict}.")
