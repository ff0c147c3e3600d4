"""The number of readers on the front page: rounded down, kept in a row, and counted by the sweep alone."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from newsletter import sweeper
from posts.models import Publication, SiteVersion
from subscribers.models import ReaderCount, Subscriber, shortened
from tests.factories import make_readers


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1_000, "1K"), (1_999, "1K"), (13_999, "13K"), (14_000, "14K"), (999_999, "999K"),
     (1_000_000, "1M"), (2_999_999, "2M")],
)  # fmt: skip
def test_a_number_is_rounded_down_to_the_unit_of_its_size(count: int, shown: str) -> None:
    assert shortened(count) == shown


def test_a_small_number_is_not_shown(publication: Publication) -> None:
    make_readers(ReaderCount.SHOWN_FROM - 1)
    ReaderCount.refresh()
    assert ReaderCount.current() == ""
    assert "Join 99" not in Client().get("/").text


def test_the_sweep_counts_and_the_page_asks_only_for_the_row(publication: Publication) -> None:
    make_readers(120)
    sweeper.sweep()
    with CaptureQueriesContext(connection) as asked:
        page = Client().get("/").text
    assert "Join 120 readers" in page
    assert not [query["sql"] for query in asked if "subscribers_subscriber" in query["sql"]]


@pytest.mark.django_db(transaction=True)
def test_pages_are_made_anew_only_where_another_number_is_shown(publication: Publication) -> None:
    make_readers(1_500)
    ReaderCount.refresh()
    before = SiteVersion.objects.get().number
    Subscriber.objects.filter(address="reader1@example.org").delete()
    ReaderCount.refresh()
    assert (ReaderCount.current(), SiteVersion.objects.get().number) == ("1K", before)
    Subscriber.objects.filter(pk__in=Subscriber.objects.values("pk")[:500]).delete()
    ReaderCount.refresh()
    assert (ReaderCount.current(), SiteVersion.objects.get().number) == ("999", before + 1)
