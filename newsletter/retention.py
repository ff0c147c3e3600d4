"""How long what is known of people is kept (GDP-7): each step forgets a part at a time and may run twice, unharmed."""

from __future__ import annotations

import datetime as dt
import logging

from django.conf import settings
from django.db import connection, models, transaction
from django.utils import timezone

from newsletter import erasure
from newsletter.models import Delivery, Issue
from subscribers import throttling
from subscribers.models import (
    AddressChange,
    Consent,
    Import,
    ImportPart,
    ImportRow,
    MagicLink,
    ReaderSession,
    Subscriber,
    SystemMail,
)

logger = logging.getLogger(__name__)

BATCH = 20_000  # rows that one transaction changes
SHORT = dt.timedelta(days=30)  # keys, sessions and changes of address that are over

# The row goes on counting in its issue's equation and says whose copy it was; to which address and what was answered
# is gone.
FORGET_COPIES = """
UPDATE newsletter_delivery
   SET address = '', address_key = 'old:' || subscriber_id, name = '', reply_text = '', provider_id = ''
 WHERE issue_id = %s AND subscriber_id > %s AND subscriber_id <= %s AND address <> ''
"""


def run() -> None:
    """Forget all whose time has come; a step that fails holds up no other."""
    for step in (finish_erasures, forget_networks, forget_copies, forget_mail, forget_keys, forget_imports):
        try:
            if count := step():
                logger.info("%s: %s", step.__name__, count)
        except Exception:
            logger.exception("a step of the retention failed: %s", step.__name__)
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()


def finish_erasures() -> int:
    """Take out of the ledger what was written after an erasure, as by a freeze or a worker that was under way."""
    left = Delivery.objects.filter(subscriber=models.OuterRef("pk")).exclude(address="", reply_text="", name="")
    erased = Subscriber.objects.filter(models.Exists(left), status=Subscriber.Status.ERASED)
    return erasure.scrub_copies(list(erased.values_list("pk", flat=True)))


def forget_networks() -> int:
    """Take network and browser out of lines of consent that are older than IP_DAYS; 0 keeps them."""
    if not settings.IP_DAYS:
        return 0
    old = Consent.objects.filter(at__lt=_before(settings.IP_DAYS)).exclude(ip=None, user_agent="")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL masthead.erasing = 'on'")
        count = Consent.objects.filter(pk__in=old.order_by("pk").values("pk")[:BATCH]).update(ip=None, user_agent="")
        cursor.execute("SET LOCAL masthead.erasing = 'off'")
    return count


def forget_copies() -> int:
    """Take addresses and answers out of the copies of issues that ended more than DELIVERY_DAYS ago; 0 keeps them."""
    if not settings.DELIVERY_DAYS:
        return 0
    ended = Issue.objects.filter(completed_at__lt=_before(settings.DELIVERY_DAYS), forgotten_at=None).order_by("pk")
    issue_id = ended.values_list("pk", flat=True).first()
    if issue_id is None:
        return 0
    count = _forget_copies_of(issue_id)
    Issue.objects.filter(pk=issue_id).update(forgotten_at=timezone.now())
    return count


def _forget_copies_of(issue_id: int) -> int:
    """Go through one issue in the order of its readers; cut short, the next run begins again and finds less."""
    after, count = 0, 0
    while True:
        readers = Delivery.objects.filter(issue=issue_id, subscriber_id__gt=after).order_by("subscriber_id")
        last = readers.values_list("subscriber_id", flat=True)[:BATCH].aggregate(last=models.Max("subscriber_id"))[
            "last"
        ]
        if last is None:
            return count
        with connection.cursor() as cursor:
            cursor.execute(FORGET_COPIES, [issue_id, after, last])
            count += cursor.rowcount
        after = last


def forget_mail() -> int:
    """Delete mails to readers beside issues that are over for MAIL_DAYS and no longer counted by a limit."""
    over = SystemMail.objects.filter(
        subscriber__isnull=False, created_at__lt=_before(max(settings.MAIL_DAYS, throttling.COUNTED.days))
    )
    return over.exclude(sent_at=None, failed_at=None).delete()[0]


def forget_keys() -> int:
    """Delete keys, sessions and changes of address that have been over for a month."""
    past = timezone.now() - SHORT
    return sum(
        rows.delete()[0]
        for rows in (
            AddressChange.objects.filter(asked_at__lt=past),
            MagicLink.objects.filter(expires_at__lt=past),
            ReaderSession.objects.filter(seen_at__lt=past),
        )
    )


def forget_imports() -> int:
    """Delete uploaded files that nobody imported within a week, and what became of each row of imports long done."""
    waiting = Import.objects.filter(state=Import.State.WAITING, created_at__lt=_before(Import.FILE_DAYS))
    return (
        ImportPart.objects.filter(of__in=waiting).delete()[0]
        + waiting.delete()[0]
        + ImportRow.objects.filter(of__in=Import.objects.filter(ended_at__lt=_before(Import.ROWS_DAYS))).delete()[0]
    )


def _before(days: int) -> dt.datetime:
    return timezone.now() - dt.timedelta(days=days)
