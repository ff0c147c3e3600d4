"""Say before the first mail goes what is wrong with the settings, in words that name the variable to change."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import ssl
import zoneinfo
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections

SMTP_SECURITIES = ("none", "starttls", "tls")
POSITIVE = (
    "LEASE_SECONDS",
    "RENEW_SECONDS",
    "CLAIM_SECONDS",
    "CLAIM_BATCH",
    "INTENT_TTL_SECONDS",
    "RETRY_FIRST_SECONDS",
    "RETRY_MAX_SECONDS",
    "SEND_TASKS",
    "DISPATCH_SECONDS",
    "SWEEP_SECONDS",
    "SMTP_TIMEOUT",
    "SMTP_FINAL_TIMEOUT",
    "SMTP_MESSAGES_PER_CONNECTION",
    "SMTP_CONNECTIONS",
    "BREAKER_FAULTS",
    "BREAKER_WINDOW",
    "UNKNOWN_SETTLE_SECONDS",
)
POLICIES = ("hold", "resend")
ONE_ADDRESS = re.compile(r"[^\s,;<>@]+@[^\s,;<>@]+")


def register() -> None:
    """Register the checks: always, with --deploy, and with --database."""
    checks.register(check_site, checks.Tags.urls)
    checks.register(check_secrets, checks.Tags.security)
    checks.register(check_mail)
    checks.register(check_durations)
    checks.register(check_production, checks.Tags.security, deploy=True)
    checks.register(check_publication, checks.Tags.database)


def check_site(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Refuse a SITE_URL from which no link can be made, and an admin that would hide the site."""
    url = urlsplit(settings.SITE_URL)
    found: list[checks.CheckMessage] = []
    if url.scheme not in ("http", "https") or not url.hostname or url.path or url.query:
        hint = "Write it as https://news.example.org, without a path: every link in a mail begins with it."
        found.append(checks.Error(f"SITE_URL is no address of a site: {settings.SITE_URL}", hint, id="masthead.E001"))
    if not settings.ADMIN_PATH:
        found.append(checks.Error("ADMIN_PATH is empty.", "Give it a word, such as admin.", id="masthead.E002"))
    return found


def check_secrets(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Refuse to run without the key that hashes suppressed addresses."""
    if settings.PEPPER:
        return []
    hint = "Set it once to 32 random characters or more and never change it: suppressed addresses are hashed with it."
    return [checks.Error("PEPPER is not set.", hint, id="masthead.E003")]


def check_mail(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Refuse what no connection to the relay can be made with; warn of a relay's log that can prove nothing."""
    return [*_connection(), *_relay_log()]


def _connection() -> Iterator[checks.CheckMessage]:
    if settings.SMTP_SECURITY not in SMTP_SECURITIES:
        hint = f"Choose one of {', '.join(SMTP_SECURITIES)}; starttls is usual for port 587, tls for port 465."
        yield checks.Error(f"SMTP_SECURITY is unknown: {settings.SMTP_SECURITY}", hint, id="masthead.E004")
    if settings.TEST_MODE_ADDRESS and not ONE_ADDRESS.fullmatch(settings.TEST_MODE_ADDRESS):
        hint = "Write one address, as me@example.org, or leave it empty: then mail goes to whom it is for."
        message = f"TEST_MODE_ADDRESS is not one e-mail address: {settings.TEST_MODE_ADDRESS}"
        yield checks.Error(message, hint, id="masthead.E012")
    try:
        ssl.create_default_context(cafile=settings.SMTP_CA_FILE or None)
    except (OSError, ValueError) as error:
        hint = "Name a file of certificates in PEM that this process may read, or leave it empty for the system's own."
        message = f"SMTP_CA_FILE can't be read: {settings.SMTP_CA_FILE}: {error}"
        yield checks.Error(message, hint, id="masthead.E011")


def _relay_log() -> Iterator[checks.CheckMessage]:
    if not settings.RELAY_LOG:
        return
    if not _is_here(settings.SMTP_HOST):
        hint = (
            "Unset RELAY_LOG, or send through the Postfix that writes it: another relay's copies would seem not taken."
        )
        message = f"RELAY_LOG is set, but SMTP_HOST is not this machine: {settings.SMTP_HOST}"
        yield checks.Warning(message, hint, id="masthead.W009")
    if not os.access(settings.RELAY_LOG, os.R_OK) or os.path.isdir(settings.RELAY_LOG):
        hint = "Let this process read it, such as by the group adm; until then unknown copies stay unknown."
        yield checks.Warning(f"RELAY_LOG can't be read: {settings.RELAY_LOG}", hint, id="masthead.W009")


def _is_here(host: str) -> bool:
    """Tell whether a host's name is this machine's; asks no name server."""
    own = {"localhost", "::1", "[::1]", socket.gethostname().lower()}
    return host.lower() in own or host.startswith("127.")


def check_durations(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Refuse durations under which a lease would end while its holder still works."""
    found: list[checks.CheckMessage] = [
        checks.Error(f"{name} has to be more than zero.", id="masthead.E005")
        for name in POSITIVE
        if getattr(settings, name) <= 0
    ]
    if settings.RENEW_SECONDS * 3 > settings.LEASE_SECONDS:
        hint = "Make the lease at least three times as long, so that a late renewal does not end it."
        found.append(checks.Error("RENEW_SECONDS is too long for LEASE_SECONDS.", hint, id="masthead.E006"))
    if settings.INTENT_TTL_SECONDS >= settings.LEASE_SECONDS:
        hint = "An intent must grow too old before its lease ends, or two workers could hold the same copy."
        found.append(checks.Error("INTENT_TTL_SECONDS is not below LEASE_SECONDS.", hint, id="masthead.E007"))
    if settings.UNKNOWN_SETTLE_SECONDS <= settings.SMTP_FINAL_TIMEOUT + settings.INTENT_TTL_SECONDS:
        hint = "A relay that is still thinking would be judged: make it longer than SMTP_FINAL_TIMEOUT and the intent."
        found.append(checks.Error("UNKNOWN_SETTLE_SECONDS is too short.", hint, id="masthead.E009"))
    if settings.UNKNOWN_POLICY not in POLICIES:
        hint = f"Choose one of {', '.join(POLICIES)}."
        found.append(checks.Error(f"UNKNOWN_POLICY is unknown: {settings.UNKNOWN_POLICY}", hint, id="masthead.E010"))
    return found


def check_production(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Warn of what is fine for a demo and wrong for readers."""
    return list(_production())


def _production() -> Iterator[checks.CheckMessage]:
    if not settings.SECURE:
        hint = "Use https:// and a certificate: links in a mail outlive the mail, and mail programs ask for https."
        yield checks.Warning(f"SITE_URL is not https: {settings.SITE_URL}", hint, id="masthead.W001")
    if settings.EMBEDDED:
        hint = "Set DATABASE_URL and REDIS_URL: the embedded servers are for the demo and the tests."
        yield checks.Warning("DATABASE_URL is not set.", hint, id="masthead.W002")
    if len(settings.PEPPER) < 32 or settings.PEPPER == settings.SECRET_KEY:
        hint = "Use 32 random characters or more of their own, before the first reader joins; afterwards never."
        yield checks.Warning("PEPPER is short or the same as SECRET_KEY.", hint, id="masthead.W003")
    if not settings.SECOND_FACTOR_REQUIRED:
        hint = "Unset it: whoever learns a password could write to all readers."
        yield checks.Warning("SECOND_FACTOR_REQUIRED is off.", hint, id="masthead.W011")
    if settings.ALLOW_TEST_ADDRESSES:
        hint = "Unset it: no mail can reach .test and example.com, so each such reader is a bounce."
        yield checks.Warning("ALLOW_TEST_ADDRESSES is on.", hint, id="masthead.W004")
    if settings.TEST_MODE_ADDRESS:
        hint = "Unset it before readers are to get anything: every mail goes there, and counts as sent."
        where = f"Test mode is on: all mail goes to {settings.TEST_MODE_ADDRESS}"
        yield checks.Warning(where, hint, id="masthead.W010")
    if settings.SMTP_USER and settings.SMTP_SECURITY == "none":
        hint = "Set SMTP_SECURITY to starttls or tls."
        yield checks.Warning("The SMTP password would travel in the clear.", hint, id="masthead.W005")
    if settings.SMTP_PORT == smtplib.SMTP_SSL_PORT and settings.SMTP_SECURITY != "tls":
        hint = "Port 465 begins with TLS: set SMTP_SECURITY=tls, or use port 587 with starttls."
        yield checks.Warning("SMTP_PORT and SMTP_SECURITY do not fit.", hint, id="masthead.W006")


def check_publication(databases: Sequence[str] | None = None, **_kwargs: Any) -> list[checks.CheckMessage]:
    """Warn of a publication that can't send; looks into the database, so only with `check --database default`."""
    publication = apps.get_model("posts", "Publication")
    if "default" not in (databases or ()):
        return []
    if publication._meta.db_table not in connections["default"].introspection.table_names():
        return []
    return [message for row in publication._default_manager.all() for message in _identity(row)]


def _identity(publication: Any) -> Iterator[checks.CheckMessage]:
    where = "Mend it in the admin, on the page of the publication."
    domain = publication.sender_address.rpartition("@")[2].lower()
    invented = domain.endswith((".test", ".example", "example.com", "example.org", "example.net"))
    if invented and not settings.ALLOW_TEST_ADDRESSES:
        yield checks.Warning(
            f"The sender's address is invented: {publication.sender_address}", where, id="masthead.W007"
        )
    if not publication.postal_address.strip():
        yield checks.Warning("The publication has no postal address: no issue can go out.", where, id="masthead.W008")
    if publication.time_zone not in zoneinfo.available_timezones():
        hint = f"{where} Where the name is right, this machine's time zone data is too old."
        yield checks.Error(f"The time zone is unknown here: {publication.time_zone}", hint, id="masthead.E008")
