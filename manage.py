#!/usr/bin/env python
"""Run Django's commands; where DATABASE_URL is unset, on the embedded servers, started for the command's own life."""

import contextlib
import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

from newsletter.embedded import ServerError

# These need no database or bring their own; all others find one, or start it.
WITHOUT_SERVERS = {
    "help",
    "version",
    "check",
    "collectstatic",
    "diffsettings",
    "makemessages",
    "compilemessages",
    "mailbox",
    "benchmark",
}


def main(argv: list[str]) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
    command = argv[1] if len(argv) > 1 else "help"
    if command in WITHOUT_SERVERS or command.startswith("-") or "--help" in argv or not settings.EMBEDDED:
        execute_from_command_line(argv)
        return
    try:
        with settings.SERVERS.running():
            if settings.SERVERS.is_new() and command != "makemigrations":
                execute_from_command_line([argv[0], "migrate", "--verbosity=0"])
            execute_from_command_line(argv)
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv)
