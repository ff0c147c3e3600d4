"""The message as bytes with holes: encoded once an issue; a reader's copy is a join of the pieces with his few values.

Quoted-printable always, so that nothing on the way has a reason to re-encode (RFC 2045, 6.7). A soft break stands
before and after each hole, so a value never changes how its surroundings are encoded. A line that would begin with a
dot begins with =2E, so SMTP has nothing to stuff and a DKIM signature is over what is sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from email.header import Header
from email.utils import quote
from typing import Any
from uuid import UUID

from django.conf import settings

LINE = 75  # octets before the "=" of a soft break, so that no line exceeds 76
SOFT_BREAK = b"=\r\n"
PLACEHOLDER = re.compile(r"\{\{\s*(name)\s*(?:\|\s*([^{}|\r\n]{0,60}?)\s*)?\}\}")
TOKENS = [
    bytes([octet]) if octet in (9, 32) or (33 <= octet <= 126 and octet != 61) else b"=%02X" % octet
    for octet in range(256)
]
ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")


@dataclass(frozen=True)
class Values:
    """What differs from reader to reader."""

    address: str
    name: str
    unsubscribe_id: UUID
    message_id: str


@dataclass(frozen=True)
class Hole:
    """A place in the frozen text: its mark, the value that fills it, and what stands there where that is empty."""

    mark: str
    field: str
    fallback: str = ""

    def value(self, values: dict[str, str]) -> str:
        return values[self.field] or self.fallback


class Holes:
    """Hands out marks while an issue is rendered: letters and digits only, so sanitiser, inliner and URLs pass them.

    The marks hold a keyed hash, so no text of an author can contain one by chance or on purpose.
    """

    def __init__(self, issue_id: int | None) -> None:
        self.stem = "hole" + _keyed(f"hole:{issue_id}", 12)
        self.holes: list[Hole] = []

    def mark(self, field: str, fallback: str = "") -> str:
        hole = Hole(f"{self.stem}n{len(self.holes)}e", field, fallback)
        self.holes.append(hole)
        return hole.mark

    def replace(self, text: str) -> str:
        """Turn the placeholders of an author's text, such as {{ name|there }}, into marks; all else stays as it is."""
        return PLACEHOLDER.sub(lambda found: self.mark(found.group(1), found.group(2) or ""), text)

    def as_json(self) -> list[list[str]]:
        return [[hole.mark, hole.field, hole.fallback] for hole in self.holes]


class Template:
    """The message of one issue, encoded and split at its holes; `source` is what rendering.render_issue made."""

    def __init__(self, source: dict[str, Any]) -> None:
        self.source = source
        self.domain: str = source["from_address"].rpartition("@")[2]
        self._holes = {mark: Hole(mark, field, fallback) for mark, field, fallback in source["holes"]}
        self._marks = re.compile("(" + "|".join(map(re.escape, self._holes)) + ")") if self._holes else None
        self._pieces = self._assemble()

    def fill(self, values: Values) -> bytes:
        """Return one reader's complete message (RFC 5322), CRLF at each line's end, without SMTP's final dot."""
        mapping = _clean_values(values)
        return b"".join(piece if isinstance(piece, bytes) else piece(mapping) for piece in self._pieces)

    def subject(self, values: Values) -> str:
        """Return the subject as this reader sees it."""
        return self._fill_text(self.source["subject"], _clean_values(values), str)

    def html(self, values: Values) -> str:
        """Return the HTML part as this reader sees it, not encoded."""
        return self._fill_text(self.source["html"], _clean_values(values), html.escape)

    def text(self, values: Values) -> str:
        """Return the text part as this reader sees it, not encoded."""
        return self._fill_text(self.source["text"], _clean_values(values), str)

    def envelope_sender(self, issue_id: int, subscriber_id: int) -> str:
        """Return MAIL FROM: one address a copy (VERP) where BOUNCE_DOMAIN is set, else the sender's."""
        if not settings.BOUNCE_DOMAIN:
            return str(self.source["from_address"])
        number = base64.b32encode(f"{issue_id}.{subscriber_id}".encode()).decode().rstrip("=").lower()
        return f"b-{number}-{_keyed(f'verp:{issue_id}:{subscriber_id}', 12)}@{settings.BOUNCE_DOMAIN}"

    def _fill_text(self, text: str, mapping: dict[str, str], encode: Callable[[str], str]) -> str:
        if self._marks is None:
            return text
        return self._marks.sub(lambda found: encode(self._holes[found.group()].value(mapping)), text)

    def _assemble(self) -> list[bytes | Callable[[dict[str, str]], bytes]]:
        boundary = "=_" + hashlib.sha256(self.source["html"].encode()).hexdigest()[:24]
        part = "\r\nContent-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        return [
            *self._headers(boundary),
            f"--{boundary}{part % 'plain'}".encode(),
            *self._body(self.source["text"], str),
            f"\r\n--{boundary}{part % 'html'}".encode(),
            *self._body(self.source["html"], html.escape),
            f"\r\n--{boundary}--\r\n".encode(),
        ]

    def _headers(self, boundary: str) -> list[bytes | Callable[[dict[str, str]], bytes]]:
        """Return the header set of an issue: one-click unsubscribe by RFC 8058, list fields by RFC 2369 and 2919."""
        source = self.source
        before = {
            "Date": source["date"],
            "From": mailbox("From", source["from_name"], source["from_address"]),
            **({"Reply-To": source["reply_to"]} if source["reply_to"] else {}),
            "MIME-Version": "1.0",
            "Content-Type": f'multipart/alternative; boundary="{boundary}"',
            "List-Id": mailbox("List-Id", source["publication"], source["list_id"]),
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "List-Archive": f"<{source['archive_url']}>",
            "List-Help": f"<{source['help_url']}>",
            "Archived-At": f"<{source['web_url']}>",
            "Feedback-ID": source["feedback_id"],
            "Precedence": "bulk",
            "X-Auto-Response-Suppress": "OOF, AutoReply",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in before.items())
        return [lines.encode("ascii"), self._reader_headers]

    def _reader_headers(self, mapping: dict[str, str]) -> bytes:
        subject = header("Subject", self._fill_text(self.source["subject"], mapping, str))
        return (
            f"Message-ID: {mapping['message_id']}\r\nTo: {mapping['address']}\r\nSubject: {subject}\r\n"
            f"List-Unsubscribe: <{mapping['unsubscribe_url']}>\r\n\r\n"
        ).encode("ascii")

    def _body(self, text: str, encode: Callable[[str], str]) -> list[bytes | Callable[[dict[str, str]], bytes]]:
        parts = self._marks.split(text) if self._marks else [text]
        pieces: list[bytes | Callable[[dict[str, str]], bytes]] = [quoted_printable(parts[0])]
        for mark, following in zip(parts[1::2], parts[2::2], strict=True):
            pieces += [SOFT_BREAK, self._filler(self._holes[mark], encode), quoted_printable(following)]
        return pieces

    @staticmethod
    def _filler(hole: Hole, encode: Callable[[str], str]) -> Callable[[dict[str, str]], bytes]:
        def fill(mapping: dict[str, str]) -> bytes:
            value = hole.value(mapping)
            return quoted_printable(encode(value)) + SOFT_BREAK if value else b""

        return fill


def quoted_printable(text: str) -> bytes:
    """Encode `text` by RFC 2045, 6.7: lines of at most 76 octets, none with a dot in front; line ends become CRLF."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").split(b"\n")
    encoded = [_encode_line(line, ends=number < len(lines) - 1) for number, line in enumerate(lines)]
    return b"\r\n".join(encoded)


def _encode_line(line: bytes, *, ends: bool) -> bytes:
    tokens = [TOKENS[octet] for octet in line]
    if tokens and ends and tokens[-1] in (b" ", b"\t"):
        tokens[-1] = b"=%02X" % line[-1]
    rows, row = [], b""
    for token in tokens:
        if len(row) + len(token) > LINE:
            rows.append(row + b"=")
            row = b""
        row += b"=2E" if token == b"." and not row else token
    return b"\r\n".join([*rows, row])


def header(name: str, value: str) -> str:
    """Return `value` fit for header `name`: controls removed, RFC 2047 where it is not plain ASCII, folded."""
    value = clean(value)
    plain = value.isascii() and "=?" not in value
    return Header(value, "us-ascii" if plain else "utf-8", maxlinelen=75, header_name=name).encode(linesep="\r\n")


def mailbox(name: str, phrase: str, address: str) -> str:
    """Return a display name and an address as header `name` carries them (RFC 5322, 3.4)."""
    phrase = clean(phrase).strip()
    if not phrase:
        return f"<{address}>"
    if phrase.isascii() and "=?" not in phrase:
        return f"{phrase if ATOM.fullmatch(phrase) else chr(34) + quote(phrase) + chr(34)} <{address}>"
    return f"{header(name, phrase)} <{address}>"


def clean(value: str) -> str:
    """Return `value` in one line: without controls, line and paragraph separators, and lone surrogates."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") else c for c in value)


def message_id(issue_id: int, subscriber_id: int, domain: str) -> str:
    """Return the Message-ID of one copy: the same for every try, and telling nothing of either number."""
    return f"<{_keyed(f'message:{issue_id}:{subscriber_id}', 26)}@{domain}>"


def test_id(source: dict[str, Any]) -> str:
    """Return the Message-ID of a test send: the same for the same content."""
    return f"<test.{source_sha256(source)[:26]}@{source['from_address'].rpartition('@')[2]}>"


def source_sha256(source: dict[str, Any]) -> str:
    """Return the hash that all copies of an issue share."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def _keyed(text: str, length: int) -> str:
    digest = hmac.digest(settings.PEPPER.encode(), text.encode(), hashlib.sha256)
    return base64.b32encode(digest).decode().lower()[:length]


def _clean_values(values: Values) -> dict[str, str]:
    return {
        "address": clean(values.address),
        "name": " ".join(clean(values.name).split()),
        "unsubscribe_url": f"{settings.SITE_URL}/u/{values.unsubscribe_id}/",
        "message_id": values.message_id,
    }
