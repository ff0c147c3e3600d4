"""The sign-up form for any page, and the number of readers in round figures."""

from typing import Any

from django import template
from django.utils.translation import gettext as _

from subscribers import tokens
from subscribers.forms import SubscribeForm
from subscribers.models import ReaderCount

register = template.Library()


@register.inclusion_tag("_partials/subscribe_form.html")
def subscribe_form(
    source: str = "", address: str = "", error: str = "", field_id: str = "subscribe-address"
) -> dict[str, Any]:
    """Show the sign-up form: the same for every visitor until something was typed, so that pages may be cached."""
    token = tokens.form_token(SubscribeForm.name)
    return {"source": source, "address": address, "error": error, "field_id": field_id, "token": token}


@register.simple_tag
def reader_count() -> str:
    """Return the number of readers as the language of the page writes it: 14K, 14.000."""
    shown = ReaderCount.current()
    if shown.endswith("M"):
        return _("%(count)sM") % {"count": shown[:-1]}
    return _("%(count)sK") % {"count": shown[:-1]} if shown.endswith("K") else shown
