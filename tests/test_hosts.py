"""Whatever a request says of its host, a link in a mail begins with SITE_URL (spec public-endpoints, ABU-14)."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from django.conf import settings
from django.core import mail
from django.test import Client

from subscribers import emails, submissions, tokens
from subscribers.models import Subscriber, SystemMail
from tests.benchmarks.site import Server, collect_static, granian

EVIL = "evil.example"
FORM = "/subscribe/form/"


def body(address: str) -> str:
    return urlencode({"address": address, "token": tokens.form_token("subscribe"), "website": ""})


def sent_mails() -> list[str]:
    submissions.decide_waiting()
    emails.send_all_due(limit=20)
    return [message.message().as_bytes().decode() for message in mail.outbox]


def assert_only_ours(mails: list[str]) -> None:
    for text in mails:
        assert EVIL not in text
        links = re.findall(r"https?://[^\s\"<>]+", text.replace("=\n", "").replace("=3D", "="))
        assert links
        assert all(link.startswith(settings.SITE_URL) for link in links)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home: Path = tmp_path_factory.mktemp("granian")
    home.chmod(0o755)
    collect_static(home)
    return home


@pytest.fixture
def server(transactional_db: None, publication: object, home: Path) -> Iterator[Server]:
    """The server of production, on the test's database."""
    with granian(home, "web", ALLOW_TEST_ADDRESSES="true") as server:
        yield server


def ask(server: Server, head: str, address: str) -> bytes:
    """Send a form with a head that no client library would write; return the whole answer."""
    form = body(address)
    words = f"{head}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}"
    return raw(server, f"{words}\r\nConnection: close\r\n\r\n{form}")


def raw(server: Server, request: str) -> bytes:
    url = urlsplit(server.base)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.slow
def test_abu_14_no_forged_host_reaches_a_mail_through_the_real_server(server: Server) -> None:
    ours = urlsplit(server.base).netloc
    heads = {
        "plain": (f"POST {FORM} HTTP/1.1\r\nHost: {ours}", {302}),
        "another host": (f"POST {FORM} HTTP/1.1\r\nHost: {EVIL}", {400}),
        "no host": (f"POST {FORM} HTTP/1.0", {400}),
        "forwarded host": (f"POST {FORM} HTTP/1.1\r\nHost: {ours}\r\nX-Forwarded-Host: {EVIL}", {302}),
        "forwarded": (f"POST {FORM} HTTP/1.1\r\nHost: {ours}\r\nForwarded: host={EVIL};proto=https", {302}),
        "absolute": (f"POST http://{EVIL}{FORM} HTTP/1.1\r\nHost: {ours}", {302, 400}),
        "absolute, ours": (f"POST http://{ours}{FORM} HTTP/1.1\r\nHost: {EVIL}", {302, 400}),
        "ours, then another": (f"POST {FORM} HTTP/1.1\r\nHost: {ours}\r\nHost: {EVIL}", {302, 400}),
        "another, then ours": (f"POST {FORM} HTTP/1.1\r\nHost: {EVIL}\r\nHost: {ours}", {302, 400}),
        "ours with another behind": (f"POST {FORM} HTTP/1.1\r\nHost: {ours}@{EVIL}", {400}),
    }
    taken = 0
    for n, (name, (head, statuses)) in enumerate(heads.items()):
        answer = ask(server, head, f"reader{n}@example.org")
        status = int(answer.split(b" ", 2)[1])
        assert status in statuses, name
        assert EVIL.encode() not in answer, name
        taken += status == 302
    mails = sent_mails()
    assert len(mails) == taken >= 3
    assert_only_ours(mails)


@pytest.mark.slow
def test_a_length_or_an_encoding_that_makes_no_sense_is_refused_or_answered(server: Server) -> None:
    ours = urlsplit(server.base).netloc
    for length in ("x", "-1", "+5", "½", "1_0", "5, 6"):
        assert b" 400 " in raw(server, f"POST {FORM} HTTP/1.1\r\nHost: {ours}\r\nContent-Length: {length}\r\n\r\nhello")
    for charset in ("rot13", "zip", "no such", "utf-16"):
        head = f"POST {FORM}?a=1 HTTP/1.1\r\nHost: {ours}\r\nContent-Length: 0\r\nConnection: close\r\n"
        kind = f"Content-Type: application/x-www-form-urlencoded; charset={charset}"
        assert b" 422 " in raw(server, f"{head}{kind}\r\n\r\n").partition(b"\r\n")[0]


@pytest.mark.parametrize("trusted", [False, True], ids=["no proxy", "behind a proxy"])
def test_abu_14_no_forwarded_host_reaches_any_kind_of_mail(
    client: Client,
    publication: object,
    alice: Subscriber,
    bob: Subscriber,
    settings: pytest.FixtureRequest,
    trusted: bool,
) -> None:
    if trusted:
        settings.PROXY_COUNT, settings.SECURE_PROXY_SSL_HEADER = 1, ("HTTP_X_FORWARDED_PROTO", "https")  # type: ignore[attr-defined]  # pytest-django's fixture has no fixed attributes
    headers = {
        "X-Forwarded-Host": EVIL,
        "X-Forwarded-Proto": "http",
        "X-Forwarded-For": "192.0.2.1",
        "Referer": f"https://{EVIL}/",
    }
    for address in ("new@example.org", alice.address, bob.address):
        client.post(FORM, body(address), content_type="application/x-www-form-urlencoded", headers=headers)
    client.post("/preferences/", {"address": alice.address}, headers=headers)
    submissions.decide_waiting()
    client.post(emails.confirm_url(bob).removeprefix("http://127.0.0.1:8000"), headers=headers)
    kinds = set(SystemMail.objects.due().values_list("kind", flat=True))
    assert kinds == {"confirm", "already", "magic_link", "welcome"}
    assert_only_ours(sent_mails())
    for path in ("/", "/feed.xml", "/sitemap.xml", "/robots.txt"):
        assert EVIL not in client.get(path, headers=headers).text


@pytest.mark.parametrize(
    "host", [EVIL, f"127.0.0.1.{EVIL}", f"127.0.0.1:8000@{EVIL}", "", "127.0.0.1/x", f"{EVIL}#127.0.0.1"]
)
def test_abu_14_another_host_is_refused(client: Client, publication: object, host: str) -> None:
    answer = client.post(
        FORM, body("ada@example.org"), content_type="application/x-www-form-urlencoded", HTTP_HOST=host
    )
    assert answer.status_code == 400
    assert not SystemMail.objects.exists()
