"""What preflight costs beside rendering the mail: `python -m tests.benchmarks.preflight FOLDER [--json]`.

Each Markdown file of FOLDER becomes an issue of one post. The two take turns on the same issue, so that a busy machine
slows both; the ratio is of their CPU. Links are not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
django.setup()

from newsletter import preflight, rendering  # noqa: E402  Django's models want their settings first
from newsletter.models import Issue, IssuePost  # noqa: E402
from posts.importer import import_folder  # noqa: E402
from posts.models import Post  # noqa: E402
from tests.benchmarks import database  # noqa: E402


class Cost(NamedTuple):
    """Milliseconds by the clock, and of this process's CPU alone, which a busy machine changes little."""

    ms: float
    cpu_ms: float


def measure(folder: Path) -> dict[str, Any]:
    """Return milliseconds an issue, and how many times as long preflight takes as the rendering that is part of it."""
    with database.own():
        import_folder(folder)
        issues = [make_issue(post) for post in Post.objects.all()]
        first = cost(lambda: preflight.inspect(issues[0]))
        rendered, inspected = zip(*map(take_turns, issues), strict=True)
    return {
        "issues": len(issues),
        "first_ms": round(first.ms, 1),  # tries once a process whether unsubscribing works
        "median_ms": round(statistics.median(each.ms for each in inspected), 1),
        "max_ms": round(max(each.ms for each in inspected), 1),
        "median_cpu_ms": round(statistics.median(each.cpu_ms for each in inspected), 1),
        "max_cpu_ms": round(max(each.cpu_ms for each in inspected), 1),
        "render_median_cpu_ms": round(statistics.median(each.cpu_ms for each in rendered), 1),
        "ratio_render": round(sum(each.cpu_ms for each in inspected) / sum(each.cpu_ms for each in rendered), 2),
    }


def make_issue(post: Post) -> Issue:
    issue = Issue.objects.create(subject=post.title, preheader="What comes next.")
    IssuePost.objects.create(issue=issue, post=post)
    return issue


def take_turns(issue: Issue) -> tuple[Cost, Cost]:
    return cost(lambda: rendering.render_issue(issue)), cost(lambda: preflight.inspect(issue))


def cost(work: Callable[[], object]) -> Cost:
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(1000 * (time.perf_counter() - began), 1000 * (time.process_time() - began_cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of Markdown files, such as ../shared/corpora/markdown/lwkd")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    found = measure(options.folder)
    print(json.dumps(found) if options.json else "\n".join(f"{name:18} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
