"""The desk: what the author sees first when he comes in."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from newsletter.models import Issue, Slot

LOOK_UP = ["newsletter.view_delivery", "subscribers.view_subscriber"]


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add to the admin's first page: the next date, and what is under way."""
    busy = Issue.objects.filter(state__in=["sending", "paused", "needs_review"])
    slot = Slot.objects.upcoming().exclude(state=Slot.State.HELD).first()
    return {
        **context,
        "busy_issues": [(issue, issue.counts(), _change_url(issue)) for issue in busy[:5]],
        "next_slot": slot,
        "next_issue": Issue.objects.filter(slot=slot).first() if slot else None,
        "now": timezone.now(),
        "may_look_up": request.user.has_perms(LOOK_UP),
    }


def _change_url(issue: Issue) -> str:
    return reverse("admin:newsletter_issue_change", args=[issue.pk])
