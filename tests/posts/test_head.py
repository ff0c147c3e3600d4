"""How pages are found and shown elsewhere: canonical addresses, what previews say, and data for search engines."""

import datetime as dt
import json
import re
from typing import Any

import html5lib
import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from posts.models import Post, Publication, Series, Tag
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.django_db
HOSTILE = "</script><script>alert(1)</script> & <!-- \u2028"


@pytest.fixture
def post(publication: Publication) -> Post:
    publication.byline, publication.tagline = "Robin Sample", "One letter a week."
    publication.social_links = "Code https://code.example.org/robin"
    publication.save()
    series = Series.objects.create(name="Waiting")
    at = timezone.now() - dt.timedelta(hours=1)
    post = make_post("On locks", status=Post.Status.PUBLISHED, published_at=at, series=series, excerpt="Why they wait.")
    post.tags.add(Tag.objects.create(name="Locks"))
    return post


def metas(page: str) -> dict[str, str]:
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    return {meta.get("property") or meta.get("name", ""): meta.get("content", "") for meta in tree.iter("meta")}


def data(page: str) -> list[Any]:
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    (found,) = (each.text for each in tree.iter("script") if each.get("type") == "application/ld+json")
    return json.loads(found or "")  # type: ignore[no-any-return]  # what this is for


@pytest.mark.parametrize(
    "address",
    ["/", "/posts/", "/posts/on-locks/", "/tags/locks/", "/series/waiting/", "/about/", "/privacy/", "/issues/"],
)
def test_each_page_says_once_what_it_is_and_where(client: Client, post: Post, address: str) -> None:
    page = client.get(f"{address}?utm_source=x", headers={"host": "127.0.0.1"}).text
    assert re.findall(r'rel="canonical"\s+href="([^"]*)"', page) == [settings.SITE_URL + address]
    found = metas(page)
    assert found["og:url"] == settings.SITE_URL + address
    assert all(found[name] for name in ("description", "og:title", "og:description", "og:type", "og:site_name"))
    assert found["twitter:card"] == "summary_large_image"
    assert found["og:image"].startswith(settings.SITE_URL + "/cards/")
    for name in ("og:title", "og:url", "og:type", "description"):
        assert page.count(f'="{name}"') == 1


def test_a_post_is_shown_elsewhere_with_its_words_and_dates(client: Client, post: Post) -> None:
    found = metas(client.get(post.get_absolute_url()).text)
    assert (found["og:type"], found["og:title"], found["og:description"]) == ("article", "On locks", "Why they wait.")
    assert post.published_at
    assert found["article:published_time"] == post.published_at.isoformat()


def test_search_engines_are_told_of_the_article_and_the_way_to_it(client: Client, post: Post) -> None:
    article, way = data(client.get(post.get_absolute_url()).text)
    assert (article["@type"], article["headline"], article["url"]) == ("BlogPosting", "On locks", post.url)
    assert article["author"] == {"@type": "Person", "name": "Robin Sample"}
    assert article["publisher"]["sameAs"] == ["https://code.example.org/robin"]
    assert article["keywords"] == ["Locks"]
    assert article["datePublished"] <= article["dateModified"]
    assert [(step["position"], step["name"]) for step in way["itemListElement"]] == [
        (1, "Query Notes"),
        (2, "Posts"),
        (3, "Waiting"),
        (4, "On locks"),
    ]


def test_the_front_page_tells_of_the_site(client: Client, post: Post) -> None:
    (site,) = data(client.get("/").text)
    assert (site["@type"], site["name"]) == ("WebSite", "Query Notes")
    assert site["potentialAction"]["target"] == settings.SITE_URL + "/search/?q={words}"


def test_no_title_ends_the_data_or_begins_a_script(client: Client, post: Post) -> None:
    Post.objects.filter(pk=post.pk).update(title=HOSTILE)
    page = client.get(post.get_absolute_url()).text
    assert "<script>alert(1)" not in page
    assert data(page)[0]["headline"] == HOSTILE


def test_previews_and_unlisted_posts_are_not_for_search_engines(client: Client, post: Post) -> None:
    preview = client.get(post.preview_url.removeprefix(settings.SITE_URL)).text
    assert metas(preview)["robots"] == "noindex"
    assert "application/ld+json" not in preview
    Post.objects.filter(pk=post.pk).update(visibility=Post.Visibility.UNLISTED)
    assert metas(client.get(post.get_absolute_url()).text)["robots"] == "noindex"


def test_an_issue_is_shown_elsewhere_by_its_subject(client: Client, post: Post) -> None:
    issue = make_issue(post, subject="This week", preheader="Of locks")
    issue.number, issue.state = 1, "completed"
    issue.prepared_at = issue.started_at = timezone.now()
    issue.save()
    found = metas(client.get("/issues/1/").text)
    assert (found["og:title"], found["og:description"]) == ("This week", "Of locks")


def test_whoever_finds_a_weakness_is_told_where_to_write_to(client: Client, publication: Publication) -> None:
    answer = client.get("/.well-known/security.txt", headers={"host": "[::1]"})
    fields = dict(line.split(": ", 1) for line in answer.text.splitlines())
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert fields["Contact"] == "mailto:author@example.org"
    assert fields["Canonical"] == f"{settings.SITE_URL}/.well-known/security.txt"
    assert (
        dt.timedelta(days=30) < dt.datetime.fromisoformat(fields["Expires"]) - timezone.now() < dt.timedelta(days=365)
    )
