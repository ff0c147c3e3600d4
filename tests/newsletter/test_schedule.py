"""The weekly rhythm in every zone of the world: constant on the wall, once each week, whatever the clocks do."""

import datetime as dt
import zoneinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.schedule import instant, next_dates

ZONES = sorted(zoneinfo.available_timezones())
LONDON = ZoneInfo("Europe/London")
NINE = dt.time(9)


@pytest.mark.parametrize("at", [dt.time(9), dt.time(2, 30), dt.time(0)], ids=str)
def test_each_week_for_five_years_has_one_instant_at_the_same_wall_time_in_every_zone(at: dt.time) -> None:
    sundays = [dt.date(2026, 1, 4) + n * dt.timedelta(weeks=1) for n in range(5 * 52)]
    for zone in map(ZoneInfo, ZONES):
        instants = [instant(day, at, zone) for day in sundays]
        assert all(earlier < later for earlier, later in pairwise(instants)), zone
        for day, found in zip(sundays, instants, strict=True):
            local = found.astimezone(zone).replace(tzinfo=None)
            wall = dt.datetime.combine(day, at)
            assert local == wall or is_first_after_gap(found, wall, zone), (zone, day)


def is_first_after_gap(found: dt.datetime, wall: dt.datetime, zone: ZoneInfo) -> bool:
    """A skipped wall time gives the very first instant after the gap."""
    just_before = (found - dt.timedelta(seconds=1)).astimezone(zone).replace(tzinfo=None)
    return just_before < wall < found.astimezone(zone).replace(tzinfo=None)


def test_a_gap_gives_the_first_instant_after_it() -> None:
    found = instant(dt.date(2026, 3, 29), dt.time(1, 30), LONDON)
    assert found == dt.datetime(2026, 3, 29, 1, 0, tzinfo=dt.UTC)


def test_an_overlap_gives_the_first_occurrence() -> None:
    found = instant(dt.date(2026, 10, 25), dt.time(1, 30), LONDON)
    assert found == dt.datetime(2026, 10, 25, 0, 30, tzinfo=dt.UTC)


def test_a_day_that_a_zone_left_out_gives_the_day_after() -> None:
    found = instant(dt.date(2011, 12, 30), NINE, ZoneInfo("Pacific/Apia"))
    assert found.astimezone(ZoneInfo("Pacific/Apia")).date() == dt.date(2011, 12, 31)


def test_nine_in_london_is_nine_or_eight_in_utc() -> None:
    hours = [instant(day, NINE, LONDON).hour for day in (dt.date(2026, 1, 5), dt.date(2026, 7, 6))]
    assert hours == [9, 8]


@given(
    after=st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2031, 1, 1), timezones=st.just(dt.UTC)),
    weekday=st.integers(0, 6),
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    at=st.times(),
)
def test_the_next_dates_are_later_on_that_weekday_and_none_is_left_out(
    after: dt.datetime, weekday: int, zone: ZoneInfo, at: dt.time
) -> None:
    dates = next_dates(weekday, after=after, zone=zone, local_time=at, count=8)
    instants = [instant(date, at, zone) for date in dates]
    assert {date.weekday() for date in dates} == {weekday}
    assert instants[0] > after
    assert instant(dates[0] - dt.timedelta(weeks=1), at, zone) <= after
    assert [b - a for a, b in pairwise(dates)] == [dt.timedelta(weeks=1)] * 7
