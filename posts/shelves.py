"""Lists that grow: pages that keep what is on them under their address, and the years of the archive."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import urlencode

from django.db.models import Count, QuerySet
from django.db.models.functions import ExtractYear
from django.http import Http404

from posts.models import Post, PostQuerySet, Tag

PAGE = 30


@dataclass(frozen=True)
class Leaf:
    """A page of a list that is shown newest first and numbered from its oldest end.

    Page 1 holds the oldest, and a page has a number only once it is full: so what stands on it never moves on, however
    many come. The newest, from PAGE to one less than twice as many, stand at the address without a number.
    """

    number: int
    count: int
    path: str
    year: int | None = None

    @property
    def newest(self) -> int:
        return max(self.count // PAGE, 1)

    @property
    def first(self) -> int:
        """Return the place of the page's oldest entry, counted from the oldest of all."""
        return (self.number - 1) * PAGE + 1

    @property
    def last(self) -> int:
        return self.count if self.number == self.newest else self.number * PAGE

    @property
    def part(self) -> slice:
        """Return which part of the list, newest first, stands on this page."""
        return slice(self.count - self.last, self.count - self.first + 1)

    @property
    def address(self) -> str:
        return self._at(self.number)

    @property
    def newer(self) -> str:
        return self._at(self.number + 1) if self.number < self.newest else ""

    @property
    def older(self) -> str:
        return self._at(self.number - 1) if self.number > 1 else ""

    def _at(self, number: int) -> str:
        query = {"year": self.year, "page": number if number < self.newest else None}
        asked = urlencode({name: value for name, value in query.items() if value})
        return f"{self.path}?{asked}" if asked else self.path


def leaf(asked: str, *, count: int, path: str, year: int | None = None) -> Leaf:
    """Return the page that ?page= names, the newest where it names none; raise Http404 where there is no such page."""
    newest = Leaf(max(count // PAGE, 1), count, path, year)
    if not asked:
        return newest
    if asked not in map(str, range(1, newest.number)):
        raise Http404
    return Leaf(int(asked), count, path, year)


def tags() -> QuerySet[Tag]:
    """Return the tags that have listed posts: others are not there for readers yet."""
    return Tag.objects.filter(posts__in=Post.objects.listed()).distinct()


def years(posts: PostQuerySet, zone: zoneinfo.ZoneInfo) -> dict[int, int]:
    """Return how many of the posts each year has by the clocks of `zone`, the newest year first."""
    dated = posts.annotate(year=ExtractYear("published_at", tzinfo=zone)).order_by("-year")
    return dict(dated.values_list("year").annotate(Count("pk")))


def chosen_year(asked: str, known: dict[int, int]) -> int | None:
    """Return the year that ?year= names; raise Http404 where nothing was published in it."""
    if not asked:
        return None
    if asked not in map(str, known):
        raise Http404
    return int(asked)


def of_year(posts: PostQuerySet, year: int, zone: zoneinfo.ZoneInfo) -> PostQuerySet:
    start, end = (dt.datetime(each, 1, 1, tzinfo=zone) for each in (year, year + 1))
    return posts.filter(published_at__gte=start, published_at__lt=end)


def by_year(posts: list[Post], zone: zoneinfo.ZoneInfo) -> list[tuple[int, list[Post]]]:
    """Return the posts, which come newest first, in one group a year."""
    groups = groupby(posts, key=lambda post: post.published_at.astimezone(zone).year)  # type: ignore[union-attr]  # listed
    return [(year, list(group)) for year, group in groups]
