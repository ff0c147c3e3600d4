"""The message as bytes with holes: encoded once an issue; a reader's copy is a join of the pieces with his few values.

Quoted-printable always, so that nothing on the way has a reason to re-encode (RFC 2045, 6.7). A soft break stands
before and after each hole, so a value never changes how its surroundings are encoded. A line that would begin with a
dot begins with =2E, so SMTP has nothing to stuff and a DKIM signature is over what is sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Callable
from email.header import Header
from email.utils import quote as quote_phrase
from functools import lru_cache
from itertools import count
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote as quote_url
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
# What stands in text, in HTML and, where it fits a line, in quoted-printable as it is. Most values of most readers do.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 @._+:/%~-]*")
ONE_ADDRESS = re.compile(r'[^\s,;:<>()\[\]\\"@]+@[^\s,;:<>()\[\]\\"@]+')
URL_BEFORE = re.compile(r"""(?:\b(?:href|src)=["']|://)[^\s"'<>]*\Z""")
URL_LENGTH = 2000  # characters before a hole that are looked at for the beginning of a URL
LONGEST_PLAIN_HEADER = 500  # characters; more would come near the 998 octets of a line (RFC 5322, 2.1.1)
BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
BASE32 = "0123456789abcdefghijklmnopqrstuv"
BASE32_PAIRS = [first + second for first in BASE32 for second in BASE32]


class Key:
    """HMAC-SHA256 under one key (RFC 2104), for many short texts.

    Both hashes have read the key already and are copied for each text; hmac.digest reads it anew, and looks SHA-256 up
    in OpenSSL each time, which takes three times as long.
    """

    def __init__(self, key: bytes) -> None:
        block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in block))
        self._outer = hashlib.sha256(bytes(octet ^ 0x5C for octet in block))

    def digest(self, text: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.digest()


class Values(NamedTuple):
    """What differs from reader to reader."""

    address: str
    name: str
    unsubscribe_id: UUID | str
    message_id: str


# The longest that a reader's row can hold, for measuring.
LONGEST = Values(
    address=f"{'a' * 64}@{'b' * 177}.example.org", name="W" * 100, unsubscribe_id=UUID(int=0), message_id=""
)


class Hole(NamedTuple):
    """A hole as rendering leaves it: its mark, the value that fills it, and what stands there where that is empty."""

    mark: str
    field: str
    fallback: str = ""


class Place(NamedTuple):
    """A hole where it stands in a part."""

    field: str
    fallback: str
    in_url: bool

    def value(self, given: dict[str, str]) -> str:
        value = given[self.field] or self.fallback
        return quote_url(value, safe="") if self.in_url else value


class Holes:
    """Hands out marks while an issue is rendered: letters and digits only, so sanitiser, inliner and URLs pass them.

    The marks hold a keyed hash, so no text of an author can contain one by chance or on purpose.
    """

    def __init__(self, issue_id: int | None) -> None:
        self.stem = "hole" + _keyed(f"hole:{issue_id}".encode()).hex()[:16]
        self.holes: list[Hole] = []

    def mark(self, field: str, fallback: str = "") -> str:
        hole = Hole(f"{self.stem}n{len(self.holes)}e", field, fallback)
        self.holes.append(hole)
        return hole.mark

    def replace(self, text: str) -> str:
        """Turn the placeholders of an author's text, such as {{ name|there }}, into marks; all else stays as it is."""
        return PLACEHOLDER.sub(lambda found: self.mark(found.group(1), found.group(2) or ""), text)

    def as_json(self) -> list[list[str]]:
        return [list(hole) for hole in self.holes]


class Template:
    """The message of one issue, encoded and split at its holes; `source` is what rendering.render_issue made.

    Raises ValueError on a sender that is not one address.
    """

    def __init__(self, source: dict[str, Any]) -> None:
        self.source = source
        self.from_address = one_address(source["from_address"])
        self.domain = self.from_address.rpartition("@")[2]
        self._holes = {mark: Hole(mark, field, fallback) for mark, field, fallback in source["holes"]}
        self._marks = re.compile("(" + "|".join(map(re.escape, self._holes)) + ")") if self._holes else None
        self._subject = self._split(source["subject"])
        self._same_subject = "" if len(self._subject) > 1 else header("Subject", source["subject"])
        self._text = self._split(source["text"])
        self._html = self._split(source["html"])
        self._key = _key(settings.PEPPER)
        self._bounce_domain = settings.BOUNCE_DOMAIN
        self._leave = f"{settings.SITE_URL}/u/"
        places = dict.fromkeys(piece for piece in self._text + self._html if isinstance(piece, Place))
        self._names = sorted((place for place in places if place.field == "name"), key=attrgetter("in_url"))
        self._names_in_urls = sum(place.in_url for place in self._names)
        self._nameless = tuple(filling for place in self._names for filling in _encoded(place.value({"name": ""})))
        pieces = self._pieces()
        self._fixed = [piece for piece in pieces if isinstance(piece, bytes)]
        numbers = count(5 + 2 * len(self._names))
        self._in_order: Callable[[list[bytes]], tuple[bytes, ...]] = itemgetter(
            *(next(numbers) if isinstance(piece, bytes) else piece for piece in pieces)
        )

    def fill(self, values: Values) -> bytes:
        """Return one reader's complete message (RFC 5322), CRLF at each line's end, without SMTP's final dot.

        Raises ValueError where the reader's address is not one address.
        """
        return b"".join(self.pieces(values))

    def pieces(self, values: Values) -> tuple[bytes, ...]:
        """Return what fill() does in pieces: most are the same objects for all readers, so that no copy is made."""
        given = self._given(values)
        fillings = [  # numbered as _number() says
            self._reader_headers(given),
            *_encoded(given["address"]),
            *_encoded(given["unsubscribe_url"]),
            *self._name_fillings(given["name"]),
            *self._fixed,
        ]
        return self._in_order(fillings)

    def subject(self, values: Values) -> str:
        """Return the subject as this reader sees it."""
        return _fill_text(self._subject, self._given(values), str)

    def html(self, values: Values) -> str:
        """Return the HTML part as this reader sees it, not encoded."""
        return _fill_text(self._html, self._given(values), html.escape)

    def text(self, values: Values) -> str:
        """Return the text part as this reader sees it, not encoded."""
        return _fill_text(self._text, self._given(values), str)

    def message_id(self, issue_id: int, subscriber_id: int) -> str:
        """Return the Message-ID of one copy, as message_id() does for the sender's domain."""
        return _message_id(self._key, issue_id, subscriber_id, self.domain)

    def envelope_sender(self, issue_id: int, subscriber_id: int) -> str:
        """Return MAIL FROM: one address a copy (VERP) where BOUNCE_DOMAIN is set, else the sender's.

        VERP's local part is "b-" and a number in base32hex: the issue, 40 bits for the subscriber, 64 of their HMAC.
        """
        if not self._bounce_domain:
            return self.from_address
        proof = int.from_bytes(self._key.digest(b"verp:%d:%d" % (issue_id, subscriber_id))[:8], "big")
        return f"b-{_base32(issue_id << 104 | subscriber_id << 64 | proof)}@{self._bounce_domain}"

    def _given(self, values: Values) -> dict[str, str]:
        return {
            "address": clean(values.address),
            "name": " ".join(clean(values.name).split()),
            "unsubscribe_url": f"{self._leave}{values.unsubscribe_id}/",
            "message_id": values.message_id,
        }

    def _split(self, text: str) -> list[str | Place]:
        """Cut `text` at its marks."""
        parts: list[str | Place] = []
        end = 0
        for found in self._marks.finditer(text) if self._marks else ():
            parts += [text[end : found.start()], self._place(self._holes[found.group()], text, found.start())]
            end = found.end()
        return [*parts, text[end:]]

    def _place(self, hole: Hole, text: str, start: int) -> Place:
        """Return how `hole` is filled where it stands: a name that became part of a URL must not change its shape."""
        in_url = hole.field == "name" and bool(URL_BEFORE.search(text[max(0, start - URL_LENGTH) : start]))
        return Place(hole.field, hole.fallback, in_url)

    def _pieces(self) -> list[bytes | int]:
        """Return the message in order: what is the same for all as bytes, else the number of the filling to put there.

        Filling 0 is the reader's header fields; _number() tells the others.
        """
        boundary = "=_" + hashlib.sha256(self.source["html"].encode()).hexdigest()[:24]
        part = "\r\nContent-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        return [
            self._headers(boundary).encode(),
            0,
            f"--{boundary}{part % 'plain'}".encode(),
            *self._body(self._text, in_html=False),
            f"\r\n--{boundary}{part % 'html'}".encode(),
            *self._body(self._html, in_html=True),
            f"\r\n--{boundary}--\r\n".encode(),
        ]

    def _body(self, parts: list[str | Place], *, in_html: bool) -> list[bytes | int]:
        pieces: list[bytes | int] = []
        for piece in parts[:-1]:
            if isinstance(piece, Place):
                pieces.append(self._number(piece) + in_html)
            else:
                pieces.append(quoted_printable(piece) + SOFT_BREAK)
        return [*pieces, quoted_printable(str(parts[-1]))]

    def _number(self, place: Place) -> int:
        """Return the number of what fills `place` in the text; what fills it in the HTML is the next.

        All places of an address share one, and those of a name differ only in what stands there without one.
        """
        if place.field == "name":
            return 5 + 2 * self._names.index(place)
        return {"address": 1, "unsubscribe_url": 3}[place.field]

    def _name_fillings(self, name: str) -> tuple[bytes, ...]:
        """Encode a name once for all its places, and once more for those in URLs, which come last."""
        if not name:
            return self._nameless
        if not self._names_in_urls:
            return _encoded(name) * len(self._names)
        in_url = _encoded(quote_url(name, safe=""))
        return _encoded(name) * (len(self._names) - self._names_in_urls) + in_url * self._names_in_urls

    def _headers(self, boundary: str) -> str:
        """Return the header set of an issue: one-click unsubscribe by RFC 8058, list fields by RFC 2369 and 2919."""
        source = self.source
        reply_to = one_address(source["reply_to"]) if source["reply_to"] else ""
        fields = {
            "Date": clean(source["date"]),
            "From": mailbox("From", source["from_name"], self.from_address),
            **({"Reply-To": reply_to} if reply_to else {}),
            "MIME-Version": "1.0",
            "Content-Type": f'multipart/alternative; boundary="{boundary}"',
            "List-Id": mailbox("List-Id", source["publication"], clean(source["list_id"])),
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "List-Owner": f"<mailto:{quote_url(reply_to or self.from_address, safe='@+')}>",
            "List-Archive": f"<{clean(source['archive_url'])}>",
            "List-Help": f"<{clean(source['help_url'])}>",
            "Archived-At": f"<{clean(source['web_url'])}>",
            "Feedback-ID": clean(source["feedback_id"]),
            "Precedence": "bulk",
            "X-Auto-Response-Suppress": "OOF, AutoReply",
        }
        return "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    def _reader_headers(self, given: dict[str, str]) -> bytes:
        """Return the fields that differ; an address that is not ASCII stands there as UTF-8 (RFC 6532, 3.2)."""
        subject = self._same_subject or header("Subject", _fill_text(self._subject, given, str))
        return (
            f"Message-ID: {given['message_id']}\r\nTo: {one_address(given['address'])}\r\nSubject: {subject}\r\n"
            f"List-Unsubscribe: <{given['unsubscribe_url']}>\r\n\r\n"
        ).encode()


def size_of_html(source: dict[str, Any]) -> int:
    """Return the bytes of the HTML part, filled with the longest values that a reader can have."""
    return len(Template(source).html(LONGEST).encode())


def _fill_text(parts: list[str | Place], given: dict[str, str], escape: Callable[[str], str]) -> str:
    return "".join(piece if isinstance(piece, str) else escape(piece.value(given)) for piece in parts)


def _encoded(value: str) -> tuple[bytes, bytes]:
    """Return `value` as it stands in the text part and in the HTML part, each with a soft break behind."""
    if PLAIN.fullmatch(value):
        filling = (value.encode() if len(value) <= LINE else quoted_printable(value)) + SOFT_BREAK
        return filling, filling
    if not value:
        return b"", b""
    filling, escaped = quoted_printable(value) + SOFT_BREAK, html.escape(value)
    return filling, filling if escaped == value else quoted_printable(escaped) + SOFT_BREAK


def quoted_printable(text: str) -> bytes:
    """Encode `text` by RFC 2045, 6.7: lines of at most 76 octets, none with a dot in front; line ends become CRLF.

    The last line has at most 75 octets and no white space at its end, so that a soft break or a line's end may follow.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").split(b"\n")
    return b"\r\n".join([_encode_line(line) for line in lines])


def _encode_line(line: bytes) -> bytes:
    """Encode one line in C, or token by token where that would leave a dot in front or a row too long."""
    encoded = binascii.b2a_qp(line)
    rows = encoded.split(b"\n") if len(encoded) > LINE else [encoded]
    if len(rows[-1]) > LINE or encoded.startswith(b".") or b"\n." in encoded:
        return _encode_tokens(line)
    return b"\r\n".join(rows)


def _encode_tokens(line: bytes) -> bytes:
    tokens = [TOKENS[octet] for octet in line]
    if line.endswith((b" ", b"\t")):
        tokens[-1] = b"=%02X" % line[-1]
    rows, row = [], b""
    for token in tokens:
        if len(row) + len(token) > LINE:
            rows.append(row + b"=")
            row = b""
        row += b"=2E" if token == b"." and not row else token
    return b"\r\n".join([*rows, row])


def header(name: str, value: str) -> str:
    """Return `value` fit for header `name`: controls removed, folded, as RFC 2047 words where it is not plain ASCII."""
    value = clean(value)
    if not _is_plain(value):
        return _encoded_words(name, value)
    if len(name) + len(value) < LINE:
        return value
    return Header(value, "us-ascii", maxlinelen=LINE, header_name=name).encode(linesep="\r\n")


def mailbox(name: str, phrase: str, address: str) -> str:
    """Return a display name and an address as header `name` carries them (RFC 5322, 3.4)."""
    phrase = clean(phrase).strip()
    if not phrase:
        return f"<{address}>"
    if _is_plain(phrase):
        return f"{phrase if ATOM.fullmatch(phrase) else chr(34) + quote_phrase(phrase) + chr(34)} <{address}>"
    return f"{_encoded_words(name, phrase)}\r\n <{address}>"


def _is_plain(value: str) -> bool:
    return value.isascii() and "=?" not in value and len(value) <= LONGEST_PLAIN_HEADER


def _encoded_words(name: str, value: str) -> str:
    """Return `value` as encoded words, one a line, each of at most 75 octets and of whole characters (RFC 2047, 2)."""
    octets, room = value.encode(), (64 - len(name) - 2) // 4 * 3
    words, start = [], 0
    while True:
        end = start + room
        while end < len(octets) and octets[end] & 0b11000000 == 0b10000000:  # amid a character
            end -= 1
        words.append(f"=?utf-8?b?{base64.b64encode(octets[start:end]).decode()}?=")
        if end >= len(octets):
            return "\r\n ".join(words)
        start, room = end, 45


def clean(value: str) -> str:
    """Return `value` in one line: without controls, also of direction, line separators, and lone surrogates."""
    if value.isprintable():
        return value
    return "".join(" " if _breaks_lines(character) else character for character in value)


def _breaks_lines(character: str) -> bool:
    """Tell whether `character` would end a line, or turn what stands behind it (as U+202E does)."""
    if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
        return True
    return unicodedata.bidirectional(character) in BIDI_CONTROLS


def one_address(address: str) -> str:
    """Return `address`. Raises ValueError where it is not exactly one address (RFC 5322, 3.4.1, without quoting)."""
    if not ONE_ADDRESS.fullmatch(address) or not address.isprintable():
        raise ValueError(f"This is not one e-mail address: {address!r}")
    return address


def sender_address(address: str) -> str:
    """Return `address` with its domain in ASCII (RFC 5890): no relay needs SMTPUTF8 for it. Raises ValueError."""
    local, _at, domain = one_address(address).rpartition("@")
    return f"{local}@{domain.encode('idna').decode()}"


def message_id(issue_id: int, subscriber_id: int, domain: str) -> str:
    """Return the Message-ID of one copy: the same for every try, and telling nothing of either number."""
    return _message_id(_key(settings.PEPPER), issue_id, subscriber_id, domain)


def _message_id(key: Key, issue_id: int, subscriber_id: int, domain: str) -> str:
    return f"<{key.digest(b'message:%d:%d' % (issue_id, subscriber_id)).hex()[:32]}@{domain}>"


def test_id(source: dict[str, Any]) -> str:
    """Return the Message-ID of a test send: the same for the same content."""
    return f"<test.{source_sha256(source)[:26]}@{source['from_address'].rpartition('@')[2]}>"


def source_sha256(source: dict[str, Any]) -> str:
    """Return the hash that all copies of an issue share."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def _keyed(text: bytes) -> bytes:
    return _key(settings.PEPPER).digest(text)


@lru_cache(maxsize=1)
def _key(pepper: str) -> Key:
    return Key(pepper.encode())


def _base32(number: int) -> str:
    """Return `number` in base32hex, in lower case (RFC 4648, 7), which int(text, 32) reads."""
    text = ""
    while number:
        text = BASE32_PAIRS[number & 1023] + text
        number >>= 10
    return text
