"""How much memory a sending process takes, at several numbers of readers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from django.db import connection

from newsletter.models import Delivery, Issue
from posts.models import Post
from tests.benchmarks import database, material, senders
from tests.benchmarks.delivery import SLOWEST
from tests.benchmarks.progress import say
from tests.benchmarks.senders import Fleet
from tests.benchmarks.sinks import Address, Postfix

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Point:
    """One process's peak memory with `recipients` planned, after it sent `sent` of them."""

    recipients: int
    sent: int
    peak_rss_mb: float


def measure(counts: list[int], *, body_kb: int, connections: int, sample: int | None) -> dict[str, Any]:
    """Run the benchmark; return what --json prints. With `sample` each issue is paused after about so many copies."""
    postfix, points = Postfix.find(), []
    with database.own() as durability, postfix.sink(connections) as sink:
        post = material.write_post(body_kb)
        for count in sorted(counts):
            say(f"inventing {count:,} readers")
            material.fill_readers(count)
            point = measure_one(post, count, connections, sink, sample)
            points.append(point)
            say(f"{point.sent:,} of {count:,} sent: {point.peak_rss_mb:.1f} MB")
    return {**durability, **result(points, sample), "body_kb": body_kb, "connections": connections}


def measure_one(post: Post, count: int, connections: int, sink: Address, sample: int | None) -> Point:
    issue = material.planned(post)
    wanted = min(sample or count, count)
    enough = Watch(issue, wanted) if wanted < count else None
    if enough:
        enough.start()
    try:
        run = senders.run(issue, Fleet(1, connections), sink, seconds=120 + wanted / SLOWEST)
    finally:
        if enough:
            enough.end()
    return Point(count, issue.counts().sent, run.peak_rss_mb)


class Watch(threading.Thread):
    """Pauses the issue, as its author would, once enough copies are sent."""

    def __init__(self, issue: Issue, wanted: int) -> None:
        super().__init__(daemon=True)
        self.issue, self.wanted, self.ended = issue, wanted, threading.Event()

    def run(self) -> None:
        try:
            while not self.ended.wait(LOOK_SECONDS):
                if self.issue.deliveries.filter(state=Delivery.State.ACCEPTED)[self.wanted - 1 :].exists():
                    self.issue.pause()
                    return
        finally:
            connection.close()

    def end(self) -> None:
        self.ended.set()
        self.join()


def result(points: list[Point], sample: int | None) -> dict[str, Any]:
    return {
        "recipients": [point.recipients for point in points],
        "sent": [point.sent for point in points],
        "peak_rss_mb": [round(point.peak_rss_mb, 1) for point in points],
        "ratio": round(points[-1].peak_rss_mb / points[0].peak_rss_mb, 3),
        "sample": sample,
    }


def show(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [f"{'readers':>12}{'sent':>12}{'peak MB':>12}"]
    for count, sent, peak in zip(found["recipients"], found["sent"], found["peak_rss_mb"], strict=True):
        lines.append(f"{count:>12,}{sent:>12,}{peak:>12.1f}")
    return "\n".join([*lines, f"most to fewest readers: {found['ratio']:.3f}"])
