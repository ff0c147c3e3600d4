"""Make what tests need, in one line each."""

import datetime as dt
from typing import Any

from django.utils import timezone

from newsletter.models import Issue, IssuePost, Slot
from posts.models import Post
from subscribers import addresses
from subscribers.models import Subscriber


def make_post(title: str = "On vacuum", body: str = "Tables *grow*.", **values: Any) -> Post:
    return Post.objects.create(title=title, body=body, **values)


def make_issue(*posts: Post, subject: str = "This week", **values: Any) -> Issue:
    values.setdefault("introduction", "" if posts else "Hello.")
    issue = Issue.objects.create(subject=subject, **values)
    for position, post in enumerate(posts):
        IssuePost.objects.create(issue=issue, post=post, position=position)
    return issue


def make_slot(*, days: int = 7, state: str = Slot.State.OPEN) -> Slot:
    due_at = timezone.now() + dt.timedelta(days=days)
    return Slot.objects.create(local_date=due_at.date(), due_at=due_at, state=state, moved=True)


def make_readers(count: int) -> list[Subscriber]:
    """Make `count` confirmed readers quickly: reader0@example.org, reader1@example.org ..."""
    now = timezone.now()
    readers = [
        Subscriber(
            address=f"reader{n}@example.org",
            key=f"reader{n}@example.org",
            address_hash=addresses.keyed_hash(f"reader{n}@example.org"),
            status=Subscriber.Status.ACTIVE,
            confirmed_at=now,
        )
        for n in range(count)
    ]
    return Subscriber.objects.bulk_create(readers, batch_size=5000)
