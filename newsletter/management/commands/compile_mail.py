"""Compile the mail's template from MJML. What is sent is the compiled file, which is kept beside its source."""

import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

try:
    from mjml import mjml2html
except ImportError:
    mjml2html = None  # type: ignore[assignment]  # only who changes the mail needs it: dependency group "build"

FOLDER = settings.BASE_DIR / "templates" / "emails" / "issue"
SOURCE, COMPILED = FOLDER / "body.mjml", FOLDER / "body.html"
HEAD = "{# djlint:off #}{# Compiled from body.mjml by `manage.py compile_mail`: change that file. #}{% load i18n %}"
COMMENT = re.compile(r"<!--(?!\[if|<!\[endif|>).*?-->", re.DOTALL)


class Command(BaseCommand):
    help = "Compile templates/emails/issue/body.mjml to body.html, which is what is sent."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="write nothing; fail where body.html is out of date")

    def handle(self, *args: Any, **options: Any) -> None:
        html = compiled(SOURCE)
        if html == COMPILED.read_text("utf-8"):
            self.stdout.write("body.html is up to date.")
        elif options["check"]:
            raise CommandError("body.html is not what body.mjml compiles to: run `manage.py compile_mail`.")
        else:
            COMPILED.write_text(html, "utf-8")
            self.stdout.write(f"Wrote {COMPILED}.")


def compiled(source: Path) -> str:
    """Return the Django template that the MJML file `source` compiles to, in few bytes and without web fonts."""
    if mjml2html is None:
        raise CommandError("MJML is not installed: `uv sync --group build` does that.")
    html = mjml2html(source.read_text("utf-8"), fonts={})
    return HEAD + re.sub(r"\s*\n\s*", "\n", COMMENT.sub("", html)).strip() + "\n"
