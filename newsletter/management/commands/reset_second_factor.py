"""Let somebody in again who has lost phone, keys and recovery codes."""

from __future__ import annotations

from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from posts import auditlog


class Command(BaseCommand):
    help = "Remove a user's second factor and end his sessions; he sets up another one when he signs in next."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="the name that he signs in with")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user “{options['user']}”. Users are: {_names()}.")
        with transaction.atomic():
            factors = remove_factors(user)
            ended = end_sessions(user)
            auditlog.note("account.factor_reset", user, actor="manage.py", factors=factors, sessions=ended)
        self.stdout.write(
            f"Removed of {user}: {', '.join(factors) or 'no second factor, there was none'}. "
            f"Sessions ended: {ended}.\n"
            "The password is unchanged. At the next sign-in a second factor has to be set up."
        )


def remove_factors(user: User) -> list[str]:
    """Remove all factors of a user, recovery codes too, and return their kinds."""
    found = Authenticator.objects.filter(user=user)
    kinds = [Authenticator.Type(kind).value for kind in found.order_by("pk").values_list("type", flat=True)]
    found.delete()
    return kinds


def end_sessions(user: User) -> int:
    """End each session of a user and return how many there were."""
    mine = [row.pk for row in Session.objects.all() if row.get_decoded().get(SESSION_KEY) == str(user.pk)]
    Session.objects.filter(pk__in=mine).delete()
    return len(mine)


def _names() -> str:
    return ", ".join(User.objects.order_by("username").values_list("username", flat=True)[:20]) or "none yet"
