"""What became of it all, in figures: readers week by week, where they came from, and what each issue brought.

What the database does not tell is left out and said so: of erased readers it is not kept when they joined and left.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from django.db import connection, models
from django.db.models.functions import Now

from newsletter.models import Counts, Delivery, Issue, Link
from subscribers.models import Subscriber

WEEKS = 52
SOURCES_SHOWN = 8
LEAVING_DAYS = 7
WEEK = dt.timedelta(days=7)
ENDED: dict[tuple[int, dt.datetime], Counts] = {}  # by issue and since when it has been at its end
ENDED_KEPT = 1000

# Everybody's comings and goings since an instant, one row each. A reader's last confirmation stands in his row; what
# went before, of those who once left, in the consent log. Who was brought along as one that had left before, never
# read here; who left before he confirmed, did not either.
EVENTS = """
WITH leavings AS MATERIALIZED (
    SELECT c.subscriber_id, c.at, s.source, s.confirmed_at
      FROM subscribers_consent c JOIN subscribers_subscriber s ON s.id = c.subscriber_id
     WHERE c.kind = 'unsubscribed' AND s.status IN ('active', 'unsubscribed', 'pending') AND s.confirmed_at IS NOT NULL
       AND (c.at > s.confirmed_at
            OR EXISTS (SELECT FROM subscribers_consent e WHERE e.subscriber_id = c.subscriber_id AND e.at < c.at
                          AND e.kind IN ('confirmed', 'resubscribed', 'imported')))
), events AS (
    SELECT confirmed_at AS at, source, 1 AS joined, 0 AS gone FROM subscribers_subscriber s
     WHERE confirmed_at >= %(since)s
       AND (status = 'active' OR s.id IN (SELECT subscriber_id FROM leavings))
    UNION ALL
    SELECT c.at, l.source, 1, 0
      FROM (SELECT DISTINCT subscriber_id, source, confirmed_at FROM leavings) AS l
      JOIN subscribers_consent c ON c.subscriber_id = l.subscriber_id
     WHERE c.at >= %(since)s
       AND (c.kind = 'resubscribed' OR (c.kind = 'confirmed' AND c.at < l.confirmed_at))
    UNION ALL
    SELECT at, source, 0, 1 FROM leavings WHERE at >= %(since)s
)
SELECT date_trunc('week', at AT TIME ZONE %(zone)s)::date, source, GROUPING(source), sum(joined), sum(gone)
  FROM events
 GROUP BY GROUPING SETS ((1), (source))
"""

# Readers who were sent an issue and left within so many days of its beginning. Each is looked up in the ledger by its
# index, never the other way round: LIMIT keeps the planner from reading all copies of all issues.
LEFT_AFTER = """
SELECT i.id, count(DISTINCT c.subscriber_id)
  FROM newsletter_issue i
  JOIN subscribers_consent c ON c.kind = 'unsubscribed' AND c.at >= i.started_at
       AND c.at < i.started_at + make_interval(days => %(days)s)
 CROSS JOIN LATERAL (SELECT FROM newsletter_delivery d
                      WHERE d.issue_id = i.id AND d.subscriber_id = c.subscriber_id AND d.state = 'accepted'
                      LIMIT 1) AS got
 WHERE i.id = ANY(%(issues)s)
 GROUP BY i.id
"""


@dataclass(frozen=True)
class Audience:
    """The confirmed readers of this moment, and why some would not be mailed now."""

    readers: int
    suppressed: int
    paused: int  # and not suppressed
    monthly: int  # want a digest, and neither of these
    waiting: int  # asked to join and have not confirmed
    erased: int

    @property
    def mailable(self) -> int:
        return self.readers - self.suppressed - self.paused

    @property
    def of_each_issue(self) -> int:
        """Return how many get a single issue, whatever its topics."""
        return self.mailable - self.monthly


@dataclass(frozen=True)
class Week:
    """A week that begins on Monday `begins`: who came, who left, and how many read at its end."""

    begins: dt.date
    joined: int
    left: int
    readers: int


@dataclass(frozen=True)
class Source:
    """Where readers came from: how many joined by it, and how many of its readers left."""

    name: str
    joined: int
    left: int

    @property
    def net(self) -> int:
        return self.joined - self.left


@dataclass(frozen=True)
class Growth:
    """A year of readers: oldest week first, the source that brought most first."""

    weeks: Sequence[Week]
    sources: Sequence[Source]
    other_sources: int = 0  # how many the last of `sources` stands for

    @property
    def joined(self) -> int:
        return sum(week.joined for week in self.weeks)

    @property
    def left(self) -> int:
        return sum(week.left for week in self.weeks)


@dataclass(frozen=True)
class Past:
    """An issue that went out, and what came of it."""

    issue: Issue
    counts: Counts
    left: int
    links: Sequence[Link] = field(default=())
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    @cached_property
    def clicks(self) -> int | None:
        """Return how often links were followed; None where that was not counted."""
        return sum(link.clicks for link in self.links) if self.issue.count_clicks else None

    @property
    def is_young(self) -> bool:
        """Whether more readers may still leave within the days that are counted."""
        started = self.issue.started_at
        return started is not None and self.now < started + dt.timedelta(days=LEAVING_DAYS)


def audience() -> Audience:
    """Count the readers of this moment in one scan."""
    status = Subscriber.Status
    active = models.Q(status=status.ACTIVE)
    kinds = {
        "readers": active,
        "suppressed": active & models.Q(suppressed=True),
        "paused": active & models.Q(suppressed=False, paused_until__gt=Now()),
        "monthly": active
        & models.Q(suppressed=False, frequency=Subscriber.Frequency.MONTHLY)
        & (models.Q(paused_until=None) | models.Q(paused_until__lte=Now())),
        "waiting": models.Q(status=status.PENDING),
        "erased": models.Q(status=status.ERASED),
    }
    counts = {f"are_{kind}": models.Count("pk", filter=those) for kind, those in kinds.items()}
    found = Subscriber.objects.aggregate(**counts)
    return Audience(**{kind: found[f"are_{kind}"] for kind in kinds})


def growth(*, readers: int, now: dt.datetime, zone: ZoneInfo) -> Growth:
    """Tell the last year, week by week and by source, where there are `readers` now.

    It is counted back from now, so the curve ends at what is true.
    """
    mondays = _mondays(now, zone)
    since = dt.datetime.combine(mondays[0], dt.time(), tzinfo=zone)
    by_week: dict[dt.date, tuple[int, int]] = {}
    sources = []
    for monday, name, is_week, joined, left in _fetch(EVENTS, {"since": since, "zone": str(zone)}):
        if is_week:
            by_week[monday] = (joined, left)
        else:
            sources.append(Source(name, joined, left))
    return Growth(_count_back(mondays, by_week, readers), *_most(sources))


def past_issues(count: int) -> list[Past]:
    """Return the last issues that went out and came to their end, the newest first."""
    ended = [Issue.State.COMPLETED, Issue.State.COMPLETED_WITH_FAILURES, Issue.State.CANCELLED]
    found = Issue.objects.filter(state__in=ended, started_at__isnull=False).defer("source").order_by("-started_at")
    issues = list(found.prefetch_related(models.Prefetch("links", Link.objects.order_by("-clicks", "number")))[:count])
    counts, left = _counts_at_end(issues), left_after([issue.pk for issue in issues])
    return [Past(issue, counts[issue.pk], left.get(issue.pk, 0), list(issue.links.all())) for issue in issues]


def count_copies(issues: Sequence[int]) -> dict[int, Counts]:
    """Count the copies of each issue by state."""
    found: dict[int, dict[str, int]] = {pk: {} for pk in issues}
    rows = Delivery.objects.filter(issue__in=issues).order_by().values_list("issue", "state")
    for pk, state, number in rows.annotate(number=models.Count("*")):
        found[pk][state] = number
    return {pk: Counts(by_state) for pk, by_state in found.items()}


def _counts_at_end(issues: Sequence[Issue]) -> dict[int, Counts]:
    """Return the equations of ended issues. A process counts each once, since it can be 100,000 rows.

    What ended can only change after it went on, and then `state_since` is another; but a cancelled issue's unknown
    copies may still be settled.
    """
    missing = [issue for issue in issues if (issue.pk, issue.state_since) not in ENDED]
    found = count_copies([issue.pk for issue in missing]) if missing else {}
    if len(ENDED) > ENDED_KEPT:
        ENDED.clear()
    ended = {
        (issue.pk, issue.state_since): found[issue.pk] for issue in missing if issue.state != Issue.State.CANCELLED
    }
    ENDED.update(ended)
    return {issue.pk: found.get(issue.pk) or ENDED[issue.pk, issue.state_since] for issue in issues}


def left_after(issues: Sequence[int]) -> dict[int, int]:
    """Count the readers who got each issue and left within LEAVING_DAYS of its beginning."""
    return dict(_fetch(LEFT_AFTER, {"issues": list(issues), "days": LEAVING_DAYS}))


def _mondays(now: dt.datetime, zone: ZoneInfo) -> list[dt.date]:
    """Return the first days of the present week and of the WEEKS before it."""
    today = now.astimezone(zone).date()
    this = today - dt.timedelta(days=today.weekday())
    return [this - n * WEEK for n in range(WEEKS, -1, -1)]


def _count_back(mondays: Sequence[dt.date], by_week: dict[dt.date, tuple[int, int]], readers: int) -> list[Week]:
    weeks = []
    for monday in reversed(mondays):
        joined, left = by_week.get(monday, (0, 0))
        weeks.append(Week(monday, joined, left, readers))
        readers -= joined - left
    return weeks[::-1]


def _most(sources: list[Source]) -> tuple[list[Source], int]:
    """Return the sources that brought most; what is left over together in one, and how many that are."""
    ordered = sorted(sources, key=lambda source: (-source.joined, -source.left, source.name))
    if len(ordered) <= SOURCES_SHOWN:
        return ordered, 0
    shown, rest = ordered[: SOURCES_SHOWN - 1], ordered[SOURCES_SHOWN - 1 :]
    others = Source("", sum(source.joined for source in rest), sum(source.left for source in rest))
    return [*shown, others], len(rest)


def _fetch(sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
