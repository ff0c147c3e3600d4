"""What is held about a reader, in one document that he can take with him (GDPR, Art. 15 and 20)."""

from __future__ import annotations

from typing import Any

from django.forms.models import model_to_dict

from newsletter.models import Delivery
from posts.models import Publication, Tag
from subscribers.models import Subscriber

HERE = ("address", "name", "status", "language", "frequency", "source", "paused_until", "left_because", "fields")
DATES = ("created_at", "confirmed_at", "unsubscribed_at")


def held(subscriber: Subscriber) -> dict[str, Any]:
    """Return all that is held about a reader, as what JSON can say; dates by Django's encoder."""
    return {
        "newsletter": Publication.current().name,
        "reader": _reader(subscriber),
        "consents": list(
            subscriber.consents.values("kind", "at", "wording", "language", "page", "ip", "user_agent", "detail")
        ),
        "issues": [_copy(copy) for copy in copies(subscriber)],
        "system_mail": list(
            subscriber.system_mail.order_by("created_at").values("kind", "created_at", "sent_at", "failed_at")
        ),
        "links": list(
            subscriber.magic_links.order_by("created_at").values(
                "purpose", "created_at", "expires_at", "used_at", "revoked_at"
            )
        ),
        "address_changes": list(
            subscriber.address_changes.values("old_address", "address", "asked_at", "confirmed_at", "revoked_at")
        ),
        "sessions": list(subscriber.sessions.values("started_at", "seen_at")),
    }


def copies(subscriber: Subscriber) -> Any:
    """Return the reader's copies, the newest issue first, each with its issue."""
    found = Delivery.objects.filter(subscriber=subscriber, issue__started_at__isnull=False)
    return found.select_related("issue").defer("issue__source").order_by("-issue__started_at", "-id")


def _reader(subscriber: Subscriber) -> dict[str, Any]:
    known = model_to_dict(subscriber, fields=HERE)
    topics = list(Tag.objects.filter(pk__in=subscriber.topics).values_list("name", flat=True))
    return {**known, **{name: getattr(subscriber, name) for name in DATES}, "topics": topics}


def _copy(copy: Delivery) -> dict[str, Any]:
    return {
        "number": copy.issue.number,
        "subject": copy.issue.subject,
        "address": copy.address,
        "name": copy.name,
        "state": copy.state,
        "reason": copy.reason,
        "handed_over_at": copy.accepted_at,
        "answer": " ".join(filter(None, [str(copy.smtp_code or ""), copy.enhanced_code, copy.reply_text])),
    }
