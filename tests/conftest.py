"""Fixtures that every test may use: the four readers, the publication, and the servers the tests run on."""

import pytest
from django.utils import timezone

from posts.models import Publication
from subscribers.models import Subscriber, Suppression


@pytest.fixture
def publication(db: None) -> Publication:
    publication = Publication.current()
    publication.name = "Query Notes"
    publication.sender_address = "author@example.org"
    publication.postal_address = "1 Example Street, Exampletown"
    publication.save()
    return publication


def make_reader(name: str, status: str) -> Subscriber:
    confirmed_at = None if status == Subscriber.Status.PENDING else timezone.now()
    return Subscriber.objects.create(
        address=f"{name}@example.org", name=name.title(), status=status, confirmed_at=confirmed_at
    )


@pytest.fixture
def alice(db: None) -> Subscriber:
    """Alice is confirmed: she is mailed."""
    return make_reader("alice", Subscriber.Status.ACTIVE)


@pytest.fixture
def bob(db: None) -> Subscriber:
    """Bob has not confirmed yet."""
    return make_reader("bob", Subscriber.Status.PENDING)


@pytest.fixture
def carol(db: None) -> Subscriber:
    """Carol has left."""
    return make_reader("carol", Subscriber.Status.UNSUBSCRIBED)


@pytest.fixture
def dave(db: None) -> Subscriber:
    """Dave is active, but his address is suppressed."""
    dave = make_reader("dave", Subscriber.Status.ACTIVE)
    Suppression.objects.create(address_hash=dave.address_hash, reason=Suppression.Reason.BOUNCED)
    dave.refresh_from_db()
    return dave


@pytest.fixture(autouse=True)
def _settings(settings: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings.ALLOW_TEST_ADDRESSES = True  # type: ignore[attr-defined]  # pytest-django's fixture has no fixed attributes
    settings.MEDIA_ROOT = tmp_path_factory.mktemp("media")  # type: ignore[attr-defined]  # as above
