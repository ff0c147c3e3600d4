"""Feeds: three formats that readers' programs parse, whole posts, whole addresses."""

import datetime as dt
import json
import os
import re
from pathlib import Path
from typing import Any

import feedparser
import jsonschema
import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from posts import feeds
from posts.models import Post, Publication, Tag
from tests.factories import make_post

pytestmark = pytest.mark.django_db

BODY = """Dead rows wait. See [the archive](/posts/), [below](#why) and ![a plan](/media/plan.png).

## Why

```html
<a href="/posts/">sample</a>
```

Write `href="/posts/"` and it stays.
"""


@pytest.fixture
def post(publication: Publication) -> Post:
    post = make_post(
        "Rows & <tags>",
        BODY,
        excerpt="Why rows wait.",
        status=Post.Status.PUBLISHED,
        published_at=timezone.now() - dt.timedelta(hours=1),
    )
    post.tags.add(Tag.objects.create(name="Locks"))
    return post


@pytest.mark.parametrize("address", ["/feed.xml", "/rss.xml"])
def test_an_xml_feed_carries_the_whole_post(client: Client, post: Post, address: str) -> None:
    feed: Any = feedparser.parse(client.get(address).content)
    assert not feed.bozo
    assert feed.feed.title == "Query Notes"
    (entry,) = feed.entries
    assert entry.title == "Rows & <tags>"
    assert entry.link == post.url
    assert entry.summary == "Why rows wait."
    assert "Dead rows wait." in entry.content[0].value
    assert [tag.term for tag in entry.tags] == ["Locks"]


def test_atom_has_every_address_in_full(client: Client, post: Post) -> None:
    feed: Any = feedparser.parse(client.get("/feed.xml").content)
    content = feed.entries[0].content[0].value
    assert f'href="{settings.SITE_URL}/posts/"' in content
    assert f'href="{post.url}#why"' in content
    assert f'src="{settings.SITE_URL}/media/plan.png"' in content
    assert '<code>href="/posts/"</code>' in content


def test_a_feed_leaves_out_what_only_a_page_needs(client: Client, post: Post) -> None:
    (item,) = json.loads(client.get("/feed.json").content)["items"]
    assert "anchor" not in item["content_html"]
    assert "code-language" not in item["content_html"]


def test_json_feed_carries_the_whole_post(client: Client, post: Post) -> None:
    response = client.get("/feed.json")
    assert response["Content-Type"] == "application/feed+json"
    feed = json.loads(response.content)
    assert feed["version"] == "https://jsonfeed.org/version/1.1"
    (item,) = feed["items"]
    assert item["title"] == "Rows & <tags>"
    assert item["url"] == post.url
    assert f'href="{settings.SITE_URL}/posts/"' in item["content_html"]
    assert dt.datetime.fromisoformat(item["date_published"]) == post.published_at


@pytest.mark.parametrize("address", ["/feed.xml", "/rss.xml", "/feed.json"])
def test_a_feed_that_did_not_change_answers_304(client: Client, post: Post, address: str) -> None:
    tag = client.get(address)["ETag"]
    assert client.get(address, headers={"if-none-match": tag}).status_code == 304


def test_a_renamed_post_is_no_new_entry(client: Client, post: Post) -> None:
    before: Any = feedparser.parse(client.get("/feed.xml").content)
    post.slug = "another"
    post.title = "Another"
    post.save()
    after: Any = feedparser.parse(client.get("/feed.xml").content)
    assert before.entries[0].id == after.entries[0].id


@pytest.mark.parametrize("address", ["/feed.xml", "/rss.xml"])
def test_control_characters_do_not_break_a_feed(client: Client, publication: Publication, address: str) -> None:
    make_post("Bell\x07", "Ring \x0b it.", status="published", published_at=timezone.now() - dt.timedelta(hours=1))
    assert not feedparser.parse(client.get(address).content).bozo


@pytest.mark.parametrize("address", ["/feed.xml", "/rss.xml", "/feed.json"])
def test_an_empty_publication_has_an_empty_feed(client: Client, publication: Publication, address: str) -> None:
    assert client.get(address).status_code == 200


def test_code_samples_keep_their_addresses() -> None:
    html = '<p><code>href="/a"</code> <a class="x" href="/b">b</a></p>'
    assert feeds.absolute(html, "https://example.org/posts/x/") == html.replace('"/b"', '"https://example.org/b"')


FEEDS = ["/feed.xml", "/rss.xml", "/feed.json", "/tags/locks/feed.xml", "/tags/locks/rss.xml", "/tags/locks/feed.json"]


@pytest.mark.parametrize("address", FEEDS)
def test_a_tag_has_feeds_of_its_own_that_name_themselves(client: Client, post: Post, address: str) -> None:
    make_post("Elsewhere", status=Post.Status.PUBLISHED, published_at=timezone.now() - dt.timedelta(hours=2))
    text = client.get(address).text
    assert ("Elsewhere" in text) == (not address.startswith("/tags/"))
    assert f"{settings.SITE_URL}{address}" in text
    assert post.url in text


@pytest.mark.parametrize("kind", ["feed.xml", "rss.xml", "feed.json"])
def test_a_tag_that_is_not_there_has_no_feed(client: Client, publication: Publication, kind: str) -> None:
    assert client.get(f"/tags/nothing/{kind}").status_code == 404


def test_the_page_of_a_tag_names_its_feeds(client: Client, post: Post) -> None:
    page = client.get("/tags/locks/").text
    assert [f'href="{address}"' in page for address in FEEDS] == [True] * 6


@pytest.mark.parametrize("address", FEEDS)
def test_every_address_is_whole_and_nothing_runs(client: Client, post: Post, address: str) -> None:
    text = client.get(address).text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("\\", "")
    assert not re.findall(r"<(?:script|style|iframe|object|embed|form)\b", text)
    assert "srcset" not in text
    addresses = re.findall(r' (?:href|src)="([^"]*)"', text.split("sample")[0])
    assert addresses
    assert all(each.startswith(("http://", "https://", "mailto:")) for each in addresses)


SCHEMAS = "jsonfeed-schema"


@pytest.mark.skipif("CORPORA_DIR" not in os.environ, reason="CORPORA_DIR is not set: the corpora were not tried")
@pytest.mark.parametrize("address", ["/feed.json", "/tags/locks/feed.json"])
def test_json_feed_keeps_to_its_schema(client: Client, post: Post, address: str) -> None:
    (found,) = (Path(os.environ["CORPORA_DIR"]) / "feeds" / SCHEMAS).rglob("schema-v1.1.json")
    schema = json.loads(found.read_text())
    jsonschema.validate(client.get(address).json(), schema)
