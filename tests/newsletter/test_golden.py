"""The mail as a relay receives it, octet for octet, and what it must hold whatever is typed into its sources.

The golden files in golden/ are whole messages. After a change that is meant to alter the mail, write them anew with
`REGENERATE_GOLDEN=1 pytest tests/newsletter/test_golden.py` and read the difference before it is committed.
"""

import datetime as dt
import email
import email.policy
import hashlib
import json
import os
import re
import smtplib
import subprocess
import sys
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError

from newsletter import message, rendering
from newsletter.models import Issue, IssuePost
from posts.models import Publication
from tests.factories import make_issue, make_post
from tests.smtpd import SmtpServer

GOLDEN = Path(__file__).parent / "golden"
DATE = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)
SITE = "https://news.example.org"
UNSUBSCRIBE = f"{SITE}/u/00000000-0000-0000-0000-000000000007/"
POSTAL = ("1 Example Street", "Exampletown")
HEADERS = [
    "Archived-At", "Content-Type", "Date", "Feedback-ID", "From", "List-Archive", "List-Help", "List-Id", "List-Owner",
    "List-Unsubscribe", "List-Unsubscribe-Post", "MIME-Version", "Message-ID", "Precedence", "Reply-To", "Subject",
    "To", "X-Auto-Response-Suppress",
]  # fmt: skip
NAMES = {
    "named": "Ada Lovelace",
    "nameless": "",
    "odd": "Åda \u202e<b>&\r\nBcc: x@example.org 日本 =?utf-8?q?x?= {{ name }}",
}
HOSTILE = [
    "日本語の名前", "😀🎉👩\u200d👩\u200d👧", "אבג\u202eabc", "x" * 300, "日" * 300, "\"'\\", "", ".", "--=_boundary--",
    "Ada\rBcc: x@example.org", "Ada\nTo: x@example.org", "Ada\u2028X: y", "a\x00b", "\ud800\udc00", "=?utf-8?q?x?=",
    "{{ name }}", "</title><script>alert(1)</script>", "\r\n\r\n<p>body</p>", "\r\n.\r\n",
]  # fmt: skip
INJECTIONS = [
    *(f"A{end}Bcc: x@example.org" for end in ("\r", "\n", "\r\n", "%0d%0a", "\u2028", "\u2029", "\u0085", "\x00")),
    *(f"A{fold}Bcc: x@example.org" for fold in ("\r\n ", "\r\n\t", "\r\n\r\n", "\r\n \r\n", "\x0b\x0c")),
    "A\r\n.\r\nMAIL FROM:<x@example.org>", "author@example.org, x@example.org", "A" * 2000, "日" * 2000, "A " * 1000,
    "=?utf-8?q?A=0D=0ABcc=3A_x=40example=2Eorg?=",
]  # fmt: skip
BODY = """Words with *weight*, a [link](https://example.org/a?b=1&c=2) and `{{ name }}` as code.

.A line with a dot in front, and one that is long: naïve façades “quoted” – and on it goes, and on, and on, and on.

| Table | Rows |
|---|---|
| accounts | 12 |
"""

Send = Callable[[dict[str, Any], message.Values], bytes]


@pytest.fixture(autouse=True)
def _fixed(settings: Any) -> None:
    settings.PEPPER, settings.SECRET_KEY, settings.SITE_URL = "pepper of the tests", "key of the tests", SITE
    settings.BOUNCE_DOMAIN = "bounces.example.org"


@pytest.fixture
def issue(publication: Publication) -> Issue:
    publication.name, publication.sender_name, publication.reply_to = (
        "Query Notes",
        "Ada, of Query Notes",
        "ada@example.org",
    )
    publication.postal_address = "\n".join(POSTAL)
    publication.save()
    post = make_post(id=101, slug="on-vacuum", title="On vacuum", body=BODY)
    teased = make_post(id=102, slug="older", title="An older one", body="Once upon a time there was a lock. " * 9)
    issue = make_issue(
        post, id=42, number=7, subject="Über vacuum, {{ name|reader }}", preheader="Tables *grow*.",
        introduction="Hello {{ name|there }}, see [yours](https://example.org/hi?n={{ name }}). {{ settings.PEPPER }}",
    )  # fmt: skip
    IssuePost.objects.create(issue=issue, post=teased, position=1, mode=IssuePost.Mode.TEASER)
    return issue


@pytest.fixture
def source(issue: Issue) -> dict[str, Any]:
    return rendering.render_issue(issue, date=DATE)


@pytest.fixture
def send(relay: SmtpServer) -> Send:
    """Send one copy over SMTP as it was made, and return it as the relay received it."""

    def send(source: dict[str, Any], values: message.Values) -> bytes:
        template = message.Template(source)
        with smtplib.SMTP("127.0.0.1", relay.port) as client:
            client.sendmail(template.envelope_sender(42, 3), [values.address], template.fill(values))
        return relay.mails[-1].content

    return send


def reader(name: str = "Ada Lovelace") -> message.Values:
    return message.Values("reader@example.org", name, UUID(int=7), message.message_id(42, 3, "example.org"))


def parse(content: bytes) -> EmailMessage:
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


def parts(content: bytes) -> list[str]:
    """The text part and the HTML part, in the order in which they stand."""
    assert [part.get_content_type() for part in parse(content).iter_parts()] == ["text/plain", "text/html"]
    return [str(part.get_content()).replace("\r\n", "\n") for part in parse(content).iter_parts()]


def check_one_message_to_one_reader(relay: SmtpServer, content: bytes) -> None:
    assert {mail.recipient for mail in relay.mails} == {"reader@example.org"}
    parsed = parse(content)
    assert sorted(parsed.keys()) == HEADERS
    assert parsed["To"] == "reader@example.org"
    assert [address.addr_spec for address in parsed["From"].addresses] == ["author@example.org"]
    assert len(parts(content)) == 2


def check_format(content: bytes) -> None:
    assert content.isascii()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    head, _blank, body = content.partition(b"\r\n\r\n")
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert max(map(len, head.split(b"\r\n"))) <= 998
    assert not any(line.isspace() for line in head.split(b"\r\n"))
    assert all(part["Content-Transfer-Encoding"] == "quoted-printable" for part in parse(content).iter_parts())


# The same octets each time


@pytest.mark.parametrize("kind", NAMES)
def test_the_mail_is_the_golden_file_octet_for_octet(source: dict[str, Any], send: Send, kind: str) -> None:
    content, golden = send(source, reader(NAMES[kind])), GOLDEN / f"{kind}.eml"
    if os.environ.get("REGENERATE_GOLDEN"):
        golden.write_bytes(content)
    assert content == golden.read_bytes()


def test_rendering_twice_gives_the_same_octets(issue: Issue) -> None:
    once, again = (rendering.render_issue(issue, date=DATE) for _ in range(2))
    assert message.source_sha256(once) == message.source_sha256(again)
    assert message.Template(once).fill(reader()) == message.Template(again).fill(reader())


def test_another_process_makes_the_same_octets(source: dict[str, Any], settings: Any) -> None:
    program = """
import hashlib, json, sys
from uuid import UUID
from newsletter import message
values = message.Values("reader@example.org", sys.argv[1], UUID(int=7), message.message_id(42, 3, "example.org"))
print(hashlib.sha256(message.Template(json.load(sys.stdin)).fill(values)).hexdigest())
"""
    environment = {
        **os.environ, "PEPPER": settings.PEPPER, "SITE_URL": SITE, "PYTHONHASHSEED": "1",
        "DJANGO_SETTINGS_MODULE": "newsletter.settings",
    }  # fmt: skip
    for name in NAMES.values():
        command = [sys.executable, "-c", program, name]
        theirs = subprocess.run(
            command, input=json.dumps(source), env=environment, capture_output=True, text=True, check=True
        )
        assert theirs.stdout.strip() == hashlib.sha256(message.Template(source).fill(reader(name))).hexdigest()


# The header set


def test_the_header_set_is_the_settled_one(source: dict[str, Any], send: Send) -> None:
    parsed = parse(send(source, reader()))
    assert sorted(parsed.keys()) == HEADERS
    assert parsed["List-Unsubscribe"] == f"<{UNSUBSCRIBE}>"
    assert parsed["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert parsed["List-Id"] == "Query Notes <newsletter.news.example.org>"
    assert parsed["List-Owner"] == "<mailto:ada@example.org>"
    assert parsed["Reply-To"] == "ada@example.org"
    assert parsed["Date"].datetime == DATE
    assert parsed["Precedence"] == "bulk"
    assert re.fullmatch(r"<[0-9a-f]{32}@example\.org>", parsed["Message-ID"])
    assert str(parsed["Subject"]) == "Über vacuum, Ada Lovelace"


def test_only_reply_to_depends_on_the_publication(source: dict[str, Any], send: Send) -> None:
    parsed = parse(send({**source, "reply_to": ""}, reader()))
    assert sorted(parsed.keys()) == [name for name in HEADERS if name != "Reply-To"]
    assert parsed["List-Owner"] == "<mailto:author@example.org>"


def test_no_header_tells_one_reader_from_another_but_its_own(source: dict[str, Any], send: Send) -> None:
    ada = parse(send(source, reader()))
    eve = parse(
        send(source, message.Values("eve@example.org", "Eve", UUID(int=8), message.message_id(42, 4, "example.org")))
    )
    different = {name for name in HEADERS if ada[name] != eve[name]}
    assert different == {"Message-ID", "To", "Subject", "List-Unsubscribe"}


# Hostile values


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_changes_nothing_but_the_name(
    source: dict[str, Any], send: Send, relay: SmtpServer, name: str
) -> None:
    content = send(source, reader(name))
    check_one_message_to_one_reader(relay, content)
    check_format(content)
    shown = " ".join(message.clean(name).split())
    text, html = parts(content)
    assert f"Hello {shown or 'there'}, see" in text
    assert "\u202e" not in text + html + str(parse(content)["Subject"])
    assert html.lower().count("<script") == 0
    assert html.count("<p") == parts(send(source, reader("Ada")))[1].count("<p")
    assert str(parse(content)["Subject"]).split() == f"Über vacuum, {shown or 'reader'}".split()


@pytest.mark.parametrize("payload", INJECTIONS)
@pytest.mark.parametrize("field", ["subject", "publication", "from_name"])
def test_a_payload_in_a_header_s_words_stays_in_that_header(
    source: dict[str, Any], send: Send, relay: SmtpServer, field: str, payload: str
) -> None:
    content = send({**source, field: payload}, reader())
    check_one_message_to_one_reader(relay, content)
    check_format(content)


@pytest.mark.parametrize("payload", INJECTIONS)
def test_a_payload_in_a_reader_s_name_stays_there(
    source: dict[str, Any], send: Send, relay: SmtpServer, payload: str
) -> None:
    content = send(source, reader(payload))
    check_one_message_to_one_reader(relay, content)
    check_format(content)


@pytest.mark.parametrize("payload", INJECTIONS)
@pytest.mark.parametrize("field", ["subject", "preheader"])
def test_a_payload_that_an_editor_typed_stays_in_its_place(
    issue: Issue, send: Send, relay: SmtpServer, field: str, payload: str
) -> None:
    setattr(issue, field, payload)
    content = send(rendering.render_issue(issue, date=DATE), reader())
    check_one_message_to_one_reader(relay, content)
    check_format(content)


@pytest.mark.parametrize("payload", INJECTIONS)
@pytest.mark.parametrize("field", ["reply_to", "from_address"])
def test_a_payload_in_an_address_is_refused(source: dict[str, Any], field: str, payload: str) -> None:
    with pytest.raises(ValueError, match="not one e-mail address"):
        message.Template({**source, field: payload})


@pytest.mark.parametrize("payload", ["a@example.org\r\nBcc: x@example.org", "a@example.org, x@example.org", "x"])
@pytest.mark.parametrize("field", ["reply_to", "sender_address"])
def test_an_issue_is_not_rendered_for_a_sender_that_is_not_one_address(issue: Issue, field: str, payload: str) -> None:
    Publication.objects.update(**{field: payload})
    with pytest.raises(ValueError, match="not one e-mail address"):
        rendering.render_issue(issue)


@pytest.mark.parametrize("payload", [text for text in INJECTIONS if re.search("[\r\n\u2028\u2029\x85\x00\x0b]", text)])
def test_forms_refuse_line_breaks_where_a_header_is_made_of_it(issue: Issue, payload: str) -> None:
    publication = Publication.current()
    for row, field in [
        (issue, "subject"), (issue, "preheader"), (publication, "name"), (publication, "sender_name"),
        (publication, "reply_to"), (publication, "sender_address"),
    ]:  # fmt: skip
        with pytest.raises(ValidationError):
            row._meta.get_field(field).clean(payload, row)


# The parts, and the size of the HTML


@pytest.mark.parametrize("name", NAMES.values())
def test_both_parts_hold_the_way_out_and_the_postal_address_before_gmail_clips(
    source: dict[str, Any], send: Send, name: str
) -> None:
    content = send(source, reader(name))
    check_format(content)
    for part in parts(content):
        assert part.strip()
        for needed in (UNSUBSCRIBE, *POSTAL, "reader@example.org"):
            assert 0 <= part.encode().find(needed.encode()) < rendering.SIZE_BLOCK


def test_the_size_is_that_of_the_largest_copy(source: dict[str, Any]) -> None:
    size, template = message.size_of_html(source), message.Template(source)
    for name in ("", "Ada", "W" * 100):
        assert len(template.html(reader(name)).encode()) <= size
    assert size - len(template.html(reader("")).encode()) < 2_000


@pytest.mark.parametrize(("paragraphs", "verdict"), [(100, "fits"), (2_500, "warn"), (3_200, "block")])
def test_the_size_tells_what_gmail_would_clip(issue: Issue, send: Send, paragraphs: int, verdict: str) -> None:
    issue.introduction = "Words for a paragraph.\n\n" * paragraphs
    source = rendering.render_issue(issue, date=DATE)
    size = message.size_of_html(source)
    limits = {
        "fits": (0, rendering.SIZE_WARN),
        "warn": (rendering.SIZE_WARN, rendering.SIZE_BLOCK),
        "block": (rendering.SIZE_BLOCK, 10**6),
    }
    assert limits[verdict][0] < size <= limits[verdict][1]
    html = parts(send(source, reader()))[1].encode()
    found = max(html.find(needed.encode()) for needed in (UNSUBSCRIBE, *POSTAL))
    assert (found < rendering.SIZE_BLOCK) == (verdict != "block")


def test_a_translated_issue_has_the_same_headers(issue: Issue, send: Send, relay: SmtpServer) -> None:
    Publication.objects.update(language="de")
    content = send(rendering.render_issue(issue, date=DATE), reader())
    check_one_message_to_one_reader(relay, content)
