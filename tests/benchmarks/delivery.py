"""How fast issues go out: the real pipeline beside Postfix's load generator and Django's SMTP backend, turn by turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from posts.models import Post
from tests.benchmarks import database, material, senders
from tests.benchmarks.progress import say, table
from tests.benchmarks.senders import Fleet, Run
from tests.benchmarks.sinks import Address, Postfix, Sample, django_backend, logging_server

WARM_UP = 100
SLOWEST = 20.0  # messages a second; what takes longer is stopped


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    recipients: int
    body_kb: int
    pairs: int
    fleet: Fleet
    django_messages: int

    @property
    def seconds(self) -> float:
        """How long one run may take."""
        return 120 + self.recipients / SLOWEST


@dataclass(frozen=True)
class Pair:
    """One turn: messages a second of each."""

    ours: float
    smtp_source: float
    django: float

    @property
    def ratio(self) -> float:
        return self.ours / self.smtp_source

    def __str__(self) -> str:
        return (
            f"ours {self.ours:,.0f}, smtp-source {self.smtp_source:,.0f} (ratio {self.ratio:.2f}), "
            f"Django {self.django:,.0f} messages a second"
        )


@dataclass
class Figures:
    """All that was found."""

    runs: list[Run] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    intents: list[int] = field(default_factory=list)
    sent: int = 0
    recipients: dict[str, int] = field(default_factory=dict)
    message_bytes: int = 0


def measure(plan: Plan, smtp: str | None) -> dict[str, Any]:
    """Run the benchmark; return what --json prints."""
    postfix = Postfix.find()
    with database.own() as durability, _sink(postfix, plan.fleet, smtp) as sink:
        figures = Figures()
        say("writing the issue; a warm-up that does not count")
        post = material.write_post(plan.body_kb)
        sample = warm_up(plan, post)
        figures.message_bytes = len(sample.content)
        material.fill_readers(plan.recipients)
        for number in range(1, plan.pairs + 1):
            pair = take_turns(plan, post, sample, figures, postfix, sink)
            say(f"pair {number} of {plan.pairs}: {pair}")
        say("once more, untimed, to a server that counts recipients")
        count_received(plan, post, figures)
    return {**durability, **result(plan, figures), "sink": smtp or "smtp-sink"}


def warm_up(plan: Plan, post: Post) -> Sample:
    """Send to a few readers and return one of their messages."""
    material.fill_readers(min(WARM_UP, plan.recipients))
    with logging_server(keep_content=True) as server:
        senders.run(material.planned(post), plan.fleet, Address("127.0.0.1", server.port), seconds=120)
        return Sample.of(server)


def take_turns(plan: Plan, post: Post, sample: Sample, figures: Figures, postfix: Postfix, sink: Address) -> Pair:
    """Send the issue to all, then as many messages by smtp-source, then some by Django's backend."""
    issue = material.planned(post)
    run = senders.run(issue, plan.fleet, sink, seconds=plan.seconds)
    figures.runs.append(run)
    figures.intents.append(material.intents(issue))
    database.checkpoint()
    pair = Pair(
        ours=plan.recipients / run.seconds,
        smtp_source=postfix.source(sink, sample.content, messages=plan.recipients, seconds=plan.seconds),
        django=django_backend(sink, sample, messages=plan.django_messages),
    )
    figures.pairs.append(pair)
    return pair


def count_received(plan: Plan, post: Post, figures: Figures) -> None:
    """Send once more to our own server and keep what it counted."""
    issue = material.planned(post)
    with logging_server() as server:
        senders.run(issue, plan.fleet, Address("127.0.0.1", server.port), seconds=plan.seconds)
        figures.recipients = dict(server.recipients)
    figures.intents.append(material.intents(issue))
    figures.sent = issue.counts().sent


def result(plan: Plan, figures: Figures) -> dict[str, Any]:
    wrong = [intents for intents in figures.intents if intents != plan.recipients]
    return {
        "messages_per_s": round(median(pair.ours for pair in figures.pairs), 1),
        "ratio_smtp_source": round(median(pair.ratio for pair in figures.pairs), 3),
        "ratio_django": round(median(pair.ours / pair.django for pair in figures.pairs), 2),
        "cpu_us_per_message": cpu(plan, figures.runs),
        "peak_rss_mb": round(max(run.peak_rss_mb for run in figures.runs), 1),
        "sent": figures.sent,
        "lost": plan.recipients - len(figures.recipients),
        "duplicated": sum(figures.recipients.values()) - len(figures.recipients),
        "intents": wrong[0] if wrong else plan.recipients,
        "pairs": [
            {
                "ours": round(pair.ours, 1),
                "smtp_source": round(pair.smtp_source, 1),
                "django": round(pair.django, 1),
                "ratio": round(pair.ratio, 3),
            }
            for pair in figures.pairs
        ],
        "recipients": plan.recipients,
        "body_kb": plan.body_kb,
        "message_bytes": figures.message_bytes,
        "processes": plan.fleet.processes,
        "connections": plan.fleet.connections,
        "overlap": plan.fleet.overlap,
    }


def cpu(plan: Plan, runs: list[Run]) -> dict[str, float | None]:
    """Return the medians of processor time, µs a message; None where PostgreSQL's can't be seen."""
    scale = 1e6 / plan.recipients
    ours = round(median(run.cpu for run in runs) * scale, 1)
    seen = [run.postgres_cpu for run in runs if run.postgres_cpu is not None]
    postgresql = round(median(seen) * scale, 1) if seen else None
    return {
        "ours": ours,
        "postgresql": postgresql,
        "total": None if postgresql is None else round(ours + postgresql, 1),
    }


def errors(found: dict[str, Any]) -> list[str]:
    """Say what must not be: intents that are not one a reader, lost or doubled mail."""
    texts = {
        "intents": f"{found['intents']} intents were committed for {found['recipients']} readers",
        "lost": f"{found['lost']} readers got nothing",
        "duplicated": f"{found['duplicated']} messages came twice",
    }
    wrong = {
        "intents": found["intents"] != found["recipients"],
        "lost": found["lost"],
        "duplicated": found["duplicated"],
    }
    return [texts[name] for name, is_wrong in wrong.items() if is_wrong]


def show(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    pairs, cpu_us = found["pairs"], found["cpu_us_per_message"]
    head = (
        f"{found['recipients']:,} readers, {found['message_bytes']:,} bytes a message, {found['processes']} processes "
        f"with {found['connections']} connections each, to {found['sink']};\n"
        f"fsync {found['fsync']}, synchronous_commit {found['synchronous_commit']}, {len(pairs)} pairs\n"
    )
    rows = {
        "ours, messages a second": [pair["ours"] for pair in pairs],
        "smtp-source": [pair["smtp_source"] for pair in pairs],
        "Django's SMTP backend": [pair["django"] for pair in pairs],
        "ours to smtp-source": [pair["ratio"] for pair in pairs],
        "ours to Django's": [pair["ours"] / pair["django"] for pair in pairs],
    }
    foot = (
        f"\nCPU a message: ours {cpu_us['ours']} µs, PostgreSQL {cpu_us['postgresql'] or '?'} µs; "
        f"peak memory of a process {found['peak_rss_mb']} MB\n"
        f"{found['sent']:,} sent, {found['lost']} lost, {found['duplicated']} duplicated, {found['intents']:,} intents"
    )
    return head + table(rows) + foot


@contextlib.contextmanager
def _sink(postfix: Postfix, fleet: Fleet, smtp: str | None) -> Iterator[Address]:
    if smtp:
        yield Address.parse(smtp)
        return
    with postfix.sink(fleet.processes * fleet.connections) as address:
        yield address
