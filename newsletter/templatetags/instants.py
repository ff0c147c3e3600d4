"""Instants as the author reads them: in the publication's own time zone, in words."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from django import template
from django.utils import formats, timezone

register = template.Library()

DAY_AND_TIME = "l j F Y, H:i"
SHORT_DAY = "j M Y, H:i"


@register.filter
def in_zone(instant: dt.datetime | str | None, zone: zoneinfo.ZoneInfo) -> str:
    """Write an instant, or its ISO form as the outbox keeps it, with weekday and zone; another text stays as it is."""
    found = _instant(instant)
    return f"{formats.date_format(found.astimezone(zone), DAY_AND_TIME)} ({zone})" if found else str(instant or "")


@register.filter
def short(instant: dt.datetime | str | None, zone: zoneinfo.ZoneInfo) -> str:
    """Write an instant as a time of day where it is today, else with its date."""
    found = _instant(instant)
    if not found:
        return str(instant or "")
    local = found.astimezone(zone)
    is_today = local.date() == timezone.now().astimezone(zone).date()
    return formats.date_format(local, "H:i" if is_today else SHORT_DAY)


def _instant(value: dt.datetime | str | None) -> dt.datetime | None:
    if not isinstance(value, str):
        return value
    try:
        found = dt.datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
