#!/usr/bin/env python
"""Run Django's commands; without DATABASE_URL on the embedded servers, started for the command's own life."""

import os
import sys

from django.core.management import execute_from_command_line

from newsletter import embedded


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
    with embedded.for_command(sys.argv):
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
