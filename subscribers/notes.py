"""The note to the author about new readers: once a day, where he wants it, and only when there are any."""

from __future__ import annotations

import datetime as dt

from django.db.models import Count
from django.utils import formats, timezone

from posts.models import Publication
from subscribers import emails
from subscribers.models import Consent, Subscriber, SystemMail

FROM_HOUR = 7  # of the publication's morning
MOST_SOURCES = 5


def tell_of_new_readers() -> None:
    """Owe the author, once, the note about the day before by the publication's clock."""
    publication = Publication.current()
    now = timezone.now().astimezone(publication.zone)
    if publication.new_reader_note != Publication.Note.DAILY or now.hour < FROM_HOUR:
        return
    day = now.date() - dt.timedelta(days=1)
    once = f"new_readers:{day}"
    if SystemMail.objects.filter(once=once).exists():
        return
    if figures := _figures(publication, day):
        address = publication.reply_to or publication.sender_address
        emails.owe_once(SystemMail.Kind.NEW_READERS, once=once, address=address, context=figures)


def _figures(publication: Publication, day: dt.date) -> dict[str, object]:
    """Return what the note says of a day; nothing where nobody joined."""
    begin, end = (dt.datetime.combine(each, dt.time(), publication.zone) for each in (day, day + dt.timedelta(days=1)))
    that_day = Consent.objects.filter(at__gte=begin, at__lt=end)
    joined = Subscriber.objects.filter(consents__in=that_day.filter(kind=Consent.Kind.CONFIRMED)).distinct()
    if not (count := joined.count()):
        return {}
    sources = joined.values("source").annotate(readers=Count("pk", distinct=True)).order_by("-readers", "source")
    return {
        "day": formats.date_format(day, "l j F"),
        "joined": count,
        "left": that_day.filter(kind=Consent.Kind.UNSUBSCRIBED).values("subscriber").distinct().count(),
        "readers": Subscriber.objects.mailable().count(),
        "sources": [(each["source"], each["readers"]) for each in sources[:MOST_SOURCES]],
    }
