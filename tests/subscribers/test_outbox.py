"""The outbox of system mail, and what the database itself holds fast about readers."""

import datetime as dt
import threading
from typing import Any

import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from subscribers import addresses, emails, subscription
from subscribers.models import Consent, Subscriber, Suppression, SystemMail

pytestmark = pytest.mark.usefixtures("publication")


def test_a_mail_goes_once(bob: Subscriber) -> None:
    owed = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    assert [emails.send_due(owed.pk), emails.send_due(owed.pk)] == [True, False]
    assert [message.to for message in mail.outbox] == [[bob.address]]


def test_a_failure_is_kept_with_the_row_and_tried_again_later(bob: Subscriber, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    owed = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    assert not emails.send_due(owed.pk)
    owed.refresh_from_db()
    assert (owed.attempts, owed.sent_at, owed.failed_at) == (1, None, None)
    assert "ConnectionRefused" in owed.error
    assert owed.due_at > timezone.now()


def test_it_is_given_up_after_eight_tries(bob: Subscriber, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    owed = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    for _n in range(9):
        SystemMail.objects.update(due_at="2020-01-01T00:00Z")
        emails.send_due(owed.pk)
    owed.refresh_from_db()
    assert (owed.attempts, owed.failed_at is not None) == (8, True)


@pytest.mark.django_db(transaction=True)
def test_two_senders_at_once_send_one_mail(bob: Subscriber) -> None:
    owed = emails.owe(SystemMail.Kind.WELCOME, subscriber=bob)
    barrier = threading.Barrier(4)

    def send() -> None:
        barrier.wait()
        emails.send_due(owed.pk)
        connection.close()

    threads = [threading.Thread(target=send) for _n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mail.outbox) == 1


@pytest.mark.parametrize("kind", ["confirm", "welcome", "already", "magic_link"])
def test_every_kind_of_mail_reads_well_in_both_parts(alice: Subscriber, kind: str) -> None:
    emails.send_due(emails.owe(kind, subscriber=alice).pk)
    message = mail.outbox[0]
    html = str(message.alternatives[0][0])  # type: ignore[attr-defined]  # it has two parts
    assert message.subject
    for part in (str(message.body), html):
        assert "1 Example Street" in part
        assert "{{" not in part
        assert "{%" not in part
    assert len(html.encode()) < 20_000


EQUATION = {"audience": 1500, "sent": 1490, "skipped": 5, "failed": 3, "unknown": 2, "open": 0}
ALERTS = [
    ({"event": "empty_slot", "due_at": "2026-11-26T09:30:00+00:00"}, "Nothing is scheduled for Thursday 26 November"),
    ({"event": "late", "due_at": "2026-06-25T08:30:00+00:00"}, "#4 Q & A: has not begun"),
    ({"event": "stalled", "since": "2026-11-26T09:30:00+00:00"}, "#4 Q & A: sending has come to a halt"),
    ({"event": "paused", "error": "550 5.7.26 no DKIM", "resumes_at": ""}, "#4 Q & A: paused by itself"),
    (
        {"event": "paused", "error": "quota", "resumes_at": "2026-11-26T10:30:00+00:00"},
        "#4 Q & A: paused by itself",
    ),
    ({"event": "unreachable", "error": "535 no"}, "#4 Q & A: the mail server can't be reached"),
    ({"event": "missed", "due_at": "2026-11-26T09:30:00+00:00"}, "#4 Q & A: missed its date"),
    ({"event": "freeze_failed", "error": "ValueError: why"}, "#4 Q & A: could not be made ready"),
    ({"event": "result", "state": "completed", **EQUATION}, "#4 Q & A: sent"),
    ({"event": "result", "state": "completed_with_failures", **EQUATION}, "#4 Q & A: sent, 3 copies failed"),
    ({"event": "result", "state": "needs_review", **EQUATION}, "#4 Q & A: 2 copies need your decision"),
]


@pytest.mark.parametrize(("context", "subject"), ALERTS, ids=[f"{told['event']}-{s[-9:]}" for told, s in ALERTS])
def test_an_alert_says_what_happened_and_what_to_do(context: dict[str, Any], subject: str) -> None:
    url = "" if context["event"] == "empty_slot" else "http://127.0.0.1:8000/admin/newsletter/issue/4/change/"
    context = {"issue": "#4 Q & A", "url": url, **context}
    emails.send_due(emails.owe(SystemMail.Kind.ALERT, address="author@example.org", context=context).pk)
    message = mail.outbox[0]
    html = str(message.alternatives[0][0])  # type: ignore[attr-defined]  # it has two parts
    assert message.to == ["author@example.org"]
    assert str(message.subject).startswith(subject)
    sentences = [line for line in str(message.body).splitlines() if line.endswith(".")]
    assert len(sentences) >= 1
    for part in (str(message.body), html):
        assert (url or "/admin/newsletter/issue/") in part
        assert "T09:30" not in part
        assert "{{" not in part
    assert "Q & A" not in html


def test_an_alert_names_instants_in_the_zone_of_the_publication() -> None:
    context = {"event": "late", "issue": "#4 x", "url": "u", "due_at": "2026-06-25T08:30:00+00:00"}
    emails.send_due(emails.owe(SystemMail.Kind.ALERT, address="author@example.org", context=context).pk)
    assert "was due on Thursday 25 June 2026, 09:30 (Europe/London)" in str(mail.outbox[0].body)


def test_the_result_tells_the_whole_equation() -> None:
    context = {"event": "result", "issue": "#4 x", "url": "u", "state": "needs_review", **EQUATION}
    emails.send_due(emails.owe(SystemMail.Kind.ALERT, address="author@example.org", context=context).pk)
    equation = "Audience 1,500 = sent 1,490 + skipped 5 + failed 3 + unknown 2 + open 0"
    assert equation in str(mail.outbox[0].body)


def test_the_consent_log_can_only_grow(alice: Subscriber) -> None:
    Consent.objects.create(subscriber=alice, kind=Consent.Kind.CONFIRMED)
    with pytest.raises(IntegrityError), transaction.atomic():
        Consent.objects.update(kind=Consent.Kind.IMPORTED)
    with pytest.raises(IntegrityError), transaction.atomic():
        Consent.objects.all().delete()
    assert Consent.objects.get().kind == Consent.Kind.CONFIRMED


def test_a_suppression_marks_the_reader_and_its_end_frees_him(alice: Subscriber) -> None:
    suppression = subscription.suppress("ALICE@example.org", reason=Suppression.Reason.MANUAL)
    alice.refresh_from_db()
    assert alice.suppressed
    assert not Subscriber.objects.mailable().exists()
    suppression.delete()
    alice.refresh_from_db()
    assert not alice.suppressed


def test_a_suppressed_address_that_comes_later_is_marked_from_the_start() -> None:
    subscription.suppress("later@example.org", reason=Suppression.Reason.ASKED)
    later = Subscriber.objects.create(address="later@example.org", status="active", confirmed_at=timezone.now())
    later.refresh_from_db()
    assert later.suppressed


def test_nobody_is_active_without_having_confirmed() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Subscriber.objects.create(address="x@example.org", status="active")


def test_look_alike_addresses_stay_two_people() -> None:
    assert addresses.canonical("ada@example.org") != addresses.canonical("ada@xn--exmple-4nf.org")
    with pytest.raises(addresses.InvalidAddress):
        addresses.canonical("аda@example.org")


def test_the_mailable_are_active_unpaused_and_unsuppressed(
    alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    assert list(Subscriber.objects.mailable()) == [alice]
    Subscriber.objects.filter(pk=alice.pk).update(paused_until="2999-01-01T00:00Z")
    assert not Subscriber.objects.mailable().exists()


def test_a_mail_that_can_not_be_made_holds_up_none_behind_it(bob: Subscriber) -> None:
    broken = emails.owe("nonsense", subscriber=bob)
    sound = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    assert emails.send_all_due(10, seconds=10) == 1
    broken.refresh_from_db()
    sound.refresh_from_db()
    assert ("TemplateDoesNotExist" in broken.error, broken.attempts) == (True, 1)
    assert sound.sent_at


def test_mails_begun_in_time_are_the_only_ones_begun(bob: Subscriber) -> None:
    emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    assert emails.send_all_due(10, seconds=0) == 0


@pytest.mark.parametrize(("days", "is_given_up"), [(6.9, False), (7.1, True)])
def test_an_alert_is_tried_each_hour_for_seven_days(settings: Any, days: float, is_given_up: bool) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    context = {"event": "late", "issue": "#4 x", "url": "u", "due_at": "2026-06-25T08:30:00+00:00"}
    owed = emails.owe(SystemMail.Kind.ALERT, address="author@example.org", context=context)
    since = timezone.now() - dt.timedelta(days=days)
    SystemMail.objects.update(attempts=100, created_at=since)
    assert not emails.send_due(owed.pk)
    owed.refresh_from_db()
    assert (owed.failed_at is not None) == is_given_up
    assert dt.timedelta(minutes=59) < owed.due_at - timezone.now() <= dt.timedelta(hours=1)
