"""What one reader's copy costs beside the library's way: `python -m tests.benchmarks.message [--json]`.

The message has 30.8 KB of HTML, 8.4 KB of text and ten places. The library gets both parts filled already, and sends
them in 8 bits as Django does, so that nothing but its building of the message is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import timeit
from collections.abc import Callable
from typing import Any
from uuid import UUID

import django
from django.conf import settings
from django.core.mail import EmailMultiAlternatives

from newsletter import message

ROUNDS = 7
HTML_BYTES, TEXT_BYTES = 30_800, 8_400
PARAGRAPH = (
    '<p style="margin: 0 0 18px;">Words – of an ordinary paragraph, as long as most of them are, with a '
    '<a href="https://example.org/posts/on-vacuum/" style="color: #0f6b5c;">link</a> in it.</p>\n'
)
LINE = "Words – of an ordinary paragraph, as wide as a mail is.\n"


def make_source() -> dict[str, Any]:
    """Return an issue as rendering leaves it: five places in each part, those of the greeting and of the footer."""
    holes = message.Holes(1)
    greeting = [holes.mark("name", "there") for _ in range(2)]
    footer = [holes.mark("unsubscribe_url"), holes.mark("address", "you"), holes.mark("unsubscribe_url")]
    words = " ".join([*greeting, *footer])
    html = f"<p>{words}</p>\n"
    html += PARAGRAPH * ((HTML_BYTES - len(html)) // len(PARAGRAPH.encode()))
    text = f"{words}\n"
    text += LINE * ((TEXT_BYTES - len(text)) // len(LINE.encode()))
    return {
        "publication": "Query Notes", "from_name": "Ada, of Query Notes", "from_address": "author@example.org",
        "reply_to": "ada@example.org", "list_id": "newsletter.example.org",
        "archive_url": "https://example.org/issues/", "help_url": "https://example.org/preferences/",
        "web_url": "https://example.org/issues/view/42/", "feedback_id": "42:newsletter:issue:exampleorg",
        "date": "Mon, 23 Nov 2026 09:00:00 +0000", "subject": "This week: on vacuum",
        "html": html, "text": text, "holes": holes.as_json(),
    }  # fmt: skip


def by_library(template: message.Template, values: message.Values) -> Callable[[], bytes]:
    """Return what makes the same message with Django and email.message."""
    html, text, subject = template.html(values), template.text(values), template.subject(values)
    headers = {
        "Message-ID": values.message_id, "Date": template.source["date"], "List-Id": "<newsletter.example.org>",
        "List-Unsubscribe": f"<{settings.SITE_URL}/u/{values.unsubscribe_id}/>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "List-Owner": "<mailto:ada@example.org>",
        "List-Archive": "<https://example.org/issues/>", "List-Help": "<https://example.org/preferences/>",
        "Archived-At": "<https://example.org/issues/view/42/>", "Feedback-ID": "42:newsletter:issue:exampleorg",
        "Precedence": "bulk", "X-Auto-Response-Suppress": "OOF, AutoReply",
    }  # fmt: skip

    def build() -> bytes:
        mail = EmailMultiAlternatives(
            subject, text, "author@example.org", [values.address], headers=headers, reply_to=["ada@example.org"]
        )
        mail.attach_alternative(html, "text/html")
        return bytes(mail.message().as_bytes())

    return build


def microseconds(call: Callable[[], object], number: int) -> float:
    return timeit.timeit(call, number=number) / number * 1e6


def measure() -> dict[str, Any]:
    """Return the medians of ROUNDS rounds, and the ratio as the median of the rounds' own ratios."""
    source = make_source()
    template = message.Template(source)
    values = message.Values("ada@example.org", "Ada", UUID(int=7), message.message_id(42, 3, "example.org"))

    def compose() -> tuple[str, bytes]:
        """All that a worker has made for one copy."""
        reader = message.Values(
            "ada@example.org", "Ada", "00000000-0000-4000-8000-000000000007", template.message_id(42, 3)
        )
        return template.envelope_sender(42, 3), template.fill(reader)

    steps: dict[str, tuple[Callable[[], object], int]] = {
        "compose_us": (compose, 5_000),
        "fill_us": (lambda: template.fill(values), 5_000),
        "odd_name_us": (lambda: template.fill(values._replace(name="Zoë <日本>")), 2_000),
        "message_id_us": (lambda: template.message_id(42, 3), 10_000),
        "envelope_sender_us": (lambda: template.envelope_sender(42, 3), 10_000),
        "library_us": (by_library(template, values), 20),
        "construct_us": (lambda: message.Template(source), 20),
    }
    rounds = [{name: microseconds(*step) for name, step in steps.items()} for _ in range(ROUNDS)]
    medians = {name: round(statistics.median(one[name] for one in rounds), 2) for name in steps}
    construct_ms = round(medians.pop("construct_us") / 1000, 2)
    ratio = statistics.median(one["library_us"] / one["fill_us"] for one in rounds)
    return {
        "benchmark": "message", "python": platform.python_version(), "rounds": ROUNDS,
        "bytes": len(template.fill(values)), "places": len(source["holes"]) * 2, **medians,
        "construct_ms": construct_ms, "library_over_fill": round(ratio, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    as_json = parser.parse_args().json
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
    django.setup()
    settings.BOUNCE_DOMAIN = "bounces.example.org"
    found = measure()
    print(json.dumps(found) if as_json else "\n".join(f"{name:20} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
