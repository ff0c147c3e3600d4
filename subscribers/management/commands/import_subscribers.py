"""Import readers from a file and print what became of each row."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from subscribers.csvfile import UnreadableFile
from subscribers.importer import REFUSED_SHOWN, Report, Stopped, import_csv


class Command(BaseCommand):
    help = (
        "Import readers from FILE, as Kit, Substack, Ghost, Buttondown, Mailchimp, listmonk and beehiiv export them, "
        "or any other CSV. Nobody who left is brought back. A run that was cut off is taken up by the same command."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--attestation", default="", help="where these readers gave their consent, for the record")
        parser.add_argument(
            "--column", action="append", default=[], metavar="HEADER=KIND", help="say what a column is: correo=address"
        )
        parser.add_argument(
            "--word", action="append", default=[], metavar="WORD=STATE", help="say what a state means: enabled=active"
        )
        parser.add_argument("--dry-run", action="store_true", help="write nothing; tell what would happen")
        parser.add_argument("--json", action="store_true", help="print the report as JSON, alone on stdout")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = import_csv(
                options["file"],
                attestation=options["attestation"],
                columns=_pairs(options["column"]),
                words=_pairs(options["word"]),
                by="manage.py",
                trial=options["dry_run"],
            )
        except FileNotFoundError as error:
            raise CommandError(f"There is no file {options['file']}.") from error
        except (UnreadableFile, Stopped, IsADirectoryError, PermissionError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(report.as_json(), indent=2))
            return
        if options["dry_run"]:
            self.stdout.write("Nothing was written. What would happen:")
        self.stdout.write(_words(report))


def _words(report: Report) -> str:
    lines = [
        f"{report.rows} rows: {report.created} created, {report.updated} completed, {report.unchanged} unchanged, "
        f"{report.lowered} lowered, {report.refused_rows} refused"
    ]
    lines += [f"  {count} {state}" for state, count in sorted(report.states.items())]
    lines += [f"  line {row['line']}: {row['address']}: {row['reason']}" for row in report.refused]
    if report.refused_rows > len(report.refused):
        lines.append(f"  … the first {REFUSED_SHOWN} refused rows; the admin's report of the import has them all")
    lines += [
        f"  “{word}” is a state that is not known ({n} rows): these readers get no mail; --word “{word}=STATE” says it"
        for word, n in report.unknown_states.items()
    ]
    return "\n".join(lines)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not (name and equals and value):
            raise CommandError(f"“{text}” is not of the form NAME=VALUE.")
        pairs[name] = value
    return pairs
