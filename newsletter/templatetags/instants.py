"""Instants as the author reads them: in the publication's own time zone, in words."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from django import template
from django.utils import formats, timezone

register = template.Library()

DAY_AND_TIME = "l j F Y, H:i"
SHORT_DAY = "j M Y, H:i"
NEAR_DAY = "l j M H:i"


@register.filter
def in_zone(instant: dt.datetime | str | None, zone: zoneinfo.ZoneInfo) -> str:
    """Write an instant, or its ISO form as the outbox keeps it, with weekday and zone; another text stays as it is."""
    found = _instant(instant)
    return f"{formats.date_format(found.astimezone(zone), DAY_AND_TIME)} ({zone})" if found else str(instant or "")


@register.filter
def on_day(instant: dt.datetime, zone: zoneinfo.ZoneInfo) -> str:
    """Write an instant of the next weeks as a button says it: Monday 30 Nov 09:00 London."""
    city = str(zone).rpartition("/")[2].replace("_", " ")
    return f"{formats.date_format(instant.astimezone(zone), NEAR_DAY)} {city}"


@register.filter
def local_input(instant: dt.datetime, zone: zoneinfo.ZoneInfo) -> str:
    """Write an instant as a field of the kind datetime-local has it."""
    return f"{instant.astimezone(zone):%Y-%m-%dT%H:%M}"


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
