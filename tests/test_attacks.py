"""Hostile text in every place where text may stand: no page, feed, mail or preview gets anything that could run."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from newsletter import rendering
from newsletter.models import Issue
from posts.models import Post, Publication, Snippet, Tag
from subscribers import emails
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post
from tests.posts.test_markdown import ATTACKS, CORPORA, dangers, needs_corpora

pytestmark = pytest.mark.django_db
PLAIN = "plain"
ATOM = "{http://www.w3.org/2005/Atom}"


def corpora() -> list[str]:
    """Return each file of the collected attacks, each of the naughty strings."""
    texts = [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
    return texts + json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8"))


@pytest.fixture
def author(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("author", "author@example.org", "a long password"))
    return client


@pytest.fixture
def place(publication: Publication) -> "Place":
    return Place()


class Place:
    """A post and an issue that carry one text wherever they can."""

    def __init__(self) -> None:
        self.post = make_post(PLAIN, PLAIN, status=Post.Status.PUBLISHED, published_at=timezone.now())
        self.tag = Tag.objects.create(name=PLAIN, slug="tag")
        self.post.tags.add(self.tag)
        self.issue = make_issue(self.post, introduction=PLAIN)
        Issue.objects.filter(pk=self.issue.pk).update(
            number=1, state=Issue.State.SENDING, started_at=timezone.now(), prepared_at=timezone.now(), candidates=0,
            planned=0, excluded=0,
        )  # fmt: skip
        self.reader = Subscriber.objects.create(
            address="reader@example.org", status=Subscriber.Status.ACTIVE, confirmed_at=timezone.now()
        )
        self.snippet = Snippet.objects.create(name=PLAIN, body=PLAIN)

    def carry(self, text: str) -> None:
        """Put `text` everywhere, past the forms that would refuse some of it."""
        text = text.replace("\0", "") or PLAIN
        post = self.post
        post.title, post.subtitle, post.body, post.excerpt = text[:200], text[:300], text, text
        post.meta_description, post.cover_alt = text[:300], text[:300]
        post.save()
        Tag.objects.filter(pk=self.tag.pk).update(name=text[:60])
        Snippet.objects.filter(pk=self.snippet.pk).update(name=text[:60], body=text)
        Issue.objects.filter(pk=self.issue.pk).update(subject=text[:200], preheader=text[:200], introduction=text)
        Publication.objects.update(name=text[:100], tagline=text[:200], byline=text[:100], about=text, welcome=text)
        Subscriber.objects.filter(pk=self.reader.pk).update(name=text[:100])
        self.issue.refresh_from_db()
        self.reader.refresh_from_db()

    def mail(self, client: Client) -> str:
        return rendering.preview_html(self.issue, self.reader)

    def web_post(self, client: Client) -> str:
        return client.get(self.post.get_absolute_url()).content.decode()

    def atom(self, client: Client) -> str:
        """Return what a feed reader shows: the texts of the feed's elements, as HTML."""
        feed = ElementTree.fromstring(client.get("/feed.xml").content)  # our own feed
        return "".join(element.text or "" for element in feed.iter() if element.get("type") == "html")


def page(url: str) -> Callable[[Place, Client], str]:
    return lambda place, client: client.get(url).content.decode()


def admin(name: str, *fields: str) -> Callable[[Place, Client], str]:
    """Return how to get a page of the admin, about the place's objects that `fields` name."""

    def get(place: Place, client: Client) -> str:
        return client.get(reverse(f"admin:{name}", args=[getattr(place, each).pk for each in fields])).content.decode()

    return get


SHOWN: dict[str, Callable[[Place, Client], str]] = {
    "mail": Place.mail,
    "post": Place.web_post,
    "Atom": Place.atom,
    "front page": page("/"),
    "archive": page("/posts/"),
    "tag": page("/tags/tag/"),
    "about": page("/about/"),
    "issues": page("/issues/"),
    "issue": page("/issues/1/"),
    "admin: desk": admin("index"),
    "admin: posts": admin("posts_post_changelist"),
    "admin: post": admin("posts_post_change", "post"),
    "admin: snippets": admin("posts_snippet_changelist"),
    "admin: snippet": admin("posts_snippet_change", "snippet"),
    "admin: issues": admin("newsletter_issue_changelist"),
    "admin: issue": admin("newsletter_issue_change", "issue"),
    "admin: preview": admin("newsletter_issue_preview", "issue"),
    "admin: reader": admin("subscribers_subscriber_change", "reader"),
    "admin: welcome mail": page("/admin/welcome/"),
    "welcome mail": lambda place, client: str(emails.welcome().alternatives[0][0]),
}  # fmt: skip


def found(place: Place, client: Client, shown: str, text: str) -> list[str]:
    """Return what could run or load something where `text` is shown, addresses apart that name the post itself."""
    place.carry(text)
    return seen(place, client, shown)


def seen(place: Place, client: Client, shown: str) -> list[str]:
    html = SHOWN[shown](place, client)
    return sorted(re.sub(r"[0-9a-f]{16,}", "#", each) for each in dangers(html, "email"))


@pytest.mark.parametrize("shown", SHOWN)
def test_an_attack_adds_nothing_that_runs(author: Client, place: Place, shown: str) -> None:
    harmless = Counter(found(place, author, shown, PLAIN))
    assert [text for text in ATTACKS if Counter(found(place, author, shown, text)) - harmless] == []


def test_the_check_itself_sees_what_a_page_lets_through(author: Client, place: Place, monkeypatch: Any) -> None:
    harmless = Counter(found(place, author, "post", PLAIN))
    monkeypatch.setitem(SHOWN, "post", lambda place, client: place.web_post(client) + place.post.body)
    assert Counter(found(place, author, "post", ATTACKS[0])) - harmless


@needs_corpora
@pytest.mark.slow
def test_no_text_of_the_corpora_adds_anything_that_runs(author: Client, place: Place) -> None:
    """What test_rendering and test_editor try on mails and previews, on the web and in the feed."""
    harmless = {shown: Counter(found(place, author, shown, PLAIN)) for shown in ("post", "Atom")}
    for text in corpora():
        place.carry(text)
        assert [shown for shown in harmless if Counter(seen(place, author, shown)) - harmless[shown]] == [], text
