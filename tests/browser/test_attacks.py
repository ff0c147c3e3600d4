"""Hostile text in a real browser: whatever page it stands on, no script of it runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from newsletter.models import Issue
from posts.models import Post, Publication, Snippet, Tag
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post
from tests.posts.test_markdown import ATTACKS, CORPORA

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.slow]
# A script that runs would call one of these, or set what the first line asks for.
HOOK = """
window.ran = [];
for (const name of ["alert", "confirm", "prompt", "print"]) {
  window[name] = (...words) => window.ran.push([name, ...words]);
}
"""


def naughty() -> list[str]:
    """Return what to try: our own attacks and, where they are at hand, those collected by others."""
    texts = [*ATTACKS]
    if CORPORA:
        texts += [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
        texts += [text for text in json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8")) if "<" in text]
    return [text.replace("\0", "") for text in texts if text.strip()]


@pytest.fixture
def listening(browser: Browser) -> Iterator[Page]:
    """A page that notes what runs; that an attack's picture is not found is no complaint of it."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    context.add_init_script(HOOK)
    yield context.new_page()
    context.close()


@pytest.fixture
def everywhere(publication: Publication) -> dict[str, int]:
    """Put all of it wherever text may stand; return the keys of what carries it."""
    texts, now = naughty(), timezone.now()
    everything = "\n\n".join(texts)[:200_000]
    long = make_post("All of it", everything, status=Post.Status.PUBLISHED, published_at=now)
    for number, text in enumerate(ATTACKS):
        post = make_post(
            text[:200], text, slug=f"attack-{number}", subtitle=text[:300], excerpt=text, meta_description=text[:300],
            status=Post.Status.PUBLISHED, published_at=now, ready=True,
        )  # fmt: skip
        tag = Tag.objects.create(name=f"{number}{text}"[:60], slug=f"tag-{number}")
        post.tags.add(tag)
        long.tags.add(tag)
        Snippet.objects.create(name=f"{number}{text}"[:60], body=text)
        Subscriber.objects.create(
            address=f"reader{number}@example.org", name=text[:100], status=Subscriber.Status.ACTIVE, confirmed_at=now
        )
        make_issue(post, subject=text[:200], preheader=text[:200], introduction=text)
    Publication.objects.update(
        name=ATTACKS[0][:100], tagline=ATTACKS[1][:200], byline=ATTACKS[10][:100], about=everything
    )
    issue = make_issue(long, subject=ATTACKS[1], preheader=ATTACKS[0], introduction=everything)
    Issue.objects.filter(pk=issue.pk).update(
        number=1, state=Issue.State.SENDING, started_at=now, prepared_at=now, candidates=0, planned=0, excluded=0
    )
    reader = Subscriber.objects.get(address="reader1@example.org")
    return {"post": long.pk, "issue": issue.pk, "draft": Issue.objects.order_by("pk")[1].pk, "reader": reader.pk}


def addresses(made: dict[str, int]) -> list[str]:
    admin = [
        reverse("admin:index"),
        *(reverse(f"admin:{name}_changelist") for name in (
            "posts_post", "posts_tag", "posts_snippet", "newsletter_issue", "subscribers_subscriber"
        )),
        reverse("admin:posts_post_change", args=[made["post"]]),
        reverse("admin:newsletter_issue_change", args=[made["issue"]]),
        reverse("admin:newsletter_issue_change", args=[made["draft"]]),
        reverse("admin:newsletter_issue_preview", args=[made["issue"]]),
        reverse("admin:newsletter_issue_text", args=[made["issue"]]),
        reverse("admin:subscribers_subscriber_change", args=[made["reader"]]),
        reverse("admin:posts_publication_change", args=[1]),
    ]  # fmt: skip
    public = [
        "/",
        "/posts/",
        "/posts/all-of-it/",
        "/tags/tag-1/",
        "/about/",
        "/issues/",
        "/issues/1/",
        "/search/?q=alert",
    ]
    return [*public, *(f"/posts/attack-{number}/" for number in range(len(ATTACKS))), *admin]


def test_nothing_of_it_runs_on_any_page(listening: Page, live_server: LiveServer, everywhere: dict[str, int]) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    listening.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    asked: list[str] = []
    listening.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    for address in addresses(everywhere):
        answer = listening.goto(live_server.url + address)
        assert answer
        assert answer.status == 200, address
        listening.wait_for_timeout(100)
        ran = [frame.evaluate("window.ran") for frame in listening.frames if frame.url.startswith("http")]
        assert [calls for calls in ran if calls] == [], address
    assert asked == []


def test_the_hook_itself_hears_a_script(listening: Page, live_server: LiveServer, publication: Publication) -> None:
    listening.goto(live_server.url)
    listening.evaluate("alert(1)")
    assert listening.evaluate("window.ran") == [["alert", 1]]
