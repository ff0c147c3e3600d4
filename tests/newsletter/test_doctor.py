"""The doctor: each question is asked of real servers on loopback, once where all is well and once where it isn't."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import dns.resolver
import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings
from pytest_django.live_server_helper import LiveServer

from newsletter import delivery, doctor, smtp
from newsletter.celery import app
from newsletter.doctor import domain, machine
from newsletter.doctor import relay as outbound
from newsletter.doctor.facts import Facts, Said, Status
from newsletter.doctor.records import Spf
from newsletter.models import Heartbeat, Issue
from posts.models import Publication
from subscribers import names as dns_names
from subscribers import tokens
from subscribers.models import Subscriber, SystemMail
from subscribers.names import Names, Unasked
from tests.factories import make_issue, make_readers
from tests.nameserver import NameServer, Zone, txt
from tests.smtpd import Certificates, SmtpServer, make_certificates
from tests.workers import Workers, wait_until

OK, WARNS, FAILS, UNASKED = Status.OK, Status.WARNS, Status.FAILS, Status.UNASKED
RELAY = "192.0.2.10"
KEY = base64.b64encode(bytes(294)).decode()  # as long as one of 2048 bits
SHORT_KEY, TINY_KEY = (base64.b64encode(bytes(size)).decode() for size in (162, 94))
DMARC = "v=DMARC1; p=quarantine; rua=mailto:dmarc@example.org"


def good_zone() -> Zone:
    return {
        (".", "NS"): ["a.root-servers.example."],
        ("example.org", "A"): ["192.0.2.1"],
        ("example.org", "MX"): ["10 mail.example.org."],
        ("mail.example.org", "A"): ["192.0.2.2"],
        ("example.org", "TXT"): txt("something else", "v=spf1 a:smtp.example.net -all"),
        ("s1._domainkey.example.org", "TXT"): txt(f"v=DKIM1; k=rsa; p={KEY}"),
        ("_dmarc.example.org", "TXT"): txt(DMARC),
        ("smtp.example.net", "A"): [RELAY],
        ("10.2.0.192.in-addr.arpa", "PTR"): ["smtp.example.net."],
    }


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer(good_zone()) as server:
        yield server


def facts(names: NameServer, **changes: Any) -> Facts:
    """Return what the doctor goes by: anna@example.org through a relay elsewhere, but for `changes`."""
    known: dict[str, Any] = {
        "sender": "example.org",
        "bounces": "example.org",
        "site_url": "https://news.example.org",
        "selector": "s1",
        "relay": "smtp.example.net",
        "port": 587,
    }
    return Facts(Names(names.resolver), **{**known, **changes})


def ask(check: Callable[[Facts], Said | None], names: NameServer, zone: Zone | None = None, **changes: Any) -> Said:
    names.zone.update(zone or {})
    said = check(facts(names, **changes))
    assert said is not None
    return said


def spf(names: NameServer, *texts: str, zone: Zone | None = None, **changes: Any) -> Said:
    return ask(domain.spf, names, {("example.org", "TXT"): txt(*texts), **(zone or {})}, **changes)


# SPF


def test_spf_that_names_the_relay_is_well(names: NameServer) -> None:
    said = ask(domain.spf, names)
    assert (said.status, RELAY in said.found) == (OK, True)


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 ip4:192.0.2.0/24 -all",
        "v=spf1 a:smtp.example.net/28 ~all",
        "v=spf1 mx:example.net -all",
        "v=spf1 include:spf.example.net -all",
        "v=spf1 redirect=spf.example.net",
        "V=SPF1 -ip4:203.0.113.9 +ip4:192.0.2.10 -all",
    ],
)
def test_each_way_to_name_the_relay_is_read(names: NameServer, record: str) -> None:
    zone = {
        ("example.net", "MX"): ["10 smtp.example.net."],
        ("spf.example.net", "TXT"): txt("v=spf1 ip4:192.0.2.10 -all"),
    }
    said = spf(names, record, zone=zone)
    assert said.status == OK
    assert "lets smtp.example.net" in said.found


def test_a_missing_spf_record_fails_and_the_one_to_add_is_written_out(names: NameServer) -> None:
    said = spf(names, "not SPF")
    assert said.status == FAILS
    assert said.record == ("example.org", "TXT", "v=spf1 a:smtp.example.net ~all")
    assert spf(names, "not SPF", relay="smtp.eu.mailgun.org").record == (
        "example.org", "TXT", "v=spf1 include:mailgun.org ~all",
    )  # fmt: skip


def test_the_record_to_add_for_a_relay_here_names_the_site(names: NameServer) -> None:
    record = spf(names, "not SPF", relay="localhost").record
    assert record is not None
    assert record.value == "v=spf1 a:news.example.org ~all"


def test_a_provider_with_an_envelope_of_its_own_only_warns_of_missing_spf(names: NameServer) -> None:
    assert spf(names, "not SPF", by_api=True).status == WARNS


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        (["v=spf1 a -all", "v=spf1 mx -all"], "2 SPF records"),
        (["v=spf1 ip5:192.0.2.10 -all"], "ip5:192.0.2.10"),
        (["v=spf1 ip4:300.0.2.10 -all"], "300.0.2.10"),
        (["v=spf1 include:nothing.example.net -all"], "nothing.example.net has 0 SPF records"),
        (["v=spf1 " + "include:spf.example.net " * 11 + "-all"], "11 look-ups"),
        (["v=spf1 include:loop.example.net -all"], "look-ups"),
        (["v=spf1 ip4:203.0.113.9 -all"], "does not let"),
        (["v=spf1 -ip4:192.0.2.10 ip4:192.0.2.0/24 -all"], "does not let"),
    ],
)
def test_spf_that_receivers_would_not_believe_fails(names: NameServer, texts: list[str], word: str) -> None:
    zone = {
        ("spf.example.net", "TXT"): txt("v=spf1 ip4:203.0.113.9 -all"),
        ("loop.example.net", "TXT"): txt("v=spf1 include:loop.example.net -all"),
    }
    said = spf(names, *texts, zone=zone)
    assert said.status == FAILS
    assert word in said.found


@pytest.mark.parametrize("end", ["+all", "?all", "all"])
def test_spf_that_lets_the_world_send_warns(names: NameServer, end: str) -> None:
    assert spf(names, f"v=spf1 a:smtp.example.net {end}").status == WARNS


def test_a_provider_that_sends_from_elsewhere_is_usual_and_said(names: NameServer) -> None:
    zone = {("spf.example.net", "TXT"): txt("v=spf1 ip4:203.0.113.9 -all")}
    said = spf(names, "v=spf1 include:spf.example.net -all", zone=zone)
    assert (said.status, "spf=pass" in said.to_do) == (OK, True)


def test_look_ups_of_what_is_included_count(names: NameServer) -> None:
    names.zone[("example.org", "TXT")] = txt("v=spf1 include:one.example.net a mx ip4:192.0.2.1 -all")
    names.zone[("one.example.net", "TXT")] = txt("v=spf1 include:two.example.net a:smtp.example.net -all")
    names.zone[("two.example.net", "TXT")] = txt("v=spf1 exists:%{i}.example.net ptr -all")
    reader = Spf(Names(names.resolver))
    reader.verdict("example.org", None)
    assert reader.lookups == 7
    assert reader.problems == []


# DKIM


def test_a_key_at_the_selector_is_well(names: NameServer) -> None:
    said = ask(domain.dkim, names)
    assert (said.status, "2048 bits" in said.found) == (OK, True)
    assert ask(domain.dkim, names, selector="s1._domainkey.example.org.").status == OK


def test_an_unnamed_selector_can_not_be_asked(names: NameServer) -> None:
    said = ask(domain.dkim, names, selector="")
    assert said.status == UNASKED
    assert "DKIM_SELECTOR" in said.to_do


def test_a_missing_key_fails_and_says_where_it_belongs(names: NameServer) -> None:
    said = ask(domain.dkim, names, selector="s2")
    assert said.status == FAILS
    assert said.record is not None
    assert said.record[:2] == ("s2._domainkey.example.org", "TXT")


@pytest.mark.parametrize(
    ("texts", "status", "word"),
    [
        (["v=DKIM1; p="], FAILS, "taken back"),
        (["v=DKIM1; k=rsa; p=not base64!"], FAILS, "no key"),
        (["hello"], FAILS, "no key"),
        ([f"v=DKIM1; p={KEY}", f"v=DKIM1; p={SHORT_KEY}"], FAILS, "2 records"),
        ([f"k=rsa; p={TINY_KEY}"], FAILS, "512 bits"),
        ([f"p={SHORT_KEY}"], WARNS, "1024 bits"),
        ([f"v=DKIM1; k=ed25519; p={base64.b64encode(bytes(32)).decode()}"], WARNS, "ed25519"),
        ([f"v=DKIM1; t=s:y; p={KEY}"], WARNS, "t=y"),
    ],
)
def test_a_key_that_is_of_little_use_is_told(names: NameServer, texts: list[str], status: Status, word: str) -> None:
    said = ask(domain.dkim, names, {("s1._domainkey.example.org", "TXT"): txt(*texts)})
    assert (said.status, word in said.found) == (status, True), said


# DMARC and alignment


def test_a_dmarc_policy_with_reports_is_well(names: NameServer) -> None:
    assert ask(domain.dmarc, names).status == OK


def test_a_missing_dmarc_record_fails_and_the_one_to_begin_with_is_written_out(names: NameServer) -> None:
    del names.zone["_dmarc.example.org", "TXT"]
    said = ask(domain.dmarc, names)
    assert said.status == FAILS
    assert said.record == ("_dmarc.example.org", "TXT", "v=DMARC1; p=none; rua=mailto:dmarc@example.org")


def test_the_record_above_speaks_for_a_sub_domain(names: NameServer) -> None:
    assert "_dmarc.example.org" in ask(domain.dmarc, names, sender="mail.example.org").found
    zone = {("_dmarc.example.org", "TXT"): txt(DMARC + "; sp=whatever")}
    assert ask(domain.dmarc, names, zone, sender="mail.example.org").status == FAILS
    assert ask(domain.dmarc, names, zone).status == OK


@pytest.mark.parametrize(
    ("texts", "status"),
    [
        (["v=DMARC1; rua=mailto:d@example.org"], FAILS),
        (["v=DMARC1; p=nothing; rua=mailto:d@example.org"], FAILS),
        ([DMARC, "v=DMARC1; p=none"], FAILS),
        (["v=DMARC1; p=reject"], WARNS),
        (["v=DMARC1; p=none; rua=mailto:d@example.org"], OK),
    ],
)
def test_dmarc_that_says_too_little_is_told(names: NameServer, texts: list[str], status: Status) -> None:
    assert ask(domain.dmarc, names, {("_dmarc.example.org", "TXT"): txt(*texts)}).status == status


def test_without_reports_the_better_record_is_written_out(names: NameServer) -> None:
    said = ask(domain.dmarc, names, {("_dmarc.example.org", "TXT"): txt("v=DMARC1; p=reject;")})
    assert said.record is not None
    assert said.record.value == "v=DMARC1; p=reject; rua=mailto:dmarc@example.org"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, OK),
        ({"bounces": "bounces.example.org"}, OK),
        ({"bounces": "bounces.example.org", "sender": "news.example.org"}, OK),
        ({"bounces": "example.net"}, WARNS),
        ({"selector": "s1._domainkey.example.net"}, WARNS),
        ({"selector": ""}, OK),
        ({"selector": "", "bounces": "example.net"}, FAILS),
        ({"selector": "s1._domainkey.example.net", "bounces": "notexample.org"}, FAILS),
        ({"by_api": True}, OK),
        ({"by_api": True, "selector": ""}, UNASKED),
        ({"by_api": True, "selector": "s1._domainkey.example.net"}, FAILS),
    ],
)
def test_alignment_of_envelope_and_signature(names: NameServer, changes: dict[str, Any], status: Status) -> None:
    assert ask(domain.alignment, names, **changes).status == status


def test_strict_alignment_wants_the_very_domain(names: NameServer) -> None:
    zone = {("_dmarc.example.org", "TXT"): txt(DMARC + "; aspf=s; adkim=s")}
    changes = {"bounces": "b.example.org", "selector": "s1._domainkey.mail.example.org"}
    assert ask(domain.alignment, names, zone, **changes).status == FAILS
    assert ask(domain.alignment, names, zone).status == OK


# Mail to us, and names


def test_a_domain_with_mail_servers_takes_mail(names: NameServer) -> None:
    said = ask(domain.mail_to_sender, names)
    assert (said.status, "mail.example.org" in said.found) == (OK, True)


@pytest.mark.parametrize(
    ("records", "status", "word"),
    [
        (["0 ."], FAILS, "null MX"),
        (["10 gone.example.org."], FAILS, "gone.example.org has no address"),
        ([], WARNS, "no MX"),
    ],
)
def test_a_domain_that_takes_no_mail_is_told(names: NameServer, records: list[str], status: Status, word: str) -> None:
    said = ask(domain.mail_to_sender, names, {("example.org", "MX"): records})
    assert (said.status, word in said.found) == (status, True), said


def test_replies_and_bounces_are_asked_where_they_go_elsewhere(names: NameServer) -> None:
    assert domain.mail_to_replies(facts(names, replies="example.org")) is None
    assert domain.mail_to_bounces(facts(names)) is None
    said = ask(domain.mail_to_bounces, names, bounces="bounces.example.org")
    assert said.status == FAILS
    assert said.record == ("bounces.example.org", "MX", "10 mail.example.org.")
    zone = {("replies.example.org", "MX"): ["5 mail.example.org."]}
    assert ask(domain.mail_to_replies, names, zone, replies="replies.example.org").status == OK


def test_message_ids_need_a_domain_that_exists(names: NameServer) -> None:
    assert ask(domain.message_id, names).status == OK
    assert ask(domain.message_id, names, sender="nowhere.example").status == FAILS


def test_a_name_server_that_fails_or_keeps_silent_is_no_finding(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.failing.add("example.org")
    with pytest.raises(Unasked, match="SERVFAIL"):
        ask(domain.message_id, names)
    monkeypatch.setattr(dns_names, "SECONDS", 0.3)
    names.silent = True
    with pytest.raises(Unasked, match=r"no name server answered .*_dmarc\.example\.org"):
        ask(domain.dmarc, names)


def test_a_name_server_that_knows_only_its_own_network_is_not_believed(names: NameServer) -> None:
    del names.zone[".", "NS"]
    assert ask(domain.message_id, names).status == OK
    with pytest.raises(Unasked, match=r"does not know example\.net .*nor the root"):
        ask(domain.message_id, names, sender="example.net")


# One click


class Site:
    """A web server on loopback that answers each POST and GET the same, and keeps the paths asked for."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                site.asked.append((self.command, self.path, body))
                self.send_response_only(status)
                for name, value in (headers or {"Date": self.date_time_string()}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Site:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.django_db(transaction=True)
def test_this_site_hears_the_button_and_nobody_leaves_by_it(
    names: NameServer, live_server: LiveServer, settings: Settings, alice: Subscriber
) -> None:
    settings.SITE_URL = live_server.url
    said = ask(domain.one_click, names, site_url=live_server.url)
    assert said.status == WARNS
    assert "answers 200 at once, but over http" in said.found
    assert Subscriber.objects.get().status == Subscriber.Status.ACTIVE


@pytest.mark.django_db
def test_only_a_post_to_the_doctors_own_address_is_answered_without_a_reader(client: Client) -> None:
    assert client.post(f"/u/{uuid4()}/").status_code == 404
    assert client.get(f"/u/{tokens.probe_id()}/").status_code == 404
    assert client.post(f"/u/{tokens.probe_id()}").status_code == 200


def test_the_button_is_pressed_as_mail_programs_do_with_the_slash_and_without(names: NameServer) -> None:
    with Site() as site:
        ask(domain.one_click, names, site_url=site.url)
    assert [(method, body) for method, _path, body in site.asked] == [("POST", b"List-Unsubscribe=One-Click")] * 2
    assert site.asked[0][1] == site.asked[1][1] + "/"


@pytest.mark.parametrize("status", [301, 307, 403, 404, 500])
def test_a_redirect_or_a_refusal_of_the_button_fails(names: NameServer, status: int) -> None:
    with Site(status, {"Location": "https://www.example.org/u/"} if status < 400 else {}) as site:
        said = ask(domain.one_click, names, site_url=site.url)
    assert said.status == FAILS
    assert str(status) in said.found
    assert ("www.example.org" in said.found) == (status < 400)
    assert len(site.asked) == 1


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def test_a_site_that_can_not_be_reached_is_not_judged(names: NameServer) -> None:
    said = ask(domain.one_click, names, site_url=f"http://127.0.0.1:{closed_port()}")
    assert said.status == UNASKED
    assert "refused" in said.found


# The relay's names


def test_a_relay_whose_name_leads_there_and_back_is_well(names: NameServer) -> None:
    assert ask(outbound.reverse_name, names).status == OK


def test_a_relay_without_a_name_or_with_a_wrong_one_is_told(names: NameServer) -> None:
    del names.zone["10.2.0.192.in-addr.arpa", "PTR"]
    said = ask(outbound.reverse_name, names)
    assert said.status == WARNS
    assert said.record == ("10.2.0.192.in-addr.arpa", "PTR", "smtp.example.net.")
    names.zone["10.2.0.192.in-addr.arpa", "PTR"] = ["mail.example.org."]
    assert "does not lead back" in ask(outbound.reverse_name, names).found


def test_a_relay_on_this_machine_or_a_providers_api_can_not_be_asked_for_its_names(names: NameServer) -> None:
    for changes in ({"relay": "127.0.0.1", "by_api": True}, {"by_api": True}):
        with pytest.raises(Unasked):
            ask(outbound.reverse_name, names, **changes)


# Submission


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return make_certificates(folder)


@pytest.fixture
def secured(relay: SmtpServer, certificates: Certificates, folder: Path, settings: Settings) -> SmtpServer:
    """A relay with a certificate that offers STARTTLS and logs in one user, as the settings say."""
    relay.tls, relay.users = certificates.server, {"masthead": "secret"}
    relay.extensions = ("STARTTLS", "AUTH PLAIN LOGIN")
    settings.SMTP_SECURITY, settings.SMTP_CA_FILE = "starttls", str(folder / "ca.pem")
    settings.SMTP_USER, settings.SMTP_PASSWORD = "masthead", "secret"
    return relay


def submit(names: NameServer, settings: Settings) -> Said:
    return ask(outbound.submission, names, relay=settings.SMTP_HOST, port=settings.SMTP_PORT)


def test_a_relay_nearby_needs_no_tls(names: NameServer, relay: SmtpServer, settings: Settings) -> None:
    assert submit(names, settings).status == OK
    assert relay.mails == []


def test_tls_and_login_work_and_nothing_is_sent(names: NameServer, secured: SmtpServer, settings: Settings) -> None:
    said = submit(names, settings)
    # The tests' certificate lives for two days.
    assert (said.status, "login as masthead works" in said.found, "renewed" in said.to_do) == (WARNS, True, True)
    commands = [heard.line.split()[0] for heard in secured.heard]
    assert commands == ["EHLO", "STARTTLS", "EHLO", "AUTH", "QUIT"]


def test_a_certificate_that_lives_on_is_well() -> None:
    ends = (timezone.now() + dt.timedelta(days=60)).strftime("%b %d %H:%M:%S %Y GMT")
    values = {"host": "smtp.example.net", "port": 587, "user": ""}
    assert outbound._secured({"notAfter": ends}, values, "").status == OK


def test_a_wrong_password_fails(names: NameServer, secured: SmtpServer, settings: Settings) -> None:
    settings.SMTP_PASSWORD = "wrong"
    said = submit(names, settings)
    assert (said.status, "535" in said.found, "SMTP_PASSWORD" in said.to_do) == (FAILS, True, True)
    assert "wrong " not in said.found


def test_a_certificate_of_another_name_fails(
    names: NameServer, secured: SmtpServer, certificates: Certificates, settings: Settings
) -> None:
    secured.tls = certificates.elsewhere
    said = submit(names, settings)
    assert (said.status, "No safe connection" in said.found) == (FAILS, True)


def test_a_relay_without_starttls_fails_where_it_is_wanted(
    names: NameServer, secured: SmtpServer, settings: Settings
) -> None:
    secured.extensions = ("AUTH PLAIN",)
    said = submit(names, settings)
    assert (said.status, "does not offer STARTTLS" in said.found) == (FAILS, True)


def test_a_relay_that_is_not_there_fails(names: NameServer, settings: Settings) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", closed_port()
    said = submit(names, settings)
    assert (said.status, "could not be reached" in said.found) == (FAILS, True)


def test_a_relay_that_never_greets_fails_in_time(
    names: NameServer, relay: SmtpServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "GREETING_PATIENCE", 0.3)
    relay.script["greeting"] = lambda _session: 30.0
    said = submit(names, settings)
    assert (said.status, "timed out" in said.found) == (FAILS, True)


def test_a_relay_far_away_in_the_clear_warns_and_with_a_password_fails() -> None:
    account = smtp.Account("smtp.example.net", 25)
    assert outbound._let_in(account, frozenset({"STARTTLS"}), {}, is_near=False).status == WARNS
    account = smtp.Account("smtp.example.net", 25, user="masthead")
    said = outbound._let_in(account, frozenset({"STARTTLS"}), {}, is_near=False)
    assert (said.status, "SMTP_SECURITY=starttls" in said.to_do) == (FAILS, True)


def test_settings_that_make_no_connection_fail_in_words(names: NameServer, settings: Settings) -> None:
    settings.SMTP_SECURITY, settings.SMTP_CA_FILE = "starttls", "/nowhere/ca.pem"
    assert submit(names, settings).status == FAILS
    settings.SMTP_SECURITY = "ssl"
    assert "ssl" in submit(names, settings).found


def test_a_providers_api_is_not_tried_without_a_mail(names: NameServer, settings: Settings) -> None:
    settings.SEND_BACKEND = "anymail.backends.postmark.EmailBackend"
    assert ask(outbound.submission, names, by_api=True).status == UNASKED


# This machine


def test_clocks_that_agree_are_well(names: NameServer) -> None:
    with Site() as site:
        said = ask(machine.clock, names, site_url=site.url, clock_ahead=0.1)
    assert (said.status, "127.0.0.1: " in said.found) == (OK, True)


@pytest.mark.parametrize("ahead", [-60.0, 7.5])
def test_a_clock_that_differs_from_the_databases_fails(names: NameServer, ahead: float) -> None:
    said = ask(machine.clock, names, site_url=f"http://127.0.0.1:{closed_port()}", clock_ahead=ahead)
    assert (said.status, f"{ahead:+.1f} s" in said.found, "could not be asked" in said.found) == (FAILS, True, True)


def test_a_clock_that_differs_from_the_sites_fails(names: NameServer) -> None:
    with Site(headers={"Date": "Mon, 02 Nov 2020 09:00:00 GMT"}) as site:
        assert ask(machine.clock, names, site_url=site.url, clock_ahead=0.0).status == FAILS


def test_without_database_and_site_nobody_tells_the_time(names: NameServer) -> None:
    assert ask(machine.clock, names, site_url=f"http://127.0.0.1:{closed_port()}").status == UNASKED


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.conf, "broker_url", f"redis://:secret@127.0.0.1:{closed_port()}/0")


@pytest.mark.django_db
def test_the_broker_answers(names: NameServer) -> None:
    assert ask(machine.broker, names).status == OK


def test_a_broker_that_is_away_fails_and_workers_can_not_be_asked(names: NameServer, no_broker: None) -> None:
    said = ask(machine.broker, names)
    assert (said.status, "secret" in said.found) == (FAILS, False)
    assert ask(machine.worker, names).status == UNASKED


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_workers_answer_and_a_queue_that_nobody_empties_is_named(
    names: NameServer, relay: SmtpServer, tmp_path: Path
) -> None:
    said = ask(machine.worker, names)
    assert (said.status, said.found) == (FAILS, "No worker answers.")
    with Workers(relay, tmp_path, names=("worker-system",)) as workers:
        # A worker says that it is ready a little before it can be asked.
        wait_until(lambda: "queue bulk" in ask(machine.worker, names).found)
        assert ask(machine.worker, names).status == FAILS
        workers.start("worker")
        wait_until(lambda: ask(machine.worker, names).status == OK)


@pytest.mark.parametrize(("age", "status"), [(None, FAILS), (10, OK), (120, WARNS), (4000, FAILS)])
@pytest.mark.django_db
def test_the_last_sweep_tells_whether_beat_is_alive(names: NameServer, age: int | None, status: Status) -> None:
    if age is not None:
        Heartbeat.objects.create(name="sweep", at=timezone.now() - dt.timedelta(seconds=age))
    assert ask(machine.beat, names).status == status


@pytest.mark.parametrize(("age", "status"), [(1, OK), (20, WARNS), (90, FAILS)])
@pytest.mark.django_db
def test_system_mail_that_waits_is_told_with_its_error(names: NameServer, age: int, status: Status) -> None:
    due_at = timezone.now() - dt.timedelta(minutes=age)
    SystemMail.objects.create(kind="confirm", due_at=due_at, error="ConnectionRefusedError: nobody there")
    said = ask(machine.system_mail, names)
    assert (said.status, "nobody there" in said.found) == (status, status != OK)


@pytest.mark.django_db
def test_system_mail_that_was_given_up_is_told(names: NameServer) -> None:
    assert ask(machine.system_mail, names).status == OK
    SystemMail.objects.create(kind="confirm", failed_at=timezone.now())
    assert ask(machine.system_mail, names).status == WARNS


@pytest.mark.django_db
def test_an_issue_that_has_not_begun_in_time_fails(names: NameServer, publication: Publication) -> None:
    issue = make_issue()
    due_at = timezone.now() + dt.timedelta(hours=1)
    Issue.objects.filter(pk=issue.pk).update(state="scheduled", number=1, due_at=due_at)
    assert ask(machine.deliveries, names).status == OK
    Issue.objects.filter(pk=issue.pk).update(due_at=due_at - dt.timedelta(hours=2))
    said = ask(machine.deliveries, names)
    assert (said.status, "has not begun" in said.found) == (FAILS, True)


@pytest.mark.django_db
def test_due_copies_that_nobody_takes_up_fail(names: NameServer, publication: Publication) -> None:
    make_readers(2)
    issue = make_issue()
    delivery.send_now(issue)
    assert ask(machine.deliveries, names).status == OK
    Issue.objects.filter(pk=issue.pk).update(state_since=timezone.now() - dt.timedelta(hours=1))
    assert ask(machine.deliveries, names).status == FAILS
    issue.deliveries.update(state="accepted")
    assert ask(machine.deliveries, names).status == OK


def test_a_disk_with_room_is_well_and_a_full_one_fails(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LITTLE_SPACE", 1)
    monkeypatch.setattr(machine, "NO_SPACE", 0)
    assert ask(machine.disk, names).status == OK
    monkeypatch.setattr(machine, "LITTLE_SPACE", 10**18)
    assert ask(machine.disk, names).status == WARNS
    monkeypatch.setattr(machine, "NO_SPACE", 10**18)
    assert ask(machine.disk, names).status == FAILS


def test_a_folder_that_can_not_be_written_fails(names: NameServer, settings: Settings) -> None:
    settings.MEDIA_ROOT = "/proc/self/nowhere"  # not even root may
    said = ask(machine.disk, names)
    assert (said.status, "can't be written" in said.found) == (FAILS, True)


@pytest.mark.django_db
def test_what_django_checks_is_among_the_findings(
    names: NameServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)  # the browser tests need it, and Django minds it
    said = ask(machine.settings_checks, names)
    assert (said.status, "masthead.W001" in said.found) == (WARNS, True)
    settings.PEPPER = ""
    said = ask(machine.settings_checks, names)
    assert (said.status, "masthead.E003: PEPPER is not set." in said.found) == (FAILS, True)


# The whole


@pytest.fixture
def asked(names: NameServer, monkeypatch: pytest.MonkeyPatch, publication: Publication) -> NameServer:
    """The name server that this machine asks; nothing was asked yet."""
    cache.clear()
    monkeypatch.setattr(dns.resolver, "default_resolver", names.resolver)
    return names


def test_every_question_is_answered_once_and_in_order(asked: NameServer) -> None:
    report = doctor.examine()
    ids = [check.id for checks in doctor.GROUPS.values() for check in checks]
    assert [finding.id for finding in report.findings] == [id for id in ids if id not in ("mx_replies", "mx_bounces")]
    assert {finding.id: finding.status for finding in report.findings}["dmarc"] == OK
    assert all(finding.found and finding.title for finding in report.findings)


def test_without_an_answer_from_outside_the_report_comes_in_time(
    asked: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.silent = True
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    begun = time.monotonic()
    report = doctor.examine()
    assert time.monotonic() - begun < 5
    found = {finding.id: finding for finding in report.findings}
    assert found["spf"].status == UNASKED
    assert found["spf"].found == "No answer within 0.5 seconds."
    assert found["beat"].status == FAILS


def test_a_question_that_breaks_does_not_break_the_report(publication: Publication) -> None:
    class Broken(Names):
        def texts(self, name: str) -> list[str]:
            raise RuntimeError("something unheard of")

    (finding,) = doctor.examine(doctor.gather(Broken()), only=["spf"]).findings
    assert (finding.status, finding.found) == (UNASKED, "RuntimeError: something unheard of")


def test_what_fails_of_the_domain_blocks_and_is_asked_once_in_ten_minutes(asked: NameServer) -> None:
    assert doctor.blocking() == []
    del asked.zone["_dmarc.example.org", "TXT"]
    questions = len(asked.asked)
    assert doctor.blocking() == []
    assert len(asked.asked) == questions
    cache.clear()
    assert doctor.blocking(ask=False) == []
    assert [finding.id for finding in doctor.blocking()] == ["dmarc"]


def test_another_sender_is_asked_about_anew(asked: NameServer) -> None:
    doctor.blocking()
    Publication.objects.update(sender_address="author@example.net")
    assert "dmarc" in [finding.id for finding in doctor.blocking()]


def test_the_command_prints_each_finding_with_its_record(asked: NameServer, capsys: pytest.CaptureFixture[str]) -> None:
    del asked.zone["_dmarc.example.org", "TXT"]
    call_command("doctor")
    printed = capsys.readouterr().out
    assert "_dmarc.example.org.  TXT  v=DMARC1; p=none; rua=mailto:dmarc@example.org" in printed
    with pytest.raises(SystemExit):
        call_command("doctor", "--strict")


def test_json_is_json_alone(asked: NameServer, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("doctor", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert {"id", "group", "title", "status", "found", "to_do", "record"} == set(printed["findings"][0])
    assert {finding["status"] for finding in printed["findings"]} <= {"ok", "warns", "fails", "could not ask"}


def test_without_a_database_the_rest_is_asked_nevertheless(tmp_path: Path) -> None:
    closed = closed_port()
    env = {
        "DATABASE_URL": f"postgres://nobody@127.0.0.1:{closed}/none",
        "REDIS_URL": f"redis://127.0.0.1:{closed}/0",
        "SITE_URL": f"http://127.0.0.1:{closed}",
        "SECRET_KEY": "s" * 60,
        "PEPPER": "",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(closed),
        "MEDIA_ROOT": str(tmp_path),
    }
    command = [sys.executable, "manage.py", "doctor", "--json"]
    done = subprocess.run(
        command, check=True, env=env, cwd=django_settings.BASE_DIR, capture_output=True, text=True, timeout=60
    )
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "The database does not answer" in found["spf"]["found"]
    assert [found[name]["status"] for name in ("beat", "deliveries")] == ["could not ask"] * 2
    assert (found["disk"]["status"], found["submission"]["status"]) == ("ok", "fails")
    assert "masthead.E003" in found["settings"]["found"]
    assert "Traceback" not in done.stderr


# The page


def test_the_page_asks_by_post_alone_and_shows_the_last_answer(asked: NameServer, admin_client: Client) -> None:
    del asked.zone["_dmarc.example.org", "TXT"]
    page = admin_client.get("/admin/doctor/").text
    assert ("Ask now" in page, asked.asked) == (True, [])
    page = admin_client.post("/admin/doctor/").text
    assert "v=DMARC1; p=none; rua=mailto:dmarc@example.org" in page
    questions = len(asked.asked)
    assert "v=DMARC1; p=none; rua=mailto:dmarc@example.org" in admin_client.get("/admin/doctor/").text
    assert len(asked.asked) == questions


@pytest.mark.django_db
def test_who_may_not_send_does_not_see_the_page_nor_its_menu_entry(client: Client) -> None:
    writer = User.objects.create_user("writer", is_staff=True)
    client.force_login(writer)
    assert client.get("/admin/doctor/").status_code == 403
    assert "/admin/doctor/" not in client.get("/admin/").text
    writer.user_permissions.add(Permission.objects.get(codename="send_issue"))
    assert client.get("/admin/doctor/").status_code == 200
    assert "/admin/doctor/" in client.get("/admin/").text


def test_a_stranger_is_led_to_the_login(client: Client, publication: Publication) -> None:
    assert "/login/" in client.get("/admin/doctor/").headers["Location"]
