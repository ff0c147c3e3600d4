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
    source: str = "",
    address: str = "",
    error: str = "",
    field_id: str = "subscribe-address",
    *,
    campaign: dict[str, str] | None = None,
    timed: bool = False,
    token: str = "",
) -> dict[str, Any]:
    """Show the sign-up form: the same for every visitor until something was typed, so that pages may be cached.

    On a page that is not, `timed` lets its token say when it was made; `token` is one to keep.
    """
    fresh = tokens.timed_form_token if timed else tokens.form_token
    return {
        "source": source,
        "address": address,
        "error": error,
        "field_id": field_id,
        "campaign": campaign or {},
        "token": token or fresh(SubscribeForm.name),
        "wording": SubscribeForm.wording,
    }


@register.simple_tag
def reader_count() -> str:
    """Return the number of readers as the language of the page writes it: 14K, 14.000."""
    shown = ReaderCount.current()
    if shown.endswith("M"):
        return _("%(count)sM") % {"count": shown[:-1]}
    return _("%(count)sK") % {"count": shown[:-1]} if shown.endswith("K") else shown
