"""Write all readers to a file or to standard output."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from posts import auditlog
from subscribers.exporter import FORMATS


class Command(BaseCommand):
    help = "Export all readers with their states, tags and fields; import_subscribers gives the same readers back."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, nargs="?", help="a new file; without one standard output")
        parser.add_argument("--format", choices=sorted(FORMATS), default="csv")

    def handle(self, *args: Any, **options: Any) -> None:
        auditlog.note("subscriber.export", "readers", actor="manage.py", format=options["format"])
        pieces = FORMATS[options["format"]]()
        if options["file"] is None:
            sys.stdout.writelines(pieces)
            return
        try:
            with options["file"].open("x", encoding="utf-8", newline="") as file:
                options["file"].chmod(0o600)
                file.writelines(pieces)
        except FileExistsError as error:
            raise CommandError(f"{options['file']} is there already: name a new file.") from error
        except OSError as error:
            raise CommandError(f"{options['file']} can't be written: {error.strerror}.") from error
