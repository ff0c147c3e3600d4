"""Import a folder of Markdown posts and print what became of each file."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from posts.importer import BadFile, Report, import_folder


class Command(BaseCommand):
    help = (
        "Import the Markdown posts below PATH (YAML, TOML or Pelican headers). Running it again changes nothing twice."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path)
        parser.add_argument("--json", action="store_true", help="print the report as JSON, alone on stdout")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = import_folder(options["path"], progress=self.progress if sys.stderr.isatty() else None)
        except BadFile as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(asdict(report), indent=2) if options["json"] else self.words(report))
        if report.failed:
            raise CommandError(f"{len(report.failed)} of {report.files} files could not be imported.")

    def progress(self, report: Report) -> None:
        self.stderr.write(f"\r{report.files} files", ending="")

    def words(self, report: Report) -> str:
        counts = f"{report.created} created, {report.updated} updated, {report.unchanged} unchanged"
        lines = [f"{report.files} files: {counts}, {len(report.failed)} failed; {report.images} images copied"]
        lines += [f"  {failure['path']}: {failure['reason']}" for failure in report.failed]
        lines += [f"  {warning['path']}: {warning['reason']}" for warning in report.warnings]
        return "\n".join(lines)
