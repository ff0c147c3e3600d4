"""Topics: an issue goes to whoever chose none, or one that its posts have."""

import datetime as dt

import pytest
from django.utils import timezone

from newsletter import audit, delivery, figures
from newsletter.models import Delivery, Issue
from posts.models import Tag
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post, make_readers

pytestmark = pytest.mark.usefixtures("publication")


@pytest.fixture
def tags(db: None) -> dict[str, Tag]:
    return {name: Tag.objects.create(name=name, offered=True) for name in ("Locks", "Plans")}


@pytest.fixture
def readers(tags: dict[str, Tag]) -> None:
    """Four readers: of everything, of locks, of plans, of both."""
    wanted = [[], ["Locks"], ["Plans"], ["Locks", "Plans"]]
    for reader, names in zip(make_readers(4), wanted, strict=True):
        Subscriber.objects.filter(pk=reader.pk).update(topics=[tags[name].pk for name in names])


def issue_on(*tags: Tag) -> Issue:
    post = make_post()
    post.tags.set(tags)
    return make_issue(post)


def sent_to(issue: Issue) -> set[str]:
    counted = issue.audience().count()
    delivery.send_now(issue)
    issue.refresh_from_db()
    assert issue.candidates == issue.planned == counted
    return {name.partition("@")[0] for name in Delivery.objects.values_list("address", flat=True)}


def test_a_topic_reaches_those_who_chose_it_or_nothing(readers: None, tags: dict[str, Tag]) -> None:
    assert sent_to(issue_on(tags["Locks"])) == {"reader0", "reader1", "reader3"}


def test_of_two_posts_either_topic_will_do(readers: None, tags: dict[str, Tag]) -> None:
    first, second = make_post("First"), make_post("Second")
    first.tags.add(tags["Locks"])
    second.tags.add(tags["Plans"])
    assert len(sent_to(make_issue(first, second))) == 4


def test_a_post_of_no_topic_is_not_what_was_chosen(readers: None, tags: dict[str, Tag]) -> None:
    assert sent_to(issue_on(Tag.objects.create(name="Gossip"))) == {"reader0"}


def test_an_issue_without_posts_is_for_everybody(readers: None) -> None:
    assert len(sent_to(make_issue())) == 4


def test_a_topic_that_is_no_longer_offered_binds_nobody(readers: None, tags: dict[str, Tag]) -> None:
    Tag.objects.filter(name="Locks").update(offered=False)
    assert sent_to(issue_on(tags["Plans"])) == {"reader0", "reader1", "reader2", "reader3"}


def test_a_topic_that_is_gone_binds_nobody(readers: None, tags: dict[str, Tag]) -> None:
    tags["Locks"].delete()
    assert "reader1" in sent_to(issue_on(tags["Plans"]))


def test_who_widens_his_choice_later_may_be_sent_it_among_those_who_joined(readers: None, tags: dict[str, Tag]) -> None:
    issue = issue_on(tags["Locks"])
    sent_to(issue)
    Subscriber.objects.update(topics=[])
    assert delivery.send_to_joined(issue) == 1


def test_who_wants_a_digest_gets_no_single_issue_and_the_audit_knows(readers: None, tags: dict[str, Tag]) -> None:
    Subscriber.objects.filter(address="reader0@example.org").update(frequency="monthly")
    issue = issue_on(tags["Locks"])
    assert sent_to(issue) == {"reader1", "reader3"}
    assert figures.audience().of_each_issue == 3
    assert audit.audit(issue).violations == []


def test_the_audit_still_finds_who_was_forgotten(readers: None, tags: dict[str, Tag]) -> None:
    Subscriber.objects.update(confirmed_at=timezone.now() - dt.timedelta(days=1))
    issue = issue_on(tags["Locks"])
    sent_to(issue)
    issue.deliveries.filter(address="reader0@example.org").delete()
    assert any("active at freeze" in violation for violation in audit.audit(issue).violations)
