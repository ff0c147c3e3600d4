"""The digest: once a month, what went out in it, to the readers who want it so and to nobody else."""

import datetime as dt
from collections.abc import Iterator

import pytest
import time_machine

from newsletter import audit, composing, delivery, digest, sweeper
from newsletter.models import Delivery, Issue, IssuePost
from posts.models import Post, Publication, Tag
from subscribers import subscription
from subscribers.models import Subscriber, SystemMail
from tests.factories import make_issue, make_post, make_readers

MONTHLY = Subscriber.Frequency.MONTHLY
# The publication's clocks show London's time, and summer time: the month is over an hour before it is in UTC.
SENT = dt.datetime(2026, 9, 14, 8, tzinfo=dt.UTC)
OVER = dt.datetime(2026, 9, 30, 23, 1, tzinfo=dt.UTC)
DUE = dt.datetime(2026, 10, 1, 8, tzinfo=dt.UTC)

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock(publication: Publication) -> Iterator[time_machine.Traveller]:
    with time_machine.travel(SENT, tick=False) as clock:
        yield clock


@pytest.fixture
def readers(clock: time_machine.Traveller) -> None:
    """One of each issue, two of digests."""
    _each, *monthly = make_readers(3)
    Subscriber.objects.filter(pk__in=[reader.pk for reader in monthly]).update(frequency=MONTHLY)


def mail(*posts: Post, at: dt.datetime = SENT) -> Issue:
    """Send an issue, and say when it was: the database's clock can't be turned back."""
    issue = make_issue(*posts)
    delivery.send_now(issue)
    Issue.objects.filter(pk=issue.pk).update(started_at=at)
    return issue


def addresses(issue: Issue) -> set[str]:
    return set(Delivery.objects.filter(issue=issue).values_list("address", flat=True))


def test_once_the_month_is_over_a_digest_is_scheduled_for_the_usual_time(
    readers: None, clock: time_machine.Traveller
) -> None:
    locks, plans = make_post("On locks"), make_post("On plans")
    mail(plans, at=SENT + dt.timedelta(days=7))
    mail(locks)
    assert digest.assemble() is None
    clock.move_to(OVER)
    issue = digest.assemble()
    assert issue is not None
    assert (issue.state, issue.due_at, issue.slot) == (Issue.State.SCHEDULED, DUE, None)
    assert issue.subject == "September 2026 in one letter"
    assert issue.preheader == "On locks · On plans"
    found = issue.issue_posts.values_list("post__title", "mode")
    assert list(found) == [("On locks", IssuePost.Mode.TEASER), ("On plans", IssuePost.Mode.TEASER)]
    assert digest.assemble() is None
    assert Issue.objects.exclude(digest_of=None).count() == 1


def test_it_goes_to_the_readers_of_digests_alone_and_they_get_nothing_else(
    readers: None, clock: time_machine.Traveller
) -> None:
    single = mail(make_post("On locks"))
    assert addresses(single) == {"reader0@example.org"}
    clock.move_to(OVER)
    issue = digest.assemble()
    assert issue is not None
    assert issue.audience().count() == 2
    Issue.objects.filter(pk=issue.pk).update(due_at=SENT)  # the database's clock decides
    assert delivery.freeze(issue.pk)
    assert addresses(issue) == {"reader1@example.org", "reader2@example.org"}
    issue.refresh_from_db()
    for sent in (single, issue):
        assert audit.audit(sent).violations == []


def test_a_digest_is_in_no_digest(readers: None, clock: time_machine.Traveller) -> None:
    mail(make_post("On locks"), at=OVER + dt.timedelta(days=3))
    Issue.objects.update(digest_of=dt.date(2026, 9, 1))
    clock.move_to(dt.datetime(2026, 11, 1, 9, tzinfo=dt.UTC))
    assert digest.assemble() is None


def test_what_is_mailed_only_stands_in_full_and_what_was_taken_back_not_at_all(
    readers: None, clock: time_machine.Traveller
) -> None:
    hidden = make_post("For readers", visibility=Post.Visibility.EMAIL_ONLY)
    gone, draft = make_post("A mistake"), make_post("To be written anew")
    mail(gone, draft, hidden)
    Post.objects.filter(pk=gone.pk).update(status=Post.Status.WITHDRAWN)
    Post.objects.filter(pk=draft.pk).update(status=Post.Status.DRAFT)
    clock.move_to(OVER)
    issue = digest.assemble()
    assert issue is not None
    assert list(issue.issue_posts.values_list("post", "mode")) == [(hidden.pk, IssuePost.Mode.FULL)]


def test_without_posts_or_readers_there_is_none(readers: None, clock: time_machine.Traveller) -> None:
    clock.move_to(OVER)
    assert digest.assemble() is None
    mail(make_post())
    Subscriber.objects.update(frequency=Subscriber.Frequency.EVERY)
    assert digest.assemble() is None
    assert Issue.objects.filter(digest_of__isnull=False).count() == 0


def test_whoever_chooses_digests_later_gets_the_next_one(publication: Publication) -> None:
    reader = make_readers(1)[0]
    with time_machine.travel(SENT, tick=False):
        mail(make_post())
    with time_machine.travel(DUE + dt.timedelta(days=9), tick=False):
        subscription.change(reader.pk, frequency=MONTHLY)
        assert digest.assemble() is None


def test_one_that_comes_too_late_waits_for_the_author(readers: None, clock: time_machine.Traveller) -> None:
    mail(make_post())
    clock.move_to(DUE + dt.timedelta(days=2))
    sweeper.dispatch_due()
    issue = Issue.objects.get(digest_of=dt.date(2026, 9, 1))
    assert issue.state == Issue.State.DRAFT
    assert [mail.context["event"] for mail in SystemMail.objects.filter(kind=SystemMail.Kind.ALERT)] == ["missed"]
    assert digest.assemble() is None


def test_what_blocks_it_is_told_once_and_once_mended_it_is_scheduled(
    readers: None, clock: time_machine.Traveller
) -> None:
    mail(make_post())
    Publication.objects.update(postal_address="")
    clock.move_to(OVER)
    assert digest.assemble() is digest.assemble() is None
    told = [mail.context for mail in SystemMail.objects.filter(kind=SystemMail.Kind.ALERT)]
    assert [context["event"] for context in told] == ["freeze_failed"]
    assert "postal address" in told[0]["error"]
    Publication.objects.update(postal_address="1 Example Street")
    issue = digest.assemble()
    assert issue is not None
    assert issue.state == Issue.State.SCHEDULED


def test_topics_choose_among_the_readers_of_digests_too(readers: None, clock: time_machine.Traveller) -> None:
    locks, plans = (Tag.objects.create(name=name, offered=True) for name in ("Locks", "Plans"))
    post = make_post()
    post.tags.add(locks)
    mail(post)
    Subscriber.objects.filter(address="reader1@example.org").update(topics=[plans.pk])
    clock.move_to(OVER)
    issue = digest.assemble()
    assert issue is not None
    assert set(issue.audience().values_list("address", flat=True)) == {"reader2@example.org"}


def test_the_posts_of_a_cancelled_digest_are_not_proposed_again(readers: None, clock: time_machine.Traveller) -> None:
    mail(make_post())
    clock.move_to(OVER)
    issue = digest.assemble()
    assert issue is not None
    issue.cancel()
    assert not composing.ready_posts().exists()
    assert digest.assemble() is None
