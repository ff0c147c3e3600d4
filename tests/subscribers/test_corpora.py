"""Every subscriber file of the corpora comes in with the right states, twice without a change."""

import os
from pathlib import Path

import pytest

from subscribers.importer import import_csv
from subscribers.models import Subscriber

CORPORA = os.environ.get("CORPORA_DIR", "")
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(not CORPORA, reason="CORPORA_DIR is not set: the corpora were not tried"),
]

SUBSTACK = "substack/TryGhost-mg-substack-members-csv"
# How many readers each file has by state, how many rows are refused, and some who must never be mailed.
FILES: dict[str, tuple[dict[str, int], int, set[str]]] = {
    "beehiiv/members/members.csv": (
        {"active": 5, "unsubscribed": 3, "pending": 1},
        0,
        {"dolor@example.com", "simet@example.com", "amett@example.com", "unsublit@example.com"},
    ),
    "ghost/members/members-with-mappings.csv": ({"active": 1}, 0, set()),
    "ghost/members/valid-members-import.csv": ({"active": 1, "unsubscribed": 1}, 0, {"test@example.com"}),
    "mailchimp/TryGhost-mg-mailchimp-members/subscribed.csv": ({"active": 5}, 0, set()),
    "mailchimp/TryGhost-mg-mailchimp-members/unsubscribed.csv": (
        {"unsubscribed": 5},
        0,
        {f"u{number}@example.com" for number in range(1, 6)},
    ),
    "medium/members.txt": ({"active": 5}, 0, set()),
    "other-csv/curated/subscribers.csv": ({"active": 16}, 4, set()),
    "other-csv/tinynews/subs-v1.csv": (
        {"active": 1, "pending": 1, "unsubscribed": 1},
        0,
        {"dolor@example.com", "nosub@example.com"},
    ),
    "other-csv/tinynews/subs-v2.csv": ({"active": 1, "unsubscribed": 1}, 0, {"lorem@example.com"}),
    f"{SUBSTACK}/fixtures_signup_emails.csv": (
        {"active": 17, "unsubscribed": 2},
        2,
        {"maguirec086@comm.ca", "nottimferris@gmail.com"},
    ),
    f"{SUBSTACK}/fixtures_subscriber_emails.csv": (
        {"active": 13, "unsubscribed": 2},
        2,
        {"maguirec086@comm.ca", "nottimferris@gmail.com"},
    ),
    f"{SUBSTACK}/invalid.csv": ({"active": 3}, 0, set()),
}


@pytest.fixture(autouse=True)
def _as_in_production(settings: object) -> None:
    settings.ALLOW_TEST_ADDRESSES = False  # type: ignore[attr-defined]  # pytest-django's has no fixed attributes


def states() -> dict[str, int]:
    found: dict[str, int] = {}
    for status in Subscriber.objects.values_list("status", flat=True):
        found[status] = found.get(status, 0) + 1
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_the_right_states_and_comes_in_twice_without_a_change(name: str) -> None:
    expected, refused, away = FILES[name]
    path = Path(CORPORA, name)
    trial, first = import_csv(path, trial=True), import_csv(path)
    before = list(Subscriber.objects.order_by("pk").values())
    second = import_csv(path)
    assert states() == expected
    assert trial.as_json() == first.as_json()
    assert (first.created, first.refused_rows) == (sum(expected.values()), refused)
    assert (second.created, second.updated, second.lowered, second.unchanged) == (0, 0, 0, first.created)
    assert list(Subscriber.objects.order_by("pk").values()) == before
    mailable = set(Subscriber.objects.mailable().values_list("key", flat=True))
    assert len(mailable) == expected.get("active", 0)
    assert not mailable & away


def test_no_file_of_readers_is_forgotten() -> None:
    folders = {Path(name).parent for name in FILES}
    found = {
        str(path.relative_to(CORPORA))
        for folder in folders
        for path in Path(CORPORA, folder).iterdir()
        if path.suffix in (".csv", ".txt")
    }
    assert found - {"medium/SOURCES.md"} == set(FILES)
