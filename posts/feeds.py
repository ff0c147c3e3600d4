"""Atom, RSS and JSON Feed: the latest public posts in full, every link absolute.

Django's Feed view takes the domain from the request's Host header and the language from the thread, so the generators
below it are used directly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import feedgenerator
from django.utils.html import escape
from django.utils.xmlutils import SimplerXMLGenerator
from django.views.decorators.http import conditional_page, require_safe

from posts import pagecache, shelves
from posts.models import Post, Publication, Tag

ITEMS = 20
# A tag of sanitised HTML: in its text every "<" is an entity, so code samples are left alone.
TAG = re.compile(r"<[a-z][^<>]*>")
LINK = re.compile(r'(?<=\s)(href|src)="([^"]*)"')
# What only a page has a use for: links beside headings, the language's name over code, the copies of images.
FURNITURE = re.compile(
    r' ?<a\b[^<>]*\bclass="anchor"[^<>]*>[^<]*</a>|<span\b[^<>]*\bclass="code-language"[^<>]*>[^<]*</span>'
    r'|(?<=[\w"]) (?:srcset|sizes)="[^"<>]*"(?=[^<>]*>)'
)
# XML 1.0 has no way to write these.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class Atom(feedgenerator.Atom1Feed):
    """Atom with the whole post as content and the excerpt as summary."""

    def add_item_elements(self, handler: SimplerXMLGenerator, item: dict[str, Any]) -> None:
        super().add_item_elements(handler, item)
        handler.addQuickElement("content", item["content"], {"type": "html"})


class Rss(feedgenerator.Rss201rev2Feed):
    """RSS with the whole post as content:encoded and the excerpt as description."""

    def rss_attributes(self) -> dict[str, str]:
        return super().rss_attributes() | {"xmlns:content": "http://purl.org/rss/1.0/modules/content/"}

    def add_item_elements(self, handler: SimplerXMLGenerator, item: dict[str, Any]) -> None:
        super().add_item_elements(handler, item)
        handler.addQuickElement("content:encoded", item["content"])


@pagecache.kept()
@require_safe
@conditional_page
def atom(request: HttpRequest, slug: str = "") -> HttpResponse:
    """Answer the latest posts as Atom (RFC 4287); with a tag's slug, those about it. Likewise the two below."""
    return xml_feed(Atom, Feed.of(slug), reverse("posts:atom"), "application/atom+xml; charset=utf-8")


@pagecache.kept()
@require_safe
@conditional_page
def rss(request: HttpRequest, slug: str = "") -> HttpResponse:
    return xml_feed(Rss, Feed.of(slug), reverse("posts:rss"), "application/rss+xml; charset=utf-8")


@pagecache.kept()
@require_safe
@conditional_page
def json_feed(request: HttpRequest, slug: str = "") -> HttpResponse:
    """Answer the same as JSON Feed 1.1 (jsonfeed.org)."""
    publication, feed = Publication.current(), Feed.of(slug)
    shown = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": feed.title(publication),
        "description": publication.tagline,
        "home_page_url": settings.SITE_URL + feed.page,
        "feed_url": settings.SITE_URL + feed.at(reverse("posts:json_feed")),
        "language": publication.language,
        "authors": authors(publication),
        "items": [json_item(post) for post in feed.posts()],
    }
    icon = {"icon": settings.SITE_URL + publication.avatar.url} if publication.avatar else {}
    return JsonResponse(shown | icon, content_type="application/feed+json", json_dumps_params={"ensure_ascii": False})


@dataclass(frozen=True)
class Feed:
    """What a feed is about: everything, or one tag."""

    tag: Tag | None

    @classmethod
    def of(cls, slug: str) -> Feed:
        """Return the feed of a tag, of everything where `slug` is empty; raise Http404 where there is no such tag."""
        return cls(get_object_or_404(shelves.tags(), slug=slug) if slug else None)

    @property
    def page(self) -> str:
        return self.tag.get_absolute_url() if self.tag else "/"

    def at(self, path: str) -> str:
        """Return the feed's address, which is below its page, where that of everything is `path`."""
        return self.page.rstrip("/") + path

    def title(self, publication: Publication) -> str:
        return f"{self.tag.name} · {publication.name}" if self.tag else publication.name

    def posts(self) -> list[Post]:
        posts = Post.objects.listed().defer("body", "search", "search_head").prefetch_related("tags")
        return list((posts.filter(tags=self.tag) if self.tag else posts)[:ITEMS])


def xml_feed(generator: type[feedgenerator.SyndicationFeed], feed: Feed, path: str, content_type: str) -> HttpResponse:
    publication = Publication.current()
    shown = generator(
        title=clean(feed.title(publication)),
        link=settings.SITE_URL + feed.page,
        description=clean(publication.tagline or publication.name),
        language=publication.language,
        author_name=clean(publication.byline or publication.name),
        feed_url=settings.SITE_URL + feed.at(path),
    )
    for post in feed.posts():
        shown.add_item(**item(post))
    return HttpResponse(shown.writeString("utf-8"), content_type=content_type)


def item(post: Post) -> dict[str, Any]:
    return {
        "title": clean(post.title),
        "link": address(post),
        "description": escape(clean(post.summary)),  # both formats take it for HTML
        "content": clean(content(post)),
        "unique_id": identity(post),
        "unique_id_is_permalink": False,
        "pubdate": post.published_at,
        "updateddate": post.updated_at,
        "categories": [clean(tag.name) for tag in post.tags.all()],
    }


def json_item(post: Post) -> dict[str, Any]:
    assert post.published_at, "the database asks a published post for its date"
    entry = {
        "id": identity(post),
        "url": address(post),
        "title": post.title,
        "summary": post.summary,
        "content_html": content(post),
        "date_published": post.published_at.isoformat(),
        "date_modified": post.updated_at.isoformat(),
        "tags": [tag.name for tag in post.tags.all()],
    }
    elsewhere = {"external_url": post.canonical_url} if post.canonical_url else {}
    image = {"image": settings.SITE_URL + post.cover.url} if post.cover else {}
    return entry | elsewhere | image


def authors(publication: Publication) -> list[dict[str, str]]:
    return [{"name": publication.byline or publication.name, "url": settings.SITE_URL + reverse("posts:about")}]


def address(post: Post) -> str:
    return settings.SITE_URL + post.get_absolute_url()


def identity(post: Post) -> str:
    """Return a tag URI (RFC 4151) that stays when title, slug or date change, so that no feed reader shows it twice."""
    host = urlsplit(settings.SITE_URL).hostname
    return f"tag:{host},{post.created_at:%Y-%m-%d}:post-{post.pk}"


def content(post: Post) -> str:
    """Return the text of `post` as HTML that reads well away from its page."""
    return absolute(FURNITURE.sub("", post.body_html), address(post))


def absolute(html: str, base: str) -> str:
    """Return sanitised `html` with every address in it made absolute."""
    return TAG.sub(lambda tag: LINK.sub(partial(absolute_link, base), tag[0]), html)


def absolute_link(base: str, link: re.Match[str]) -> str:
    return f'{link[1]}="{urljoin(base, link[2])}"'


def clean(text: str) -> str:
    return UNWRITABLE.sub("", text)
