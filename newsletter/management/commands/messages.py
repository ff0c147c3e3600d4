"""Collect what is said to readers into the catalogues, and compile these; the compiled files are committed, too."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template import Engine, Template
from django.template.base import Node
from django.templatetags.i18n import BlockTranslateNode, TranslateNode

try:
    from babel.messages import Catalog, Message, mofile, pofile
except ImportError:
    Catalog = None  # type: ignore[assignment,misc]  # only who changes words needs it: dependency group "build"

FOLDER = settings.BASE_DIR / "locale"
# What only the author sees; all other templates, and modules of posts and subscribers, speak to readers.
FOR_THE_AUTHOR = {
    *("templates/admin", "templates/account", "templates/allauth", "templates/mfa", "templates/mailbox"),
    *("templates/emails/alert", "templates/emails/new_readers", "templates/429.html"),
    *("posts/admin.py", "posts/images.py", "posts/importer.py", "posts/markdown_views.py", "posts/models.py"),
    *(
        "subscribers/admin.py",
        "subscribers/importer.py",
        "subscribers/layouts.py",
        "subscribers/models.py",
        "subscribers/names.py",
        "subscribers/views/author.py",
        "subscribers/views/moving.py",
        "subscribers/testmode.py",
    ),
}
PLACES = ["templates", "posts", "subscribers", "newsletter/templatetags", "newsletter/views.py"]
PLACES += ["newsletter/rendering.py", "newsletter/digest.py"]
# How many of a function's first arguments are words, after the context of those in "p".
FUNCTIONS = {"_": 1, "gettext": 1, "gettext_noop": 1, "ngettext": 2, "pgettext": 1, "npgettext": 2}
PLACEHOLDER = re.compile(r"%\((\w+)\)[sd]")
IN_TEMPLATE = re.compile(r"""\b_\(("|')(.+?)\1\)""")

Words = str | tuple[str, str]


class Command(BaseCommand):
    help = "Collect the texts that readers see into locale/*/LC_MESSAGES/django.po, and compile django.mo beside it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check", action="store_true", help="write nothing; fail where a catalogue is not complete"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if Catalog is None:
            raise CommandError("Babel is not installed: `uv sync --group build` does that.")
        said = collected()
        for path in sorted(FOLDER.glob("*/LC_MESSAGES/django.po")):
            catalog = read(path)
            if not options["check"]:
                write(path, catalog, said)
            if found := list(faults(path, catalog, said)):
                raise CommandError("\n".join([f"{path}:", *found]))


def collected() -> Catalog:
    """Return all that is said to readers, with the files where it is said."""
    said = Catalog()
    for path in spoken():
        name = str(path.relative_to(settings.BASE_DIR))
        for context, words in in_python(path) if path.suffix == ".py" else in_template(path):
            said.add(words, locations=[(name, 0)], context=context)
    return said


def spoken() -> Iterator[Path]:
    """Yield the files that speak to readers."""
    for place in PLACES:
        top = settings.BASE_DIR / place
        for path in [top] if top.is_file() else sorted(top.rglob("*.*")):
            name = path.relative_to(settings.BASE_DIR)
            if path.suffix in (".py", ".html", ".txt") and not FOR_THE_AUTHOR & {str(name), *map(str, name.parents)}:
                yield path


def in_python(path: Path) -> Iterator[tuple[str | None, Words]]:
    """Yield context and words of each call of gettext, also of those within an f-string."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in sorted(calls, key=attrgetter("lineno", "col_offset")):
        name = str(getattr(call.func, "id", "")).removesuffix("_lazy")
        strings = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if name in FUNCTIONS and strings:
            context = strings.pop(0) if "pgettext" in name else None
            yield context, strings[0] if FUNCTIONS[name] == 1 else (strings[0], strings[1])


def in_template(path: Path) -> Iterator[tuple[str | None, Words]]:
    text = path.read_text("utf-8")
    yield from ((None, words) for _quote, words in IN_TEMPLATE.findall(text))
    nodes: list[Node] = Template(text, engine=Engine.get_default()).nodelist.get_nodes_by_type(Node)
    for node in nodes:
        if isinstance(node, TranslateNode):
            yield _context(node), str(node.filter_expression.var.literal).replace("%", "%%")
        if isinstance(node, BlockTranslateNode):
            one = node.render_token_list(node.singular)[0]
            yield _context(node), (one, node.render_token_list(node.plural)[0]) if node.plural else one


def _context(node: TranslateNode | BlockTranslateNode) -> str | None:
    return str(node.message_context.var) if node.message_context else None


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return pofile.read_po(file, locale=path.parts[-3])


def write(path: Path, catalog: Catalog, said: Catalog) -> None:
    """Bring `catalog` up to what is said and write it, readable and compiled; what is no longer said goes."""
    catalog.update(said, no_fuzzy_matching=True, update_creation_date=False)
    with path.open("wb") as file:
        pofile.write_po(file, catalog, width=116, include_lineno=False, sort_by_file=True, ignore_obsolete=True)
    with path.with_suffix(".mo").open("wb") as file:
        mofile.write_mo(file, catalog)


def faults(path: Path, catalog: Catalog, said: Catalog) -> Iterator[str]:
    """Yield in words what keeps a catalogue from being complete, right and compiled."""
    for message in missing(said, catalog):
        yield f"not in the catalogue: {message.id}"
    for message in missing(catalog, said):
        yield f"nobody says it any more: {message.id}"
    for message in texts(catalog):
        yield from (f"{fault}: {message.id}" for fault in faults_of(message))
    if not is_compiled(path, catalog):
        yield "django.mo is not what django.po compiles to: run `make messages`"


def is_compiled(path: Path, catalog: Catalog) -> bool:
    """Tell whether Python's own reader finds each text of `catalog` in the compiled file."""
    try:
        with path.with_suffix(".mo").open("rb") as file:
            known = gettext.GNUTranslations(file)
    except FileNotFoundError:
        return False
    return all(looked_up(known, message) == set(strings_of(message)) for message in texts(catalog))


def looked_up(known: gettext.GNUTranslations, message: Message) -> set[str]:
    if not isinstance(message.id, str):
        return {known.ngettext(message.id[0], message.id[1], count) for count in range(100)}
    return {known.pgettext(message.context, message.id) if message.context else known.gettext(message.id)}


def missing(wanted: Catalog, catalog: Catalog) -> Iterator[Message]:
    return (message for message in texts(wanted) if catalog.get(message.id, message.context) is None)


def texts(catalog: Catalog) -> Iterable[Message]:
    return (message for message in catalog if message.id)


def faults_of(message: Message) -> Iterator[str]:
    one, many = (message.id, message.id) if isinstance(message.id, str) else message.id
    strings = strings_of(message)
    if message.fuzzy:
        yield "only guessed"
    if not all(strings) or not strings:
        yield "no translation"
    elif placeholders(strings[-1]) != placeholders(many) or not placeholders(strings[0]) <= placeholders(one + many):
        yield "other placeholders"


def strings_of(message: Message) -> list[str]:
    return [message.string] if isinstance(message.string, str) else list(message.string or ())


def placeholders(text: str) -> set[str]:
    return set(PLACEHOLDER.findall(text))
