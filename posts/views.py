"""The pages that readers browse. None of them sets a cookie or needs JavaScript."""

import datetime as dt
import errno
import sys
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models import Count, Q, QuerySet, Value
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseBase,
    HttpResponsePermanentRedirect,
    HttpResponseServerError,
)
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.templatetags.static import static as static_url
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import add_never_cache_headers, patch_cache_control
from django.views import static
from django.views.decorators.http import require_safe

from posts import cards, linked, markdown, pagecache, shelves, theme
from posts.models import FeaturedPost, Post, PostQuerySet, Publication, Series, Tag

FEATURED = 3
LATEST = 10
RESULTS = 20
TAGS = 16
RETRY_SECONDS = 30  # before a page is asked for again that the database was missing for
YEAR = 365 * 24 * 3600
CARD_SHARED = 60  # seconds for which a shared cache answers for a card by itself
MOVED = 300  # seconds for which a browser may know by itself where a post went: its address may be changed back
SECURITY_VALID = dt.timedelta(days=180)


@pagecache.kept()
@require_safe
def profile(request: HttpRequest) -> HttpResponse:
    publication = Publication.current()
    featured, latest = front_posts(publication)
    context = {
        "publication": publication,
        "parts": [f"posts/front/{name}.html" for name in publication.parts],
        "featured": featured,
        "latest": latest,
        "tags": used_tags()[:TAGS],
        "about": markdown.first_paragraph(publication.about),
        "linked": linked.site(publication),
    }
    return render(request, "posts/profile.html", context)


@pagecache.kept("page", "year")
@require_safe
def archive(request: HttpRequest) -> HttpResponse:
    publication = Publication.current()
    tags, series = shelf_marks()
    context = {"publication": publication, "tags": tags, "series": series}
    return render(request, "posts/archive.html", {**context, **shelf(request, Post.objects.listed(), publication)})


@pagecache.kept("page", "year")
@require_safe
def tag(request: HttpRequest, slug: str) -> HttpResponse:
    publication, shown = Publication.current(), get_object_or_404(shelves.tags(), slug=slug)
    context = {"publication": publication, "tag": shown}
    posts = Post.objects.listed().filter(tags=shown)
    return render(request, "posts/tag.html", {**context, **shelf(request, posts, publication)})


@pagecache.kept()
@require_safe
def about(request: HttpRequest) -> HttpResponse:
    publication = Publication.current()
    return render(request, "posts/about.html", {"publication": publication, "text": markdown.render(publication.about)})


@pagecache.kept()
@require_safe
def privacy(request: HttpRequest) -> HttpResponse:
    days = {"ip_days": settings.IP_DAYS, "delivery_days": settings.DELIVERY_DAYS}
    return render(request, "posts/privacy.html", days)


@require_safe
def theme_css(request: HttpRequest, fingerprint: str) -> HttpResponse:
    """Serve the accent colour; an address of an earlier colour gets today's, but is not kept."""
    accent = Publication.current().accent_color
    response = HttpResponse(theme.stylesheet(accent), content_type="text/css; charset=utf-8")
    if fingerprint == theme.fingerprint(accent):
        patch_cache_control(response, public=True, immutable=True, max_age=YEAR)
    else:
        patch_cache_control(response, no_cache=True)
    return response


@require_safe
def card(request: HttpRequest, fingerprint: str, slug: str = "") -> HttpResponse:
    """Serve the picture that stands for a post or, without `slug`, for the site; one of before is not there any more.

    So a stranger's address draws nothing, and what is withdrawn shows nothing: a shared cache asks again each minute.
    """
    posts = Post.objects.published().only("title", "cover", "visibility")
    post = get_object_or_404(posts, slug=slug) if slug else None
    drawn = post.card if post else Publication.current().card
    if not drawn or drawn.fingerprint != fingerprint:
        raise Http404
    response = HttpResponse(cards.kept(drawn, owner=str(post.pk) if post else "site"), content_type="image/png")
    patch_cache_control(response, public=True, immutable=True, max_age=YEAR, s_maxage=CARD_SHARED)
    if post and post.visibility == Post.Visibility.UNLISTED:
        response["X-Robots-Tag"] = "noindex"
    return response


@pagecache.kept()
@require_safe
def robots(request: HttpRequest) -> HttpResponse:
    return render(request, "posts/robots.txt", content_type="text/plain; charset=utf-8")


@pagecache.kept()
@require_safe
def security(request: HttpRequest) -> HttpResponse:
    """Say where to write to about a weakness (RFC 9116); the page is made anew each day, so it never runs out."""
    publication = Publication.current()
    expires = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) + SECURITY_VALID
    context = {"contact": publication.reply_to or publication.sender_address, "expires": expires}
    return render(request, "posts/security.txt", context, content_type="text/plain; charset=utf-8")


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Lead to the icon: browsers ask here for it on pages that name none, such as an issue seen in the browser."""
    return redirect(static_url("posts/icon.svg"))


@require_safe
def media(request: HttpRequest, path: str) -> HttpResponseBase:
    """Serve an uploaded image; a reverse proxy may answer for this path instead."""
    try:
        response = static.serve(request, path, document_root=str(settings.MEDIA_ROOT))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise Http404 from error
        raise
    patch_cache_control(response, public=True, max_age=YEAR)
    return response


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Send readers of an old address on; say 410 of what was withdrawn and 404 of the rest."""
    if "\0" in request.path:  # PostgreSQL can't be asked for it
        return render(request, "404.html", status=404)
    if Post.objects.filter(status=Post.Status.WITHDRAWN).filter(at_address(request.path)).exists():
        return render(request, "410.html", status=410)
    moved = Post.objects.published().filter(redirects__path__in=spellings(request.path)).first()
    if moved:
        response = HttpResponsePermanentRedirect(moved.get_absolute_url())
        patch_cache_control(response, public=True, max_age=MOVED)
        return response
    return render(request, "404.html", status=404)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Say 400. Django's own view for it looks into the body for a token, and fails where that can't be read."""
    return HttpResponseBadRequest(render_to_string("400.html", {"site_url": settings.SITE_URL}))


def server_error(request: HttpRequest) -> HttpResponse:
    """Say 503 where the database is away, and 500 of what is our own mistake. Neither page needs anything."""
    if not isinstance(sys.exc_info()[1], OperationalError | InterfaceError):
        return HttpResponseServerError(render_to_string("500.html"))
    response = HttpResponse(render_to_string("503.html"), status=503, headers={"Retry-After": str(RETRY_SECONDS)})
    add_never_cache_headers(response)
    return response


def brief() -> PostQuerySet:
    """Return the listed posts as lists show them: the long columns stay in the database."""
    return Post.objects.listed().brief()


def front_posts(publication: Publication) -> tuple[list[Post], list[Post]]:
    """Return the featured posts and, beside them, the latest, in one query."""
    newest = Post.objects.listed().values("pk")[: FEATURED + LATEST]
    found = list(brief().filter(pk__in=FeaturedPost.objects.values("post").union(newest)).select_related("featured"))
    pinned = [post for post in found if hasattr(post, "featured")] if "featured" in publication.parts else []
    featured = sorted(pinned, key=lambda post: (post.featured.position, post.featured.pk))[:FEATURED]
    return featured, [post for post in found if post not in featured][:LATEST]


def shelf(request: HttpRequest, posts: PostQuerySet, publication: Publication) -> dict[str, Any]:
    """Return what a list of posts by year shows: the page that was asked for, and the years to choose from."""
    years = shelves.years(posts, publication.zone)
    year = shelves.chosen_year(request.GET.get("year", ""), years)
    count = years[year] if year else sum(years.values())
    leaf = shelves.leaf(request.GET.get("page", ""), count=count, path=request.path, year=year)
    chosen = shelves.of_year(posts, year, publication.zone) if year else posts
    groups = shelves.by_year(list(chosen.brief()[leaf.part]), publication.zone)
    return {"groups": groups, "leaf": leaf, "years": years, "year": year, "canonical": settings.SITE_URL + leaf.address}


def shelf_marks() -> tuple[list[Tag], list[Series]]:
    """Return the most used tags, and the series, each with its number of listed posts as `uses`, in one query."""
    tags = counted(Tag).values_list(Value("tag"), "name", "slug", "uses")
    series = counted(Series).values_list(Value("series"), "name", "slug", "uses")
    found = list(tags.union(series, all=True).order_by("-uses", "name"))
    return marks(Tag, "tag", found)[:TAGS], marks(Series, "series", found)


def marks(model: Any, wanted: str, found: list[Any]) -> list[Any]:
    """Return the rows of one kind as instances that know how often they are used."""
    made = [(model(name=name, slug=slug), uses) for kind, name, slug, uses in found if kind == wanted]
    for mark, uses in made:
        mark.uses = uses
    return [mark for mark, _uses in made]


def counted(model: type[Tag] | type[Series]) -> QuerySet[Any]:
    return model._default_manager.filter(posts__in=Post.objects.listed()).annotate(uses=Count("posts"))


def used_tags() -> QuerySet[Tag]:
    """Return the tags that have listed posts, the most used first."""
    return counted(Tag).order_by("-uses", "name")


def spellings(path: str) -> list[str]:
    """Return `path` with and without its last slash: old sites had either."""
    bare = path.rstrip("/")
    return [bare, f"{bare}/"]


def at_address(path: str) -> Q:
    """Match the post that has, or once had, the address `path`."""
    current = (
        Q(slug=path.removeprefix(reverse("posts:archive")).strip("/").removesuffix(".md"))
        if is_post_path(path)
        else Q(pk=None)
    )
    return current | Q(redirects__path__in=spellings(path))


def is_post_path(path: str) -> bool:
    return path.startswith(reverse("posts:archive"))
