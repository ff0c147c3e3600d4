"""Fixtures that every test may use: the four readers, the publication, and the servers the tests run on."""

import os
from collections.abc import Iterator

import pytest
from django.conf import settings as django_settings
from django.db import connection, connections
from django.test import TransactionTestCase
from django.utils import timezone

from newsletter import embedded
from newsletter.celery import app
from posts.models import Publication
from subscribers.models import Subscriber, Suppression


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors (`-n auto`), since many tests wait; each has servers of its own."""
    return min((os.cpu_count() or 1) + 1, 6)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> Iterator[None]:
    """Run on servers of the tests' own where the environment names none; fsync is off on these.

    Of several pytest processes at once (-n) each has its own.
    """
    if not django_settings.EMBEDDED:
        yield
        return
    servers = embedded.Servers(
        django_settings.EMBEDDED_DIR / f"tests{os.environ.get('PYTEST_XDIST_WORKER', '')}",
        postgres_bin=django_settings.SERVERS.postgres_bin,
        durable=False,
    )
    with servers.running():
        connections["default"].settings_dict["HOST"] = str(servers.run)
        app.conf.broker_url = servers.celery_url(servers.redis_url)
        yield


BLOATED = 8_000_000  # bytes of all tables, dead rows included, from which on truncating is quicker
KEPT = ("django_content_type", "auth_permission")  # as migrations made them


@pytest.fixture(scope="session", autouse=True)
def _quick_flush() -> Iterator[None]:
    """Empty the tables by DELETE after a test that commits.

    Truncating forty of them and making all permissions anew takes twenty times as long, after one test in four.
    """
    flush = TransactionTestCase._fixture_teardown

    def delete_all(case: TransactionTestCase) -> None:
        with connection.cursor() as cursor:
            tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False))
            cursor.execute("SELECT sum(pg_table_size(name::regclass)) FROM unnest(%s::text[]) name", [list(tables)])
            if cursor.fetchone()[0] > BLOATED:
                flush(case)
                return
            cursor.execute("SET session_replication_role = replica")  # no trigger, no order of foreign keys
            for table in sorted(tables - set(KEPT)):
                cursor.execute(f'DELETE FROM "{table}"')
            cursor.execute("SET session_replication_role = DEFAULT")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_all)
        yield


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
    settings.SECOND_FACTOR_REQUIRED = False  # type: ignore[attr-defined]  # test_guard and test_login turn it on
    settings.ALLOW_TEST_ADDRESSES = True  # type: ignore[attr-defined]  # pytest-django's fixture has no fixed attributes
    settings.MEDIA_ROOT = tmp_path_factory.mktemp("media")  # type: ignore[attr-defined]  # as above
