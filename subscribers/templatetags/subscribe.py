"""The sign-up form for any page, and the number of readers in round figures."""

from typing import Any

from django import template

from subscribers import tokens
from subscribers.forms import SubscribeForm
from subscribers.models import Subscriber

register = template.Library()

SHOWN_FROM = 100


@register.inclusion_tag("_partials/subscribe_form.html")
def subscribe_form(
    source: str = "", address: str = "", error: str = "", field_id: str = "subscribe-address"
) -> dict[str, Any]:
    """Show the sign-up form: the same for every visitor until something was typed, so that pages may be cached."""
    token = tokens.form_token(SubscribeForm.name)
    return {"source": source, "address": address, "error": error, "field_id": field_id, "token": token}


@register.simple_tag
def reader_count() -> str:
    """Return the number of readers, rounded down: 999, 1K, 13K; nothing while it is small."""
    count = Subscriber.objects.mailable().count()
    return shortened(count) if count >= SHOWN_FROM else ""


def shortened(count: int) -> str:
    """Return `count` floored to the unit of its size: 999, 1K for 1,999, 14K, 1M."""
    for unit, sign in ((1_000_000, "M"), (1_000, "K")):
        if count >= unit:
            return f"{count // unit}{sign}"
    return str(count)
