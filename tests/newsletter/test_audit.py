"""The audit: sound ledgers pass, and each way in which one could be wrong is named."""

import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from newsletter import audit, delivery
from newsletter.models import Delivery, Frontier, Issue, Lease
from subscribers.models import Subscriber
from tests.factories import make_issue, make_readers
from tests.smtpd import SmtpServer

State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]


@pytest.fixture
def sent(relay: SmtpServer, dave: Subscriber) -> Issue:
    make_readers(10)
    issue = make_issue()
    delivery.send_now(issue)
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    return issue


def test_a_sound_ledger_passes(sent: Issue, capsys: Any) -> None:
    call_command("audit")
    printed = capsys.readouterr().out
    assert "11 = 10 sent + 1 skipped + 0 failed + 0 unknown + 0 open" in printed
    assert "every equation comes out" in printed


def test_json_stands_alone_on_standard_output(sent: Issue, capsys: Any) -> None:
    call_command("audit", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["equation"]["sent"], found["violations"]) == (10, [])


def test_a_forgotten_reader_is_found(sent: Issue, capsys: Any) -> None:
    sent.deliveries.filter(address="reader3@example.org").delete()
    with pytest.raises(SystemExit) as ended:
        call_command("audit")
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "1 times a reader who was active at freeze and has no copy" in printed
    assert "the rows are the candidates" in printed


def test_each_contradiction_is_named(sent: Issue) -> None:
    rows = list(sent.deliveries.filter(state=State.ACCEPTED).order_by("pk"))
    ended = Lease.objects.create(issue=sent, owner="x", expires_at=timezone.now(), ended_at=timezone.now())
    change = Delivery.objects.filter
    change(pk=rows[0].pk).update(accepted_at=None)
    change(pk=rows[1].pk).update(state=State.CLAIMED, lease=ended)
    change(pk=rows[2].pk).update(state=State.PENDING, fence=0)
    change(pk=rows[3].pk).update(subscriber_id=10**9)
    Frontier.objects.filter(issue=sent).update(subscriber_id=10**6)
    found = "\n".join(audit.audit(sent).violations)
    for name in (
        "a copy shown as sent that nobody took",
        "a copy held under a lease that has ended",
        "a waiting copy that no claim can find",
        "a copy of a reader who is not there",
        "a completed issue has nothing open or unknown",
    ):
        assert name in found, name


def test_an_issue_that_was_never_frozen_is_named(sent: Issue) -> None:
    with pytest.raises(CommandError, match="no issue 99"):
        call_command("audit", "99")


def test_copies_that_nobody_holds_and_no_claim_finds_are_brought_back(sent: Issue, relay: SmtpServer) -> None:
    """It can't happen; if it does, the issue neither hangs for ever nor calls itself completed."""
    ended = Lease.objects.create(issue=sent, owner="x", expires_at=timezone.now(), ended_at=timezone.now())
    rows = list(sent.deliveries.filter(state=State.ACCEPTED).order_by("pk"))
    Delivery.objects.filter(pk=rows[0].pk).update(state=State.CLAIMED, lease=ended)
    Delivery.objects.filter(pk=rows[1].pk).update(state=State.HANDING_OVER, lease=ended)
    Issue.objects.filter(pk=sent.pk).update(state=Issue.State.SENDING)
    assert delivery.settle_issue(sent.pk) == Issue.State.SENDING
    assert sorted(sent.deliveries.filter(pk__in=[rows[0].pk, rows[1].pk]).values_list("state", flat=True)) == [
        State.PENDING,
        State.UNCERTAIN,
    ]
