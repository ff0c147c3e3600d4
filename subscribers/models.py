"""Who asked for it: subscribers, the consent they gave, the addresses never to mail, and mail owed to one person."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import connection, models
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from posts.search import LANGUAGES
from subscribers import addresses


class SubscriberQuerySet(models.QuerySet["Subscriber"]):
    def mailable(self) -> SubscriberQuerySet:
        """Readers who may be mailed now: active, not paused, not suppressed."""
        return self.filter(status=Subscriber.Status.ACTIVE).unpaused().unsuppressed()

    def unpaused(self) -> SubscriberQuerySet:
        return self.filter(models.Q(paused_until=None) | models.Q(paused_until__lte=Now()))

    def unsuppressed(self) -> SubscriberQuerySet:
        return self.exclude(suppressed=True)

    def wanting(self, topics: Sequence[int], *, offered: Sequence[int]) -> SubscriberQuerySet:
        """Readers who chose none of the topics that are offered, or one of `topics` (both by the ids of their tags)."""
        chose = models.Q(topics__overlap=list(offered))
        return self.filter(~chose | models.Q(topics__overlap=list(topics)))

    def forget(self) -> None:
        """Delete these readers with their lines of consent, which nothing else may remove; call it in a transaction."""
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL masthead.erasing = 'on'")
            self.delete()
            cursor.execute("SET LOCAL masthead.erasing = 'off'")

    def with_address(self, address: str) -> SubscriberQuerySet:
        """The reader who has `address` in any spelling of it; raises addresses.InvalidAddress."""
        return self.filter(key=addresses.canonical(address))


class Subscriber(models.Model):
    """One person who reads, or once asked to."""

    class Status(models.TextChoices):
        PENDING = "pending", _("Pending: not confirmed yet")
        ACTIVE = "active", _("Active")
        UNSUBSCRIBED = "unsubscribed", _("Unsubscribed")
        ERASED = "erased", _("Erased")

    class Frequency(models.TextChoices):
        EVERY = "every", _("Every issue")
        MONTHLY = "monthly", _("A digest once a month")

    class LeftBecause(models.TextChoices):
        OFTEN = "often", _("It comes too often")
        EXPECTED = "expected", _("It is not what I expected")
        FULL = "full", _("I have too much to read")
        NEVER = "never", _("I never asked for it")
        OTHER = "other", _("Something else")

    MOVES = {
        Status.PENDING: {Status.ACTIVE, Status.UNSUBSCRIBED, Status.ERASED},
        Status.ACTIVE: {Status.UNSUBSCRIBED, Status.ERASED},
        Status.UNSUBSCRIBED: {Status.ACTIVE, Status.PENDING, Status.ERASED},
        Status.ERASED: set(),
    }

    address = models.EmailField(max_length=254)
    # The canonical form of the address, which is the identity: one person, one row.
    key = models.CharField(max_length=254, unique=True, editable=False)
    address_hash = models.BinaryField(max_length=32, editable=False, db_index=True)
    name = models.CharField(max_length=100, blank=True)
    status = models.CharField(max_length=12, choices=Status, default=Status.PENDING)
    # True while a Suppression of this address exists: derived by triggers in the Suppression's own transaction, so that
    # a sender who waits for this row's lock sees the change (a subquery on the other table would not).
    suppressed = models.BooleanField(default=False, editable=False)
    paused_until = models.DateTimeField(null=True, blank=True)
    # Ids of posts.Tag. Only those that the author offers at the time count: without one, everything is wanted.
    topics = ArrayField(models.BigIntegerField(), default=list, db_default=[], blank=True)
    frequency = models.CharField(max_length=8, choices=Frequency, default=Frequency.EVERY, db_default=Frequency.EVERY)
    # In which pages and mails about the subscription speak to the reader; empty: the publication's.
    language = models.CharField(max_length=10, choices=LANGUAGES, blank=True, default="", db_default="")
    # The bearer of the unsubscribe link: random, never expires, may only reduce mail.
    unsubscribe_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    source = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    confirmed_at = models.DateTimeField(null=True, blank=True)
    unsubscribed_at = models.DateTimeField(null=True, blank=True)
    left_because = models.CharField(max_length=8, choices=LeftBecause, blank=True, default="", db_default="")
    # What another tool knew beyond this: its custom fields by their name, and a list of "tags".
    fields = models.JSONField(default=dict, db_default={}, blank=True)

    objects = SubscriberQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["status"], name="subscriber_status"),
            models.Index(fields=["-created_at"], name="subscriber_created"),
            # Asked each minute whether there is anybody.
            models.Index(fields=["id"], name="subscriber_monthly", condition=models.Q(frequency="monthly")),
            models.Index(fields=["created_at"], condition=models.Q(status="pending"), name="subscriber_pending"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=~models.Q(status="active") | models.Q(confirmed_at__isnull=False),
                name="active_is_confirmed",
            )
        ]

    def __str__(self) -> str:
        return self.address or f"erased reader {self.pk}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self.address:
            self.key = addresses.canonical(self.address)
            self.address_hash = addresses.keyed_hash(self.key)
        super().save(*args, **kwargs)

    @property
    def is_paused(self) -> bool:
        return self.paused_until is not None and self.paused_until > timezone.now()

    @property
    def asked_at(self) -> dt.datetime | None:
        """Return when somebody last signed this address up."""
        asked = self.consents.filter(kind=Consent.Kind.REQUESTED)
        return asked.order_by("-at").values_list("at", flat=True).first()

    @property
    def stamp(self) -> str:
        """Return what changes when the reader leaves, so that a link signed before is worth nothing after."""
        return self.unsubscribed_at.isoformat() if self.unsubscribed_at else ""


class Consent(models.Model):
    """One line of the consent log: what a person agreed to or took back, when, where and in which words."""

    class Kind(models.TextChoices):
        REQUESTED = "requested", _("Asked to join")
        CONFIRMED = "confirmed", _("Confirmed")
        IMPORTED = "imported", _("Imported with a stated consent")
        UNSUBSCRIBED = "unsubscribed", _("Left")
        RESUBSCRIBED = "resubscribed", _("Came back")
        CHANGED = "changed", _("Changed something")

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="consents")
    kind = models.CharField(max_length=12, choices=Kind)
    at = models.DateTimeField(default=timezone.now, editable=False)
    wording = models.TextField(blank=True)
    language = models.CharField(max_length=10, blank=True)
    page = models.CharField(max_length=500, blank=True)
    ip = models.GenericIPAddressField(null=True, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["at", "id"]
        indexes = [models.Index(fields=["at"], condition=models.Q(kind="confirmed"), name="consent_confirmed_at")]

    def __str__(self) -> str:
        return f"{self.kind} {self.at:%Y-%m-%d %H:%M}"


class Suppression(models.Model):
    """An address never to mail, kept as a keyed hash so that it outlives the erasure of the person."""

    class Reason(models.TextChoices):
        BOUNCED = "bounced", _("Hard bounce")
        COMPLAINED = "complained", _("Complained")
        ASKED = "asked", _("Asked never to be mailed")
        MANUAL = "manual", _("Set by the author")
        # The only one that the person's own sign-up lifts.
        ERASED = "erased", _("Was erased and is not to come back by an import")

    address_hash = models.BinaryField(max_length=32, unique=True, editable=False)
    reason = models.CharField(max_length=10, choices=Reason)
    note = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.get_reason_display()}: {bytes(self.address_hash).hex()[:12]}…"


class Import(models.Model):
    """A file of readers that was brought in or waits for the author: how far it came, what became of it."""

    class State(models.TextChoices):
        WAITING = "waiting", _("Waits for you")
        RUNNING = "running", _("Runs")
        DONE = "done", _("Done")
        FAILED = "failed", _("Stopped")

    FILE_DAYS: ClassVar[int] = 7  # how long an uploaded file waits
    ROWS_DAYS: ClassVar[int] = 90  # how long what became of each row is kept

    name = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField(help_text=_("In bytes"))
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    mapping = models.JSONField(default=dict)
    # Where these readers gave their consent, in the words of who vouches for it (GDPR, Art. 7(1)).
    attestation = models.CharField(max_length=300, blank=True)
    by = models.CharField(max_length=150, blank=True)
    is_judged = models.BooleanField(default=False)  # gone through once without writing anything
    read = models.BigIntegerField(default=0)  # how many rows are done
    report = models.JSONField(default=dict)
    error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name


class ImportPart(models.Model):
    """A piece of an uploaded file, until it is imported: so each process can read it, wherever it runs."""

    of = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="parts")
    number = models.PositiveIntegerField()
    data = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["of", "number"], name="import_part_once")]

    def __str__(self) -> str:
        return f"part {self.number} of import {self.of_id}"


class ImportRow(models.Model):
    """What became of a row. It names the reader and does not repeat him; only a refused row keeps its text."""

    class Outcome(models.TextChoices):
        CREATED = "created", _("Created")
        UPDATED = "updated", _("Completed")
        UNCHANGED = "unchanged", _("Unchanged")
        LOWERED = "lowered", _("Gets less mail, or none")
        REFUSED = "refused", _("Refused")

    pk = models.CompositePrimaryKey("of_id", "line")
    of = models.ForeignKey(Import, on_delete=models.CASCADE, db_constraint=False, db_index=False, related_name="rows")
    line = models.PositiveIntegerField()
    outcome = models.CharField(max_length=9, choices=Outcome)
    note = models.CharField(max_length=300, blank=True)
    subscriber = models.ForeignKey(
        Subscriber, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    text = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"line {self.line}: {self.outcome}"


class MagicLinkQuerySet(models.QuerySet["MagicLink"]):
    def live(self) -> MagicLinkQuerySet:
        """Keys that are out and still open what they are for."""
        return self.filter(used_at=None, revoked_at=None, expires_at__gt=timezone.now())


class MagicLink(models.Model):
    """A one-time key mailed to its owner; only its SHA-256 is kept."""

    class Purpose(models.TextChoices):
        PREFERENCES = "preferences", _("Open the preferences")
        UNDO = "undo", _("Undo an unsubscribe")
        NEW_ADDRESS = "new_address", _("Confirm a new address")
        OLD_ADDRESS = "old_address", _("Take back a change of address")

    MINUTES: ClassVar[int] = 30

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="magic_links")
    purpose = models.CharField(max_length=12, choices=Purpose)
    token_hash = models.BinaryField(max_length=32, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    # A keyed hash of the network address and the browser that asked for it.
    asked_from = models.BinaryField(max_length=32, default=bytes)
    change = models.ForeignKey("AddressChange", null=True, on_delete=models.CASCADE, related_name="links")

    objects = MagicLinkQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.purpose} link of subscriber {self.subscriber_id}"


class AddressChangeQuerySet(models.QuerySet["AddressChange"]):
    def open(self) -> AddressChangeQuerySet:
        """Changes that still wait for the owner of the new address."""
        return self.filter(confirmed_at=None, revoked_at=None)


class AddressChange(models.Model):
    """A reader's wish to be written to elsewhere; the old address counts until the new one's owner agrees."""

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="address_changes")
    old_address = models.EmailField(max_length=254)
    address = models.EmailField(max_length=254)
    key = models.CharField(max_length=254)
    asked_at = models.DateTimeField(default=timezone.now)
    confirmed_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    objects = AddressChangeQuerySet.as_manager()

    def __str__(self) -> str:
        return f"change of address of subscriber {self.subscriber_id}"


class ReaderSessionQuerySet(models.QuerySet["ReaderSession"]):
    def live(self) -> ReaderSessionQuerySet:
        """Sessions that were used within half an hour and are not older than half a day."""
        now = timezone.now()
        return self.filter(seen_at__gt=now - ReaderSession.IDLE, started_at__gt=now - ReaderSession.LONGEST)


class ReaderSession(models.Model):
    """A reader at his preferences; of the key in his cookie only the SHA-256 is kept. Ended, it is deleted."""

    IDLE: ClassVar[dt.timedelta] = dt.timedelta(minutes=30)
    LONGEST: ClassVar[dt.timedelta] = dt.timedelta(hours=12)

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="sessions")
    key_hash = models.BinaryField(max_length=32, unique=True)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    objects = ReaderSessionQuerySet.as_manager()

    def __str__(self) -> str:
        return f"session of subscriber {self.subscriber_id}"


class SubmissionQuerySet(models.QuerySet["Submission"]):
    def waiting(self) -> SubmissionQuerySet:
        """Those that nobody has decided yet."""
        return self.filter(decided_at=None)


class Submission(models.Model):
    """A public form that somebody sent: one insert, the same for every address, and decided by a worker afterwards.

    Once decided it keeps what throttles count and nothing of the person.
    """

    class Kind(models.TextChoices):
        JOIN = "join", _("Sign-up")
        LINK = "link", _("Link to the preferences")

    kind = models.CharField(max_length=12, choices=Kind)
    # The first address of the sender's /24, or /64 of IPv6.
    network = models.GenericIPAddressField(null=True)
    sent = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True)

    objects = SubmissionQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["created_at", "kind"], name="submission_created"),
            models.Index(fields=["network", "created_at"], name="submission_network"),
            models.Index(fields=["id"], condition=models.Q(decided_at=None), name="submission_waiting"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} #{self.pk}"


class SystemMailQuerySet(models.QuerySet["SystemMail"]):
    def due(self) -> SystemMailQuerySet:
        """Mail that is owed and not yet handed over nor given up."""
        return self.filter(sent_at=None, failed_at=None, due_at__lte=Now())


class SystemMail(models.Model):
    """The outbox of system mail: a row is a mail owed; Celery only hints, `sweep` finds what was left."""

    class Kind(models.TextChoices):
        CONFIRM = "confirm", _("Confirm your subscription")
        REMINDER = "reminder", _("Reminder to confirm")
        DISPOSABLE = "disposable", _("This address is not taken")
        WELCOME = "welcome", _("Welcome")
        ALREADY = "already", _("You are subscribed already")
        MAGIC_LINK = "magic_link", _("Link to your preferences")
        NEW_ADDRESS = "new_address", _("Confirm a new address")
        OLD_ADDRESS = "old_address", _("Word of a change of address to the old one")
        NEW_READERS = "new_readers", _("Note about new readers")
        ALERT = "alert", _("Alert to the author")
        WEBHOOK = "webhook", _("Alert to the author's webhook")

    kind = models.CharField(max_length=12, choices=Kind)
    subscriber = models.ForeignKey(
        Subscriber, null=True, blank=True, on_delete=models.SET_NULL, related_name="system_mail"
    )
    address = models.EmailField(max_length=254, blank=True, help_text=_("Where it goes if not to a reader"))
    context = models.JSONField(default=dict, blank=True)
    # The keyed hash of the mailbox that it reaches: for counting, never for identity.
    mailbox = models.CharField(max_length=254, blank=True, editable=False)
    # Names what is owed only once, however many notice it.
    once = models.CharField(max_length=200, null=True, unique=True, editable=False)  # noqa: DJ001  NULLs do not collide
    created_at = models.DateTimeField(auto_now_add=True)
    due_at = models.DateTimeField(db_default=Now())
    attempts = models.PositiveSmallIntegerField(default=0)
    sent_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)

    objects = SystemMailQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["due_at"], condition=models.Q(sent_at=None, failed_at=None), name="system_mail_due"),
            models.Index(fields=["mailbox", "created_at"], name="system_mail_throttle"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} #{self.pk}"


class Instance(models.Model):
    """The one installation that may send from this database; see subscribers/instance.py."""

    system_identifier = models.CharField(max_length=32)
    database_oid = models.BigIntegerField()
    installation = models.CharField(max_length=32)
    armed_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_instance")]

    def __str__(self) -> str:
        return f"armed {self.armed_at:%Y-%m-%d %H:%M}"


class ReaderCount(models.Model):
    """How many readers the front page names, in one row: a page does not count a million subscribers."""

    SHOWN_FROM = 100

    shown = models.CharField(max_length=10, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_reader_count")]

    def __str__(self) -> str:
        return self.shown

    @classmethod
    def current(cls) -> str:
        """Return the number of readers, rounded down: 999, 1K, 13K; nothing while it is small."""
        return cls.objects.values_list("shown", flat=True).first() or ""

    @classmethod
    def refresh(cls) -> None:
        """Count anew; the row, and with it the site's version, changes only where another number is shown."""
        count = Subscriber.objects.mailable().count()
        shown = shortened(count) if count >= cls.SHOWN_FROM else ""
        if not cls.objects.filter(shown=shown).exists():
            cls.objects.update_or_create(pk=1, defaults={"shown": shown})


def shortened(count: int) -> str:
    """Return `count` floored to the unit of its size: 999, 1K for 1,999, 14K, 1M."""
    for unit, sign in ((1_000_000, "M"), (1_000, "K")):
        if count >= unit:
            return f"{count // unit}{sign}"
    return str(count)
