"""What was sent to whom: slots of the weekly rhythm, issues, and the ledger of deliveries."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import OperationalError, models, transaction
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from newsletter import message
from posts import markdown
from posts.models import CONTROL_CHARACTERS, Post, Publication, Tag
from subscribers.models import Subscriber, SubscriberQuerySet


def validate_recipient(address: str) -> None:
    """Raise ValidationError, which names it, unless `address` is one that a mail can go to."""
    try:
        validate_email(address)
        message.one_address(address)
    except (ValidationError, ValueError) as error:
        text = _("Mail can't go to this address: “%(address)s”. Write one valid email address, as me@example.org.")
        raise ValidationError(text, params={"address": address}) from error


class SlotQuerySet(models.QuerySet["Slot"]):
    def upcoming(self) -> SlotQuerySet:
        """Slots whose instant has not come, by the database's clock."""
        return self.filter(due_at__gt=Now()).order_by("due_at")

    def open(self) -> SlotQuerySet:
        return self.filter(state=Slot.State.OPEN)


class Slot(models.Model):
    """One date of the weekly rhythm; at most one issue takes it."""

    class State(models.TextChoices):
        OPEN = "open", _("Open")
        TAKEN = "taken", _("Taken")
        HELD = "held", _("Held: nothing goes out on this date")
        MISSED = "missed", _("Missed")

    local_date = models.DateField(unique=True)
    due_at = models.DateTimeField(db_index=True)
    state = models.CharField(max_length=6, choices=State, default=State.OPEN)
    # True once the author moved it: a change of the weekly time leaves it alone.
    moved = models.BooleanField(default=False)

    objects = SlotQuerySet.as_manager()

    class Meta:
        ordering = ["due_at"]

    def __str__(self) -> str:
        return f"{self.local_date:%A %d %B %Y}"

    def check_free(self, issue: Issue) -> None:
        """Raise ValidationError unless `issue` may take this slot."""
        if self.due_at <= timezone.now():
            raise ValidationError({"slot": _("This date has passed: choose a later one, or send the issue now.")})
        if self.state == self.State.HELD:
            raise ValidationError({"slot": _("This date is held: open it first, or choose another.")})
        if self.state == self.State.TAKEN and issue.slot != self:
            raise ValidationError({"slot": _("Another issue has taken this date: choose another.")})

    def take(self) -> None:
        self.state = self.State.TAKEN
        self.save(update_fields=["state"])

    def hold(self) -> None:
        """Let nothing go out on this date. Raises ValidationError where an issue has taken it."""
        if not self._turn(self.State.OPEN, self.State.HELD):
            raise ValidationError(_("An issue has taken this date: take it back to a draft first."))

    def release(self) -> None:
        """Open a held date again."""
        if not self._turn(self.State.HELD, self.State.OPEN):
            raise ValidationError(_("Only a held date can be opened."))

    def move(self, due_at: dt.datetime) -> None:
        """Send on another instant this week; an issue in the slot goes along."""
        with transaction.atomic():
            if due_at <= timezone.now():
                raise ValidationError({"due_at": _("This instant has passed: choose a later one.")})
            Slot.objects.filter(pk=self.pk).update(due_at=due_at, moved=True)
            Issue.objects.filter(slot=self, state=Issue.State.SCHEDULED).update(due_at=due_at)
            self.refresh_from_db()

    def _turn(self, old: str, new: str) -> bool:
        if changed := bool(Slot.objects.filter(pk=self.pk, state=old).update(state=new)):
            self.state = new
        return changed


class IssueQuerySet(models.QuerySet["Issue"]):
    def due(self) -> IssueQuerySet:
        """Scheduled issues whose instant has come, by the database's clock."""
        return self.filter(state=Issue.State.SCHEDULED, due_at__lte=Now())

    def ready(self) -> IssueQuerySet:
        """Drafts that have a subject and something to say."""
        has_post = models.Exists(IssuePost.objects.filter(issue=models.OuterRef("pk")))
        drafts = self.filter(state=Issue.State.DRAFT, subject__regex=r"\S")
        return drafts.filter(has_post | models.Q(introduction__regex=r"\S"))

    def sending(self) -> IssueQuerySet:
        return self.filter(state=Issue.State.SENDING)

    def archived(self) -> IssueQuerySet:
        """Issues that readers may see in the archive: those whose sending began."""
        return self.filter(started_at__isnull=False).exclude(state=Issue.State.CANCELLED)


class Issue(models.Model):
    """One e-mailing of one or more posts."""

    class State(models.TextChoices):
        DRAFT = "draft", _("Draft")
        SCHEDULED = "scheduled", _("Scheduled")
        FROZEN = "frozen", _("Frozen")
        SENDING = "sending", _("Sending")
        PAUSED = "paused", _("Paused")
        COMPLETED = "completed", _("Completed")
        COMPLETED_WITH_FAILURES = "completed_with_failures", _("Completed with failures")
        NEEDS_REVIEW = "needs_review", _("Needs review")
        CANCELLED = "cancelled", _("Cancelled")

    # Freezing is one transaction, so `frozen` is seen by others only where an issue waits for its first hint.
    MOVES = {
        State.DRAFT: {State.SCHEDULED, State.CANCELLED},
        State.SCHEDULED: {State.DRAFT, State.FROZEN, State.CANCELLED},
        State.FROZEN: {State.SENDING, State.PAUSED, State.CANCELLED},
        State.SENDING: {
            State.PAUSED,
            State.COMPLETED,
            State.COMPLETED_WITH_FAILURES,
            State.NEEDS_REVIEW,
            State.CANCELLED,
        },
        State.PAUSED: {State.FROZEN, State.SENDING, State.CANCELLED},
        State.NEEDS_REVIEW: {State.SENDING, State.COMPLETED, State.COMPLETED_WITH_FAILURES, State.CANCELLED},
        # Only by the author's explicit act: to those who joined since, or once more to those it failed for.
        State.COMPLETED: {State.SENDING},
        State.COMPLETED_WITH_FAILURES: {State.SENDING},
        State.CANCELLED: set(),
    }
    EDITABLE = frozenset({State.DRAFT, State.SCHEDULED})

    number = models.PositiveIntegerField(unique=True, null=True, blank=True, help_text=_("Given when it is scheduled."))
    subject = models.CharField(max_length=200, blank=True, validators=[CONTROL_CHARACTERS])
    preheader = models.CharField(max_length=200, blank=True, validators=[CONTROL_CHARACTERS])
    introduction = models.TextField(blank=True, help_text=_("Markdown, before the posts."))
    posts = models.ManyToManyField(Post, through="IssuePost", related_name="issues")
    state = models.CharField(max_length=24, choices=State, default=State.DRAFT)
    # Written by a trigger, whoever changes the state.
    state_since = models.DateTimeField(db_default=Now(), editable=False)
    slot = models.OneToOneField(
        Slot,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="issue",
        error_messages={"unique": _("Another issue has taken this slot: choose another date.")},
    )
    due_at = models.DateTimeField(null=True, blank=True)
    # The first day of the month whose digest it is; see digest.py. Goes to readers who want digests, and to them alone.
    digest_of = models.DateField(null=True, unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    count_clicks = models.BooleanField(
        default=False,
        db_default=False,
        help_text=_("Links lead through this site, which counts clicks a link, never a reader."),
    )

    # Fixed at freeze; the source of every copy from then on.
    source = models.JSONField(default=dict, blank=True, editable=False)
    source_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    prepared_at = models.DateTimeField(null=True, editable=False)
    candidates = models.PositiveIntegerField(null=True, editable=False)
    planned = models.PositiveIntegerField(null=True, editable=False)
    excluded = models.PositiveIntegerField(null=True, editable=False)
    started_at = models.DateTimeField(null=True, editable=False)
    completed_at = models.DateTimeField(null=True, editable=False)
    # When addresses and answers were taken out of its copies; see retention.py.
    forgotten_at = models.DateTimeField(null=True, editable=False)
    late = models.BooleanField(default=False, editable=False)
    # Why sending paused by itself, and when it goes on by itself; empty where the author paused it.
    pause_reason = models.TextField(blank=True, default="", db_default="", editable=False)
    resume_at = models.DateTimeField(null=True, editable=False)
    # Seconds of all its pauses that are over, written by the trigger: the time for retries stands still meanwhile.
    paused_seconds = models.FloatField(default=0.0, db_default=0.0, editable=False)

    objects = IssueQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        permissions = [("send_issue", _("Can schedule, send, pause and cancel issues"))]
        constraints = [
            models.CheckConstraint(
                condition=~models.Q(state="scheduled") | models.Q(due_at__isnull=False, number__isnull=False),
                name="scheduled_has_instant",
            ),
            models.CheckConstraint(
                condition=models.Q(prepared_at=None) | models.Q(candidates=models.F("planned") + models.F("excluded")),
                name="candidates_are_planned_or_excluded",
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=["draft", "scheduled", "cancelled"]) | models.Q(prepared_at__isnull=False),
                name="sent_only_when_prepared",
            ),
        ]

    def __str__(self) -> str:
        return f"#{self.number or '?'} {self.subject or _('(no subject yet)')}"

    def get_absolute_url(self) -> str:
        return reverse("newsletter:issue", args=[self.number])

    @property
    def url(self) -> str:
        return settings.SITE_URL + self.get_absolute_url()

    @property
    def is_editable(self) -> bool:
        return self.state in self.EDITABLE

    def can_move(self, state: str) -> bool:
        return state in self.MOVES[self.State(self.state)]

    def clean(self) -> None:
        try:
            markdown.validate(self.introduction)
        except ValidationError as error:
            raise ValidationError({"introduction": error.messages}) from error

    def topics(self) -> Topics:
        """Return which of the topics that readers may choose the posts are about; without posts it has all of them."""
        offered = list(Tag.objects.filter(offered=True).values_list("pk", flat=True))
        if not offered or not self.issue_posts.exists():
            return Topics(offered, offered)
        tagged = Tag.objects.filter(pk__in=offered, posts__issue_posts__issue=self).distinct()
        return Topics(offered, list(tagged.values_list("pk", flat=True)))

    @property
    def frequency(self) -> str:
        """Return what its readers chose: each issue, or a digest."""
        return Subscriber.Frequency.MONTHLY if self.digest_of else Subscriber.Frequency.EVERY

    @property
    def is_for_all(self) -> bool:
        """Whether it goes to every reader of single issues, whatever topics he chose."""
        topics = self.topics()
        return self.digest_of is None and len(topics.shared) == len(topics.offered)

    def audience(self) -> SubscriberQuerySet:
        """Return whom the issue would be sent to now, as `delivery.FREEZE` would choose them."""
        topics = self.topics()
        return (
            Subscriber.objects.mailable()
            .filter(frequency=self.frequency)
            .wanting(topics.shared, offered=topics.offered)
        )

    def counts(self) -> Counts:
        """Count this issue's copies by state, at this moment."""
        rows = self.deliveries.order_by().values_list("state").annotate(models.Count("id"))
        return Counts(dict(rows))

    def renumber_posts(self) -> None:
        """Let the positions of the posts be 1, 2, 3 in the order that they have."""
        for position, item in enumerate(self.issue_posts.all(), 1):
            if item.position != position:
                IssuePost.objects.filter(pk=item.pk).update(position=position)

    def schedule(self, slot: Slot) -> None:
        """Put the issue into a slot of the weekly rhythm. Raises ValidationError naming the field to mend."""
        with transaction.atomic():
            self._lock()
            slot = Slot.objects.select_for_update().get(pk=slot.pk)
            slot.check_free(self)
            self._free_slot()
            self.slot = slot
            self._schedule_at(slot.due_at)
            slot.take()

    def schedule_at(self, due_at: dt.datetime) -> None:
        """Schedule the issue for an instant outside the weekly rhythm. Raises ValidationError."""
        with transaction.atomic():
            self._lock()
            self._free_slot()
            self._schedule_at(due_at)

    def unschedule(self) -> None:
        """Take a scheduled issue back to a draft; its date is free again."""
        with transaction.atomic():
            self._lock()
            self._move(self.State.DRAFT)
            self._free_slot()
            self.due_at = None
            self.save(update_fields=["state", "slot", "due_at"])

    def pause(self) -> None:
        """Stop handing over; copies under way at this moment are finished. A second click changes nothing.

        Of an issue that paused by itself the pause becomes the author's: it no longer goes on by itself.
        """
        with transaction.atomic():
            if not self._is_already(self.State.PAUSED):
                self._move_now(self.State.PAUSED)
            self.pause_reason, self.resume_at = "", None
            self.save(update_fields=["pause_reason", "resume_at"])

    def resume(self) -> None:
        """Go on after a pause: send, or wait for the start where that had not come. A second click does nothing."""
        with transaction.atomic():
            state = self.State.SENDING if self.started_at else self.State.FROZEN
            if self._is_already(state):
                return
            self._move_now(state)
            self.pause_reason, self.resume_at = "", None
            self.save(update_fields=["pause_reason", "resume_at"])

    def cancel(self) -> None:
        """Never send the copies that have not gone yet. This is final; a second click changes nothing.

        What keeps the copies from being marked now, such as a worker in the midst of a claim, the sweep makes up for.
        """
        with transaction.atomic():
            if self._is_already(self.State.CANCELLED):
                return
            self._move_now(self.State.CANCELLED)
            self._free_slot()
            self.pause_reason, self.resume_at = "", None
            self.save(update_fields=["slot", "pause_reason", "resume_at"])
        with suppress(OperationalError), transaction.atomic():
            self.skip_waiting()

    def skip_waiting(self) -> None:
        """Leave out for good what waits of a cancelled issue."""
        if self.has_fresh() or self.deliveries.again().exists():
            self.deliveries.waiting().skip(Delivery.Skipped.CANCELLED)

    def has_fresh(self) -> bool:
        """Tell whether a copy was never claimed yet."""
        after = Frontier.objects.filter(issue=self).values_list("subscriber_id", flat=True).first()
        return self.deliveries.fresh(after=after or 0).exists()

    def has_due(self) -> bool:
        """Tell by indexes alone whether a copy may be claimed now."""
        return self.has_fresh() or self.deliveries.again().filter(next_attempt_at__lte=Now()).exists()

    def has_work(self) -> bool:
        """Tell by indexes alone whether a copy waits or a worker is at work."""
        live = self.leases.filter(ended_at=None, expires_at__gt=Now())
        return self.has_fresh() or self.deliveries.again().exists() or live.exists()

    def reopen(self) -> None:
        """Send more copies of what had come to its end; an issue that is sending goes on. Raises ValidationError."""
        with transaction.atomic():
            self._lock()
            if self.state == self.State.PAUSED:
                raise ValidationError(_("The issue is paused: resume or cancel it first."))
            if self.state != self.State.SENDING:
                self._move(self.State.SENDING)
            self.completed_at = None
            self.save(update_fields=["state", "completed_at"])

    def missing(self) -> dict[str, Any]:
        """Return what keeps the issue from being scheduled, by field."""
        found = {}
        if not self.subject.strip():
            found["subject"] = _("An issue needs a subject: it is what the reader sees first.")
        if not self.introduction.strip() and not self.issue_posts.exists():
            found["__all__"] = _("The issue is empty: choose a post or write an introduction.")
        if not Publication.current().postal_address.strip():
            found["__all__"] = _(
                "The publication has no postal address. The law asks for one at the foot of every issue: "
                "write it on the page of the publication."
            )
        return found

    def _schedule_at(self, due_at: dt.datetime) -> None:
        if self.state not in self.EDITABLE:
            self._move(self.State.SCHEDULED)
        if found := self.missing():
            raise ValidationError(found)
        self.state, self.due_at = self.State.SCHEDULED, due_at
        self.number = self.number or Issue.next_number()
        self.save(update_fields=["state", "due_at", "slot", "number"])
        # What is ready is saved by a button only: else half a sentence, kept while it was typed, could be mailed.
        # The posts of a digest were mailed: were it cancelled, they would be proposed for the next issue.
        if self.digest_of is None:
            self.posts.filter(ready=False).update(ready=True)

    @staticmethod
    def next_number() -> int:
        """Return the number of the next issue; the publication's row is locked so that no two get the same."""
        Publication.objects.select_for_update().get_or_create(pk=1)
        return (Issue.objects.aggregate(last=models.Max("number"))["last"] or 0) + 1

    def _lock(self) -> None:
        """Take the row's lock and read the row's state anew, so that a second click finds what the first did."""
        fresh = Issue.objects.select_for_update(of=("self",)).get(pk=self.pk)
        self.state, self.slot, self.due_at, self.number = fresh.state, fresh.slot, fresh.due_at, fresh.number

    def _is_already(self, state: str) -> bool:
        """Take the row's lock and tell whether it is in `state`: so the second of two clicks at once finds it."""
        self._lock()
        return self.state == state

    def _move(self, state: str) -> None:
        if not self.can_move(state):
            raise ValidationError(
                _("The issue is “%(old)s”: it can't become “%(new)s”."),
                params={"old": self.get_state_display(), "new": self.State(state).label},
            )
        self.state = state

    def _move_now(self, state: str) -> None:
        with transaction.atomic():
            self._lock()
            self._move(state)
            self.save(update_fields=["state"])

    def _free_slot(self) -> None:
        if self.slot and self.slot.state == Slot.State.TAKEN:
            Slot.objects.filter(pk=self.slot.pk).update(state=Slot.State.OPEN)
        self.slot = None


@dataclass(frozen=True)
class Topics:
    """The tags that readers may choose, by their ids, and those among them that an issue has."""

    offered: list[int]
    shared: list[int]


@dataclass(frozen=True)
class Counts:
    """The equation of an issue: audience = sent + skipped + failed + unknown + open."""

    by_state: dict[str, int]

    @classmethod
    def of_groups(cls, groups: Iterable[Group]) -> Counts:
        by_state: Counter[str] = Counter()
        for group in groups:
            by_state[group.state] += group.count
        return cls(dict(by_state))

    def of(self, states: Iterable[str]) -> int:
        return sum(self.by_state.get(state, 0) for state in states)

    def as_dict(self) -> dict[str, int]:
        """Return the equation, term by term."""
        return {name: getattr(self, name) for name in ("audience", "sent", "skipped", "failed", "unknown", "open")}

    @property
    def audience(self) -> int:
        return sum(self.by_state.values())

    @property
    def sent(self) -> int:
        return self.of([Delivery.State.ACCEPTED])

    @property
    def skipped(self) -> int:
        return self.of([Delivery.State.SKIPPED])

    @property
    def failed(self) -> int:
        return self.of(Delivery.FAILURES)

    @property
    def unknown(self) -> int:
        return self.of(Delivery.UNKNOWN)

    @property
    def open(self) -> int:
        return self.of(Delivery.OPEN)

    @property
    def resendable(self) -> int:
        return self.of(Delivery.RESENDABLE)

    @property
    def percent(self) -> int:
        """Return how much of the audience is no longer open, rounded down."""
        return 100 * (self.audience - self.open) // self.audience if self.audience else 100

    def __str__(self) -> str:
        return (
            f"{self.audience} = {self.sent} sent + {self.skipped} skipped + {self.failed} failed"
            f" + {self.unknown} unknown + {self.open} open"
        )


@dataclass(frozen=True)
class Group:
    """Copies of an issue that are in one state and got one kind of answer."""

    state: str
    reply_class: str
    count: int
    lately: int  # came into this state within the last minute
    waiting: int  # have an instant at which to look at them again
    next_at: dt.datetime | None  # the first such instant
    example: int  # the id of one of them


class IssuePost(models.Model):
    """A post's place in an issue: in full or as a teaser."""

    class Mode(models.TextChoices):
        FULL = "full", _("In full")
        TEASER = "teaser", _("Teaser with a link")

    issue = models.ForeignKey(Issue, on_delete=models.CASCADE, related_name="issue_posts")
    post = models.ForeignKey(Post, on_delete=models.PROTECT, related_name="issue_posts")
    position = models.PositiveSmallIntegerField(default=0)
    mode = models.CharField(max_length=6, choices=Mode, default=Mode.FULL)

    class Meta:
        ordering = ["position", "id"]
        constraints = [models.UniqueConstraint(fields=["issue", "post"], name="post_once_an_issue")]

    def __str__(self) -> str:
        return f"{self.post} in {self.issue}"


class Lease(models.Model):
    """A worker at work on an issue: what it has claimed is its own until the lease, by the database's clock, expires.

    Copies name the lease instead of carrying an instant of their own, so that one small row is renewed for all of them.
    """

    issue = models.ForeignKey(Issue, on_delete=models.CASCADE, related_name="leases")
    owner = models.CharField(max_length=100)
    started_at = models.DateTimeField(db_default=Now())
    renewed_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    # Copies settled under this lease, and when the count last grew: what tells work from a stall.
    settled = models.PositiveIntegerField(default=0, db_default=0)
    settled_at = models.DateTimeField(null=True)
    # The worker's last replies, as its breaker counts them: the next worker on the issue goes on from there.
    looked = models.PositiveIntegerField(default=0, db_default=0)
    faults = models.PositiveIntegerField(default=0, db_default=0)
    slow = models.PositiveIntegerField(default=0, db_default=0)
    doubts = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], condition=models.Q(ended_at=None), name="lease_live")]

    def __str__(self) -> str:
        return f"{self.owner} on {self.issue_id}"


class Frontier(models.Model):
    """How far the fresh copies of an issue have been claimed, in the order of their readers.

    So a claim finds the next ones by the index that every row has anyhow, and changes no index itself.
    """

    issue = models.OneToOneField(Issue, primary_key=True, on_delete=models.CASCADE, related_name="frontier")
    subscriber_id = models.BigIntegerField(default=0, db_default=0)

    def __str__(self) -> str:
        return f"{self.issue_id}: {self.subscriber_id}"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def open(self) -> DeliveryQuerySet:
        return self.filter(state__in=Delivery.OPEN)

    def waiting(self) -> DeliveryQuerySet:
        """Copies that no worker holds and that are still to be handed over."""
        return self.filter(state__in=[Delivery.State.PENDING, Delivery.State.DEFERRED])

    def unknown(self) -> DeliveryQuerySet:
        return self.filter(state__in=Delivery.UNKNOWN)

    def failed(self) -> DeliveryQuerySet:
        return self.filter(state__in=Delivery.FAILURES)

    def fresh(self, *, after: int) -> DeliveryQuerySet:
        """Copies never claimed yet, of readers beyond the issue's frontier."""
        return self.filter(fence=0, state=Delivery.State.PENDING, subscriber_id__gt=after)

    def again(self) -> DeliveryQuerySet:
        """Waiting copies that were claimed before."""
        return self.waiting().filter(next_attempt_at__isnull=False)

    def resendable(self) -> DeliveryQuerySet:
        """Copies that were refused or given up, of readers who may still be mailed."""
        return self.filter(state__in=Delivery.RESENDABLE, subscriber__in=Subscriber.objects.mailable())

    def groups(self) -> list[Group]:
        """Count by state and kind of answer in one scan; no index speaks of the state."""
        rows = (
            self.order_by()
            .values("state", "reply_class")
            .annotate(
                count=models.Count("*"),
                lately=models.Count("id", filter=models.Q(updated_at__gt=Now() - dt.timedelta(minutes=1))),
                waiting=models.Count("next_attempt_at"),
                next_at=models.Min("next_attempt_at"),
                example=models.Max("id"),
            )
        )
        return [Group(**row) for row in rows]

    def skip(self, reason: str) -> int:
        """Leave these copies out for good; return how many."""
        return self.update(state=Delivery.State.SKIPPED, reason=reason, next_attempt_at=None, updated_at=Now())


class Delivery(models.Model):
    """The ledger: one reader's copy of one issue, and all that is known of it."""

    class State(models.TextChoices):
        PENDING = "pending", _("Waiting")
        CLAIMED = "claimed", _("Claimed by a worker")
        HANDING_OVER = "handing_over", _("Being handed over")
        ACCEPTED = "accepted", _("Sent")
        DEFERRED = "deferred", _("Put off, will be tried again")
        REJECTED = "rejected", _("Rejected")
        EXPIRED = "expired", _("Given up after repeated deferrals")
        SKIPPED = "skipped", _("Skipped")
        FAILED = "failed", _("Could not be rendered")
        UNCERTAIN = "uncertain", _("Unknown: the connection died after the hand-over began")
        UNCERTAIN_FINAL = "uncertain_final", _("Unknown: nothing more can be found out")

    # audience = SENT + SKIPPED + FAILED + UNKNOWN + OPEN
    OPEN: ClassVar = (State.PENDING, State.CLAIMED, State.HANDING_OVER, State.DEFERRED)
    UNKNOWN: ClassVar = (State.UNCERTAIN, State.UNCERTAIN_FINAL)
    FAILURES: ClassVar = (State.REJECTED, State.EXPIRED, State.FAILED)
    RESENDABLE: ClassVar = (State.REJECTED, State.EXPIRED)

    # Every way a row may go; all else is a defect. Only the holder of the fence leaves claimed and handing_over, the
    # sweeper apart; what leaves the failures and uncertain_final does so by an explicit act of the author.
    MOVES: ClassVar = {
        State.PENDING: {State.CLAIMED, State.SKIPPED},
        State.CLAIMED: {
            State.PENDING, State.HANDING_OVER, State.DEFERRED, State.REJECTED, State.EXPIRED, State.FAILED,
            State.SKIPPED,
        },
        State.HANDING_OVER: {State.ACCEPTED, State.DEFERRED, State.REJECTED, State.EXPIRED, State.PENDING,
                             State.SKIPPED, State.UNCERTAIN},
        State.DEFERRED: {State.CLAIMED, State.SKIPPED},
        State.UNCERTAIN: {State.ACCEPTED, State.DEFERRED, State.REJECTED, State.EXPIRED, State.PENDING,
                          State.SKIPPED, State.UNCERTAIN_FINAL},
        State.UNCERTAIN_FINAL: {State.ACCEPTED, State.PENDING},
        State.REJECTED: {State.PENDING},
        State.EXPIRED: {State.PENDING},
        State.FAILED: set(),
        State.ACCEPTED: set(),
        State.SKIPPED: set(),
    }  # fmt: skip

    class Skipped(models.TextChoices):
        """Why a reader of the audience was not sent his copy."""

        PAUSED = "paused", _("Paused")
        SUPPRESSED = "suppressed", _("Suppressed")
        UNSUBSCRIBED = "unsubscribed", _("Left before his copy went")
        ERASED = "erased", _("Erased")
        CANCELLED = "cancelled", _("The issue was cancelled")

    # No database constraint: a deferred check for each row doubles the time of a million-row freeze; `audit` checks it.
    issue = models.ForeignKey(
        Issue, on_delete=models.DO_NOTHING, db_constraint=False, related_name="deliveries", db_index=False
    )
    subscriber = models.ForeignKey(
        "subscribers.Subscriber", on_delete=models.DO_NOTHING, db_constraint=False, related_name="deliveries"
    )
    address = models.CharField(max_length=254)
    address_key = models.CharField(max_length=254)
    # As it was at freeze: every try of a copy is the same bytes (I8).
    name = models.CharField(max_length=100, blank=True, default="", db_default="")
    state = models.CharField(max_length=16, choices=State, default=State.PENDING)
    reason = models.CharField(max_length=16, choices=Skipped, blank=True, default="", db_default="")
    at_freeze = models.BooleanField(default=False, db_default=False, help_text=_("Excluded already at freeze"))
    # How often it was claimed. What a claim writes names its fence, so a worker that lost the row changes nothing.
    fence = models.PositiveIntegerField(default=0, db_default=0)
    lease = models.ForeignKey(
        Lease, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="deliveries", db_index=False
    )
    attempt = models.PositiveSmallIntegerField(default=0, db_default=0)
    # When to claim a copy again, or to ask about an uncertain one; a fresh one is due at once, found by its fence.
    next_attempt_at = models.DateTimeField(null=True)
    # When it was first put off, less the issue's `paused_seconds`: RETRY_FOR_SECONDS after that it is given up.
    first_try_at = models.DateTimeField(null=True)
    # SHA-256 of the bytes; written where a copy may be tried again or is in doubt.
    render_sha256 = models.CharField(max_length=64, blank=True, default="", db_default="")
    phase = models.CharField(max_length=16, blank=True, default="", db_default="")
    smtp_code = models.PositiveSmallIntegerField(null=True)
    enhanced_code = models.CharField(max_length=12, blank=True, default="", db_default="")
    reply_class = models.CharField(max_length=16, blank=True, default="", db_default="")
    reply_text = models.TextField(blank=True, default="", db_default="")
    provider_id = models.CharField(max_length=200, blank=True, default="", db_default="")
    accepted_at = models.DateTimeField(null=True)
    updated_at = models.DateTimeField(db_default=Now())

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = _("deliveries")
        constraints = [
            models.UniqueConstraint(fields=["issue", "subscriber"], name="one_copy_a_reader"),
            models.UniqueConstraint(fields=["issue", "address_key"], name="one_copy_an_address"),
            # One check instead of one a rule, the usual states first: it is asked at each of a copy's steps.
            models.CheckConstraint(
                condition=models.Q(state="accepted")
                | models.Q(state__in=["handing_over", "claimed"], lease__isnull=False)
                | (models.Q(state="skipped") & ~models.Q(reason=""))
                | models.Q(state="pending", fence=0, at_freeze=False)
                | models.Q(state__in=["pending", "deferred"], next_attempt_at__isnull=False)
                | models.Q(state__in=["rejected", "expired", "failed", "uncertain", "uncertain_final"]),
                name="each_state_has_what_it_needs",
            ),
        ]
        # No index speaks of `state`, `fence`, `lease` or `updated_at`: a copy's way from pending to accepted changes no
        # index at all (HOT updates), which halves what the ledger costs PostgreSQL.
        indexes = [
            models.Index(
                fields=["issue", "next_attempt_at"],
                condition=models.Q(next_attempt_at__isnull=False),
                name="delivery_again",
            ),
            models.Index(fields=["address_key"], name="delivery_address"),
            models.Index(fields=["provider_id"], condition=~models.Q(provider_id=""), name="delivery_provider"),
        ]

    def __str__(self) -> str:
        return f"{self.address}: {self.get_state_display()}"

    @property
    def message_id(self) -> str:
        """Return the Message-ID of this copy, the same for every try: what to look for in the relay's log."""
        domain = str(self.issue.source.get("from_address", "")).rpartition("@")[2]
        return message.message_id(self.issue_id, self.subscriber_id, domain) if domain else ""


class DeliveryEvent(models.Model):
    """What was heard of a copy after the relay took it; append-only, once per provider's id."""

    delivery = models.ForeignKey(
        Delivery, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="events"
    )
    kind = models.CharField(max_length=16)
    provider_id = models.CharField(max_length=200, unique=True)
    at = models.DateTimeField(db_default=Now())
    detail = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.provider_id}"


class Heartbeat(models.Model):
    """When a recurring duty was last done, by the database's clock; whoever finds it overdue does it."""

    name = models.CharField(max_length=30, primary_key=True)
    at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.name} {self.at:%Y-%m-%d %H:%M:%S}"


class Waiver(models.Model):
    """The author's word that a finding of preflight may stand, with his reason; kept with the issue for ever."""

    issue = models.ForeignKey(Issue, on_delete=models.CASCADE, related_name="waivers")
    check_id = models.CharField(max_length=60)
    place = models.CharField(max_length=250, blank=True, help_text=_("What exactly was waived, such as a link"))
    reason = models.TextField()
    by = models.CharField(max_length=150)
    at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["at"]
        constraints = [
            models.UniqueConstraint(fields=["issue", "check_id", "place"], name="one_waiver_a_finding"),
            models.CheckConstraint(condition=~models.Q(reason=""), name="waiver_has_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.check_id}: {self.reason}"


class PreviewGroup(models.Model):
    """Named people who get test mails of an issue before it goes."""

    MOST: ClassVar[int] = 25

    name = models.CharField(max_length=60, unique=True)
    addresses = models.TextField(help_text=_("One address a line"))

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if len(self.recipients) > self.MOST:
            error = _("A group has %(most)s addresses at the most: whoever is to get every issue subscribes.")
            raise ValidationError({"addresses": error % {"most": self.MOST}})
        try:
            for address in self.recipients:
                validate_recipient(address)
        except ValidationError as error:
            raise ValidationError({"addresses": error.messages}) from error

    @property
    def recipients(self) -> list[str]:
        """Return the addresses, each once."""
        return list(dict.fromkeys(filter(None, map(str.strip, self.addresses.splitlines()))))


class Link(models.Model):
    """A link of an issue whose clicks are counted; its destination is fixed at freeze (ABU-13)."""

    issue = models.ForeignKey(Issue, on_delete=models.CASCADE, related_name="links")
    number = models.PositiveSmallIntegerField()
    url = models.TextField()
    clicks = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        ordering = ["issue", "number"]
        constraints = [models.UniqueConstraint(fields=["issue", "number"], name="one_link_a_number")]

    def __str__(self) -> str:
        return self.url
