"""An issue before it goes: one is proposed from what is ready; dates, queue and posts to choose from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from newsletter import message
from newsletter.models import Issue, IssuePost, Slot
from posts.models import Post, Publication

DATES_SHOWN = 8
QUEUE_SHOWN = 20
# About what a phone and a desk show of a preheader together; what goes beyond is the beginning of the text anyhow.
PREHEADER_LENGTH = 140
Mode = IssuePost.Mode


def propose() -> Issue:
    """Make a draft of the posts that are ready: named after the first, which stands in full, the others as teasers.

    Raises ValidationError where nothing is ready. The publication's row is locked, so that of two presses at once the
    second finds the posts in the first one's draft.
    """
    with transaction.atomic():
        Publication.objects.select_for_update().get_or_create(pk=1)
        posts = list(ready_posts())
        if not posts:
            raise ValidationError(_("No post is marked “ready for the next issue”, or all that are stand in an issue."))
        first = posts[0]
        issue = Issue.objects.create(
            subject=one_line(first.title),
            preheader=textwrap.shorten(one_line(first.summary), PREHEADER_LENGTH, placeholder=" …"),
        )
        IssuePost.objects.bulk_create(
            IssuePost(issue=issue, post=post, position=position, mode=mode(post, first=position == 1))
            for position, post in enumerate(posts, 1)
        )
    return issue


def ready_posts() -> models.QuerySet[Post]:
    """Return the posts marked ready that stand in no issue yet, the first written first."""
    taken = IssuePost.objects.filter(issue__state__in=Issue.EDITABLE).values("post")
    posts = Post.objects.ready().exclude(pk__in=taken).order_by("created_at", "pk")
    return posts.only("title", "excerpt", "derived_excerpt", "visibility")


def one_line(text: str) -> str:
    """Return a text as it may stand in a header."""
    return " ".join(message.clean(text).split())


def mode(post: Post, *, first: bool) -> str:
    """Return how a post stands in an issue: a teaser leads to the web, where what is mailed only does not stand."""
    return Mode.FULL if first or post.visibility == Post.Visibility.EMAIL_ONLY else Mode.TEASER


def without_holes(text: str) -> str:
    """Return a text as a reader without a name sees it."""
    return message.PLACEHOLDER.sub(lambda found: found.group(2) or "", text)


def dates() -> list[Slot]:
    """Return the next dates in their order, each with the issue that has taken it."""
    return list(Slot.objects.upcoming().select_related("issue").defer("issue__source")[:DATES_SHOWN])


def queue(*, without: Issue) -> list[Issue]:
    """Return the drafts that could take a date, the oldest first."""
    return list(Issue.objects.ready().exclude(pk=without.pk).order_by("pk").defer("source")[:QUEUE_SHOWN])


def next_open(slots: Iterable[Slot]) -> Slot | None:
    return next((slot for slot in slots if slot.state == Slot.State.OPEN), None)


Choices = list[tuple[str, list[tuple[int, str]]]]


def choices(issue: Issue) -> Choices:
    """Return the posts to choose from, by group, the newest first; what was withdrawn only where the issue has it."""
    chosen = IssuePost.objects.filter(issue=issue.pk).values("post")
    posts = Post.objects.filter(~Q(status=Post.Status.WITHDRAWN) | Q(pk__in=chosen))
    groups: dict[str, list[tuple[int, str]]] = {
        _("Ready for the next issue"): [],
        _("Not published yet"): [],
        _("Published"): [],
    }
    ready, unpublished, published = groups.values()
    for pk, title, status, is_ready in posts.values_list("pk", "title", "status", "ready"):
        waits = status in (Post.Status.DRAFT, Post.Status.SCHEDULED)
        (ready if is_ready else unpublished if waits else published).append((pk, title))
    return [(name, rows) for name, rows in groups.items() if rows]
