"""What is known of people is forgotten in time, and what has to be counted goes on being counted."""

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from newsletter import audit, delivery, erasure, retention
from newsletter.models import Delivery, Issue
from subscribers import importer, links, subscription
from subscribers.models import (
    AddressChange,
    Consent,
    Import,
    ImportPart,
    ImportRow,
    MagicLink,
    ReaderSession,
    Subscriber,
    SystemMail,
)
from tests.factories import make_issue

pytestmark = pytest.mark.usefixtures("publication")
LONG_AGO = timezone.now() - dt.timedelta(days=400)


def consent(reader: Subscriber, at: dt.datetime) -> Consent:
    given = {"ip": "192.0.2.7", "user_agent": "Browser", "wording": "Send it."}
    return Consent.objects.create(subscriber=reader, kind=Consent.Kind.CONFIRMED, at=at, **given)


def test_gdp_7_networks_leave_the_log_of_consent_after_a_year(alice: Subscriber) -> None:
    old, new = consent(alice, LONG_AGO), consent(alice, timezone.now())
    retention.run()
    old.refresh_from_db()
    new.refresh_from_db()
    assert (old.ip, old.user_agent, old.wording) == (None, "", "Send it.")
    assert (new.ip, new.user_agent) == ("192.0.2.7", "Browser")


def test_gdp_7_nobody_can_change_the_log_of_consent_afterwards(alice: Subscriber) -> None:
    consent(alice, LONG_AGO)
    retention.run()
    with pytest.raises(Exception, match="append-only"):
        Consent.objects.update(wording="Send me anything.")


def test_gdp_7_networks_are_kept_where_that_is_the_policy(alice: Subscriber, settings: Any) -> None:
    settings.IP_DAYS = settings.DELIVERY_DAYS = 0
    old = consent(alice, LONG_AGO)
    retention.run()
    old.refresh_from_db()
    assert old.ip == "192.0.2.7"


def ended(at: dt.datetime) -> Issue:
    """An issue that went out and ended at an instant."""
    issue = make_issue()
    delivery.send_now(issue)
    issue.deliveries.update(
        state="accepted", accepted_at=at, attempt=1, reply_text="250 alice@example.org", next_attempt_at=None
    )
    Issue.objects.filter(pk=issue.pk).update(state="completed", completed_at=at)
    return issue


def test_gdp_7_copies_of_old_issues_keep_no_address_and_still_add_up(
    alice: Subscriber, dave: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    old, new = ended(LONG_AGO), ended(timezone.now())
    before = old.counts().as_dict()
    for _run in range(2):
        retention.run()
    old.refresh_from_db()
    assert old.counts().as_dict() == before
    assert audit.audit(old).violations == []
    assert set(old.deliveries.values_list("address", "name", "reply_text")) == {("", "", "")}
    assert new.deliveries.get(subscriber=alice).address == "alice@example.org"
    with pytest.raises(Exception, match="nobody"):  # who has a copy has one, also without an address in it
        delivery.send_to_joined(old)


def test_gdp_7_mail_keys_and_sessions_go(alice: Subscriber) -> None:
    links.new_link(alice, MagicLink.Purpose.PREFERENCES)
    links.begin_session(alice)
    AddressChange.objects.create(subscriber=alice, old_address="a@example.org", address="b@example.org", key="b")
    SystemMail.objects.create(kind="welcome", subscriber=alice, sent_at=LONG_AGO)
    owed = SystemMail.objects.create(kind="magic_link", subscriber=alice)
    retention.run()
    assert (MagicLink.objects.count(), ReaderSession.objects.count(), SystemMail.objects.count()) == (1, 1, 2)
    MagicLink.objects.update(expires_at=LONG_AGO)
    ReaderSession.objects.update(seen_at=LONG_AGO)
    AddressChange.objects.update(asked_at=LONG_AGO)
    SystemMail.objects.update(created_at=LONG_AGO)
    retention.run()
    assert not MagicLink.objects.exists()
    assert not ReaderSession.objects.exists()
    assert not AddressChange.objects.exists()
    assert SystemMail.objects.get() == owed  # what is owed is owed


def test_gdp_5_what_a_worker_wrote_after_the_erasure_goes_too(alice: Subscriber) -> None:
    delivery.send_now(make_issue())
    erasure.erase(alice.pk, keep_out=False)
    Delivery.objects.update(reply_text="250 alice@example.org", address="alice@example.org")
    retention.run()
    assert Delivery.objects.values_list("address", "reply_text").get() == ("", "")


def test_gdp_7_who_never_confirmed_is_deleted_after_seven_days(bob: Subscriber, alice: Subscriber) -> None:
    Subscriber.objects.update(created_at=timezone.now() - dt.timedelta(days=7, minutes=1))
    assert subscription.forget_unconfirmed() == 1
    assert Subscriber.objects.get() == alice
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM subscribers_consent")
        assert cursor.fetchone() == (0,)


def test_gdp_7_an_uploaded_file_waits_a_week_and_its_report_a_season() -> None:
    imported, waiting, new = (importer.keep([b"email\na@example.org\n"], f"{n}.csv", by="ann") for n in "abc")
    with importer.kept_file(imported) as open_file:
        importer.run(imported, open_file)
    Import.objects.exclude(pk=new.pk).update(created_at=LONG_AGO)
    Import.objects.filter(pk=imported.pk).update(ended_at=LONG_AGO)
    retention.run()
    assert set(Import.objects.all()) == {imported, new}
    assert ImportPart.objects.get().of == new
    assert not ImportRow.objects.filter(of=waiting.pk).exists()
    assert not ImportRow.objects.exists()


def test_gdp_5_erasure_empties_the_text_of_a_refused_row(alice: Subscriber) -> None:
    found = importer.keep([b"email,name\nAlice <alice@example.org>,Alice\n"], "a.csv", by="ann")
    with importer.kept_file(found) as open_file:
        importer.run(found, open_file)
    Subscriber.objects.filter(pk=alice.pk).update(fields={"tags": ["vip"]})
    assert "alice@example.org" in ImportRow.objects.get().text
    erasure.erase(alice.pk, keep_out=True)
    alice.refresh_from_db()
    found.refresh_from_db()
    assert (ImportRow.objects.get().text, alice.fields) == ("", {})
    assert "alice" not in str(found.report)
