"""How long searches take: `python -m tests.benchmarks.search FOLDER WORDS ... [--json]`.

Each Markdown file of FOLDER becomes a post. The whole page is asked for, made anew each time; the words take turns with
the page that has none, so that a busy machine slows all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
django.setup()

from django.core.management.base import CommandError  # noqa: E402  Django wants its settings first
from django.test import Client  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

from posts import search  # noqa: E402
from posts.importer import import_folder  # noqa: E402
from posts.models import Post  # noqa: E402
from tests.benchmarks import database  # noqa: E402

ROUNDS = 20
HOST = "localhost"


def measure(folder: Path, searches: list[str]) -> dict[str, Any]:
    """Return for each search how many it found, and the median and the longest milliseconds."""
    with database.own(), override_settings(ALLOWED_HOSTS=[HOST]):
        import_folder(folder)
        Post.objects.update(status=Post.Status.PUBLISHED)
        database.execute("VACUUM (ANALYZE)")
        client = Client(headers={"host": HOST})
        turns = [{words: milliseconds(client, words) for words in ("", *searches)} for _round in range(ROUNDS + 1)][1:]
        return {
            words: {
                "found": search.search(Post.objects.listed(), words).count() if words else 0,
                "median_ms": round(median(turn[words] for turn in turns), 1),
                "max_ms": round(max(turn[words] for turn in turns), 1),
            }
            for words in ("", *searches)
        }


def milliseconds(client: Client, words: str) -> float:
    """Return how long the page took. Raises CommandError where it is none."""
    began = time.perf_counter()
    response = client.get("/search/?" + urlencode({"q": words}))
    if response.status_code != 200:
        raise CommandError(f"The search for “{words}” answered {response.status_code}.")
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of Markdown files, such as ../shared/corpora/markdown/lwkd")
    parser.add_argument("words", nargs="+")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    found = measure(options.folder, options.words)
    if options.json:
        print(json.dumps(found))
        return
    for words, one in found.items():
        print(
            f"{words or '(no words)':34} {one['found']:>5} found {one['median_ms']:>8} ms {one['max_ms']:>8} ms at most"
        )


if __name__ == "__main__":
    main()
