"""The pages that readers browse. None of them sets a cookie or needs JavaScript."""

from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.core.paginator import InvalidPage, Page, Paginator
from django.core.signing import BadSignature
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponsePermanentRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.templatetags.static import static as static_url
from django.urls import reverse
from django.utils.cache import patch_cache_control
from django.views import static
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from posts import markdown, search, theme
from posts.models import Post, PostQuerySet, Publication, Tag

FEATURED = 3
LATEST = 10
PAGE = 30
RESULTS = 20
TAGS = 16
YEAR = 365 * 24 * 3600


@require_safe
def profile(request: HttpRequest) -> HttpResponse:
    featured = list(brief().filter(featured__isnull=False).order_by("featured__position", "featured__id")[:FEATURED])
    latest = brief().exclude(pk__in=[post.pk for post in featured])[:LATEST]
    return render(
        request, "posts/profile.html", {"featured": featured, "latest": latest, "tags": used_tags().all()[:TAGS]}
    )


@require_safe
def archive(request: HttpRequest) -> HttpResponse:
    years = [date.year for date in Post.objects.listed().dates("published_at", "year", order="DESC")]
    year = chosen_year(request, years)
    posts = brief().filter(published_at__year=year) if year else brief()
    page = page_of(posts, request, PAGE)
    query = f"year={year}&" if year else ""
    canonical = list_address(reverse("posts:archive"), page, query)
    context = {"page": page, "years": years, "year": year, "query": query, "canonical": canonical}
    return render(request, "posts/archive.html", context)


@require_safe
def post(request: HttpRequest, slug: str) -> HttpResponse:
    posts = Post.objects.published().defer("body", "search").prefetch_related("tags")
    shown = get_object_or_404(posts, slug=slug)
    older, newer = neighbours(shown)
    context = {"post": shown, "older": older, "newer": newer, "canonical": shown.url}
    response = render(request, "posts/post.html", context)
    if shown.visibility == Post.Visibility.UNLISTED:
        response["X-Robots-Tag"] = "noindex"
    return response


@require_safe
def tag(request: HttpRequest, slug: str) -> HttpResponse:
    shown = get_object_or_404(Tag, slug=slug)
    page = page_of(brief().filter(tags=shown), request, PAGE)
    canonical = list_address(shown.get_absolute_url(), page)
    return render(request, "posts/tag.html", {"tag": shown, "page": page, "canonical": canonical})


@require_safe
def search_posts(request: HttpRequest) -> HttpResponse:
    query = request.GET.get("q", "").replace("\x00", "").strip()[:200]
    page = page_of(search.search(brief(), query), request, RESULTS) if query else None
    results = [result(post) for post in page or ()]
    return render(
        request,
        "posts/search.html",
        {"results": results, "words": query, "query": urlencode({"q": query}) + "&", "page": page},
    )


@require_safe
def about(request: HttpRequest) -> HttpResponse:
    publication = Publication.current()
    return render(request, "posts/about.html", {"publication": publication, "text": markdown.render(publication.about)})


@require_safe
def privacy(request: HttpRequest) -> HttpResponse:
    return render(request, "posts/privacy.html")


@require_safe
@never_cache
def preview(request: HttpRequest, token: str) -> HttpResponse:
    """Show any post, draft or not, to whoever holds a signed link that is not too old."""
    try:
        shown = Post.by_preview_token(token)
    except (BadSignature, Post.DoesNotExist):
        raise Http404 from None
    response = render(request, "posts/post.html", {"post": shown, "preview": True})
    response["X-Robots-Tag"] = "noindex"
    response["Referrer-Policy"] = "same-origin"
    return response


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
def robots(request: HttpRequest) -> HttpResponse:
    return render(request, "posts/robots.txt", content_type="text/plain; charset=utf-8")


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Lead to the icon: browsers ask here for it on pages that name none, such as an issue seen in the browser."""
    return redirect(static_url("posts/icon.svg"))


@require_safe
def media(request: HttpRequest, path: str) -> HttpResponseBase:
    """Serve an uploaded image; a reverse proxy may answer for this path instead."""
    response = static.serve(request, path, document_root=str(settings.MEDIA_ROOT))
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
        return HttpResponsePermanentRedirect(moved.get_absolute_url())
    return render(request, "404.html", status=404)


def result(post: Any) -> tuple[Post, str]:
    """Return a found post and the passage that was found, the words in it marked."""
    return post, search.highlighted(post.headline)


def brief() -> PostQuerySet:
    """Return the listed posts as lists show them: the long columns stay in the database."""
    return Post.objects.listed().defer("body", "body_html", "search")


def used_tags() -> QuerySet[Tag]:
    """Return the tags that have listed posts, the most used first."""
    tags = Tag.objects.filter(posts__in=Post.objects.listed())
    return tags.annotate(uses=Count("posts")).order_by("-uses", "name")


def page_of(posts: QuerySet[Post], request: HttpRequest, size: int) -> Page[Post]:
    """Return the page that ?page= names; raise Http404 where there is none."""
    try:
        return Paginator(posts, size).page(request.GET.get("page", 1))
    except InvalidPage as problem:
        raise Http404(str(problem)) from problem


def chosen_year(request: HttpRequest, years: list[int]) -> int | None:
    """Return the year that ?year= names; raise Http404 where nothing was published in it."""
    wanted = request.GET.get("year", "")
    if not wanted:
        return None
    if wanted not in map(str, years):
        raise Http404
    return int(wanted)


def list_address(path: str, page: Page[Post], query: str = "") -> str:
    """Return the canonical address of one page of a list."""
    query = (query + (f"page={page.number}" if page.number > 1 else "")).rstrip("&")
    return settings.SITE_URL + path + (f"?{query}" if query else "")


def neighbours(shown: Post) -> tuple[Post | None, Post | None]:
    """Return the listed posts published just before and just after, in one query."""
    at, pk = shown.published_at, shown.pk
    listed = Post.objects.listed().only("title", "slug", "published_at").exclude(pk=pk)
    before = listed.filter(Q(published_at__lt=at) | Q(published_at=at, pk__lt=pk)).order_by("-published_at", "-pk")[:1]
    after = listed.filter(Q(published_at__gt=at) | Q(published_at=at, pk__gt=pk)).order_by("published_at", "pk")[:1]
    found: list[Any] = list(before.union(after))
    mine = (at, pk)
    older = next((post for post in found if (post.published_at, post.pk) < mine), None)
    newer = next((post for post in found if (post.published_at, post.pk) > mine), None)
    return older, newer


def spellings(path: str) -> list[str]:
    """Return `path` with and without its last slash: old sites had either."""
    bare = path.rstrip("/")
    return [bare, f"{bare}/"]


def at_address(path: str) -> Q:
    """Match the post that has, or once had, the address `path`."""
    current = Q(slug=path.removeprefix(reverse("posts:archive")).strip("/")) if is_post_path(path) else Q(pk=None)
    return current | Q(redirects__path__in=spellings(path))


def is_post_path(path: str) -> bool:
    return path.startswith(reverse("posts:archive"))
