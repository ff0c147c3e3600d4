"""Measure sending, freezing, memory, desk and site. The work is done in tests/benchmarks, which production has not."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
from types import ModuleType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Measure on servers that write to disk: figures on standard output, progress on standard error."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        modes = parser.add_subparsers(
            dest="mode", required=True, metavar="{delivery,freeze,memory,desk,site,signups,subscribers}"
        )
        self.add_delivery(modes.add_parser("delivery", help="beside smtp-source and Django's SMTP backend"))
        self.add_freeze(modes.add_parser("freeze", help="beside a plain INSERT ... SELECT"))
        self.add_memory(modes.add_parser("memory", help="of one sending process, by number of readers"))
        self.add_desk(modes.add_parser("desk", help="how long the author waits for his pages"))
        self.add_site(modes.add_parser("site", help="how quickly readers get their pages, beside nginx"))
        self.add_signups(
            modes.add_parser("signups", help="whether an answer tells who is known, and sign-ups a second")
        )
        self.add_subscribers(modes.add_parser("subscribers", help="import, list and export of many readers"))
        # Not for people: processes that the others start.
        modes.add_parser("importer").add_argument("file")
        modes.add_parser("sender").add_argument("issue", type=int)

    def add_delivery(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recipients", type=_positive, default=10000)
        parser.add_argument("--body-kb", type=_positive, default=40, help="HTML and text part together, in KB")
        parser.add_argument("--processes", type=_positive, default=2)
        parser.add_argument("--connections", type=_positive, default=16, help="of each process")
        parser.add_argument("--pairs", type=_positive, default=5, help="how often the senders take turns")
        parser.add_argument("--smtp", metavar="HOST:PORT", help="a running sink; else smtp-sink is started")
        parser.add_argument(
            "--overlap",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="final dot and next envelope in one write",
        )
        parser.add_argument("--django-messages", type=_positive, default=1000, help="how many Django's backend sends")
        _add_json(parser)

    def add_freeze(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--subscribers", type=_positive, default=1_000_000)
        parser.add_argument("--pairs", type=_positive, default=3, help="how often the two take turns")
        _add_json(parser)

    def add_memory(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recipients", type=_positive, nargs="+", default=[10_000, 1_000_000])
        parser.add_argument("--body-kb", type=_positive, default=40, help="HTML and text part together, in KB")
        parser.add_argument("--connections", type=_positive, default=16)
        parser.add_argument("--sample", type=_positive, help="plan all, but stop after about so many copies")
        _add_json(parser)

    def add_desk(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--readers", type=_positive, default=100_000)
        parser.add_argument("--issues", type=_positive, default=50)
        parser.add_argument("--posts", type=_positive, default=500)
        parser.add_argument("--full", type=_positive, default=10, help="issues that have a copy for each reader")
        _add_json(parser)

    def add_site(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--posts", type=_positive, default=5000)
        parser.add_argument("--words", type=_positive, default=1500, help="of each post")
        parser.add_argument("--seconds", type=_positive, default=2, help="of each run of wrk")
        parser.add_argument("--rounds", type=_positive, default=3, help="how often the servers take turns")
        parser.add_argument("--connections", type=_positive, nargs="+", default=[1, 16, 64])
        parser.add_argument("--readers", type=int, default=100_000, help="of the issue sent beside it; 0: none is sent")
        _add_json(parser)

    def add_signups(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--readers", type=_positive, default=100_000)
        _add_sign_ups(parser)
        _add_json(parser)

    def add_subscribers(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=_positive, default=1_000_000)
        parser.add_argument("--pairs", type=_positive, default=1, help="how often import and plain insert take turns")
        _add_sign_ups(parser)
        _add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        logging.getLogger("newsletter").setLevel(logging.WARNING)
        errors: list[str] = []
        match options["mode"]:
            case "sender":
                _part("senders").send(options["issue"])
                return
            case "importer":
                _part("subscribers").bring_along(options["file"])
                return
            case "delivery":
                part, found = self.delivery(options)
                errors = part.errors(found)
            case "freeze":
                part = _part("freeze")
                found = part.measure(options["subscribers"], options["pairs"])
            case "desk":
                part = _part("desk")
                sizes = {name: options[name] for name in ("readers", "issues", "posts", "full")}
                found = part.measure(**sizes)
                errors = part.errors(found)
            case "site":
                part = _part("site")
                sizes = {name: options[name] for name in ("posts", "words", "seconds", "rounds", "readers")}
                found = part.measure(part.Plan(**sizes, connections=tuple(options["connections"])))
                errors = part.errors(found)
            case "signups":
                part = _part("signups")
                found = part.measure(part.Plan(**{name: options[name] for name in ("readers", "requests", "seconds")}))
                errors = part.errors(found)
            case "subscribers":
                part = _part("subscribers")
                sizes = {name: options[name] for name in ("rows", "pairs", "requests", "seconds")}
                found = part.measure(**sizes)
                errors = part.errors(found)
            case _:
                part, found = self.memory(options)
        self.stdout.write(json.dumps(found, indent=2) if options["json"] else part.show(found))
        if errors:
            raise CommandError("; ".join(errors))

    def delivery(self, options: dict[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
        part, senders = _part("delivery"), _part("senders")
        fleet = senders.Fleet(options["processes"], options["connections"], options["overlap"])
        messages = min(options["django_messages"], options["recipients"])
        plan = part.Plan(options["recipients"], options["body_kb"], options["pairs"], fleet, messages)
        return part, part.measure(plan, options["smtp"])

    def memory(self, options: dict[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
        part = _part("memory")
        found = part.measure(
            options["recipients"],
            body_kb=options["body_kb"],
            connections=options["connections"],
            sample=options["sample"],
        )
        return part, found


def _part(name: str) -> ModuleType:
    """Return a module of tests/benchmarks; raises CommandError where that folder is not installed."""
    try:
        return importlib.import_module(f"tests.benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tests":
            raise
        raise CommandError("The benchmarks need the repository's tests folder, which is not here.") from error


def _add_sign_ups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=_positive, default=200, help="for each kind of address, at each door")
    parser.add_argument("--seconds", type=_positive, default=10, help="of signing up")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _stop(number: int, frame: object) -> None:
    """Unwind, so that all that was started is ended; a second signal does not cut that short."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)
