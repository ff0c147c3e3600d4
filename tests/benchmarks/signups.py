"""Whether the answer or its time tells if an address is known, and how many sign-ups a second the site takes.

The production server answers with all layers on, a worker decides beside it. Each request comes from a network of its
own, as a proxy would tell, and the limits of the whole site are counted but never met.
"""

from __future__ import annotations

import bisect
import http.client
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from django.core.management.base import CommandError
from django.utils import timezone

from posts.models import Publication
from subscribers import addresses, tokens
from subscribers.forms import SubscribeForm
from subscribers.models import Consent, Submission, Subscriber, Suppression
from tests.benchmarks import database, debian, material
from tests.benchmarks.progress import say
from tests.benchmarks.site import REPORT, WRK, Figures, Load, Server, collect_static, granian
from tests.smtpd import SmtpServer
from tests.workers import Workers

FORM, PREFERENCES = "/subscribe/form/", "/preferences/"
KINDS = ("unknown", "pending", "active", "unsubscribed", "suppressed", "disposable")
MOST_AUC = 0.1  # |AUC - 0.5|: how well the time of an answer tells one kind of address from another
LAYERS = {
    "TRUST_PROXY": "true", "REFUSE_DISPOSABLE": "true", "ALLOW_TEST_ADDRESSES": "true", "SIGNUPS_PER_HOUR": "1000000",
    "CHALLENGE_FROM": "1000000",
}  # fmt: skip
SIGN_UPS = """
local threads, sent = 0, 0
function setup(thread)
    threads = threads + 1
    thread:set("number", threads)
end
function request()
    sent = sent + 1
    local headers = {{
        ["Content-Type"] = "application/x-www-form-urlencoded",
        ["X-Forwarded-For"] = string.format("%d.%d.%d.1", 10 + number, math.floor(sent / 250) % 250, sent % 250),
    }}
    local body = string.format("address=new%d.%d%%40example.org&token={token}&website=&source=profile", number, sent)
    return wrk.format("POST", "{form}", headers, body)
end
"""


@dataclass(frozen=True)
class Plan:
    readers: int
    requests: int  # of each kind at each door
    seconds: int
    connections: int = 16


@dataclass
class Door:
    """A form that anybody may send, over one connection; `body` makes what is posted for an address."""

    name: str
    path: str
    body: Callable[[str], dict[str, str]]
    headers: dict[str, str]


def measure(plan: Plan) -> Figures:
    """Run the benchmark; return what --json prints."""
    wrk = debian.program("wrk", *WRK)
    with database.own() as durability, tempfile.TemporaryDirectory() as folder, SmtpServer(keep_content=False) as relay:
        home = Path(folder)
        home.chmod(0o755)
        say(f"inventing {plan.readers:,} readers")
        known = _fill(plan)
        collect_static(home)
        workers = Workers(relay, home, names=("worker-system",), env=LAYERS)
        with workers, granian(home, "web", **LAYERS) as server:
            enumeration = {door.name: _enumerate(door, server, known) for door in _doors(server)}
            speed = _speed(plan, Load(wrk, home, plan.seconds), server)
    return {
        **durability, "readers": plan.readers, "requests": plan.requests, "seconds": plan.seconds,
        "connections": plan.connections, "enumeration": enumeration, **speed,
    }  # fmt: skip


def errors(found: Figures) -> list[str]:
    """Return what is promised and not so; few requests promise nothing of their times."""
    wrong = []
    for name, door in found["enumeration"].items():
        if door["answers"] != 1:
            wrong.append(f"{name}: there are {door['answers']} different answers.")
        if found["requests"] >= 200 and (worst := max(door["auc"].values())) > MOST_AUC:
            wrong.append(f"{name}: the time tells two kinds of addresses apart by {worst}.")
    return wrong


def show(found: Figures) -> str:
    """Return the figures for people."""
    lines = []
    for name, door in found["enumeration"].items():
        lines.append(f"{name}: {door['answers']} answer to {found['requests']} requests of each kind, median ms: "
                     + ", ".join(f"{kind} {ms:.2f}" for kind, ms in door["p50_ms"].items()))  # fmt: skip
        lines += [f"  |AUC - 0.5| {pair:28} {value:.3f}" for pair, value in door["auc"].items()]
    lines.append(f"sign-ups: {found['signup_rps']:,.0f} a second over {found['connections']} connections, "
                 f"p50 {found['signup_p50_ms']:.1f} ms, p99 {found['signup_p99_ms']:.1f} ms")  # fmt: skip
    return "\n".join(lines)


def auc(one: list[float], other: list[float]) -> float:
    """Return how often a value of `one` is above one of `other` (Mann-Whitney): 0.5 where neither tells anything."""
    ordered = sorted(other)
    above = sum(bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value) for value in one)
    return above / 2 / (len(one) * len(other))


def _fill(plan: Plan) -> dict[str, list[str]]:
    """Fill the database; return the addresses of each kind."""
    Publication.objects.update_or_create(
        pk=1, defaults={"postal_address": "1 Example Street", "set_up_at": timezone.now(), "name": "Query Notes"}
    )
    material.fill_readers(max(plan.readers, plan.requests))
    known = {kind: [f"{kind}{n}@example.org" for n in range(plan.requests)] for kind in KINDS}
    known["active"] = [f"reader{n + 1}@example.org" for n in range(plan.requests)]
    known["disposable"] = [f"somebody{n}@mailinator.com" for n in range(plan.requests)]
    for kind in ("pending", "unsubscribed"):
        Subscriber.objects.bulk_create(_reader(address, kind) for address in known[kind])
    Suppression.objects.bulk_create(
        Suppression(address_hash=addresses.keyed_hash(address), reason=Suppression.Reason.BOUNCED)
        for address in known["suppressed"]
    )
    Subscriber.objects.bulk_create(_reader(address, "active") for address in known["suppressed"])
    database.execute("VACUUM (ANALYZE)")
    return known


def _reader(address: str, status: str) -> Subscriber:
    confirmed_at = None if status == "pending" else timezone.now()
    return Subscriber(address=address, key=address, address_hash=addresses.keyed_hash(address), status=status,
                      confirmed_at=confirmed_at)  # fmt: skip


def _doors(server: Server) -> Iterator[Door]:
    token = tokens.form_token(SubscribeForm.name)
    yield Door("sign-up", FORM, lambda address: {"address": address, "token": token, "website": ""}, {})
    yield Door("json", FORM, lambda address: {"address": address, "token": token}, {"Accept": "application/json"})
    connection = _connect(server)
    connection.request("GET", PREFERENCES)
    page = connection.getresponse()
    cookie, body = (page.getheader("Set-Cookie") or "").partition(";")[0], page.read().decode()
    csrf = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', body)
    if csrf is None:
        raise CommandError("The form for a link has no CSRF token.")
    yield Door("magic link", PREFERENCES, lambda address: {"address": address, "csrfmiddlewaretoken": csrf[1]},
               {"Cookie": cookie})  # fmt: skip


def _connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.base.partition("//")[2], timeout=30)


def _enumerate(door: Door, server: Server, known: dict[str, list[str]]) -> Figures:
    """Send the form for each address, the kinds mixed by chance; compare answers and times."""
    say(f"{door.name}: {sum(map(len, known.values())):,} requests")
    order = [(kind, address) for kind, found in known.items() for address in found]
    random.Random(door.name).shuffle(order)
    connection, answers = _connect(server), set()
    for n in range(100):
        _send(connection, door, f"warm{n}.{door.name[0]}@example.org", n + 60_000)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for n, (kind, address) in enumerate(order):
        answer, seconds = _send(connection, door, address, n)
        answers.add(answer)
        times[kind].append(seconds)
    if any(status >= 400 for status, *_rest in answers):
        raise CommandError(f"{door.name} was refused: {answers}")
    return {
        "answers": len(answers),
        "p50_ms": {kind: round(median(found) * 1000, 3) for kind, found in times.items()},
        "auc": {f"{one}, {other}": round(abs(auc(times[one], times[other]) - 0.5), 3)
                for one, other in combinations(KINDS, 2)},
    }  # fmt: skip


def _send(connection: http.client.HTTPConnection, door: Door, address: str, n: int) -> tuple[tuple[Any, ...], float]:
    """Send a form from a network of its own; return the answer without its date, and how long it took."""
    body = urlencode(door.body(address))
    headers = {"Content-Type": "application/x-www-form-urlencoded", **door.headers,
               "X-Forwarded-For": f"100.{n >> 8 & 255}.{n & 255}.{ord(door.name[0])}"}  # fmt: skip
    began = time.perf_counter()
    connection.request("POST", door.path, body, headers)
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - began
    told = tuple(sorted((name, value) for name, value in response.getheaders() if name.lower() != "date"))
    return (response.status, told, content), seconds


def _speed(plan: Plan, load: Load, server: Server) -> Figures:
    """Let wrk sign up a new address with each request, while the worker decides."""
    say(f"signing up for {plan.seconds} s")
    script = SIGN_UPS.format(token=tokens.form_token(SubscribeForm.name), form=FORM)
    (load.home / "signup.lua").write_text(script + REPORT)
    before = Submission.objects.count()
    found = load.on(server.base + FORM, plan.connections, "signup")
    taken = Submission.objects.count() - before
    return {
        "signup_rps": round(found["rps"], 1), "signup_p50_ms": round(found["p50_ms"], 2),
        "signup_p99_ms": round(found["p99_ms"], 2), "signups_taken": taken,
        "signups_decided": Consent.objects.filter(kind=Consent.Kind.REQUESTED).count(),
    }  # fmt: skip
