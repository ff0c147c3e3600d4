"""Malformed requests at every public door that takes a POST: bodies, headers, encodings and sizes as they come.

No 500, no traceback, no row half-written. FUZZ_EXAMPLES says how many a door: 1,000 in `make faults`.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote_from_bytes, urlencode
from wsgiref.util import setup_testing_defaults

import pytest
from django.core import mail
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, transaction
from django.urls import get_resolver, reverse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter.wsgi import application
from subscribers import emails, links, moving, submissions, tokens
from subscribers.models import Consent, MagicLink, Submission, Subscriber, SystemMail

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
Status = Subscriber.Status
FORM, PREFERENCES = "/subscribe/form/", "/preferences/"


def path_of(url: str) -> str:
    return "/" + url.partition("://")[2].partition("/")[2]


def mailed_path(reader: Subscriber, door: str) -> str:
    """Let a reader ask for another address; return the address of the page that a mail then leads to."""
    moving.ask(reader.pk, "ada@example.com")
    emails.send_all_due(limit=10)
    letters = " ".join(str(letter.body) for letter in mail.outbox)
    mail.outbox.clear()
    found = re.search(rf"/preferences/{door}/[\w-]+/", letters)
    assert found
    return found[0]


# How to come to each door with a key that is good, so that what lies behind it is reached.
DOORS: dict[str, Callable[[Subscriber], str]] = {
    "subscribe_form": lambda reader: FORM,
    "confirm": lambda reader: path_of(emails.confirm_url(reader)),
    "never": lambda reader: path_of(emails.never_url(reader)),
    "undo": lambda reader: reverse("subscribers:undo"),
    "unsubscribe": lambda reader: f"/u/{reader.unsubscribe_id}/",
    "preferences": lambda reader: PREFERENCES,
    "preferences_open": lambda reader: reverse(
        "subscribers:preferences_open", args=[links.new_link(reader, MagicLink.Purpose.PREFERENCES)]
    ),
    "new_address": lambda reader: mailed_path(reader, "new-address"),
    "old_address": lambda reader: mailed_path(reader, "old-address"),
    "reader_erase": lambda reader: reverse("newsletter:reader_erase"),
}
ONLY_GET = {"subscribe", "check", "issues", "issue", "view_in_browser", "click", "reader_data", "reader_data_file",
            "reader_issues"}  # fmt: skip
CSRF = "a" * 32  # what a browser holds and our form repeats

# What a body says of its fields, good values among them.
VALUES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["ada@example.org", "bob@example.org", "a@b", "ada@example.org\x00", "ada@exämple.org", "\ud800", "x" * 9000,
         "", "weeks", "0", "-1", "99999999999999999999", "on", "2", "1e400", "\r\nBcc: eve@example.org",
         "../../etc/passwd", "'; DROP TABLE subscribers_subscriber; --", "{{ 7*7 }}", "<script>"]
    ),
)  # fmt: skip
NAMES = st.sampled_from(
    ["address", "token", "website", "source", "challenge", "utm_source", "key", "button", "weeks", "until", "because",
     "act", "name", "topics", "language", "csrfmiddlewaretoken", "List-Unsubscribe"]
)  # fmt: skip
FIELDS = st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=8)
CHARSETS = st.sampled_from(["utf-8", "latin-1", "utf-16", "utf-7", "idna", "rot13", "zip", "no such", '"', ""])
KINDS = st.sampled_from(
    ["application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=x", "multipart/form-data",
     "multipart/form-data; boundary=" + "y" * 300, "text/plain", "application/xml", "", "a/b/c;;;=", "\xff\xfe"]
)  # fmt: skip
# What a server hands on as the value of a header (RFC 9110, 5.5), in WSGI's Latin-1.
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", "HTTP_COOKIE", "HTTP_REFERER", "HTTP_ORIGIN", "HTTP_USER_AGENT",
         "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_TRANSFER_ENCODING",
         "HTTP_CONTENT_ENCODING", "HTTP_IF_NONE_MATCH", "HTTP_X_REQUESTED_WITH", "HTTP_RANGE", "REMOTE_ADDR",
         "QUERY_STRING", "HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_FORWARDED", "HTTP_HOST"]
    ),
    WORDS | st.sampled_from(["http://[", "https://%", "null", "::1", "127.0.0.1:1", "sessionid=;;=\x80; reader=é",
                             "127.0.0.1", "evil.example", "application/json", "utm_source=%ff%00&utm_source=b"]),
    max_size=4,
)  # fmt: skip
# Other than in digits no length gets past the server: tests/test_hosts.py.
LENGTHS = st.none() | st.sampled_from(["", "0", "1", "99999999999", "8192", "8193", "007"])


def as_form(fields: dict[str, str]) -> bytes:
    return urlencode({name: value.encode(errors="surrogatepass") for name, value in fields.items()
                      if not any("\ud800" <= each <= "\udfff" for each in name)}).encode()  # fmt: skip


def as_json(fields: dict[str, str]) -> bytes:
    return json.dumps(fields).encode()


def as_multipart(fields: dict[str, str]) -> bytes:
    parts = "".join(f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items())
    return f"{parts}--x--\r\n".encode(errors="surrogatepass")


ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
BODIES = st.one_of(
    FIELDS.map(as_form),
    FIELDS.map(as_json),
    FIELDS.map(as_multipart),
    ODD_JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.binary(max_size=60).map(lambda raw: b"address=" + quote_from_bytes(raw).encode()),
    st.sampled_from([b"[" * 9000, b'{"address": "' + b"\xff" * 50 + b'"}', b"&" * 2000, b"a=1&" * 1500, b"x" * 20_000,
                     b"\x1f\x8b\x08\x00", b"%", b"address=%zz&token=%", b"--x\r\n", b"9" * 5000]),
)  # fmt: skip
REQUESTS = st.fixed_dictionaries(
    {"body": BODIES, "kind": KINDS, "charset": st.none() | CHARSETS, "headers": HEADERS, "length": LENGTHS,
     "token": st.booleans()}
)  # fmt: skip


def post(path: str, request: dict[str, Any]) -> tuple[int, bytes]:
    """Hand it to the application as a web server would; return the status and the body of the answer."""
    body, kind = request["body"], request["kind"]
    if request["token"] and kind.startswith("application/x-www"):
        body += b"&address=new%40example.org&website=&token=" + tokens.form_token("subscribe").encode()
        body += b"&csrfmiddlewaretoken=" + CSRF.encode()
    if request["charset"] is not None:
        kind = f"{kind}; charset={request['charset']}"
    length = str(len(body)) if request["length"] is None else request["length"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "CONTENT_TYPE": kind, "CONTENT_LENGTH": length,
        "wsgi.input": io.BytesIO(body), "HTTP_HOST": "127.0.0.1", **request["headers"],
    }  # fmt: skip
    setup_testing_defaults(environ)
    told: list[int] = []
    answer = application(environ, lambda status, _headers, _error=None: told.append(int(status[:3])))
    content = b"".join(answer)
    getattr(answer, "close", lambda: None)()
    return told[0], content


def assert_whole() -> None:
    """Fail where a row tells of something that its other rows don't."""
    submissions.decide_waiting()
    assert not Submission.objects.waiting().exists()
    said = set(Consent.objects.values_list("subscriber_id", "kind"))
    for reader in Subscriber.objects.all():
        if reader.status == Status.PENDING:
            assert reader.confirmed_at is None
            assert (reader.pk, "requested") in said
            assert reader.system_mail.filter(kind=SystemMail.Kind.CONFIRM).exists()
        if reader.status == Status.ACTIVE:
            assert reader.confirmed_at is not None
            assert {(reader.pk, "confirmed"), (reader.pk, "resubscribed")} & said
        if reader.status == Status.UNSUBSCRIBED:
            assert reader.unsubscribed_at is not None
            assert (reader.pk, "unsubscribed") in said


@pytest.fixture(autouse=True)
def _same_connection() -> Iterator[None]:
    """Keep the application on the test's own connection and transaction, as Django's test client does."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def reader(publication: object, alice: Subscriber) -> Subscriber:
    """Somebody who confirmed, with a session at his preferences."""
    Consent.objects.create(subscriber=alice, kind=Consent.Kind.CONFIRMED)
    return alice


def test_every_door_that_takes_a_post_is_tried() -> None:
    names = {
        pattern.name
        for resolver in get_resolver().url_patterns
        if getattr(resolver, "namespace", None) in ("subscribers", "newsletter")
        for pattern in resolver.url_patterns
        if pattern.name
    }
    assert names == set(DOORS) | ONLY_GET


@pytest.mark.parametrize("door", DOORS)
@settings(
    max_examples=EXAMPLES, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
@given(request=REQUESTS)
def test_a_malformed_request_breaks_nothing(reader: Subscriber, door: str, request: dict[str, Any]) -> None:
    with transaction.atomic():
        session = {"HTTP_COOKIE": f"reader={links.begin_session(reader)}; csrftoken={CSRF}"}
        status, content = post(DOORS[door](reader), request | {"headers": session | request["headers"]})
        assert status < 500
        assert b"Traceback" not in content
        assert_whole()
        transaction.set_rollback(True)
