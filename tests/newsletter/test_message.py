"""The mail as bytes: what a parser reads of it, what a strict relay demands of it, and what hostile names can't do."""

import email
import email.policy
import hashlib
import hmac
import quopri
import re
from collections.abc import Callable
from email.headerregistry import Address
from email.message import EmailMessage
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsletter import message, rendering
from newsletter.models import IssuePost
from posts.models import Publication
from tests.factories import make_issue, make_post

HEADERS = {
    "Date", "Message-ID", "From", "To", "Subject", "MIME-Version", "Content-Type", "List-Id", "List-Unsubscribe",
    "List-Unsubscribe-Post", "List-Owner", "List-Archive", "List-Help", "Archived-At", "Feedback-ID", "Precedence",
    "X-Auto-Response-Suppress",
}  # fmt: skip
HOSTILE = [
    "日本語の名前", "😀🎉", "אבג\u202e", "x" * 300, "\"'<>&;", "Ada\r\nBcc: x@example.org", "Ada\u2028x", "a\x00b",
    "=?utf-8?q?x?=", ".", "..", "", " ", "= =20 =\r\n", "\ud800", "{{ name }}", "</title><script>",
]  # fmt: skip
ODD = st.text(max_size=300) | st.sampled_from(HOSTILE)
relaxed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def source(**values: Any) -> dict[str, Any]:
    holes = message.Holes(1)
    name, address, url = holes.mark("name", "there"), holes.mark("address"), holes.mark("unsubscribe_url")
    return {
        "publication": "Query Notes", "from_name": "Ada, of Query Notes", "from_address": "author@example.org",
        "reply_to": "", "list_id": "newsletter.example.org", "archive_url": "https://example.org/issues/",
        "help_url": "https://example.org/preferences/", "web_url": "https://example.org/issues/view/x/",
        "feedback_id": "1:newsletter:issue:exampleorg", "date": "Mon, 23 Nov 2026 09:00:00 +0000",
        "subject": f"Hello {name}, this week",
        "html": f"<p>Hello {name},</p>\n.\n..dots\n<p title=\"{name}\">{'long ' * 60}é{address} =</p> \n"
        f'<a href="{url}">out</a>',
        "text": f"Hello {name},\n\n.\n.leading dot\ntrailing space \nFrom here = there\n{url}\n{address}\n",
        "holes": holes.as_json(), **values,
    }  # fmt: skip


def values(name: str = "Ada", address: str = "ada@example.org") -> message.Values:
    return message.Values(address, name, UUID(int=7), message.message_id(1, 2, "example.org"))


def parse(content: bytes) -> EmailMessage:
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def part(parsed: EmailMessage, kind: str) -> str:
    body = parsed.get_body(preferencelist=(kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


def shown(name: str) -> str:
    """A name as a reader sees it: in one line, without controls."""
    return " ".join(message.clean(name).split()) or "there"


@given(name=ODD)
@relaxed
def test_a_parser_reads_what_plain_replacement_would_give(name: str) -> None:
    template = message.Template(source())
    parsed = parse(template.fill(values(name)))
    assert part(parsed, "plain") == template.text(values(name))
    assert part(parsed, "html").rstrip("\n") == template.html(values(name))
    assert shown(name) in part(parsed, "plain")
    assert not parsed.defects


@given(name=ODD)
@relaxed
def test_the_subject_survives_in_words(name: str) -> None:
    parsed = parse(message.Template(source()).fill(values(name)))
    assert str(parsed["Subject"]).split() == f"Hello {shown(name)}, this week".split()


@given(name=ODD)
@relaxed
def test_every_line_is_short_plain_and_needs_no_dot_stuffing(name: str) -> None:
    content = message.Template(source()).fill(values(name))
    assert content.isascii()
    assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    head, _blank, body = content.partition(b"\r\n\r\n")
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert max(map(len, head.split(b"\r\n"))) <= 998
    assert not any(line.startswith(b".") for line in content.split(b"\r\n"))
    assert all(len(word) <= 75 for word in re.findall(rb"=\?[^ ]*\?=", head))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_adds_no_header_and_no_recipient(name: str) -> None:
    parsed = parse(message.Template(source(from_name=name, publication=name)).fill(values(name)))
    assert sorted(parsed.keys()) == sorted(HEADERS)
    assert parsed["To"] == "ada@example.org"
    assert parsed["From"].addresses[0].addr_spec == "author@example.org"


def test_two_fills_are_the_same_bytes() -> None:
    once, again = message.Template(source()), message.Template(source())
    assert once.fill(values()) == once.fill(values()) == again.fill(values())


def test_no_value_of_one_reader_is_left_in_the_next_mail() -> None:
    template = message.Template(source())
    for n in range(200):
        content = template.fill(values(f"Name{n}x", f"reader{n}@example.org"))
        assert set(re.findall(rb"Name(\d+)x", content)) == {str(n).encode()}


def test_one_click_unsubscribe_is_announced() -> None:
    parsed = parse(message.Template(source()).fill(values()))
    assert parsed["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert re.fullmatch(r"<http://\S+/u/00000000-0000-0000-0000-000000000007/>", parsed["List-Unsubscribe"])


def test_a_message_id_tells_nothing_and_stays_the_same() -> None:
    ids = {message.message_id(issue, reader, "example.org") for issue in (1, 2) for reader in (1, 2)}
    assert len(ids) == 4
    assert message.message_id(1, 1, "example.org") in ids


def test_bounces_come_home_to_an_address_of_the_copy(settings: Any) -> None:
    assert message.Template(source()).envelope_sender(1, 2) == "author@example.org"
    settings.BOUNCE_DOMAIN = "bounces.example.org"
    template = message.Template(source())
    senders = {template.envelope_sender(1, n) for n in range(50)}
    assert len(senders) == 50
    assert all(re.fullmatch(r"b-[0-9a-v]+@bounces\.example\.org", sender) for sender in senders)


@given(issue=st.integers(1, 2**40 - 1), reader=st.integers(1, 2**40 - 1))
@relaxed
def test_a_bounce_s_address_tells_which_copy_it_was(settings: Any, issue: int, reader: int) -> None:
    settings.BOUNCE_DOMAIN = "bounces.example.org"
    local = message.Template(source()).envelope_sender(issue, reader).partition("@")[0]
    number = int(local.removeprefix("b-"), 32)
    assert (number >> 104, number >> 64 & 2**40 - 1) == (issue, reader)
    assert len(local) <= 64
    assert len(local) % 2 == 0  # whole pairs of digits, as long as the number needs
    assert not local.startswith("b-00")


# A key of more than 64 octets is hashed first (RFC 2104, 2).
PEPPERS = st.text(max_size=40) | st.sampled_from(["k" * 64, "k" * 65, "é" * 33])


@given(pepper=PEPPERS, issue=st.integers(1, 2**40 - 1), reader=st.integers(1, 2**40 - 1))
@relaxed
def test_what_a_copy_is_known_by_is_an_hmac_under_the_pepper_of_now(
    settings: Any, pepper: str, issue: int, reader: int
) -> None:
    settings.PEPPER, settings.BOUNCE_DOMAIN = pepper, "bounces.example.org"
    template = message.Template(source())
    expected = hmac.digest(pepper.encode(), b"message:%d:%d" % (issue, reader), "sha256").hex()[:32]
    assert message.message_id(issue, reader, "example.org") == f"<{expected}@example.org>"
    assert template.message_id(issue, reader) == f"<{expected}@example.org>"
    proof = int(template.envelope_sender(issue, reader).partition("@")[0].removeprefix("b-"), 32) & 2**64 - 1
    assert proof.to_bytes(8, "big") == hmac.digest(pepper.encode(), b"verp:%d:%d" % (issue, reader), "sha256")[:8]


# Each value encoded where it stands, without a thought for speed: what filling in must come to, octet for octet

PLAINLY = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 @._+:/%~-]{0,170}", fullmatch=True)
ADDRESSES = [
    "ada@example.org", f"{'a' * 60}@{'b' * 40}.example.org", f"{'a.' * 38}b@example.org", "o'hara&co=x@example.org",
    "zoë@exämple.org", ".ada@example.org", "-ada@example.org", f"ada@{'b' * 62}..example.org",
]  # fmt: skip


def source_of_many_places() -> dict[str, Any]:
    """Names with several fallbacks, side by side and in URLs, and each other value more than once."""
    holes = message.Holes(1)
    marks = [holes.mark("name", fallback) for fallback in ("there", "", "dear Zoë & <co>", "there", "x" * 90)]
    others = [holes.mark(*hole) for hole in (("address", "you"), ("unsubscribe_url",), ("address", ""))]
    greeting = f"Hello {marks[0]}{marks[1]}, {' '.join(marks)}"
    links = " ".join(f"https://example.org/hi?n={mark}" for mark in marks)
    text = f"{greeting}\n{links}\n{' '.join(others)}\n{others[1]}"
    return source(text=text, html=f"<p title='{marks[2]}'>{text}</p>", holes=holes.as_json())


def one_by_one(parts: list[str | message.Place], reader: dict[str, str], escape: Callable[[str], str]) -> bytes:
    *pieces, last = parts
    texts = [piece if isinstance(piece, str) else escape(piece.value(reader)) for piece in pieces]
    encoded = [
        message.quoted_printable(text) + message.SOFT_BREAK
        for text, piece in zip(texts, pieces, strict=True)
        if text or isinstance(piece, str)
    ]
    return b"".join(encoded) + message.quoted_printable(str(last))


def simply_filled(template: message.Template, reader: message.Values) -> bytes:
    given = template._given(reader)
    boundary = "=_" + hashlib.sha256(template.source["html"].encode()).hexdigest()[:24]
    kind = "Content-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    head = (
        f"{template._headers(boundary)}Message-ID: {reader.message_id}\r\nTo: {reader.address}\r\n"
        f"Subject: {message.header('Subject', template.subject(reader))}\r\n"
        f"List-Unsubscribe: <{given['unsubscribe_url']}>\r\n\r\n"
    )
    return b"".join([
        f"{head}--{boundary}\r\n{kind % 'plain'}".encode(), one_by_one(template._text, given, str),
        f"\r\n--{boundary}\r\n{kind % 'html'}".encode(), one_by_one(template._html, given, escape),
        f"\r\n--{boundary}--\r\n".encode(),
    ])  # fmt: skip


@given(
    name=ODD | PLAINLY | st.sampled_from(["Ada  Lovelace", " Ada", "Ada ", "O'Hara", "A" * 75, "A" * 76, "9.", "a=b"]),
    address=st.sampled_from(ADDRESSES),
    host=st.sampled_from(["example.org", "a-newsletter-with-a-long-name.example.org", "a" * 60 + ".b..example.org"]),
    make=st.sampled_from([source, source_of_many_places]),
)
@settings(relaxed, max_examples=400)
def test_filling_in_is_encoding_each_value_where_it_stands(
    settings: Any, name: str, address: str, host: str, make: Callable[[], dict[str, Any]]
) -> None:
    settings.SITE_URL = f"https://{host}"
    template = message.Template(make())
    assert template.fill(values(name, address)) == simply_filled(template, values(name, address))


@given(text=st.text(max_size=400))
def test_quoted_printable_is_read_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    raw = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    parsed = email.message_from_bytes(raw + message.quoted_printable(text))
    decoded = parsed.get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.decode().replace("\r\n", "\n") == text


# Long rows, dots and white space where rows break: what the encoder in C leaves for the slow way.
ROWS = st.lists(st.sampled_from(["x" * 73, "x" * 37, "é", ".", " ", "\t", "=", "\n", "\r", "\x0b", "😀"]), max_size=40)


@given(pieces=ROWS)
@settings(max_examples=300, deadline=None)
def test_no_row_is_long_begins_with_a_dot_or_ends_with_white_space(pieces: list[str]) -> None:
    text = "".join(pieces)
    encoded = message.quoted_printable(text)
    rows = encoded.split(b"\r\n")
    assert max(map(len, rows)) <= 76
    assert len(rows[-1]) <= 75
    assert not any(row.startswith(b".") or row.endswith((b" ", b"\t")) for row in rows)
    assert encoded.count(b"\r") == encoded.count(b"\n") == len(rows) - 1
    assert quopri.decodestring(encoded).decode() == text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")


# What the library would make of the same


def by_library(template: message.Template, reader: message.Values) -> EmailMessage:
    """The same message made by email.message, the slow way; not as bytes, for its folding drops a space of a name."""
    made = EmailMessage(policy=email.policy.SMTP)
    for name, value in parse(template.fill(reader)).items():
        if not name.startswith(("Content-", "MIME-", "From", "Subject", "To", "List-Id")):
            made[name] = value
    made["From"] = Address(template.source["from_name"], addr_spec=template.source["from_address"])
    made["List-Id"] = str(Address(template.source["publication"], "newsletter", "example.org")).replace("@", ".")
    made["To"] = reader.address
    made["Subject"] = template.subject(reader)
    made.set_content(template.text(reader), cte="quoted-printable")
    made.add_alternative(template.html(reader), subtype="html", cte="quoted-printable")
    return made


def words(value: Any) -> list[str]:
    return str(value).split()


@given(name=ODD)
@relaxed
def test_it_is_the_message_that_the_library_would_make(name: str) -> None:
    template = message.Template(source(subject=source()["subject"].replace(", this", " \N{EM DASH} this")))
    ours, theirs = parse(template.fill(values(name))), by_library(template, values(name))
    assert sorted(ours.keys()) == sorted(theirs.keys())
    # The library decodes a name that looks like an encoded word; ours must still be read as it was written.
    decoded = {"Subject"} if "=?" in name else set()
    for header in set(ours.keys()) - {"Content-Type"} - decoded:
        assert words(ours[header]) == words(theirs[header]), header
    assert words(ours["Subject"]) == words(template.subject(values(name)))
    for kind in ("plain", "html"):
        assert part(ours, kind).rstrip("\n") == part(theirs, kind).rstrip("\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_display_name_is_read_as_the_library_would_write_it(name: str) -> None:
    ours = parse(b"From: %s\r\n\r\n" % message.mailbox("From", name, "author@example.org").encode())
    (address,) = ours["From"].addresses
    assert address.display_name.split() == message.clean(name).split()
    assert address.addr_spec == "author@example.org"


# Placeholders and marks

BRACES = st.lists(
    st.sampled_from(
        ["{", "}", "{{", "}}", "{%", "%}", " ", "|", "n", "Name", "naame", "name.x", "name()", "settings", "\n"]
    )
)


@given(pieces=BRACES)
def test_nothing_else_in_braces_is_touched(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert message.Holes(1).replace(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "{{ settings.SECRET_KEY }}", "{% load static %}", "{{ name|safe|upper }}", "{{ name.__class__ }}",
        "{{ name|{{ name }", "{ { name } }", "{{ address }}", "{{ unsubscribe_url }}", "{{ name|a\nb }}", "${name}",
        "{{ Name }}", "{{name|" + "x" * 61 + "}}", "{# name #}", "%(name)s",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_placeholder_stays(text: str) -> None:
    holes = message.Holes(1)
    assert holes.replace(text) == text
    assert not holes.holes


@pytest.mark.parametrize(
    ("text", "fallback"), [("{{ name }}", ""), ("{{name}}", ""), ("{{ name|dear reader }}", "dear reader")]
)
def test_a_placeholder_becomes_a_hole(text: str, fallback: str) -> None:
    holes = message.Holes(1)
    assert holes.replace(f"a{text}b") == f"a{holes.holes[0].mark}b"
    assert holes.holes[0][1:] == ("name", fallback)


@given(before=ODD, after=ODD)
@relaxed
def test_a_value_is_never_expanded_again(before: str, after: str) -> None:
    template = message.Template(source())
    for mark, _field, _fallback in template.source["holes"]:
        name = f"{before} {mark} {{{{ name }}}} {after}"
        assert template.text(values(name)).startswith(f"Hello {shown(name)},\n")
        assert part(parse(template.fill(values(name))), "plain").startswith(f"Hello {shown(name)},\n")
        assert words(template.subject(values(name))) == f"Hello {shown(name)}, this week".split()


@given(name=ODD)
@relaxed
def test_a_name_in_a_link_stays_one_part_of_its_address(name: str) -> None:
    mark = source()["holes"][0][0]
    body = f'<a href="https://example.org/hi?n={mark}&amp;x=1">{mark}</a>'
    template = message.Template(source(html=body, text=f"see https://example.org/hi?n={mark}&x=1\n"))
    html_part, text_part = (part(parse(template.fill(values(name))), kind) for kind in ("html", "plain"))
    for url in (re.findall(r'href="([^"]*)"', html_part)[0].replace("&amp;", "&"), text_part.split()[1]):
        assert parse_qs(urlsplit(url).query) == {"n": [shown(name)], "x": ["1"]}
    assert html_part.strip().endswith(f">{escape(shown(name))}</a>")


# Addresses


def test_an_address_that_is_not_ascii_stands_as_utf_8() -> None:
    content = message.Template(source()).fill(values(address="zoë@exämple.org"))
    assert "\r\nTo: zoë@exämple.org\r\n".encode() in content
    assert content.replace("zoë@exämple.org".encode(), b"", 1).isascii()


@pytest.mark.parametrize(
    "address",
    ["a@example.org, x@example.org", "a@example.org\r\nBcc: x@example.org", "A <a@example.org>", "a@b@example.org",
     "a", "", "a@example.org\u2028", "\x00@example.org", "a@example.org;", "\ud800@example.org"],
)  # fmt: skip
def test_what_is_not_one_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not one e-mail address"):
        message.Template(source()).fill(values(address=address))
    for field in ("from_address", "reply_to"):
        if address or field == "from_address":
            with pytest.raises(ValueError, match="not one e-mail address"):
                message.Template(source(**{field: address}))


def test_the_sender_s_domain_is_written_in_ascii() -> None:
    assert message.sender_address("ada@exämple.org") == "ada@xn--exmple-cua.org"


# The issue as the renderer makes it


@pytest.fixture
def filled(publication: Publication) -> Any:
    def fill(**issue_values: Any) -> EmailMessage:
        post = make_post(
            title="On vacuum",
            body="See [it](/posts/x/) and `{{ name }}`.\n\n![A](/media/a.png)\n\n# T\n\n|a|\n|-|\n|1|\n",
        )
        teased = make_post(title="An older one", body="Once upon a time. " * 30)
        issue = make_issue(post, number=3, **issue_values)
        IssuePost.objects.create(issue=issue, post=teased, position=1, mode=IssuePost.Mode.TEASER)
        return parse(message.Template(rendering.render_issue(issue)).fill(values()))

    return fill


def test_an_issue_has_both_parts_with_the_same_ways_out(filled: Any) -> None:
    parsed = filled()
    for kind in ("plain", "html"):
        content = part(parsed, kind)
        for needed in ("On vacuum", "An older one", "1 Example Street", "/u/00000000", "/preferences/", "/privacy/"):
            assert needed in content, (kind, needed)
    assert "Once upon a time. " * 30 not in part(parsed, "html")


def test_the_name_stands_where_the_author_put_it_and_nowhere_else(filled: Any) -> None:
    parsed = filled(
        subject="For {{ name|you }}", introduction="Hello {{name|there}}, {{ settings.SECRET_KEY }} {% load x %}"
    )
    assert parsed["Subject"] == "For Ada"
    html = part(parsed, "html")
    assert "Hello Ada, {{ settings.SECRET_KEY }} {% load x %}" in html
    assert "{{ name }}</code>" in html


def test_links_and_images_are_whole_addresses(filled: Any) -> None:
    html = part(filled(), "html")
    assert not re.findall(r'(?:href|src)="/', html)


def test_the_html_has_nothing_that_mail_programs_refuse(filled: Any) -> None:
    html = part(filled(), "html")
    for refused in ("<script", "<form", "<iframe", "<link", "@import", "display:none", "display: none"):
        assert refused not in html
    assert 'lang="en"' in html
    assert "prefers-color-scheme" in html


def test_a_mark_can_not_be_written_by_an_author(publication: Publication) -> None:
    issue = make_issue(introduction="holeaaaaaaaaaaaan0e")
    template = message.Template(rendering.render_issue(issue))
    assert "holeaaaaaaaaaaaan0e" in template.html(values())
