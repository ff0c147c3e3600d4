"""The ledger: who is planned, what becomes of each copy, and what wins when two things happen at once."""

import datetime as dt
import threading
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils import timezone

from newsletter import delivery, sweeper, transport
from newsletter.models import Delivery, Issue
from posts.models import Post, Publication
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post, make_readers
from tests.smtpd import DROP, SmtpServer

State = Delivery.State
pytestmark = pytest.mark.usefixtures("publication")


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


def test_a_copy_deferred_for_too_long_expires(relay: SmtpServer, alice: Subscriber) -> None:
    relay.script["rcpt"] = lambda session: "450 4.2.0 Later"
    issue = sending()
    Issue.objects.update(started_at=timezone.now() - dt.timedelta(days=4))
    delivery.send_due(issue.pk)
    assert states(issue) == {"alice@example.org": State.EXPIRED}


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


def test_an_unsubscribe_between_claim_and_hand_over_wins(relay: SmtpServer) -> None:
    readers = make_readers(3)
    issue = sending()
    worker = delivery.Worker(issue)
    copies = worker.claim(10)
    Subscriber.objects.filter(pk=readers[1].pk).update(status=Subscriber.Status.UNSUBSCRIBED)
    worker.hand_over_all(copies, until=float("inf"))
    worker.close()
    assert set(relay.recipients) == {"reader0@example.org", "reader2@example.org"}
    assert issue.deliveries.get(subscriber_id=readers[1].pk).reason == "unsubscribed"


def test_a_suppression_between_claim_and_hand_over_wins(relay: SmtpServer, alice: Subscriber) -> None:
    issue = sending()
    worker = delivery.Worker(issue)
    copies = worker.claim(10)
    Subscriber.objects.filter(pk=alice.pk).update(suppressed=True)
    worker.hand_over_all(copies, until=float("inf"))
    worker.close()
    assert (len(relay.mails), issue.deliveries.get().reason) == (0, "suppressed")


def test_a_pause_stops_the_batch_and_resume_sends_the_rest_once(relay: SmtpServer) -> None:
    make_readers(20)
    issue = sending()
    worker = delivery.Worker(issue)
    copies = worker.claim(20)
    worker.hand_over_all(copies[:5], until=float("inf"))
    issue.pause()
    worker.hand_over_all(copies[5:], until=float("inf"))
    worker.close()
    assert len(relay.recipients) == 5
    assert delivery.send_due(issue.pk) == 0
    issue.resume()
    delivery.send_due(issue.pk)
    assert sorted(relay.recipients.values()) == [1] * 20


def test_pausing_twice_is_refused_in_words(alice: Subscriber) -> None:
    issue = sending()
    issue.pause()
    with pytest.raises(ValidationError, match="can't become"):
        Issue.objects.get(pk=issue.pk).pause()


def test_cancelling_skips_what_has_not_gone_and_is_final(relay: SmtpServer) -> None:
    make_readers(4)
    issue = sending()
    worker = delivery.Worker(issue)
    copies = worker.claim(2)
    issue.cancel()
    worker.hand_over_all(copies, until=float("inf"))
    worker.close()
    assert not relay.mails
    assert set(issue.deliveries.values_list("state", "reason")) == {("skipped", "cancelled")}
    with pytest.raises(ValidationError):
        issue.resume()


def test_a_stale_worker_can_neither_send_nor_write(relay: SmtpServer, alice: Subscriber) -> None:
    issue = sending()
    stale = delivery.Worker(issue)
    copies = stale.claim(10)
    Delivery.objects.update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    sweeper.end_leases()
    delivery.send_due(issue.pk)
    stale.hand_over_all(copies, until=float("inf"))
    stale.close()
    assert (relay.recipients["alice@example.org"], states(issue)) == (1, {"alice@example.org": State.ACCEPTED})


def test_an_ended_lease_is_pending_before_the_intent_and_uncertain_after(alice: Subscriber) -> None:
    readers = make_readers(1)
    issue = sending()
    delivery.Worker(issue).claim(10)
    issue.deliveries.filter(subscriber_id=readers[0].pk).update(state=State.HANDING_OVER)
    issue.deliveries.update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    sweeper.end_leases()
    assert states(issue) == {"alice@example.org": State.PENDING, "reader0@example.org": State.UNCERTAIN}


def test_a_late_250_settles_the_row_that_the_sweeper_doubted(relay: SmtpServer, alice: Subscriber) -> None:
    issue = sending()
    worker = delivery.Worker(issue)
    worker.hand_over(worker.claim(1)[0])
    issue.deliveries.update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    sweeper.end_leases()
    assert states(issue) == {"alice@example.org": State.UNCERTAIN}
    worker.close()
    assert states(issue) == {"alice@example.org": State.ACCEPTED}


def test_an_intent_that_grew_too_old_is_not_sent(relay: SmtpServer, settings: Any, alice: Subscriber) -> None:
    settings.INTENT_TTL_SECONDS = -1
    issue = sending()
    delivery.send_due(issue.pk)
    assert (len(relay.mails), states(issue)) == (0, {"alice@example.org": State.DEFERRED})


def test_two_renderings_of_one_copy_are_the_same_bytes(relay: SmtpServer, alice: Subscriber) -> None:
    issue = sending()
    worker = delivery.Worker(issue)
    copy = worker.claim(1)[0]
    once, again = worker.template.fill(worker._values(copy)), delivery.Worker(issue).template.fill(worker._values(copy))
    worker.close()
    assert once == again


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


@pytest.mark.django_db(transaction=True)
def test_an_unsubscribe_waits_for_the_intent_under_way_and_none_goes_after_it(
    relay: SmtpServer, alice: Subscriber
) -> None:
    issue = sending()
    worker = delivery.Worker(issue)
    copy = worker.claim(1)[0]
    order: list[str] = []

    def unsubscribe() -> None:
        Subscriber.objects.filter(pk=alice.pk).update(status=Subscriber.Status.UNSUBSCRIBED)
        order.append("unsubscribed")
        connection.close()

    with transaction.atomic():
        assert worker._intend(copy, b"content")
        thread = threading.Thread(target=unsubscribe)
        thread.start()
        thread.join(0.3)
        order.append("intent committed")
    thread.join(5)
    worker.relay.abort()
    assert order == ["intent committed", "unsubscribed"]


def test_numbers_are_given_in_turn() -> None:
    first, second = sending(), sending(make_issue())
    assert (first.number, second.number) == (1, 2)


def test_transport_errors_name_their_phase() -> None:
    error = transport.Refused(transport.Reply(550, "5.1.1 No such user", "rcpt"))
    assert str(error) == "rcpt: 550 5.1.1 No such user"
