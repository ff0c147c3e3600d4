"""Whoever never confirms: one reminder after a day, and after a week nothing is left of him (ABU-4)."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection, transaction
from django.db.models import F
from django.test import Client
from django.utils import timezone

from newsletter import sweeper
from newsletter.models import Heartbeat
from subscribers import emails, links, subscription
from subscribers.models import Consent, MagicLink, Subscriber, SystemMail

Join = Callable[..., Any]
ADDRESS = "ada@example.org"


def pass_hours(hours: float) -> None:
    """Let everything have happened so much earlier, for the database's clock as for ours."""
    earlier = dt.timedelta(hours=hours)
    SystemMail.objects.update(created_at=F("created_at") - earlier, due_at=F("due_at") - earlier)
    Subscriber.objects.update(created_at=F("created_at") - earlier)
    Heartbeat.objects.update(at=F("at") - earlier)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL masthead.erasing = 'on'")
        Consent.objects.update(at=F("at") - earlier)
        cursor.execute("SET LOCAL masthead.erasing = 'off'")


def mailed() -> list[str]:
    """Send what is due; return the subjects of all that was sent."""
    emails.send_all_due(limit=20)
    return [message.subject for message in mail.outbox]


def test_abu_4_one_reminder_comes_after_a_day_and_no_second(join: Join) -> None:
    join(ADDRESS)
    assert mailed() == ["Confirm your subscription to Query Notes"]
    pass_hours(23)
    assert len(mailed()) == 1
    pass_hours(1)
    assert mailed()[1:] == ["Still to confirm: Query Notes"]
    for _day in range(5):
        pass_hours(24)
        assert len(mailed()) == 2


def test_the_reminder_confirms_says_until_when_and_that_it_is_the_only_one(client: Client, join: Join) -> None:
    join(ADDRESS)
    asked = Consent.objects.get().at
    pass_hours(24)
    mailed()
    text = str(mail.outbox[-1].body)
    until = (asked + dt.timedelta(days=6)).astimezone(timezone.get_current_timezone())
    assert f"good until {until:%b}" in text
    assert "This is the only reminder." in text
    assert (
        client.post(next(line[line.index("/subscribe/") :] for line in text.split() if "/confirm/" in line)).status_code
        == 200
    )
    assert Subscriber.objects.get().status == Subscriber.Status.ACTIVE


@pytest.mark.parametrize("what", ["confirms", "leaves", "is suppressed"])
def test_nobody_is_reminded_who_decided(client: Client, join: Join, confirm_path: Any, what: str) -> None:
    join(ADDRESS)
    ada = Subscriber.objects.get()
    match what:
        case "confirms":
            client.post(confirm_path(ada))
        case "leaves":
            subscription.unsubscribe(ada.pk)
        case _:
            subscription.suppress(ADDRESS, reason="bounced")
    pass_hours(24)
    assert "Still to confirm: Query Notes" not in mailed()
    assert not SystemMail.objects.filter(kind="reminder").exists()


def test_asking_once_more_puts_the_reminder_off(join: Join) -> None:
    join(ADDRESS)
    pass_hours(23)
    join(ADDRESS)
    pass_hours(2)
    assert mailed().count("Still to confirm: Query Notes") == 0
    pass_hours(22)
    assert mailed().count("Still to confirm: Query Notes") == 1


def test_abu_3_the_reminder_is_one_of_the_five_a_month(join: Join) -> None:
    for hours in (0, 20, 20, 20, 20):  # never so long that the reminder goes
        pass_hours(hours)
        join(ADDRESS)
    pass_hours(25)
    assert len(mailed()) == 5


def test_abu_4_after_a_week_nothing_is_left_of_who_did_not_confirm(join: Join) -> None:
    join(ADDRESS)
    links.new_link(Subscriber.objects.get(), MagicLink.Purpose.PREFERENCES)
    mailed()
    pass_hours(7 * 24 - 1)
    sweeper.forget()
    assert Subscriber.objects.exists()
    pass_hours(2)
    sweeper.forget()
    assert not Subscriber.objects.exists()
    assert not Consent.objects.exists()
    left = SystemMail.objects.get(kind="confirm")
    assert ADDRESS not in f"{left.address}{left.mailbox}{left.context}"
    pass_hours(24 * 24)
    sweeper.forget()
    assert not SystemMail.objects.exists()


def test_asking_once_more_keeps_him_for_another_week(join: Join, confirm_path: Any, client: Client) -> None:
    join(ADDRESS)
    pass_hours(6 * 24)
    join(ADDRESS)
    pass_hours(6 * 24)
    assert subscription.forget_unconfirmed() == 0
    assert client.post(confirm_path(Subscriber.objects.get())).status_code == 200


def test_who_confirmed_left_or_was_imported_is_kept(
    publication: object, alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    Consent.objects.create(subscriber=bob, kind=Consent.Kind.IMPORTED)
    pass_hours(24 * 300)
    assert subscription.forget_unconfirmed() == 0


def test_forgetting_leaves_the_log_of_consent_as_closed_as_before(
    publication: object, bob: Subscriber, alice: Subscriber
) -> None:
    consent = Consent.objects.create(subscriber=alice, kind=Consent.Kind.CONFIRMED)
    pass_hours(24 * 8)
    assert subscription.forget_unconfirmed() == 1
    with pytest.raises(Exception, match="append-only"), transaction.atomic():
        consent.delete()


def test_the_link_that_blocks_an_address_outlives_its_row(client: Client, join: Join, bob: Subscriber) -> None:
    url = emails.never_url(bob)
    pass_hours(24 * 8)
    assert subscription.forget_unconfirmed() == 1
    path = url[url.index("/never/") :]
    assert client.get(path).status_code == 200
    assert client.post(path).status_code == 200
    join(bob.address)
    assert not Subscriber.objects.exists()


def test_it_is_done_once_an_hour(publication: object, bob: Subscriber, join: Join) -> None:
    sweeper.forget()
    Subscriber.objects.update(created_at=timezone.now() - dt.timedelta(days=8))
    sweeper.forget()
    assert Subscriber.objects.exists()
    pass_hours(1)
    with time_machine.travel(timezone.now() + dt.timedelta(hours=1)):
        sweeper.forget()
    assert not Subscriber.objects.exists()
