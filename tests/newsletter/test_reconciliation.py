"""Copies of which nobody knows: what proves what, what is held or sent again, and what the author decides."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from newsletter import delivery, reconciliation, sweeper
from newsletter.models import Delivery, DeliveryEvent, Issue
from newsletter.reconciliation import conclude, decide, settle_unknown
from tests.factories import make_issue, make_readers
from tests.smtpd import SmtpServer

State = Delivery.State
pytestmark = pytest.mark.usefixtures("publication")
SECOND, DAY = dt.timedelta(seconds=1), dt.timedelta(days=1)
LINES = """\
{before} relay postfix/master[1]: daemon started
{at} relay postfix/smtpd[2]: 0A0A0A: client=localhost[127.0.0.1]
{at} relay postfix/cleanup[3]: 0A0A0A: message-id=<of-another@example.com>
{at} relay postfix/qmgr[4]: 0A0A0A: from=<b@example.com>, size=1000, nrcpt=1 (queue active)
{named}{after} relay postfix/anvil[5]: statistics: max connection count 1
"""
NAMED = """\
{at} relay postfix/smtpd[2]: 0B0B0B: client=localhost[127.0.0.1]
{at} relay postfix/cleanup[3]: 0B0B0B: message-id={identity}
"""
ACTIVE = "{at} relay postfix/qmgr[4]: 0B0B0B: from=<b@example.com>, size=1000, nrcpt=1 (queue active)\n"


def doubtful(readers: int = 1, *, due: dt.timedelta = -SECOND, since: dt.timedelta = -SECOND) -> Issue:
    """Return a sending issue all of whose copies are uncertain since some time, and to be asked about."""
    make_readers(readers)
    issue = make_issue()
    delivery.send_now(issue)
    doubt(issue, due=due, since=since)
    return issue


def doubt(issue: Issue, *, due: dt.timedelta = -SECOND, since: dt.timedelta = -SECOND) -> None:
    now = timezone.now()
    issue.deliveries.update(state=State.UNCERTAIN, fence=1, next_attempt_at=now + due, updated_at=now + since)


def row_of(issue: Issue) -> Delivery:
    return issue.deliveries.select_related("issue").get()


def hear(row: Delivery, kind: str) -> None:
    DeliveryEvent.objects.create(delivery=row, kind=kind, provider_id=f"{kind}:{row.pk}")


def evidence(issue: Issue) -> list[tuple[str, str]]:
    """Return what was reconciled, as from and to."""
    rows = DeliveryEvent.objects.filter(delivery__issue=issue, kind="reconciled").order_by("pk")
    return [(row.detail["from"], row.detail["to"]) for row in rows]


@pytest.fixture
def relay_log(tmp_path: Path, settings: Any) -> Path:
    """The log of a relay on this machine, which the settings name."""
    settings.RELAY_LOG = str(tmp_path / "mail.log")
    return tmp_path / "mail.log"


def write(log: Path, named: str = "", *, identity: str = "") -> None:
    """Write a log from yesterday to tomorrow that names one other message, and what is `named`."""
    now = timezone.now()
    at = now.isoformat()
    before, after = (now - DAY).isoformat(), (now + DAY).isoformat()
    log.write_text(LINES.format(before=before, at=at, after=after, named=named.format(at=at, identity=identity)))


def test_nothing_is_concluded_before_its_time() -> None:
    issue = doubtful(due=dt.timedelta(seconds=60))
    hear(row_of(issue), "delivered")
    assert settle_unknown() == 0
    assert row_of(issue).state == State.UNCERTAIN


@pytest.mark.parametrize("kind", reconciliation.PROOFS)
def test_what_only_happens_to_a_copy_that_was_taken_proves_it(kind: str) -> None:
    issue = doubtful()
    hear(row_of(issue), kind)
    assert settle_unknown() == 1
    row = row_of(issue)
    assert (row.state, row.phase, row.next_attempt_at) == (State.ACCEPTED, "reconciled", None)
    assert row.accepted_at is not None
    found = DeliveryEvent.objects.get(kind="reconciled")
    assert (found.delivery, found.detail["from"], found.detail["to"]) == (row, State.UNCERTAIN, State.ACCEPTED)
    assert found.detail["evidence"].startswith(f"{kind} at ")


@pytest.mark.parametrize("kind", ["unsubscribed", "rejected", "autoreplied", "reconciled"])
def test_other_events_prove_nothing(kind: str) -> None:
    issue = doubtful()
    hear(row_of(issue), kind)
    settle_unknown()
    assert row_of(issue).state == State.UNCERTAIN_FINAL


def test_an_event_proves_its_own_copy_alone() -> None:
    issue = doubtful(2)
    first, second = issue.deliveries.order_by("pk")
    hear(second, "opened")
    settle_unknown()
    assert [row.state for row in issue.deliveries.order_by("pk")] == [State.UNCERTAIN_FINAL, State.ACCEPTED]
    assert evidence(issue).count((State.UNCERTAIN, State.ACCEPTED)) == 1
    assert first.pk != second.pk


def test_without_evidence_a_copy_is_held_and_the_issue_asks_for_review() -> None:
    issue = doubtful(2)
    assert settle_unknown() == 2
    assert set(issue.deliveries.values_list("state", "next_attempt_at")) == {(State.UNCERTAIN_FINAL, None)}
    assert delivery.settle_issue(issue.pk) == Issue.State.NEEDS_REVIEW
    assert evidence(issue) == [(State.UNCERTAIN, State.UNCERTAIN_FINAL)] * 2


def test_with_the_policy_to_send_again_a_copy_becomes_pending_under_its_old_message_id(settings: Any) -> None:
    settings.UNKNOWN_POLICY = "resend"
    issue = doubtful()
    identity = row_of(issue).message_id
    delivery.settle_issue(issue.pk)
    settle_unknown()
    row = row_of(issue)
    assert (row.state, row.message_id, row.issue.state) == (State.PENDING, identity, Issue.State.SENDING)
    assert issue.has_due()


def test_evidence_goes_before_the_policy(settings: Any) -> None:
    settings.UNKNOWN_POLICY = "resend"
    issue = doubtful()
    hear(row_of(issue), "clicked")
    settle_unknown()
    assert row_of(issue).state == State.ACCEPTED


def test_the_relays_log_proves_that_a_copy_was_taken(relay_log: Path) -> None:
    issue = doubtful()
    write(relay_log, NAMED + ACTIVE, identity=row_of(issue).message_id)
    settle_unknown()
    assert row_of(issue).state == State.ACCEPTED
    assert "queue active" in DeliveryEvent.objects.get().detail["evidence"]


def test_the_relays_log_proves_that_a_copy_was_not_taken_and_it_is_sent_again(relay_log: Path) -> None:
    issue = doubtful()
    write(relay_log)
    settle_unknown()
    assert (row_of(issue).state, issue.has_due()) == (State.PENDING, True)
    assert evidence(issue) == [(State.UNCERTAIN, State.PENDING)]


@pytest.mark.parametrize("policy", ["hold", "resend"])
def test_a_copy_that_the_log_shows_begun_but_not_ended_is_never_taken_for_either(
    relay_log: Path, settings: Any, policy: str
) -> None:
    settings.UNKNOWN_POLICY = policy
    issue = doubtful()
    write(relay_log, NAMED, identity=row_of(issue).message_id)
    settle_unknown()
    assert (row_of(issue).state == State.UNCERTAIN, evidence(issue)) == (
        policy == "hold",
        [] if policy == "hold" else [(State.UNCERTAIN, State.PENDING)],
    )


@pytest.mark.parametrize("broken", ["missing", "without names", "too short"])
def test_a_log_that_can_not_tell_is_looked_at_again_later(relay_log: Path, settings: Any, broken: str) -> None:
    issue = doubtful()
    if broken == "without names":
        relay_log.write_text(f"{(timezone.now() - DAY).isoformat()} relay postfix/master[1]: daemon started\n")
    elif broken == "too short":
        write(relay_log)
        relay_log.write_text("".join(relay_log.read_text().splitlines(keepends=True)[1:-1]))
    settle_unknown()
    row = row_of(issue)
    assert row.state == State.UNCERTAIN
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > timezone.now() + dt.timedelta(seconds=settings.UNKNOWN_SETTLE_SECONDS - 60)
    assert evidence(issue) == []


def test_a_log_that_can_not_tell_for_a_day_is_given_up(relay_log: Path) -> None:
    issue = doubtful(since=-DAY - SECOND)
    settle_unknown()
    assert row_of(issue).state == State.UNCERTAIN_FINAL


def test_events_are_asked_before_the_log(relay_log: Path) -> None:
    issue = doubtful()
    hear(row_of(issue), "bounced")
    write(relay_log)
    settle_unknown()
    assert row_of(issue).state == State.ACCEPTED


def test_asking_twice_finds_nothing_more() -> None:
    issue = doubtful()
    hear(row_of(issue), "delivered")
    assert (settle_unknown(), settle_unknown()) == (1, 0)
    assert len(evidence(issue)) == 1


def test_a_copy_that_moved_meanwhile_is_left_alone() -> None:
    issue = doubtful()
    seen = row_of(issue)
    issue.deliveries.update(state=State.ACCEPTED, next_attempt_at=None)  # the holder of the fence read a late 250
    conclude(seen, None)
    assert (row_of(issue).state, evidence(issue)) == (State.ACCEPTED, [])


def test_a_copy_that_was_claimed_again_meanwhile_is_left_alone() -> None:
    issue = doubtful()
    seen = row_of(issue)
    issue.deliveries.update(fence=2)
    conclude(seen, None)
    assert (row_of(issue).state, evidence(issue)) == (State.UNCERTAIN, [])


def test_a_second_doubt_about_a_copy_has_evidence_of_its_own() -> None:
    issue = doubtful()
    settle_unknown()
    decide(issue, [row_of(issue).pk], "again", by="author")
    doubt(issue)
    settle_unknown()
    assert evidence(issue) == [
        (State.UNCERTAIN, State.UNCERTAIN_FINAL),
        (State.UNCERTAIN_FINAL, State.PENDING),
        (State.UNCERTAIN, State.UNCERTAIN_FINAL),
    ]


def test_the_unknown_copies_of_a_paused_issue_are_settled_and_it_stays_paused(settings: Any) -> None:
    settings.UNKNOWN_POLICY = "resend"
    issue = doubtful()
    issue.pause()
    settle_unknown()
    assert (row_of(issue).state, row_of(issue).issue.state) == (State.PENDING, Issue.State.PAUSED)


def test_a_copy_of_a_cancelled_issue_that_was_not_taken_is_left_out(relay_log: Path) -> None:
    issue = doubtful()
    issue.cancel()
    write(relay_log)
    settle_unknown()
    sweeper.skip_cancelled()
    row = row_of(issue)
    assert (row.state, row.reason, row.issue.state) == (State.SKIPPED, "cancelled", Issue.State.CANCELLED)


def test_a_copy_of_a_cancelled_issue_that_was_taken_is_sent() -> None:
    issue = doubtful()
    issue.cancel()
    hear(row_of(issue), "delivered")
    settle_unknown()
    assert (row_of(issue).state, row_of(issue).issue.state) == (State.ACCEPTED, Issue.State.CANCELLED)


# The author decides


@pytest.mark.parametrize(
    ("decision", "state", "after"),
    [
        ("sent", State.ACCEPTED, Issue.State.COMPLETED),
        ("again", State.PENDING, Issue.State.SENDING),
        ("leave", State.UNCERTAIN_FINAL, Issue.State.NEEDS_REVIEW),
    ],
)
@pytest.mark.parametrize("settled", [False, True], ids=["uncertain", "uncertain for good"])
def test_the_author_decides_about_an_unknown_copy(settled: bool, decision: str, state: str, after: str) -> None:
    issue = doubtful()
    if settled:
        settle_unknown()
    delivery.settle_issue(issue.pk)
    assert decide(issue, [row_of(issue).pk], decision, by="the author") == 1
    assert (row_of(issue).state, delivery.settle_issue(issue.pk)) == (state, after)
    assert DeliveryEvent.objects.latest("pk").detail["evidence"] == f"decided by the author: {decision}"


def test_the_author_decides_about_one_and_then_about_all() -> None:
    issue = doubtful(5)
    settle_unknown()
    ids = list(issue.deliveries.order_by("pk").values_list("pk", flat=True))
    assert decide(issue, ids[:1], "again", by="author") == 1
    assert decide(issue, ids, "sent", by="author") == 4
    assert [row.state for row in issue.deliveries.order_by("pk")] == [State.PENDING, *[State.ACCEPTED] * 4]


@pytest.mark.parametrize("decision", ["sent", "again"])
def test_deciding_twice_changes_nothing_more(decision: str) -> None:
    issue = doubtful()
    ids = [row_of(issue).pk]
    assert (decide(issue, ids, decision, by="author"), decide(issue, ids, decision, by="author")) == (1, 0)
    assert len(evidence(issue)) == 1


def test_only_unknown_copies_of_this_issue_are_decided_about() -> None:
    issue, other = doubtful(2), make_issue()
    delivery.send_now(other)
    doubt(other)
    known = issue.deliveries.order_by("pk")[0]
    issue.deliveries.filter(pk=known.pk).update(state=State.REJECTED, next_attempt_at=None)
    everything = list(Delivery.objects.values_list("pk", flat=True))
    assert decide(issue, everything, "again", by="author") == 1
    known.refresh_from_db()
    assert known.state == State.REJECTED
    assert set(other.deliveries.values_list("state", flat=True)) == {State.UNCERTAIN}


@pytest.mark.parametrize("word", ["", "resend", "accepted", "Sent"])
def test_another_word_is_refused(word: str) -> None:
    issue = doubtful()
    with pytest.raises(ValidationError):
        decide(issue, [row_of(issue).pk], word, by="author")
    assert row_of(issue).state == State.UNCERTAIN


def test_nothing_of_a_cancelled_issue_is_sent_again() -> None:
    issue = doubtful()
    settle_unknown()
    issue.cancel()
    with pytest.raises(ValidationError, match="cancelled"):
        decide(issue, [row_of(issue).pk], "again", by="author")
    assert decide(issue, [row_of(issue).pk], "sent", by="author") == 1
    assert row_of(issue).state == State.ACCEPTED


def test_an_issue_cancelled_while_the_author_looked_at_it_is_not_sent_again() -> None:
    issue = doubtful()
    settle_unknown()
    seen = Issue.objects.get(pk=issue.pk)
    issue.cancel()
    with pytest.raises(ValidationError, match="cancelled"):
        decide(seen, [row_of(issue).pk], "again", by="author")
    assert row_of(issue).state == State.UNCERTAIN_FINAL


@pytest.mark.django_db(transaction=True)
def test_an_issue_under_review_is_sent_again_and_completes(relay: SmtpServer) -> None:
    issue = doubtful(3)
    settle_unknown()
    assert delivery.settle_issue(issue.pk) == Issue.State.NEEDS_REVIEW
    ids = list(issue.deliveries.order_by("pk").values_list("pk", flat=True))
    decide(issue, ids[:2], "again", by="author")
    decide(issue, ids[2:], "sent", by="author")
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert (issue.state, issue.counts().sent) == (Issue.State.COMPLETED, 3)
    assert relay.recipients == {"reader0@example.org": 1, "reader1@example.org": 1}
    assert issue.completed_at is not None
