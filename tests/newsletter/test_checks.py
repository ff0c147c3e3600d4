"""Wrong settings are named before the first mail goes."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.test import Client
from pytest_django.fixtures import Settings

from newsletter import checks as ours
from posts.models import Publication


def ids(check: Callable[..., list[checks.CheckMessage]], **kwargs: Any) -> list[str | None]:
    return [message.id for message in check(**kwargs)]


@pytest.fixture
def production(settings: Settings) -> Settings:
    settings.SITE_URL, settings.SECURE, settings.EMBEDDED = "https://news.example.org", True, False
    settings.PEPPER, settings.SECRET_KEY = "p" * 40, "s" * 60
    settings.ALLOW_TEST_ADDRESSES = False
    settings.SECOND_FACTOR_REQUIRED = True
    settings.SMTP_PORT, settings.SMTP_USER, settings.SMTP_SECURITY = 587, "masthead", "starttls"
    return settings


def test_a_good_production_has_nothing_to_say(production: Settings) -> None:
    for check in (ours.check_site, ours.check_secrets, ours.check_mail, ours.check_durations, ours.check_production):
        assert check() == []


@pytest.mark.parametrize(
    "address",
    ["news.example.org", "ftp://news.example.org", "https://news.example.org/news", "https://"],
)
def test_a_site_url_that_makes_no_link_is_refused(settings: Settings, address: str) -> None:
    settings.SITE_URL = address
    assert ids(ours.check_site) == ["masthead.E001"]


def test_an_empty_admin_path_is_refused(settings: Settings) -> None:
    settings.ADMIN_PATH = ""
    assert ids(ours.check_site) == ["masthead.E002"]


def test_a_missing_pepper_is_refused(settings: Settings) -> None:
    settings.PEPPER = ""
    assert ids(ours.check_secrets) == ["masthead.E003"]


def test_an_unknown_word_for_smtp_security_is_refused_and_the_known_ones_named(settings: Settings) -> None:
    settings.SMTP_SECURITY = "ssl"
    (message,) = ours.check_mail()
    assert message.id == "masthead.E004"
    assert "starttls" in str(message.hint)


@pytest.mark.parametrize("path", ["/nowhere.pem", __file__, "/"])
def test_a_file_of_certificates_that_can_not_be_read_is_refused(settings: Settings, path: str) -> None:
    settings.SMTP_CA_FILE = path
    assert ids(ours.check_mail) == ["masthead.E011"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", socket.gethostname()])
def test_the_log_of_a_relay_on_this_machine_is_believed(settings: Settings, host: str) -> None:
    settings.RELAY_LOG, settings.SMTP_HOST = __file__, host
    assert ours.check_mail() == []


@pytest.mark.parametrize(
    ("host", "path", "words"),
    [
        ("relay.example.net", __file__, "SMTP_HOST is not this machine"),
        ("localhost", "/nowhere.log", "can't be read"),
        ("localhost", "/", "can't be read"),
    ],
)
def test_a_relay_log_that_can_prove_nothing_is_warned_of(settings: Settings, host: str, path: str, words: str) -> None:
    settings.RELAY_LOG, settings.SMTP_HOST = path, host
    (message,) = ours.check_mail()
    assert message.id == "masthead.W009"
    assert words in message.msg


def test_a_duration_of_nothing_is_refused(settings: Settings) -> None:
    settings.SWEEP_SECONDS = 0
    assert ids(ours.check_durations) == ["masthead.E005"]


def test_a_lease_that_one_late_renewal_would_end_is_refused(settings: Settings) -> None:
    settings.LEASE_SECONDS, settings.RENEW_SECONDS, settings.INTENT_TTL_SECONDS = 89, 30, 10
    assert ids(ours.check_durations) == ["masthead.E006"]


def test_an_intent_that_outlives_its_lease_is_refused(settings: Settings) -> None:
    settings.LEASE_SECONDS, settings.INTENT_TTL_SECONDS = 120, 120
    assert ids(ours.check_durations) == ["masthead.E007"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SECURE": False}, "masthead.W001"),
        ({"EMBEDDED": True}, "masthead.W002"),
        ({"PEPPER": "short"}, "masthead.W003"),
        ({"ALLOW_TEST_ADDRESSES": True}, "masthead.W004"),
        ({"SMTP_SECURITY": "none"}, "masthead.W005"),
        ({"SMTP_PORT": 465}, "masthead.W006"),
    ],
)
def test_production_is_warned(production: Settings, changes: dict[str, Any], expected: str) -> None:
    for name, value in changes.items():
        setattr(production, name, value)
    assert ids(ours.check_production) == [expected]


def test_the_publication_is_looked_at_only_when_the_database_is_asked_for(publication: Publication) -> None:
    publication.postal_address = ""
    publication.save()
    assert ids(ours.check_publication) == []
    assert ids(ours.check_publication, databases=["default"]) == ["masthead.W008"]


def test_an_invented_sender_and_an_unknown_time_zone_are_named(publication: Publication, settings: Settings) -> None:
    settings.ALLOW_TEST_ADDRESSES = False
    publication.time_zone = "Europe/Nowhere"
    publication.save()
    assert ids(ours.check_publication, databases=["default"]) == ["masthead.W007", "masthead.E008"]


def test_the_checks_are_registered(settings: Settings) -> None:
    settings.SMTP_SECURITY = "ssl"
    with pytest.raises(Exception, match=r"masthead\.E004"):
        call_command("check")


@pytest.mark.django_db
def test_healthz_names_the_database_and_a_broker_that_is_away(client: Client, settings: Settings) -> None:
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    response = client.get("/healthz/")
    assert response.status_code == 200
    assert response.json() == {"database": "ok", "broker": "away"}
    assert "no-store" in response.headers["Cache-Control"]


def test_healthz_is_not_redirected_to_https(settings: Settings, client: Client, db: None) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/healthz/").status_code == 200
