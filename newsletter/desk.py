"""The desk: what the author sees first when he comes in: the next date, what is under way, and what came of it all."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.translation import gettext as _

from newsletter import figures, guide, preflight
from newsletter.models import Counts, Issue, Slot
from posts.models import Post, Publication
from subscribers import instance

LOOK_UP = ["newsletter.view_delivery", "subscribers.view_subscriber"]
BUSY = [Issue.State.FROZEN, Issue.State.SENDING, Issue.State.PAUSED, Issue.State.NEEDS_REVIEW]
BUSY_SHOWN = 5
PAST_SHOWN = 10
DRAFTS_SHOWN = 3
LINKS_SHOWN = 10


@dataclass(frozen=True)
class Upcoming:
    """What goes out next: the instant, the issue if there is one, and what keeps it from being ready."""

    due_at: dt.datetime
    issue: Issue | None
    problems: Sequence[str] = ()
    drafts: Sequence[Issue] = ()
    ready_posts: int = 0
    now: dt.datetime = field(default_factory=timezone.now)

    @property
    def is_due(self) -> bool:
        return self.due_at <= self.now

    @property
    def is_ready(self) -> bool:
        return self.issue is not None and not self.problems


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add to the admin's first page what its reader may see."""
    found = {
        **context,
        "title": _("Desk"),
        "now": timezone.now(),
        "guide_step": guide.next_step(request) if guide.is_needed(request) else "",
        "why_not": instance.why_not(),
        "may_look_up": request.user.has_perms(LOOK_UP),
        "may_compose": request.user.has_perm("newsletter.add_issue"),
        "may_write": request.user.has_perm("posts.add_post"),
    }
    if request.user.has_perm("newsletter.view_issue"):
        found |= {"may_see_issues": True, "upcoming": upcoming(), "busy": busy(), "past": _past()}
    if request.user.has_perm("subscribers.view_subscriber"):
        found |= _readers()
        found["goes_to"] = _goes_to(found.get("upcoming"), found["audience"])
    return found


def _goes_to(upcoming: Upcoming | None, audience: figures.Audience) -> int:
    """Return to how many readers the next issue would go now; they are counted anew only where it is not for all."""
    if upcoming is None or upcoming.issue is None or upcoming.issue.is_for_all:
        return audience.of_each_issue
    return upcoming.issue.audience().count()


def upcoming() -> Upcoming | None:
    """Return what goes out next: the first scheduled issue, or the next date where that comes before; None at first."""
    issue = Issue.objects.filter(state=Issue.State.SCHEDULED).defer("source").order_by("due_at").first()
    slot = Slot.objects.upcoming().exclude(state=Slot.State.HELD).first()
    if issue and issue.due_at and (slot is None or issue.due_at <= slot.due_at):
        return Upcoming(issue.due_at, issue, problems(issue))
    if slot is None:
        return None
    drafts = Issue.objects.filter(state=Issue.State.DRAFT).defer("source")[:DRAFTS_SHOWN]
    return Upcoming(slot.due_at, None, drafts=list(drafts), ready_posts=Post.objects.ready().count())


def problems(issue: Issue) -> list[str]:
    """Return in words what keeps a scheduled issue from going as it should; empty where it is ready."""
    if missing := issue.missing():
        return [str(problem) for problem in missing.values()]
    return [finding.in_words for finding in preflight.blocking(issue)]


def busy() -> list[tuple[Issue, Counts]]:
    """Return the issues that are under way or wait for the author's decision, the newest first, with their equations.

    Of the last few only; as many as that are never under way at once.
    """
    issues: QuerySet[Issue] = Issue.objects.filter(state__in=BUSY).defer("source")
    found = list(issues[:BUSY_SHOWN])
    counts = figures.count_copies([issue.pk for issue in found])
    return [(issue, counts[issue.pk]) for issue in found]


def _past() -> dict[str, Any]:
    issues = figures.past_issues(PAST_SHOWN)
    counted = next((past for past in issues if past.clicks is not None), None)
    return {
        "issues": issues,
        "any_young": any(past.is_young for past in issues),
        "any_counted": counted is not None,
        "last_counted": counted,
        "links": counted.links[:LINKS_SHOWN] if counted else [],
    }


def _readers() -> dict[str, Any]:
    audience = figures.audience()
    growth = figures.growth(readers=audience.readers, now=timezone.now(), zone=Publication.current().zone)
    return {
        "audience": audience,
        "growth": growth,
        "sources": [(_source_name(source, growth), source) for source in growth.sources],
        "charts": _charts(growth),
        "subscribers_url": reverse("admin:subscribers_subscriber_changelist"),
    }


def _charts(growth: figures.Growth) -> dict[str, Any]:
    """Return what desk.js draws: labels, and series with their colours by name."""
    weeks = [formats.date_format(week.begins, "j M") for week in growth.weeks]
    joined, left = _("joined"), _("left")
    return {
        "readers": {
            "kind": "line",
            "labels": weeks,
            "series": [{"label": _("readers"), "colour": "joined", "values": [week.readers for week in growth.weeks]}],
        },
        "moves": {
            "kind": "bar",
            "labels": weeks,
            "series": [
                {"label": joined, "colour": "joined", "values": [week.joined for week in growth.weeks]},
                {"label": left, "colour": "left", "values": [-week.left for week in growth.weeks]},
            ],
        },
        "sources": {
            "kind": "sideways",
            "labels": [_source_name(source, growth) for source in growth.sources],
            "series": [
                {"label": joined, "colour": "joined", "values": [source.joined for source in growth.sources]},
                {"label": left, "colour": "left", "values": [source.left for source in growth.sources]},
            ],
        },
    }


def _source_name(source: figures.Source, growth: figures.Growth) -> str:
    if growth.other_sources and source is growth.sources[-1]:
        return _("%(count)s others together") % {"count": growth.other_sources}
    return source.name or _("not known")
