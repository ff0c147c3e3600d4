"""What a page is about, for search engines: schema.org as JSON-LD."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.urls import reverse
from django.utils.translation import gettext as _

from posts.models import Post, Publication

CONTEXT = "https://schema.org"


def site(publication: Publication) -> list[dict[str, Any]]:
    """Return what stands on the front page: the site, how to search it, and who makes it."""
    target = settings.SITE_URL + reverse("posts:search") + "?q={words}"
    found = {"@type": "SearchAction", "target": target, "query-input": "required name=words"}
    shown = {
        "@context": CONTEXT,
        "@type": "WebSite",
        "name": publication.name,
        "description": publication.tagline,
        "url": settings.SITE_URL + "/",
        "inLanguage": publication.language,
        "publisher": publisher(publication),
        "potentialAction": found,
    }
    return [shown]


def article(post: Post, publication: Publication) -> list[dict[str, Any]]:
    """Return what stands on a post's page: the article and the way that leads to it."""
    shown: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "BlogPosting",
        "headline": post.title[:110],
        "description": post.description,
        "url": post.url,
        "mainEntityOfPage": post.url,
        "inLanguage": publication.language,
        "author": {"@type": "Person", "name": publication.byline} if publication.byline else publisher(publication),
        "publisher": publisher(publication),
        "image": post.image["url"],
        "keywords": [tag.name for tag in post.tags.all()],
    }
    if post.published_at:
        shown["datePublished"] = post.published_at.isoformat()
        shown["dateModified"] = max(post.published_at, post.corrected_at or post.updated_at).isoformat()
    return [shown, breadcrumbs(post, publication)]


def publisher(publication: Publication) -> dict[str, Any]:
    logo = {"logo": settings.SITE_URL + publication.avatar.url} if publication.avatar else {}
    links = {"sameAs": [url for _label, url in publication.links]} if publication.links else {}
    return {"@type": "Organization", "name": publication.name, "url": settings.SITE_URL + "/", **logo, **links}


def breadcrumbs(post: Post, publication: Publication) -> dict[str, Any]:
    way = [(publication.name, "/"), (_("Posts"), reverse("posts:archive"))]
    if post.series:
        way.append((post.series.name, post.series.get_absolute_url()))
    steps = [
        {"@type": "ListItem", "position": place, "name": name, "item": settings.SITE_URL + path}
        for place, (name, path) in enumerate([*way, (post.title, post.get_absolute_url())], 1)
    ]
    return {"@context": CONTEXT, "@type": "BreadcrumbList", "itemListElement": steps}
