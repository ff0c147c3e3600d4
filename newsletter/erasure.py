"""Forget a person (GDPR, Art. 17): what stays is a row without anybody in it, so that old equations hold."""

from __future__ import annotations

import logging
import uuid

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models, transaction

from newsletter.models import Delivery, DeliveryEvent
from posts import auditlog
from subscribers.models import Consent, ImportRow, Submission, Subscriber, Suppression, SystemMail

logger = logging.getLogger(__name__)

# What a copy says of a person goes; what became of it stays. One that nobody holds will not be sent.
SCRUB = """
UPDATE newsletter_delivery d
   SET address = '', address_key = 'erased:' || d.subscriber_id, name = '', reply_text = '', provider_id = '',
       reason = CASE WHEN d.state IN ('pending', 'deferred') THEN 'erased' ELSE d.reason END,
       next_attempt_at = CASE WHEN d.state IN ('pending', 'deferred') THEN NULL ELSE d.next_attempt_at END,
       state = CASE WHEN d.state IN ('pending', 'deferred') THEN 'skipped' ELSE d.state END, updated_at = now()
 WHERE d.subscriber_id = ANY(%s) AND (d.address <> '' OR d.reply_text <> '' OR d.name <> '')
"""


@transaction.atomic
def erase(subscriber_id: int, *, keep_out: bool, by: str = "the reader") -> bool:
    """Forget a reader, as `by` asks; False if he was forgotten already. With `keep_out` a keyed hash stays (GDP-5).

    The hash is by what an import is kept from bringing him back; his own sign-up lifts it. A suppression that stands,
    because he complained, bounced or asked never to be mailed, stays in any case.
    """
    reader = Subscriber.objects.select_for_update().get(pk=subscriber_id)
    if reader.status == Subscriber.Status.ERASED:
        return False
    if keep_out:
        Suppression.objects.get_or_create(
            address_hash=bytes(reader.address_hash), defaults={"reason": Suppression.Reason.ERASED}
        )
    _empty_neighbours(reader)
    _empty_row(reader)
    _empty_consents(subscriber_id)
    scrub_copies([subscriber_id])
    auditlog.note("subscriber.erase", f"reader number {subscriber_id}", actor=by)
    # The number alone: after a backup was restored, whoever reads the log can erase anew (erase_subscriber --number).
    transaction.on_commit(lambda: logger.info("reader number %s was erased", subscriber_id))
    return True


def scrub_copies(subscriber_ids: list[int]) -> int:
    """Take out of the ledger what it says of these people; return in how many rows there was something."""
    DeliveryEvent.objects.filter(delivery__subscriber__in=subscriber_ids).exclude(detail={}).update(detail={})
    with connection.cursor() as cursor:
        cursor.execute(SCRUB, [subscriber_ids])
        count: int = cursor.rowcount
    return count


def _empty_neighbours(reader: Subscriber) -> None:
    """Delete what other tables hold of him: keys, sessions, mail, forms that wait, names in the admin's history."""
    reader.magic_links.all().delete()
    reader.sessions.all().delete()
    reader.address_changes.all().delete()
    his = models.Q(subscriber=reader) | models.Q(address__iexact=reader.address)
    SystemMail.objects.filter(his).delete()
    Submission.objects.filter(sent__address__iexact=reader.address).delete()
    ImportRow.objects.filter(outcome=ImportRow.Outcome.REFUSED, text__icontains=reader.address).update(text="")
    readers, copies = (ContentType.objects.get_for_model(model) for model in (Subscriber, Delivery))
    of_copies = [str(pk) for pk in Delivery.objects.filter(subscriber=reader).values_list("pk", flat=True)]
    named = models.Q(content_type=readers, object_id=str(reader.pk)) | models.Q(
        content_type=copies, object_id__in=of_copies
    )
    LogEntry.objects.filter(named).update(object_repr=f"erased reader {reader.pk}", change_message="")


def _empty_row(reader: Subscriber) -> None:
    Subscriber.objects.filter(pk=reader.pk).update(
        address="",
        key=f"erased:{reader.pk}",
        address_hash=b"",
        name="",
        status=Subscriber.Status.ERASED,
        suppressed=False,
        paused_until=None,
        topics=[],
        language="",
        frequency=Subscriber.Frequency.EVERY,
        unsubscribe_id=uuid.uuid4(),
        source="",
        left_because="",
        confirmed_at=None,
        unsubscribed_at=None,
        fields={},
    )


def _empty_consents(subscriber_id: int) -> None:
    """Leave of the log of consent what happened and when, and nothing of the person."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL masthead.erasing = 'on'")
        Consent.objects.filter(subscriber=subscriber_id).update(page="", ip=None, user_agent="", detail={})
        cursor.execute("SET LOCAL masthead.erasing = 'off'")
