"""How long the author waits for his pages, and for the desk's queries, with a year of work in the database."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import CommandError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from newsletter import figures, sweeper
from newsletter.models import Delivery, Issue, Slot
from posts.models import Post, Publication
from subscribers.models import Subscriber
from tests.benchmarks import database, material
from tests.benchmarks.progress import say, table

TURNS = 7
PAGE_TURNS = 3
SLOW_SECONDS = 1.0

# A year and a half of readers from a dozen sources; one in twelve has left, one in a hundred of these came back.
READERS = """
UPDATE subscribers_subscriber
   SET confirmed_at = now() - make_interval(mins => mod(id * 7919, 788400)::int),
       source = (ARRAY['profile', 'post', 'subscribe', 'import', 'https://blog.example.com', ''])[1 + mod(id, 6)]
"""
CONSENTS = """
INSERT INTO subscribers_consent (subscriber_id, kind, at, wording, language, page, user_agent, detail)
SELECT id, kind, confirmed_at + after, 'Send me each issue by e-mail.', 'en', '/', 'Mozilla/5.0', '{}'
  FROM subscribers_subscriber,
       (VALUES ('requested', interval '-1 hour'), ('confirmed', interval '1 second')) AS kinds (kind, after)
"""
LEAVERS = """
WITH gone AS (
    UPDATE subscribers_subscriber
       SET status = 'unsubscribed', unsubscribed_at = confirmed_at + (now() - confirmed_at) / 2
     WHERE mod(id, 12) = 5 RETURNING id, unsubscribed_at
)
INSERT INTO subscribers_consent (subscriber_id, kind, at, wording, language, page, user_agent, detail)
SELECT id, 'unsubscribed', unsubscribed_at, '', '', '/u/', 'Mozilla/5.0', '{}' FROM gone
"""
ISSUES = """
INSERT INTO newsletter_issue
       (number, subject, preheader, introduction, state, due_at, created_at, source, source_sha256, prepared_at,
        candidates, planned, excluded, started_at, completed_at, late, count_clicks)
SELECT n, 'Issue ' || n, '', 'Hello.', 'completed_with_failures', at, at,
       jsonb_build_object('html', repeat(md5(n::text), 2500)), '', at, 0, 0, 0, at, at + interval '10 minutes', false,
       mod(n, 2) = 0
  FROM (SELECT n, now() - make_interval(weeks => %s - n, hours => 3) AS at FROM generate_series(1, %s) AS n) AS issues
"""
COPIES = """
INSERT INTO newsletter_delivery
       (issue_id, subscriber_id, address, address_key, name, state, fence, attempt, phase, smtp_code, enhanced_code,
        reply_text, accepted_at, updated_at)
SELECT i.id, s.id, s.address, s.key, s.name, CASE WHEN mod(s.id, 500) = 3 THEN 'rejected' ELSE 'accepted' END, 1, 1,
       'final_dot', 250, '2.0.0', '2.0.0 Ok: queued as 4F3B21A0', i.started_at, i.started_at
  FROM newsletter_issue i, subscribers_subscriber s
 WHERE i.number > %s
"""


def measure(*, readers: int, issues: int, posts: int, full: int) -> dict[str, Any]:
    """Run the benchmark; return what --json prints. `full` issues, the newest, have a copy for each reader."""
    with database.own() as durability:
        say(f"inventing {posts:,} posts, {readers:,} readers and {issues} issues, {full} of them with all their copies")
        _fill(readers, issues, posts, full)
        _schedule()
        client = _author()
        page = _open_desk(client)
        return {
            **durability, "readers": readers, "issues": issues, "posts": posts, "copies": readers * full, **page,
            "pages": {address: [_once(client, address) for _turn in range(PAGE_TURNS)] for address in _pages()},
            "parts": {name: _seconds(work) for name, work in _parts().items()},
        }  # fmt: skip


def errors(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the figures: pages that took more than a second, each time they were opened."""
    pages = {"The desk": found["page_s"], **found["pages"]}
    return [f"{name} took more than a second." for name, seconds in pages.items() if min(seconds) > SLOW_SECONDS]


def show(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    head = (
        f"{found['posts']:,} posts, {found['readers']:,} readers, {found['issues']} issues, {found['copies']:,} "
        f"copies; {found['queries']} queries, first opening {found['first_s']:.2f} s; processor time a page: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["cpu_s"].items())
        + "\n"
    )
    return head + table({"the desk, seconds": found["page_s"], **found["pages"], **found["parts"]})


def _fill(readers: int, issues: int, posts: int, full: int) -> None:
    Publication.objects.update_or_create(
        pk=1, defaults={"postal_address": "1 Example Street", "set_up_at": timezone.now(), "name": "Query Notes"}
    )
    body = "\n\n".join(material.section(random.Random(number)) for number in range(6))
    first = Post.objects.create(title="Post", body=body)
    first.publish()
    Post.objects.bulk_create(
        Post(
            title=f"Post {number}",
            slug=f"post-{number}",
            body=body,
            body_html=first.body_html,
            body_text=first.body_text,
            status=Post.Status.PUBLISHED,
            published_at=timezone.now() - number * dt.timedelta(days=7),
        )
        for number in range(1, posts)
    )
    material.fill_readers(readers)
    for statement in (READERS, CONSENTS, LEAVERS):
        database.execute(statement)
    database.execute(ISSUES, [issues, issues])
    database.execute(COPIES, [issues - full])
    for name in ("newsletter_delivery", "newsletter_issue", "subscribers_subscriber", "subscribers_consent"):
        database.execute(f"VACUUM (ANALYZE) {name}")


def _schedule() -> None:
    """Put an issue into the next date, so that the desk asks preflight about it."""
    sweeper.ensure_slots()
    post = Post.objects.get(title="Post")
    issue = material.draft(post)
    issue.schedule(Slot.objects.upcoming().open()[0])


def _author() -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    settings.SECOND_FACTOR_REQUIRED = False
    return client


def _open_desk(client: Client) -> dict[str, Any]:
    desk = f"/{settings.ADMIN_PATH}/"
    first = _once(client, desk, "Ready: it goes by itself")
    with CaptureQueriesContext(connection) as queries:
        _once(client, desk)
        asked = len(queries)
    began, ours = database.cpu_seconds(), time.process_time()
    page = [_once(client, desk) for _turn in range(TURNS)]
    ended = database.cpu_seconds()
    cpu = {"web": (time.process_time() - ours) / TURNS}
    if began is not None and ended is not None:
        cpu["postgresql"] = (ended - began) / TURNS
    return {"first_s": first, "queries": asked, "page_s": page, "cpu_s": cpu}


def _pages() -> list[str]:
    """Return the addresses that the author comes by in his weekly hour, and those his readers come by."""
    post, soon = Post.objects.get(title="Post"), Issue.objects.get(state=Issue.State.SCHEDULED)
    sent = Issue.objects.filter(state=Issue.State.COMPLETED_WITH_FAILURES).latest("number")
    reader, copy = Subscriber.objects.latest("pk"), Delivery.objects.latest("pk")
    admin = [
        "guide/name/", "doctor/", "posts/publication/1/change/",
        "posts/post/", "posts/post/?q=post", "posts/post/add/", f"posts/post/{post.pk}/change/",
        f"posts/post/{post.pk}/history/", "posts/auditentry/",
        "newsletter/issue/", "newsletter/issue/add/", f"newsletter/issue/{soon.pk}/change/",
        f"newsletter/issue/{soon.pk}/preview/", f"newsletter/issue/{soon.pk}/text/",
        f"newsletter/issue/{sent.pk}/change/", f"newsletter/issue/{sent.pk}/counts/",
        f"newsletter/issue/{sent.pk}/unknown/", "newsletter/slot/",
        "newsletter/delivery/", f"newsletter/delivery/?q={reader.address}", f"newsletter/delivery/{copy.pk}/change/",
        f"newsletter/delivery/history/?q={reader.address}",
        "subscribers/subscriber/", f"subscribers/subscriber/?q={reader.address[:5]}",
        f"subscribers/subscriber/{reader.pk}/change/", "subscribers/suppression/",
    ]  # fmt: skip
    site = ["/", "/posts/", f"/posts/{post.slug}/", "/search/?q=queue", "/issues/", "/feed.xml", "/sitemap.xml"]
    return [f"/{settings.ADMIN_PATH}/{address}" for address in admin] + site


def _once(client: Client, address: str, expected: str = "") -> float:
    """Open a page and return how long that took. Raises CommandError where it does not come, or without `expected`."""
    began = time.monotonic()
    response = client.get(address, headers={"host": "127.0.0.1"})
    body = b"".join(response) if response.streaming else response.content
    seconds = time.monotonic() - began
    if response.status_code != 200 or expected not in body.decode():
        raise CommandError(f"{address} answered {response.status_code} {response.headers.get('Location', '')}.")
    return seconds


def _parts() -> dict[str, Callable[[], object]]:
    """Return the heavy queries of the page, to be measured alone."""
    zone = Publication.current().zone
    newest = list(
        Issue.objects.filter(state="completed_with_failures").order_by("-number").values_list("pk", flat=True)[:10]
    )
    return {
        "audience": figures.audience,
        "growth": lambda: figures.growth(readers=0, now=timezone.now(), zone=zone),
        "copies of the last issues": lambda: figures.count_copies(newest),
        "left after the last issues": lambda: figures.left_after(newest),
    }


def _seconds(work: Callable[[], object]) -> list[float]:
    found = []
    for _turn in range(TURNS):
        began = time.monotonic()
        work()
        found.append(time.monotonic() - began)
    return found
