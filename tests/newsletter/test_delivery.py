"""The ledger: who is planned, what becomes of each copy, and what wins when two things happen at once."""

import asyncio
import datetime as dt
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from newsletter import delivery, ledger, replies, sweeper
from newsletter.models import Delivery, Frontier, Issue, Lease
from newsletter.worker import Worker
from posts.models import Post, Publication
from subscribers.models import Subscriber, Suppression
from tests.factories import make_issue, make_post, make_readers, make_slot
from tests.smtpd import DROP, Session, SmtpServer

State = Delivery.State
# A worker speaks to the ledger on connections of its own, so what a test writes has to be committed.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]


def sending(issue: Issue | None = None) -> Issue:
    issue = issue or make_issue()
    delivery.send_now(issue)
    return issue


def states(issue: Issue) -> dict[str, str]:
    return dict(issue.deliveries.values_list("address", "state"))


def test_every_active_reader_is_planned_or_excluded_with_a_reason(
    alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    paused = Subscriber.objects.create(
        address="erin@example.org", status="active", confirmed_at=timezone.now(), paused_until="2999-01-01T00:00Z"
    )
    issue = sending()
    rows = dict(issue.deliveries.values_list("subscriber_id", "reason"))
    assert rows == {alice.pk: "", dave.pk: "suppressed", paused.pk: "paused"}
    assert (issue.candidates, issue.planned, issue.excluded) == (3, 1, 2)


def test_an_issue_reaches_each_planned_reader_once(
    relay: SmtpServer, alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    make_readers(30)
    issue = sending()
    delivery.send_due(issue.pk)
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert set(relay.recipients.values()) == {1}
    assert len(relay.recipients) == 31
    assert (issue.state, str(issue.counts())) == (
        Issue.State.COMPLETED,
        "32 = 31 sent + 1 skipped + 0 failed + 0 unknown + 0 open",
    )


def test_an_issue_without_readers_is_completed() -> None:
    issue = sending()
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert (issue.state, issue.candidates) == (Issue.State.COMPLETED, 0)


def test_freezing_publishes_the_posts_and_takes_them_off_the_ready_list(alice: Subscriber) -> None:
    post = make_post(ready=True)
    sending(make_issue(post))
    post.refresh_from_db()
    assert (post.status, post.ready) == (Post.Status.PUBLISHED, False)


def test_editing_after_the_freeze_changes_no_copy(relay: SmtpServer, alice: Subscriber) -> None:
    post = make_post(body="Before the freeze.")
    issue = sending(make_issue(post))
    post.body = "After the freeze."
    post.save()
    delivery.send_due(issue.pk)
    assert b"Before the freeze" in relay.mails[0].content
    assert b"After the freeze" not in relay.mails[0].content


def test_a_refused_address_is_rejected_and_the_rest_go_on(relay: SmtpServer) -> None:
    make_readers(5)
    relay.script["rcpt"] = lambda session: "550 5.1.1 Unknown" if session.recipient.startswith("reader2") else None
    issue = sending()
    delivery.send_due(issue.pk)
    row = issue.deliveries.get(address="reader2@example.org")
    issue.refresh_from_db()
    assert (row.state, row.smtp_code, row.enhanced_code, row.phase) == (State.REJECTED, 550, "5.1.1", "rcpt")
    assert (len(relay.recipients), issue.state) == (4, Issue.State.COMPLETED_WITH_FAILURES)


def test_a_4xx_is_tried_again_after_its_delay(relay: SmtpServer, settings: Any, alice: Subscriber) -> None:
    relay.script["rcpt"] = lambda session: "450 4.2.0 Greylisted" if relay.connections == 1 else None
    issue = sending()
    delivery.send_due(issue.pk)
    row = issue.deliveries.get()
    assert (row.state, row.attempt) == (State.DEFERRED, 1)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > timezone.now() + dt.timedelta(seconds=settings.RETRY_FIRST_SECONDS - 10)
    issue.deliveries.update(next_attempt_at=timezone.now() - dt.timedelta(hours=1))
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.ACCEPTED}


def test_a_copy_deferred_for_too_long_expires(relay: SmtpServer, settings: Any, alice: Subscriber) -> None:
    relay.script["rcpt"] = lambda session: "450 4.2.0 Later"
    issue = sending()
    Issue.objects.update(started_at=timezone.now() - dt.timedelta(days=9))  # the issue's age says nothing of a copy's
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.DEFERRED}
    long_ago = timezone.now() - dt.timedelta(seconds=settings.RETRY_FOR_SECONDS)
    issue.deliveries.update(next_attempt_at=timezone.now(), first_try_at=long_ago + dt.timedelta(minutes=1))
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.DEFERRED}
    issue.deliveries.update(next_attempt_at=timezone.now(), first_try_at=long_ago)
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.EXPIRED}


def test_an_issue_that_no_relay_was_there_for_in_days_asks_before_it_goes(settings: Any, alice: Subscriber) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9  # nobody listens
    issue = sending()
    delivery.send_due(issue.pk)
    assert delivery.settle_issue(issue.pk) == Issue.State.SENDING
    Issue.objects.update(state_since=timezone.now() - dt.timedelta(seconds=settings.RETRY_FOR_SECONDS))
    assert delivery.settle_issue(issue.pk) == Issue.State.PAUSED
    issue.refresh_from_db()
    assert "72 hours" in issue.pause_reason
    issue.resume()
    assert delivery.settle_issue(issue.pk) == Issue.State.SENDING


def test_a_drop_after_the_final_dot_is_uncertain_and_asks_for_review(relay: SmtpServer, alice: Subscriber) -> None:
    relay.script["final_dot"] = lambda session: DROP
    issue = sending()
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert (states(issue), issue.state) == ({"alice@example.org": State.UNCERTAIN}, Issue.State.NEEDS_REVIEW)


def test_a_drop_before_the_final_dot_is_retried_not_doubted(relay: SmtpServer, alice: Subscriber) -> None:
    relay.script["data"] = lambda session: DROP
    issue = sending()
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.DEFERRED}


def test_an_unreachable_relay_gives_the_copies_back(settings: Any, alice: Subscriber) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    issue = sending()
    delivery.send_due(issue.pk)
    row = issue.deliveries.get()
    assert (row.state, row.attempt) == (State.PENDING, 0)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > timezone.now()


def beside(act: Callable[[], object]) -> None:
    """Do something on a connection of its own while the sending waits, as another process would."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not failures


def once(relay: SmtpServer, phase: str, act: Callable[[], object], *, after: int = 0) -> None:
    """Do something when the relay, having taken `after` copies, comes to `phase` for the first time."""
    acts = [act]

    def script(session: Session) -> None:
        if acts and len(relay.recipients) >= after:
            beside(acts.pop())

    relay.script[phase] = script


def test_an_unsubscribe_before_the_intent_wins(relay: SmtpServer, alice: Subscriber) -> None:
    reader = Subscriber.objects.filter(pk=alice.pk)
    once(relay, "data", lambda: reader.update(status=Subscriber.Status.UNSUBSCRIBED))
    issue = sending()
    delivery.send_due(issue.pk)
    row = issue.deliveries.get()
    assert (len(relay.recipients), row.state, row.reason) == (0, State.SKIPPED, "unsubscribed")


def test_a_suppression_before_the_intent_wins(relay: SmtpServer, alice: Subscriber) -> None:
    suppression = Suppression(address_hash=alice.address_hash, reason=Suppression.Reason.COMPLAINED)
    once(relay, "data", suppression.save)
    issue = sending()
    delivery.send_due(issue.pk)
    assert (len(relay.recipients), issue.deliveries.get().reason) == (0, "suppressed")


def test_one_readers_refusal_does_not_keep_the_others_waiting(relay: SmtpServer) -> None:
    readers = make_readers(40)
    leaving = Subscriber.objects.filter(pk__in=[reader.pk for reader in readers[20:25]])
    once(relay, "mail", lambda: leaving.update(status=Subscriber.Status.UNSUBSCRIBED))
    issue = sending()
    delivery.send_due(issue.pk)
    counts = issue.counts()
    assert counts.sent + counts.skipped == 40
    assert 1 <= counts.skipped <= 5
    assert set(relay.recipients.values()) == {1}


def test_a_reader_whose_row_is_being_changed_is_passed_over_and_handed_back(
    relay: SmtpServer, alice: Subscriber
) -> None:
    make_readers(5)
    issue = sending()
    with transaction.atomic():
        Subscriber.objects.select_for_update().get(pk=alice.pk)
        delivery.send_due(issue.pk)
    row = issue.deliveries.get(subscriber=alice)
    assert (len(relay.recipients), row.state, row.attempt) == (5, State.PENDING, 0)
    assert row.next_attempt_at is not None


def test_a_pause_stops_the_batch_and_resume_sends_the_rest_once(relay: SmtpServer, settings: Any) -> None:
    settings.SMTP_CONNECTIONS = 2
    make_readers(30)
    issue = sending()
    once(relay, "mail", issue.pause, after=5)
    delivery.send_due(issue.pk)
    assert 5 <= len(relay.recipients) <= 8
    assert issue.counts().open == 30 - len(relay.recipients)
    relay.script.clear()
    assert delivery.send_due(issue.pk) == 0
    issue.resume()
    delivery.send_due(issue.pk)
    assert sorted(relay.recipients.values()) == [1] * 30


def test_a_second_click_on_a_button_changes_nothing(alice: Subscriber) -> None:
    issue = sending()
    for act, state in (("pause", "paused"), ("resume", "sending"), ("cancel", "cancelled")):
        for _click in range(2):
            getattr(Issue.objects.get(pk=issue.pk), act)()
            assert Issue.objects.get(pk=issue.pk).state == state


def test_an_issue_paused_before_its_start_starts_after_the_pause(relay: SmtpServer, alice: Subscriber) -> None:
    issue = make_issue()
    issue.schedule_at(timezone.now())
    delivery.freeze(issue.pk)
    issue.refresh_from_db()
    for act in ("pause", "resume", "resume"):
        getattr(issue, act)()
    assert Issue.objects.get(pk=issue.pk).state == Issue.State.FROZEN
    sweeper.start_frozen()
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert issue.state == Issue.State.COMPLETED
    assert issue.started_at is not None


def test_the_time_for_retries_stands_still_during_a_pause(alice: Subscriber) -> None:
    issue = sending()
    issue.pause()
    Issue.objects.update(state_since=timezone.now() - dt.timedelta(days=5))
    Issue.objects.get(pk=issue.pk).resume()
    issue.refresh_from_db()
    assert issue.paused_seconds >= 5 * 86400


def test_the_authors_pause_is_not_undone_by_an_issue_that_rested(alice: Subscriber) -> None:
    issue = sending()
    past = timezone.now() - dt.timedelta(seconds=1)
    Issue.objects.update(state=Issue.State.PAUSED, pause_reason="quota", resume_at=past)
    issue.pause()
    sweeper.resume_paused()
    issue.refresh_from_db()
    assert (issue.state, issue.pause_reason, issue.resume_at) == (Issue.State.PAUSED, "", None)


def test_what_is_not_sending_can_not_be_paused(alice: Subscriber) -> None:
    with pytest.raises(ValidationError, match="can't become"):
        make_issue().pause()


def test_cancelling_skips_what_has_not_gone_and_is_final(relay: SmtpServer, settings: Any) -> None:
    settings.SMTP_CONNECTIONS = 1
    make_readers(4)
    issue = sending()
    once(relay, "data", issue.cancel)
    delivery.send_due(issue.pk)
    assert not relay.recipients
    assert set(issue.deliveries.values_list("state", "reason")) == {("skipped", "cancelled")}
    with pytest.raises(ValidationError):
        issue.resume()


def test_a_stale_worker_can_neither_send_nor_write(relay: SmtpServer, settings: Any, alice: Subscriber) -> None:
    """Its copy is taken from it before its intent, and handed over by another."""
    issue = sending()

    def take_over() -> None:
        relay.script.clear()
        Lease.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
        sweeper.end_leases()

    once(relay, "data", take_over)
    delivery.send_due(issue.pk)
    assert (len(relay.recipients), states(issue)) == (0, {"alice@example.org": State.PENDING})
    delivery.send_due(issue.pk)
    row = issue.deliveries.get()
    assert (relay.recipients["alice@example.org"], row.state, row.fence) == (1, State.ACCEPTED, 2)


def held(issue: Issue, **states: str) -> Lease:
    """Pretend that a worker died that held these copies."""
    lease = Lease.objects.create(issue=issue, owner="gone:1", expires_at=timezone.now() - dt.timedelta(seconds=1))
    for name, state in states.items():
        issue.deliveries.filter(address=f"{name}@example.org").update(state=state, lease=lease, fence=1)
    return lease


def test_an_ended_lease_is_pending_before_the_intent_and_uncertain_after(alice: Subscriber) -> None:
    make_readers(1)
    issue = sending()
    lease = held(issue, alice=State.CLAIMED, reader0=State.HANDING_OVER)
    sweeper.end_leases()
    lease.refresh_from_db()
    assert states(issue) == {"alice@example.org": State.PENDING, "reader0@example.org": State.UNCERTAIN}
    assert lease.ended_at is not None


def test_nothing_is_claimed_under_an_ended_lease(relay: SmtpServer, settings: Any) -> None:
    """A worker that comes back from a long sleep finds its lease ended and begins nothing more."""
    settings.SMTP_CONNECTIONS, settings.CLAIM_BATCH, settings.RENEW_SECONDS = 1, 4, 0
    make_readers(20)
    issue = sending()
    once(relay, "data", lambda: Lease.objects.update(ended_at=timezone.now()))
    delivery.send_due(issue.pk)
    assert len(relay.recipients) <= 8
    assert issue.deliveries.filter(state=State.PENDING).exists()


def test_a_late_250_settles_the_row_that_the_sweeper_doubted(relay: SmtpServer, alice: Subscriber) -> None:
    issue = sending()

    def doubt() -> None:
        Lease.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
        sweeper.end_leases()
        assert states(issue) == {"alice@example.org": State.UNCERTAIN}

    once(relay, "final_dot", doubt)
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.ACCEPTED}


def test_an_intent_that_grew_too_old_is_not_sent(relay: SmtpServer, settings: Any, alice: Subscriber) -> None:
    settings.INTENT_TTL_SECONDS = -1
    issue = sending()
    delivery.send_due(issue.pk, seconds=0.5)
    assert (len(relay.mails), states(issue)) == (0, {"alice@example.org": State.PENDING})


def test_a_worker_that_is_told_to_stop_finishes_what_is_under_way_and_gives_the_rest_back(
    relay: SmtpServer, settings: Any
) -> None:
    settings.SMTP_CONNECTIONS = 2
    make_readers(50)
    issue = sending()
    relay.script["final_dot"] = lambda session: 0.1
    delivery.send_due(issue.pk, stop=lambda: len(relay.recipients) >= 4)
    counts = issue.counts()
    assert (counts.unknown, counts.sent) == (0, len(relay.recipients))
    assert set(states(issue).values()) == {State.ACCEPTED, State.PENDING}
    assert Lease.objects.get().ended_at is not None


def test_two_tries_of_one_copy_are_the_same_bytes(relay: SmtpServer, alice: Subscriber) -> None:
    """Even if the reader took another name in between: a copy is fixed at freeze."""
    issue = sending(make_issue(introduction="Dear {{ name|reader }},"))
    relay.script["final_dot"] = lambda session: "451 4.3.0 Later" if relay.connections == 1 else None
    delivery.send_due(issue.pk)
    first = issue.deliveries.get().render_sha256
    Subscriber.objects.update(name="Somebody Else")
    issue.deliveries.update(next_attempt_at=timezone.now() - dt.timedelta(hours=1))
    delivery.send_due(issue.pk)
    assert hashlib.sha256(relay.mails[0].content).hexdigest() == first
    assert b"Alice" in relay.mails[0].content
    assert b"Somebody" not in relay.mails[0].content


def test_those_it_failed_for_get_it_again_only_if_they_may_be_mailed(relay: SmtpServer, carol: Subscriber) -> None:
    readers = make_readers(4)
    refusing = True
    relay.script["rcpt"] = lambda session: "550 5.1.1 Unknown" if refusing else None
    issue = sending()
    delivery.send_due(issue.pk)
    Subscriber.objects.filter(pk=readers[0].pk).update(status=Subscriber.Status.UNSUBSCRIBED)
    refusing = False
    assert delivery.resend_failed(Issue.objects.get(pk=issue.pk)) == 3
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert (issue.counts().sent, issue.counts().failed) == (3, 1)
    assert issue.state == Issue.State.COMPLETED_WITH_FAILURES


def test_those_who_joined_since_get_the_issue_and_nobody_gets_it_twice(relay: SmtpServer, bob: Subscriber) -> None:
    make_readers(3)  # bob asked before them, and confirms after the issue has gone
    issue = sending()
    delivery.send_due(issue.pk)
    Subscriber.objects.filter(pk=bob.pk).update(status=Subscriber.Status.ACTIVE, confirmed_at=timezone.now())
    assert delivery.send_to_joined(Issue.objects.get(pk=issue.pk)) == 1
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert dict(relay.recipients) == {**{f"reader{n}@example.org": 1 for n in range(3)}, "bob@example.org": 1}
    assert (issue.state, issue.candidates, issue.planned) == (Issue.State.COMPLETED, 4, 4)
    with pytest.raises(ValidationError, match="nobody"):
        delivery.send_to_joined(issue)


def test_those_who_joined_are_found_quickly_although_the_statistics_are_stale() -> None:
    make_readers(8000)
    issue = sending()
    Issue.objects.update(state=Issue.State.COMPLETED)
    Subscriber.objects.filter(address="reader7@example.org").update(address="new@example.org", key="new@example.org")
    began = time.monotonic()
    with pytest.raises(ValidationError, match="nobody"):
        delivery.send_to_joined(issue)
    assert time.monotonic() - began < 1.5


def test_a_copy_in_doubt_by_the_former_rules_is_left_to_the_author(alice: Subscriber) -> None:
    make_readers(2)
    issue = sending()
    Subscriber.objects.update(name="Ada")
    lease = Lease.objects.create(issue=issue, owner="former", expires_at=timezone.now())
    for number, state in enumerate([State.HANDING_OVER, State.UNCERTAIN, State.CLAIMED]):
        row = issue.deliveries.order_by("pk")[number]
        Delivery.objects.filter(pk=row.pk).update(state=state, fence=1, lease=lease, next_attempt_at=timezone.now())
    Frontier.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute(import_module("newsletter.migrations.0002_engine").CARRY_OVER)
    rows = list(issue.deliveries.order_by("pk").values_list("state", "name"))
    assert rows == [(State.UNCERTAIN_FINAL, "Ada"), (State.UNCERTAIN_FINAL, "Ada"), (State.PENDING, "Ada")]
    assert issue.deliveries.filter(next_attempt_at=None).count() == 2


def test_many_connections_share_their_commits(relay: SmtpServer, settings: Any) -> None:
    settings.SMTP_CONNECTIONS = 16
    make_readers(300)
    issue = sending()
    worker = Worker(issue)
    commits: list[int] = []
    intend = worker.ledger.intend

    async def counted(copies: Any, accepted: Any) -> Any:
        commits.append(len(copies))
        return await intend(copies, accepted)

    worker.ledger.intend = counted  # type: ignore[method-assign]  # looked at, not replaced
    asyncio.run(worker.run(30))
    assert (len(relay.recipients), sum(commits)) == (300, 300)
    assert max(commits) > 1
    assert relay.connections == 16


def test_at_a_slow_pace_an_acceptance_is_written_down_before_the_wait(relay: SmtpServer, settings: Any) -> None:
    settings.SEND_RATE, settings.SMTP_CONNECTIONS = 0.02, 1
    make_readers(3)
    issue = sending()
    worker = Worker(issue)
    seen: list[int] = []

    def stop() -> bool:
        if relay.recipients:
            seen.append(worker.ledger.settled)
        return len(seen) > 3

    worker.told_to_stop = stop
    began = time.monotonic()
    asyncio.run(worker.run(60))
    assert seen[-1] == 1
    assert time.monotonic() - began < 10
    assert sorted(states(issue).values()) == [State.ACCEPTED, State.PENDING, State.PENDING]


def test_a_small_batch_does_not_limit_the_connections(relay: SmtpServer, settings: Any) -> None:
    settings.CLAIM_BATCH, settings.SMTP_CONNECTIONS = 2, 6
    relay.script["final_dot"] = lambda session: 0.1
    make_readers(6)
    delivery.send_due(sending().pk)
    assert relay.connections == 6


def test_the_next_worker_goes_on_from_what_the_last_was_answered(relay: SmtpServer, settings: Any) -> None:
    settings.BREAKER_FAULTS, settings.SMTP_CONNECTIONS = 3, 1
    settings.SEND_RATE = 0.5  # one copy, and the word to stop comes before the next
    relay.script["mail"] = lambda session: "550 5.7.1 Your domain is on our blocklist"
    make_readers(6)
    issue = sending()
    for state in (Issue.State.SENDING, Issue.State.SENDING, Issue.State.PAUSED):
        worker = Worker(issue)
        worker.told_to_stop = lambda worker=worker: worker.ledger.settled > 0
        asyncio.run(worker.run(60))
        issue.refresh_from_db()
        assert issue.state == state
    issue.resume()
    delivery.send_due(issue.pk, stop=lambda: True)
    assert issue.leases.order_by("pk").values_list("looked", "faults").last() == (1, 1)


def test_the_ledgers_connections_keep_the_settings_options_and_notice_a_dead_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"options": "-c statement_timeout=7s", "keepalives_idle": 3}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", given)
    found = ledger.parameters()
    assert (found["keepalives_idle"], found["keepalives_count"], found["tcp_user_timeout"]) == (3, 3, 30_000)
    with psycopg.connect(**found) as opened:
        row = opened.execute("SELECT current_setting('statement_timeout'), current_setting('jit')").fetchone()
    assert row == ("7s", "off")


def test_a_test_send_leaves_no_row(relay: SmtpServer, alice: Subscriber) -> None:
    issue = make_issue()
    delivery.send_test(issue, to="author@example.org")
    assert list(relay.recipients) == ["author@example.org"]
    assert b"[Test]" in relay.mails[0].content
    assert not Delivery.objects.exists()


def test_a_test_send_to_a_dead_relay_says_so(settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    with pytest.raises(ValidationError, match="did not take the test"):
        delivery.send_test(make_issue(), to="author@example.org")


def test_an_issue_needs_subject_content_and_postal_address() -> None:
    with pytest.raises(ValidationError) as refused:
        delivery.send_now(Issue.objects.create())
    assert "subject" in refused.value.message_dict
    Publication.objects.update(postal_address="")
    with pytest.raises(ValidationError, match="postal address"):
        delivery.send_now(make_issue())


def test_an_unsubscribe_waits_for_the_intent_under_way_and_none_goes_after_it(alice: Subscriber) -> None:
    issue = sending()

    def unsubscribe() -> None:
        Subscriber.objects.filter(pk=alice.pk).update(status=Subscriber.Status.UNSUBSCRIBED)

    async def intend() -> None:
        """The copy's own row is locked by somebody else, so the intent has the reader's row and waits."""
        found = ledger.Ledger(issue.pk)
        await found.open()
        copies = await found.claim(1)
        async with await psycopg.AsyncConnection.connect(**ledger.parameters()) as other, other.transaction():
            await other.execute("SELECT 1 FROM newsletter_delivery WHERE id = %s FOR UPDATE", [copies[0].id])
            intent = asyncio.create_task(found.intend(copies, []))
            await asyncio.sleep(0.3)
            leaving = asyncio.create_task(asyncio.to_thread(beside, unsubscribe))
            await asyncio.sleep(0.3)
            assert not intent.done()
            assert not leaving.done()
        assert (await intent)[0] == {copies[0].id}
        await leaving
        await found.close()

    asyncio.run(intend())
    alice.refresh_from_db()
    assert (issue.deliveries.get().state, alice.status) == (State.HANDING_OVER, "unsubscribed")


def test_an_issue_that_gmail_would_cut_off_is_not_scheduled() -> None:
    issue = make_issue(introduction="Too many words. " * 7000)
    with pytest.raises(ValidationError, match="Gmail cuts off"):
        delivery.schedule(issue, make_slot())
    with pytest.raises(ValidationError, match="Gmail cuts off"):
        delivery.send_now(issue)
    assert Issue.objects.get(pk=issue.pk).state == Issue.State.DRAFT


def test_numbers_are_given_in_turn() -> None:
    first, second = sending(), sending(make_issue())
    assert (first.number, second.number) == (1, 2)


def test_transport_errors_name_their_phase() -> None:
    error = replies.Refused(replies.Reply(550, "5.1.1 No such user", "rcpt"))
    assert str(error) == "rcpt: 550 5.1.1 No such user"


def test_a_terminal_is_shown_how_far_the_sending_is(relay: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_readers(3)
    issue = make_issue()
    delivery.send_now(issue)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    relay.script["final_dot"] = lambda session: 0.5
    call_command("send_issue", issue.number)
    issue.refresh_from_db()
    assert (issue.state, issue.counts().sent) == (Issue.State.COMPLETED, 3)


def test_a_defect_while_progress_is_shown_loses_no_answer(relay: SmtpServer, caplog: pytest.LogCaptureFixture) -> None:
    make_readers(3)
    issue = make_issue()
    delivery.send_now(issue)
    relay.script["final_dot"] = lambda session: 0.5
    failures = iter([ValueError("broken")])

    def progress(_settled: int) -> None:
        for failure in failures:
            raise failure

    assert delivery.send_due(issue.pk, progress=progress) == 3
    assert "a task of issue" in caplog.text
    assert issue.counts().sent == 3
