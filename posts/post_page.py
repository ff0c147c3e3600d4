"""The page of a post and what belongs to it: neighbours, its series, related posts, the Markdown, a preview."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.core.signing import BadSignature
from django.db.models import OuterRef, Q, Value
from django.db.models.functions import JSONObject
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from posts import linked, markdown, pagecache
from posts.models import Post, PostQuerySet, Publication, Series, Tag

RELATED = 3
# What a link to another post shows.
LINKED = ("title", "slug", "published_at", "reading_minutes")
TAGS = (
    Tag.objects.filter(posts=OuterRef("pk")).order_by("name").values(tag=JSONObject(id="id", name="name", slug="slug"))
)


@pagecache.kept()
@require_safe
def post(request: HttpRequest, slug: str) -> HttpResponse:
    shown = get_object_or_404(complete(), slug=slug)
    context = dressed(shown) | surroundings(shown) | {"canonical": shown.url, "whole": True}
    context["linked"] = linked.article(shown, Publication.current())
    response = render(request, "posts/post.html", context)
    if shown.visibility == Post.Visibility.UNLISTED:
        response["X-Robots-Tag"] = "noindex"
    return response


@require_safe
@never_cache
def preview(request: HttpRequest, token: str) -> HttpResponse:
    """Show any post, draft or not, to whoever holds a signed link that is not too old."""
    try:
        shown = Post.by_preview_token(token)
    except (BadSignature, Post.DoesNotExist):
        raise Http404 from None
    response = render(request, "posts/post.html", dressed(shown) | {"preview": True})
    response["X-Robots-Tag"] = "noindex"
    response["Referrer-Policy"] = "same-origin"
    return response


@pagecache.kept()
@require_safe
def source(request: HttpRequest, slug: str) -> HttpResponse:
    """Give a post as the Markdown that its author wrote, below a small header."""
    shown = get_object_or_404(Post.objects.published().only("title", "body", "slug", "published_at"), slug=slug)
    response = HttpResponse(as_markdown(shown), content_type="text/markdown; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    response["X-Robots-Tag"] = "noindex"  # the page is what a search should find
    response["Link"] = f'<{shown.url}>; rel="canonical"'
    return response


@pagecache.kept()
@require_safe
def series(request: HttpRequest, slug: str) -> HttpResponse:
    """List the parts of a series, the first first; one without any is not there yet."""
    shown = get_object_or_404(Series, slug=slug)
    parts = list(
        Post.objects.listed()
        .filter(series=shown)
        .defer("body", "body_html", "search", "search_head")
        .order_by(*IN_ORDER)
    )
    if not parts:
        raise Http404
    return render(request, "posts/series.html", {"series": shown, "parts": parts})


IN_ORDER = ("published_at", "pk")


def complete() -> PostQuerySet:
    """Return the published posts, each with its series, tags and related posts, in one query."""
    posts = (
        Post.objects.published()
        .select_related("series", "related")
        .defer("body", "body_text", "body_code", "search", "search_head")
    )
    return posts.annotate(tag_list=ArraySubquery(TAGS))


def dressed(shown: Post) -> dict[str, Any]:
    """Return what the page shows of the post itself."""
    if hasattr(shown, "tag_list"):
        remember_tags(shown, [Tag(**tag) for tag in shown.tag_list])
    correction = markdown.render(shown.correction, prefix="correction-") if shown.correction else ""
    return {"post": shown, "correction": correction}


def remember_tags(shown: Post, tags: list[Tag]) -> None:
    """Let `shown.tags.all()` answer what is known already, as prefetching does."""
    found: Any = shown.tags.all()
    found._result_cache, found._prefetch_done = tags, True
    shown._prefetched_objects_cache = {"tags": found}  # type: ignore[attr-defined]  # Django's own


def surroundings(shown: Post) -> dict[str, Any]:
    """Return the listed posts that the page leads to: before and after it, the parts of its series, related ones."""
    kept = getattr(shown, "related", None)
    others = kept.others if kept else []
    found = around(shown, others)
    parts = [each for each in found if each.role == "part"]
    place = next((number for number, each in enumerate(parts, start=1) if each.pk == shown.pk), None)
    return {
        "older": next((each for each in found if each.role == "older"), None),
        "newer": next((each for each in found if each.role == "newer"), None),
        "parts": parts if place else [],
        "place": place,
        "related": related(found, others),
    }


def around(shown: Post, others: list[int]) -> list[Any]:
    """Return the listed posts around `shown`, each with its `role`, in one query."""
    at, pk = shown.published_at, shown.pk
    listed = Post.objects.listed().only(*LINKED)
    other = listed.exclude(pk=pk)
    before = other.filter(Q(published_at__lt=at) | Q(published_at=at, pk__lt=pk)).order_by("-published_at", "-pk")[:1]
    after = other.filter(Q(published_at__gt=at) | Q(published_at=at, pk__gt=pk)).order_by(*IN_ORDER)[:1]
    parts = listed.filter(series=shown.series_id) if shown.series_id else listed.none()
    alike = other.filter(pk__in=others)
    roles = {"older": before, "newer": after, "part": parts.order_by(), "related": alike.order_by()}
    first, *rest = [posts.annotate(role=Value(role)) for role, posts in roles.items()]
    return sorted(first.union(*rest, all=True), key=lambda each: (each.published_at, each.pk))


def related(found: list[Any], others: list[int]) -> list[Any]:
    """Return the most alike of those found, but none that the page leads to already."""
    named = {each.pk for each in found if each.role != "related"}
    fresh = [each for each in found if each.role == "related" and each.pk not in named]
    return sorted(fresh, key=lambda each: others.index(each.pk))[:RELATED]


def as_markdown(shown: Post) -> str:
    """Return the Markdown of a post below title, date and canonical address as YAML."""
    assert shown.published_at, "the database asks a published post for its date"
    lines = [
        f"title: {json.dumps(shown.title, ensure_ascii=False)}",
        f"date: {shown.published_at.isoformat()}",
        f"canonical: {shown.url}",
    ]
    return "---\n" + "\n".join(lines) + "\n---\n\n" + shown.body.replace("\r\n", "\n").strip() + "\n"
