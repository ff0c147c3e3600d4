"""Which installation may send: the first one arms itself, and a copy sends nothing until it is told to."""

import asyncio
import threading
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection

from newsletter import delivery, ledger, sweeper
from newsletter.models import Delivery, Issue
from subscribers import emails, instance
from subscribers.models import Instance, Subscriber, SystemMail
from tests.factories import make_issue, make_readers
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")

# How a copy differs from the original: restored in another cluster, beside it, or run by another installation.
COPIES = {
    "another cluster": {"system_identifier": "7000000000000000000"},
    "a database beside it": {"database_oid": 1},
    "another installation": {"installation": "0" * 32},
}


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def copied(request: pytest.FixtureRequest) -> None:
    """Let this database be the copy of one that was armed elsewhere."""
    instance.arm()
    Instance.objects.update(**request.param)


def test_the_first_to_ask_is_armed_and_stays_so() -> None:
    assert not Instance.objects.exists()
    assert (instance.why_not(), instance.why_not()) == ("", "")
    assert Instance.objects.get().installation == instance.installation()


def test_the_row_does_not_give_the_secret_away(settings: Any) -> None:
    settings.INSTANCE_ID = "a secret of this machine"
    instance.arm()
    assert "secret" not in str(Instance.objects.values().get())


def test_arming_again_changes_nothing() -> None:
    armed_at = instance.arm().armed_at
    assert instance.arm().armed_at == armed_at


@pytest.mark.django_db(transaction=True)
def test_many_who_arm_at_once_are_armed_as_one() -> None:
    told: list[str] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        try:
            told.append(instance.why_not())
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (told, Instance.objects.count()) == ([""] * 8, 1)


def test_there_is_room_for_one_instance_only() -> None:
    armed = instance.arm()
    armed.pk = 2
    with pytest.raises(IntegrityError, match="one_instance"):
        armed.save()


def test_another_instance_id_may_not_send_and_is_told_why(settings: Any) -> None:
    instance.arm()
    settings.INSTANCE_ID = "a staging machine's"
    why = instance.why_not()
    assert "another installation (INSTANCE_ID differs)" in why
    assert "manage.py rearm" in why
    settings.INSTANCE_ID = "the former one's"
    assert instance.why_not() == why


def test_the_former_instance_id_may_send_again(settings: Any) -> None:
    instance.arm()
    former, settings.INSTANCE_ID = settings.INSTANCE_ID, "another"
    assert instance.why_not()
    settings.INSTANCE_ID = former
    assert instance.why_not() == ""


@pytest.mark.parametrize("where", ["another cluster", "a database beside it"])
def test_another_database_may_not_send_and_is_told_why(where: str) -> None:
    instance.arm()
    Instance.objects.update(**COPIES[where])
    assert "by another database, so it looks like a copy and sends nothing" in instance.why_not()


def test_rearm_lets_this_installation_send_and_says_so(copied: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("rearm")
    assert capsys.readouterr().out == "This installation may send now.\n"
    assert instance.why_not() == ""


def test_rearm_says_where_nothing_was_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("rearm")
    assert capsys.readouterr().out == "This installation could send already.\n"


@pytest.mark.parametrize("difference", COPIES.values(), ids=COPIES)
def test_a_copy_hands_nothing_over_and_changes_no_state(
    difference: dict[str, Any], relay: SmtpServer, bob: Subscriber
) -> None:
    make_readers(3)
    under_way, due = make_issue(), make_issue()
    delivery.send_now(under_way)
    due.schedule_at(under_way.due_at)
    emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    before = state_of_things()
    Instance.objects.update(**difference)
    assert (sweeper.dispatch_due(), sweeper.sweep(), delivery.send_due(under_way.pk)) == ([], [], 0)
    assert emails.send_all_due(limit=10) == 0
    assert not any(emails.send_due(row.pk) for row in SystemMail.objects.all())
    assert (state_of_things(), relay.connections, mail.outbox) == (before, 0, [])


def state_of_things() -> list[Any]:
    return [
        list(Issue.objects.order_by("pk").values_list("pk", "state")),
        list(Delivery.objects.order_by("pk").values_list("pk", "state", "fence")),
        list(SystemMail.objects.order_by("pk").values_list("kind", "sent_at", "attempts")),
    ]


def test_every_button_that_sends_is_refused_in_a_copy_in_words(copied: None) -> None:
    issue = make_issue()
    for act in (delivery.send_now, delivery.resend_failed, delivery.send_to_joined):
        with pytest.raises(ValidationError, match="looks like a copy and sends nothing"):
            act(issue)
    issue.refresh_from_db()
    assert issue.state == Issue.State.DRAFT


def test_the_command_that_sends_an_issue_is_refused_in_a_copy(relay: SmtpServer) -> None:
    make_readers(1)
    issue = make_issue()
    delivery.send_now(issue)
    Instance.objects.update(installation="0" * 32)
    with pytest.raises(CommandError, match="looks like a copy and sends nothing"):
        call_command("send_issue", issue.number)
    assert relay.connections == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("difference", COPIES.values(), ids=COPIES)
def test_a_claim_asks_once_more_in_its_own_statement(relay: SmtpServer, difference: dict[str, Any]) -> None:
    """A worker that was at work before the database was copied under it claims nothing from then on."""
    make_readers(3)
    issue = make_issue()
    delivery.send_now(issue)
    book = ledger.Ledger(issue.pk)
    with asyncio.Runner() as runner:
        runner.run(book.open())
        Instance.objects.update(**difference)
        assert runner.run(book.claim(10)) == []
        runner.run(book.close())
    assert not issue.deliveries.exclude(state=Delivery.State.PENDING).exists()
