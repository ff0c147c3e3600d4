"""Let this installation send from its database, after a move."""

from typing import Any

from django.core.management.base import BaseCommand

from subscribers import instance


class Command(BaseCommand):
    help = (
        "Accept that the database has moved here and let this installation send. The former one must be switched off "
        "for good: two that send from copies of one database mail every reader twice."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        reason = instance.why_not()
        instance.rearm()
        self.stdout.write("This installation may send now." if reason else "This installation could send already.")
