"""What is to be seen of an issue under way: the equation, the pace, the answers, and who is at work."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone
from django.utils.timesince import timeuntil
from django.utils.translation import gettext_lazy as _

from newsletter.models import Counts, Delivery, Group, Issue, Lease
from newsletter.replies import Class
from posts.models import Publication

State = Delivery.State

# What became of copies that were answered, and which answers the page lists.
BECAME = {
    State.DEFERRED: _("put off"),
    State.REJECTED: _("rejected"),
    State.EXPIRED: _("given up"),
    State.FAILED: _("could not be made"),
    State.UNCERTAIN: _("unknown, looked into"),
    State.UNCERTAIN_FINAL: _("unknown"),
}
# What an answer is about, in the words of one who has never read an RFC.
ABOUT = {
    Class.HARD_ADDRESS: _("there is no such mailbox"),
    Class.SOFT_ADDRESS: _("the mailbox is full or out of reach for now"),
    Class.SENDER_FAULT: _("about the sender or what was written, not the reader"),
    Class.CONTENT_SIZE: _("the mail is too large"),
    Class.RATE: _("asked for a slower pace"),
    Class.QUOTA: _("the account's allowance is used up"),
    Class.UNKNOWN: _("no reason that is known here"),
}
UNDER_WAY = {Issue.State.FROZEN, Issue.State.SENDING, Issue.State.PAUSED}
SETTLED = {State.ACCEPTED, *Delivery.FAILURES, *Delivery.UNKNOWN}
MINUTE = dt.timedelta(minutes=1)


@dataclass(frozen=True)
class Answered:
    """So many copies got this kind of answer; `example` is one of the answers, word for word."""

    count: int
    became: Any
    about: Any
    example: str


class Progress:
    """What is to be seen of an issue at one moment; counted in one scan of its copies."""

    def __init__(self, issue: Issue) -> None:
        self.issue = issue
        self.now = timezone.now()
        self.groups = issue.deliveries.groups()
        self.counts = Counts.of_groups(self.groups)

    @property
    def is_live(self) -> bool:
        """Whether anything may still change by itself."""
        return self.issue.state in UNDER_WAY or bool(self.counts.open or self.counts.of([State.UNCERTAIN]))

    @property
    def clock(self) -> str:
        return f"{self.now.astimezone(Publication.current().zone):%H:%M:%S}"

    @property
    def summary(self) -> str:
        """Return what a screen reader says when it changes: seldom, so in steps of ten per cent."""
        steps = self.counts.percent // 10 * 10
        return str(_("%(state)s, %(percent)s %% done") % {"state": self.issue.get_state_display(), "percent": steps})

    @property
    def pace(self) -> int:
        """Return how many copies were settled within the last minute; while it is younger, as if it went on so."""
        lately = sum(group.lately for group in self.groups if group.state in SETTLED)
        age = self.now - (self.issue.started_at or self.now)
        return round(lately * MINUTE / max(min(age, MINUTE), dt.timedelta(seconds=1)))

    @property
    def average(self) -> int:
        """Return how many copies were settled a minute since it began."""
        age = (self.issue.completed_at or self.now) - (self.issue.started_at or self.now)
        return round(self.counts.of(SETTLED) * MINUTE / max(age, dt.timedelta(seconds=1)))

    @property
    def left(self) -> str:
        """Return about how long it takes at the present pace, rounded up; empty where nothing goes."""
        pace = self.pace if self.issue.state == Issue.State.SENDING else 0
        minutes = -(-self.counts.open // pace) if pace else 0
        return timeuntil(self.now + minutes * MINUTE, self.now) if minutes else ""

    @property
    def retries(self) -> int:
        return sum(group.waiting for group in self._waiting)

    @property
    def next_try(self) -> dt.datetime | None:
        """Return when the first of those that wait is tried again; None where it is due now."""
        first = min((group.next_at for group in self._waiting if group.next_at), default=None)
        return first if first and first > self.now else None

    @property
    def _waiting(self) -> list[Group]:
        return [group for group in self.groups if group.state in (State.DEFERRED, State.PENDING)]

    @cached_property
    def answered(self) -> list[Answered]:
        """Return the answers by kind, the most frequent first."""
        told = sorted((group for group in self.groups if group.state in BECAME), key=lambda group: -group.count)
        examples = Delivery.objects.in_bulk([group.example for group in told])
        return [
            Answered(
                group.count, BECAME[State(group.state)], _about(group.reply_class), _words(examples.get(group.example))
            )
            for group in told
        ]

    @cached_property
    def workers(self) -> list[Lease]:
        """Return who is at work on the issue now, by the database's clock."""
        return list(self.issue.leases.filter(ended_at=None, expires_at__gt=Now()).order_by("started_at"))


def _about(reply_class: str) -> Any:
    return ABOUT.get(Class(reply_class), "") if reply_class in set(Class) else ""


def _words(row: Delivery | None) -> str:
    """Return what the relay said last of a copy, with its code."""
    return f"{row.smtp_code or ''} {row.reply_text}".strip() if row else ""
