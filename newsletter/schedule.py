"""Pure arithmetic of the weekly rhythm: from a weekday, a local time and a zone to instants."""

import datetime as dt
from zoneinfo import ZoneInfo

WEEK = dt.timedelta(days=7)


def instant(local_date: dt.date, local_time: dt.time, zone: ZoneInfo) -> dt.datetime:
    """Return the instant, in UTC, at which clocks in `zone` first show this date and time.

    A time that the clocks skip (summer time begins) gives the first instant after the gap; one that they show twice
    gives its first occurrence.
    """
    wall = dt.datetime.combine(local_date, local_time)
    first = wall.replace(tzinfo=zone, fold=0).astimezone(dt.UTC)
    if first.astimezone(zone).replace(tzinfo=None) == wall:
        return first
    return _end_of_gap(wall.replace(tzinfo=zone, fold=1).astimezone(dt.UTC), first, zone)


def next_dates(weekday: int, *, after: dt.datetime, zone: ZoneInfo, local_time: dt.time, count: int) -> list[dt.date]:
    """Return the next `count` local dates on `weekday` (Monday is 0) whose instant is later than `after`."""
    today = after.astimezone(zone).date()
    date = today + dt.timedelta(days=(weekday - today.weekday()) % 7)
    if instant(date, local_time, zone) <= after:
        date += WEEK
    return [date + n * WEEK for n in range(count)]


def _end_of_gap(before: dt.datetime, after: dt.datetime, zone: ZoneInfo) -> dt.datetime:
    """Return the instant between `before` and `after` at which the offset of `zone` changes, to the second."""
    old = before.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        same = (before + dt.timedelta(seconds=middle)).astimezone(zone).utcoffset() == old
        low, high = (middle, high) if same else (low, middle)
    return before + dt.timedelta(seconds=high)
