"""Ask the world and this machine whether an issue would arrive, and print what to do about the rest."""

import json
import sys
import textwrap
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import connection

from newsletter import doctor
from newsletter.doctor import Finding, Status

WIDTH = 100
CONNECT_SECONDS = 5
STYLES = {Status.OK: "SUCCESS", Status.WARNS: "WARNING", Status.FAILS: "ERROR", Status.UNASKED: "NOTICE"}


class Command(BaseCommand):
    help = (
        "Look at the sending domain (SPF, DKIM, DMARC, MX, one-click unsubscribe), the relay (TLS, login, reverse "
        "name) and this machine (clock, broker, beat, workers, queues, disk, settings). Sends nothing, changes nothing."
    )
    # Wrong settings are among what is reported; they are no reason to report nothing.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON alone")
        parser.add_argument("--strict", action="store_true", help="end with 1 where something fails")

    def handle(self, *args: Any, **options: Any) -> None:
        # A database's machine that is gone says nothing, for minutes; the rest of the report is worth more.
        connection.settings_dict["OPTIONS"].setdefault("connect_timeout", CONNECT_SECONDS)
        report = doctor.examine()
        if options["json"]:
            values = {"at": report.at, "status": report.worst, "findings": [each.as_dict() for each in report.findings]}
            self.stdout.write(json.dumps(values, indent=2, ensure_ascii=False))
        else:
            self.tell(report)
        if options["strict"] and report.worst == Status.FAILS:
            sys.exit(1)

    def tell(self, report: doctor.Report) -> None:
        for group in report.groups:
            self.stdout.write(self.style.MIGRATE_HEADING(group.title))
            for finding in group.findings:
                self.tell_one(finding)
            self.stdout.write("")
        self.stdout.write(report.summary)

    def tell_one(self, finding: Finding) -> None:
        style = getattr(self.style, STYLES[finding.status])
        self.stdout.write(f"  {style(finding.status.upper()):<13}  {finding.title}")
        for words in (finding.found, finding.to_do and f"-> {finding.to_do}"):
            self.indented(words)
        if finding.record:
            name, kind, value = finding.record
            self.stdout.write(f"      {name}.  {kind}  {value}")

    def indented(self, words: str) -> None:
        for line in words.splitlines():
            self.stdout.write(
                textwrap.fill(line, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
            )
