"""Import readers from a CSV file and print what became of each row."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from subscribers.importer import Report, UnreadableFile, import_csv


class Command(BaseCommand):
    help = "Import readers from FILE.csv (UTF-8, first line names the columns). Nobody who left is brought back."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--attestation", default="", help="where these readers gave their consent, for the record")
        parser.add_argument("--json", action="store_true", help="print the report as JSON, alone on stdout")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = import_csv(options["file"], attestation=options["attestation"])
        except FileNotFoundError as error:
            raise CommandError(f"There is no file {options['file']}.") from error
        except (UnreadableFile, IsADirectoryError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(report.as_json(), indent=2) if options["json"] else self.words(report))

    def words(self, report: Report) -> str:
        lines = [
            f"{report.rows} rows: {report.created} created, {report.unchanged} unchanged, {len(report.refused)} refused"
        ]
        lines += [f"  {count} {state}" for state, count in sorted(report.states.items())]
        lines += [f"  line {row['line']}: {row['address']}: {row['reason']}" for row in report.refused]
        lines += [
            f"  “{word}” is a state we don't know ({n} rows): these readers are pending and get no mail"
            for word, n in report.unknown_states.items()
        ]
        return "\n".join(lines)
