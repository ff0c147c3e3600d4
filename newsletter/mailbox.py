"""A mailbox on this machine: takes every mail by SMTP, shows it on a page, and counts distinct recipients for itself.

For the demo and for trying things; nothing leaves it.
"""

from __future__ import annotations

import email.policy
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from django.template.loader import render_to_string

KEPT = 3000
SHOWN = 200
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src * data:; frame-src 'self'; frame-ancestors 'self'"
PARSER = BytesParser(EmailMessage, policy=email.policy.default)


@dataclass(frozen=True)
class Mail:
    """One mail as it came in."""

    number: int
    sender: str
    recipient: str
    content: bytes

    def parsed(self) -> EmailMessage:
        return PARSER.parsebytes(self.content)

    def part(self, kind: str) -> str:
        body = self.parsed().get_body(preferencelist=(kind,))
        return str(body.get_content()) if body else ""

    @property
    def subject(self) -> str:
        return str(PARSER.parsebytes(self.content, headersonly=True)["Subject"] or "")


@dataclass
class Mailbox:
    """What came in: the newest mails whole, and for each Feedback-ID every recipient and how often he got it."""

    mails: dict[int, Mail] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        for recipient in envelope.rcpt_tos:
            self.take(Mail(self.received + 1, envelope.mail_from or "", recipient, content))
        return "250 2.0.0 Kept"

    def take(self, mail: Mail) -> None:
        with self.lock:
            self.received += 1
            self.mails[mail.number] = mail
            self.counts[feedback_id(mail.content)][mail.recipient] += 1
            if len(self.mails) > KEPT:
                del self.mails[next(iter(self.mails))]

    def newest(self, words: str) -> list[Mail]:
        """Return the newest mails whose recipient or subject holds `words`."""
        with self.lock:
            mails = list(self.mails.values())[::-1]
        if words:
            mails = [mail for mail in mails if words in mail.recipient.lower() or words in mail.subject.lower()]
        return mails[:SHOWN]

    def count(self, prefix: str) -> dict[str, int]:
        """Count messages and distinct recipients of the issue whose Feedback-ID begins with `prefix`."""
        with self.lock:
            found = [recipients for name, recipients in self.counts.items() if name.startswith(prefix)]
            each = [times for recipients in found for times in recipients.values()]
        return {"recipients": len(each), "messages": sum(each), "twice": sum(times > 1 for times in each)}


def feedback_id(content: bytes) -> str:
    """Return a mail's Feedback-ID, which names its issue; empty for system mail."""
    head = content.partition(b"\r\n\r\n")[0]
    line = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"feedback-id:")), b"")
    return line.partition(b":")[2].strip().decode("ascii", "replace")


class Page(BaseHTTPRequestHandler):
    """The mailbox's pages: a list, and each mail as HTML, text and source."""

    mailbox: Mailbox

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = [part for part in url.path.split("/") if part]
        if not parts:
            self.overview(query)
        elif parts == ["count.json"]:
            self.answer(json.dumps(self.mailbox.count(query.get("feedback", ""))), "application/json")
        else:
            self.mail(parts)

    def overview(self, query: dict[str, str]) -> None:
        words = query.get("q", "").strip().lower()
        context = {"mails": self.mailbox.newest(words), "received": self.mailbox.received, "words": words}
        self.answer(render_to_string("mailbox/list.html", context))

    def mail(self, parts: list[str]) -> None:
        mail = self.mailbox.mails.get(int(parts[0])) if parts[0].isdecimal() else None
        view = VIEWS.get(parts[1] if len(parts) > 1 else "")
        if mail is None or view is None:
            self.answer(render_to_string("mailbox/list.html", {"missing": True, "words": ""}), status=404)
            return
        self.answer(*view(mail))

    def answer(self, body: str, kind: str = "text/html", status: int = 200) -> None:
        content = body.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing for each request."""


def _shown(mail: Mail) -> tuple[str, str]:
    headers = [(name, str(value)) for name, value in mail.parsed().items()]
    return render_to_string("mailbox/mail.html", {"mail": mail, "headers": headers}), "text/html"


VIEWS: dict[str, Callable[[Mail], tuple[str, str]]] = {
    "": _shown,
    "html": lambda mail: (mail.part("html"), "text/html"),
    "text": lambda mail: (mail.part("plain"), "text/plain"),
    "source": lambda mail: (mail.content.decode("ascii", "replace"), "text/plain"),
}


class Server:
    """The SMTP side and the pages together, on loopback."""

    def __init__(self, smtp_port: int, http_port: int) -> None:
        self.mailbox = Mailbox()
        self.smtp = Controller(self.mailbox, hostname="127.0.0.1", port=smtp_port, data_size_limit=2**25)
        page = type("BoundPage", (Page,), {"mailbox": self.mailbox})
        self.http = ThreadingHTTPServer(("127.0.0.1", http_port), page)

    def __enter__(self) -> Server:
        self.smtp.start()
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.smtp.stop()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)
