"""What of an issue counts the site's version up: what the archive shows of it, and nothing that sending notes down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.utils import timezone

from newsletter.models import Issue, IssuePost
from posts.models import Publication, SiteVersion
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.django_db(transaction=True)


def counted(change: Callable[[], object]) -> int:
    """Return by how much the version grows."""
    before = SiteVersion.objects.get().number
    change()
    return SiteVersion.objects.get().number - before


def test_a_draft_and_its_posts_count_nothing(publication: Publication) -> None:
    issue, post = make_issue(make_post()), make_post("Another")
    assert counted(lambda: IssuePost.objects.create(issue=issue, post=post)) == 0
    assert counted(lambda: Issue.objects.update(subject="Another subject", number=7)) == 0


def test_an_issue_that_begins_to_be_sent_is_shown_from_then_on(publication: Publication) -> None:
    issue = make_issue(make_post(), number=7)
    shown = Issue.objects.filter(pk=issue.pk)
    assert counted(lambda: shown.update(started_at=timezone.now())) == 1
    assert counted(lambda: shown.update(subject="Mended")) == 1
    assert counted(lambda: shown.update(candidates=9, planned=9, excluded=0, prepared_at=timezone.now())) == 0
    assert counted(lambda: shown.update(state=Issue.State.SENDING)) == 0
    assert counted(lambda: shown.update(state=Issue.State.COMPLETED, completed_at=timezone.now())) == 0
    assert counted(lambda: IssuePost.objects.all().update(mode=IssuePost.Mode.TEASER)) == 1
    assert counted(lambda: shown.update(state=Issue.State.CANCELLED)) == 1
    assert counted(issue.delete) == 1
