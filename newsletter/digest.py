"""The digest: once a month, one issue of teasers for the readers who do not want each issue by itself.

It is made as soon as the month is over by the publication's clocks and goes at its usual time that day, through the
ledger like any other issue; until then the author can look at it, change it or take it back.
"""

from __future__ import annotations

import datetime as dt
import textwrap
from typing import NamedTuple

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils import timezone, translation
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from newsletter import alarms, composing, delivery, schedule
from newsletter.models import Issue, IssuePost
from posts.models import Post, Publication
from subscribers.models import Consent, Subscriber


class Month(NamedTuple):
    """A month that is over: its first day, the instants at which it began and ended, and when its digest is due."""

    first: dt.date
    begins: dt.datetime
    ends: dt.datetime
    due_at: dt.datetime

    @classmethod
    def before(cls, now: dt.datetime, publication: Publication) -> Month:
        """Return the month that was over last at `now`, by the publication's clocks."""
        zone = publication.zone
        after = now.astimezone(zone).date().replace(day=1)
        first = (after - dt.timedelta(days=1)).replace(day=1)
        begins, ends = (schedule.instant(day, dt.time(), zone) for day in (first, after))
        return cls(first, begins, ends, schedule.instant(after, publication.send_time, zone))


def assemble() -> Issue | None:
    """Make and schedule the digest of the month that is over, if it has none yet and somebody waits for it.

    What blocks it is told to the author and tried again at the next call, while its date is not missed. The
    publication's row is locked, so that two calls at once make one digest.
    """
    month = Month.before(timezone.now(), Publication.current())
    issue = Issue.objects.filter(digest_of=month.first).first()
    if issue is None and is_awaited(month):
        issue = _make(month)
    if issue is None or issue.state != Issue.State.DRAFT or issue.number:  # the author has taken it back himself
        return None
    try:
        delivery.check_fit(issue)
        issue.schedule_at(month.due_at)
    except ValidationError as error:
        context = {**alarms.about(issue), "error": " ".join(error.messages)}
        alarms.alert("freeze_failed", context, once=f"digest:{month.first}:{context['error']}")
        return None
    return issue


def _make(month: Month) -> Issue | None:
    with transaction.atomic():
        publication = Publication.objects.select_for_update().get(pk=1)
        posts = list(posts_of(month))
        if not posts or Issue.objects.filter(digest_of=month.first).exists():
            return None
        with translation.override(publication.language):
            name = date_format(month.first, "YEAR_MONTH_FORMAT")
            issue = Issue.objects.create(
                digest_of=month.first,
                subject=_("%(month)s in one letter") % {"month": name},
                preheader=textwrap.shorten(
                    " · ".join(composing.one_line(post.title) for post in posts),
                    composing.PREHEADER_LENGTH,
                    placeholder=" …",
                ),
                introduction=_("What went out in %(month)s, in the order in which it was sent.") % {"month": name},
            )
        IssuePost.objects.bulk_create(
            IssuePost(issue=issue, post=post, position=position, mode=composing.mode(post, first=False))
            for position, post in enumerate(posts, 1)
        )
        return issue


def posts_of(month: Month) -> models.QuerySet[Post]:
    """Return what was mailed in a month to the readers of each issue, in the order in which it was sent.

    What the author has taken back since, as a draft or for good, is not sent again.
    """
    sent = Issue.objects.archived().filter(digest_of=None, started_at__gte=month.begins, started_at__lt=month.ends)
    posts = Post.objects.filter(issues__in=sent, status=Post.Status.PUBLISHED)
    return posts.annotate(sent_at=models.Min("issues__started_at")).order_by("sent_at", "pk")


def is_awaited(month: Month) -> bool:
    """Tell whether a reader who may be mailed wants digests, and wanted them when this one was due."""
    waiting = Subscriber.objects.mailable().filter(frequency=Subscriber.Frequency.MONTHLY)
    changed = Consent.objects.filter(subscriber=models.OuterRef("pk"), at__gt=month.due_at, detail__has_key="frequency")
    return waiting.exclude(models.Exists(changed)).exists()
