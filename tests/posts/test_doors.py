"""What readers may not see stands behind no door: each address of the public site is tried, also those to come."""

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from newsletter import delivery
from newsletter.models import Issue
from posts import related
from posts.models import FeaturedPost, Post, Publication, Redirect, Series, Tag
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.usefixtures("publication")

WORD = "zanzibar"  # in each hidden post's title, text and code, and in no other's
NOW = timezone.now()
KINDS = {
    "draft": {},
    "scheduled": {"status": "scheduled", "published_at": NOW + dt.timedelta(days=1)},
    "in the future": {"status": "published", "published_at": NOW + dt.timedelta(days=1)},
    "unlisted": {"status": "published", "published_at": NOW - dt.timedelta(hours=2), "visibility": "unlisted"},
    "by mail only": {"status": "published", "published_at": NOW - dt.timedelta(hours=2), "visibility": "email_only"},
    "withdrawn": {"status": "withdrawn", "published_at": NOW - dt.timedelta(hours=2)},
}
GONE = {"withdrawn": 410}


class Site:
    """A site with a shown post, and one of each hidden kind beside it wherever posts stand."""

    def __init__(self) -> None:
        self.tag = Tag.objects.create(name="Locks")
        self.series = Series.objects.create(name="Waiting")
        self.shown = self.post("On locks", "Locks wait for locks.", status="published", published_at=NOW)
        text = f"Locks of {WORD} wait.\n\n```\n{WORD}_lock()\n```"
        self.hidden = {kind: self.post(f"{WORD} {kind}", text, **values) for kind, values in KINDS.items()}
        self.draft_tag = Tag.objects.create(name=f"{WORD} alone")
        self.hidden["draft"].tags.add(self.draft_tag)
        everything = [self.shown, *self.hidden.values()]
        for post in everything:
            Redirect.objects.create(path=f"/old/{post.pk}/", post=post)
        related.relate([post.pk for post in everything], others_too=False)
        self.issue = make_issue(*everything, subject="This week")
        delivery.send_now(self.issue)
        self.issue.refresh_from_db()
        Post.objects.filter(pk=self.hidden["draft"].pk).update(status="draft", published_at=None)
        Post.objects.filter(pk=self.hidden["scheduled"].pk).update(**KINDS["scheduled"])

    def post(self, title: str, body: str, **values: object) -> Post:
        post = make_post(title, body, series=self.series, excerpt=body[:30], **values)
        post.tags.add(self.tag)
        FeaturedPost.objects.create(post=post, position=post.pk)
        return post


@pytest.fixture
def site(alice: Subscriber) -> Site:
    return Site()


def each(site: Site, path: str) -> list[str]:
    return [path.format(post.slug) for post in site.hidden.values()]


# How to come to each public address. Of a hidden post's own, a status is expected instead: see OWN.
DOORS: dict[str, Callable[[Site], list[str]]] = {
    "posts:profile": lambda site: ["/"],
    "posts:archive": lambda site: ["/posts/", f"/posts/?year={NOW.year}"],
    "posts:post": lambda site: [f"/posts/{site.shown.slug}/"],
    "posts:source": lambda site: [f"/posts/{site.shown.slug}.md"],
    "posts:series": lambda site: ["/series/waiting/"],
    "posts:tag": lambda site: ["/tags/locks/"],
    "posts:search": lambda site: ["/search/", "/search/?q=locks", "/search/?q=lock&tag=locks", "/search/?q=wait"],
    "posts:about": lambda site: ["/about/"],
    "posts:privacy": lambda site: ["/privacy/"],
    "posts:atom": lambda site: ["/feed.xml"],
    "posts:rss": lambda site: ["/rss.xml"],
    "posts:json_feed": lambda site: ["/feed.json"],
    "posts:tag_atom": lambda site: ["/tags/locks/feed.xml"],
    "posts:tag_rss": lambda site: ["/tags/locks/rss.xml"],
    "posts:tag_json_feed": lambda site: ["/tags/locks/feed.json"],
    "posts:card": lambda site: [site.shown.image["url"].removeprefix(settings.SITE_URL)],
    "posts:site_card": lambda site: [Publication.current().image["url"].removeprefix(settings.SITE_URL)],
    "posts:sitemap": lambda site: ["/sitemap.xml"],
    "posts:robots": lambda site: ["/robots.txt"],
    "posts:security": lambda site: ["/.well-known/security.txt"],
    "newsletter:issues": lambda site: ["/issues/"],
    "newsletter:issue": lambda site: [f"/issues/{site.issue.number}/"],
    "subscribers:subscribe": lambda site: ["/subscribe/"],
    "subscribers:check": lambda site: ["/subscribe/check-your-inbox/"],
    "subscribers:preferences": lambda site: ["/preferences/"],
}
# What shows no post, or shows it to the one who holds a signed address, which has tests of its own.
NO_DOORS = {
    "healthz", "posts:preview", "posts:theme", "posts:media", "newsletter:view_in_browser", "newsletter:click",
    "subscribers:subscribe_form", "subscribers:confirm", "subscribers:undo", "subscribers:never",
    "subscribers:unsubscribe", "subscribers:preferences_open", "newsletter:reader_data", "newsletter:reader_data_file",
    "newsletter:reader_issues", "newsletter:reader_erase", "subscribers:new_address", "subscribers:old_address",
}  # fmt: skip


def public_names(patterns: list[URLPattern | URLResolver], within: str = "", path: str = "") -> Iterator[str]:
    """Return the names of all addresses outside the admin."""
    for pattern in patterns:
        below = path + str(pattern.pattern)
        if below.startswith(settings.ADMIN_PATH):
            continue
        if isinstance(pattern, URLResolver):
            yield from public_names(pattern.url_patterns, f"{pattern.namespace or within}:", below)
        elif pattern.name:
            yield f"{within}{pattern.name}"


def test_each_public_address_is_tried_here() -> None:
    found = set(public_names(get_resolver().url_patterns))
    assert found == set(DOORS) | NO_DOORS


@pytest.mark.parametrize("door", DOORS)
def test_nothing_hidden_stands_behind_a_door(client: Client, site: Site, door: str) -> None:
    for address in DOORS[door](site):
        page = client.get(address)
        assert page.status_code == 200, address
        assert WORD.encode() not in page.content.lower(), address


@pytest.mark.parametrize("words", [WORD, f"{WORD}_lock", "zanzib", f'"of {WORD}"', "zanzibr"])
def test_a_search_for_what_is_hidden_finds_nothing(client: Client, site: Site, words: str) -> None:
    page = client.get("/search/", {"q": words})
    assert "/posts/zanzibar" not in page.text
    assert page.context["results"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_posts_own_addresses_show_nothing_and_an_unlisted_one_shows_itself(
    client: Client, site: Site, kind: str
) -> None:
    post = site.hidden[kind]
    for address in (f"/posts/{post.slug}/", f"/posts/{post.slug}.md"):
        page = client.get(address)
        if kind == "unlisted":
            assert page.status_code == 200
            assert page["X-Robots-Tag"] == "noindex"
            others = [other.title for other in site.hidden.values() if other != post]
            assert not [title for title in others if title in page.text]
        else:
            assert page.status_code == GONE.get(kind, 404)
            assert "wait" not in page.text
    assert client.get(f"/old/{post.pk}/").status_code == (301 if kind == "unlisted" else GONE.get(kind, 404))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_posts_card_is_not_drawn_and_an_unlisted_ones_is_not_for_search_engines(
    client: Client, site: Site, kind: str
) -> None:
    answer = client.get(site.hidden[kind].image["url"].removeprefix(settings.SITE_URL))
    drawn = list(Path(settings.MEDIA_ROOT).glob("cards/*"))
    if kind == "unlisted":
        assert (answer.status_code, answer["X-Robots-Tag"], len(drawn)) == (200, "noindex", 1)
    else:
        assert (answer.status_code, drawn) == (404, [])


def test_a_topic_that_only_hidden_posts_have_is_named_nowhere(client: Client, site: Site) -> None:
    assert WORD not in client.get("/posts/").text
    assert WORD not in client.get("/search/").text
    page = client.get(site.draft_tag.get_absolute_url())
    assert "lock" not in page.text.lower().replace(f"{WORD} alone", "")


def test_the_issue_was_mailed_with_all_of_them(site: Site) -> None:
    assert WORD in Issue.objects.get().source["html"]
