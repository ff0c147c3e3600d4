"""Erase somebody who asks for it by letter or mail, or anew after a backup was restored."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter import erasure
from subscribers import addresses
from subscribers.models import Subscriber


class Command(BaseCommand):
    help = "Erase a reader for good: by address, or by the numbers that the log names, after a backup was restored."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("address", nargs="?", help="the reader's address, in any spelling")
        parser.add_argument("--number", type=int, nargs="+", default=[], help="of readers, as the log names them")
        parser.add_argument(
            "--keep-out", action="store_true", help="keep a keyed hash, so that no import brings the person back"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        numbers = options["number"] or [self._number(options["address"])]
        for number in numbers:
            try:
                erased = erasure.erase(number, keep_out=options["keep_out"], by="manage.py")
            except Subscriber.DoesNotExist as error:
                raise CommandError(f"There is no reader number {number}.") from error
            self.stdout.write(f"Reader number {number} {'was erased' if erased else 'was erased before'}.")

    def _number(self, address: str | None) -> int:
        if not address:
            raise CommandError("Name an address, or --number and the readers' numbers.")
        try:
            reader = Subscriber.objects.with_address(address).first()
        except addresses.InvalidAddress as error:
            raise CommandError(f"{address} is no address: {error}") from error
        if reader is None:
            raise CommandError(f"No reader has the address {address}.")
        return reader.pk
