"""The search page: words, a topic and a year in its address; a script shows the same page's results as one types."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.core.paginator import Page, Paginator
from django.db.models import Count, Window
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from posts import pagecache, search, shelves
from posts.models import Post, PostQuerySet, Publication, Tag

RESULTS = 10
LONGEST = 200  # characters of what is typed


@pagecache.kept("page", "tag", "year", text=["q"])
@require_safe
def search_posts(request: HttpRequest) -> HttpResponse:
    publication = Publication.current()
    words = request.GET.get("q", "").replace("\x00", "").strip()[:LONGEST]
    years, tags = filters()
    tag = next((each for each in tags if each.slug == request.GET.get("tag")), None)
    year = next((each for each in years if str(each) == request.GET.get("year")), None)
    posts = _within(tag, year, publication)
    page = _page(search.search(posts, words, language=publication.language), request) if words else None
    chosen = {"q": words, "tag": tag.slug if tag else "", "year": year or ""}
    context = {
        "words": words,
        "tags": tags,
        "tag": tag,
        "years": years,
        "year": year,
        "page": page,
        "results": [(post, search.highlighted(post.headline)) for post in page or ()],
        "query": urlencode({name: value for name, value in chosen.items() if value}) + "&",
    }
    return render(request, "posts/search.html", context)


@pagecache.once_a_version
def filters() -> tuple[dict[int, int], list[Tag]]:
    """Return the years and the tags of the listed posts, each with how many there are."""
    years = shelves.years(Post.objects.listed(), Publication.current().zone)
    tags = Tag.objects.filter(posts__in=Post.objects.listed()).annotate(uses=Count("posts")).order_by("name")
    return years, list(tags)


def _within(tag: Tag | None, year: int | None, publication: Publication) -> PostQuerySet:
    posts = Post.objects.listed().brief()
    posts = posts.filter(tags=tag) if tag else posts
    return shelves.of_year(posts, year, publication.zone) if year else posts


class Results(Page):
    """A page of what was found; its rows and the number of all come from one query."""

    def __init__(self, found: Any, number: int) -> None:
        first = (number - 1) * RESULTS
        shown = list(found.annotate(total=Window(Count("*")))[first : first + RESULTS])
        total = range(shown[0].total) if shown else ()
        super().__init__(shown, number, Paginator(total, RESULTS))


def _page(found: Any, request: HttpRequest) -> Results:
    """Return the page that ?page= names; raise Http404 where there is none."""
    asked = request.GET.get("page", "1")
    number = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 4 else 0
    if number < 1:
        raise Http404
    page = Results(found, number)
    if number > 1 and not page.object_list:
        raise Http404
    return page
