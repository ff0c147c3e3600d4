"""Give the posts that are there already what newer ones get when they are saved: copies of their images, headings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation, ValidationError

from posts import images
from posts.models import DERIVED, Post

NAMED = re.compile(rf"{re.escape(settings.MEDIA_URL)}([\w./-]+)")


@dataclass
class Report:
    """What a run did."""

    posts: int = 0
    changed: int = 0
    copies: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def make_all(*, progress: Callable[[Report], None] | None = None) -> Report:
    """Make the missing copies of every post's images, and derive anew what pages show; again, it changes nothing."""
    report = Report()
    for pk in Post.objects.order_by("pk").values_list("pk", flat=True):
        _renew(Post.objects.defer("search", "search_head").get(pk=pk), report)
        if progress:
            progress(report)
    return report


def _renew(post: Post, report: Report) -> None:
    report.posts += 1
    for name in dict.fromkeys(NAMED.findall(post.body)):
        _copy(name, report)
    if post.cover:
        _copy(str(post.cover.name), report)
        post.describe_cover()
    before = Post.objects.filter(pk=post.pk).values(*DERIVED).get()
    try:
        post.derive()
    except ValueError as error:
        report.failed[post.slug] = str(error)
        return
    after = {name: getattr(post, name) for name in DERIVED}
    if after != before:
        # Around `save`: nothing that the author wrote is another, so neither revision nor date is.
        Post.objects.filter(pk=post.pk).update(**after)
        report.changed += 1


def _copy(name: str, report: Report) -> None:
    try:
        report.copies += images.make_copies(name)
    except ValidationError as error:
        report.failed[name] = " ".join(error.messages)
    except (OSError, SuspiciousFileOperation) as error:
        report.failed[name] = str(error)
