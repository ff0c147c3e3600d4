"""Hand one message to the relay over SMTP, and say in which phase it went wrong.

A copy may be tried again only where it is certain that the relay has not taken it: that is so until the final dot is
written. From then until the reply is read nobody can know (RFC 1047), which is why the dot is a step of its own here.
"""

from __future__ import annotations

import logging
import re
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.conf import settings

logger = logging.getLogger(__name__)
ENHANCED = re.compile(r"^([245]\.\d{1,3}\.\d{1,3})\s")


@dataclass(frozen=True)
class Reply:
    """A relay's reply: SMTP code, enhanced code (RFC 3463) where there is one, text, and the phase it answered."""

    code: int
    text: str
    phase: str

    @property
    def enhanced_code(self) -> str:
        found = ENHANCED.match(self.text)
        return found.group(1) if found else ""


class TransportError(Exception):
    """Something went wrong; `reply` tells what and in which phase."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.phase}: {reply.code} {reply.text}")
        self.reply = reply


class Refused(TransportError):
    """The relay refused this copy for good: do not retry."""


class Deferred(TransportError):
    """The relay did not take this copy now, for certain: try again later."""


class Unreachable(Deferred):
    """No connection: nothing was said of this copy at all."""


class Uncertain(TransportError):
    """The final dot was written and no reply was read: the copy may or may not have been taken."""


@contextmanager
def phase(name: str, lost: type[TransportError] = Deferred) -> Iterator[None]:
    """Turn a broken connection in phase `name` into the error `lost`."""
    try:
        yield
    except (OSError, smtplib.SMTPException, UnicodeError) as error:
        raise lost(Reply(0, f"{type(error).__name__}: {error}"[:500], name)) from error


def checked(code: int, text: bytes, name: str, *, expect: int = 250) -> Reply:
    """Return the reply, or raise Refused on 5xx and Deferred on everything else that is not `expect`."""
    reply = Reply(code, text.decode("ascii", "replace")[:1000], name)
    if code == expect:
        return reply
    raise (Refused if 500 <= code < 600 else Deferred)(reply)


class Connection:
    """One SMTP connection, opened when first needed and reused; at most one message is under way."""

    def __init__(self) -> None:
        self._smtp: smtplib.SMTP | None = None
        self._sent = 0
        self._in_content = False

    def begin(self, sender: str, recipient: str, message: bytes) -> None:
        """Send envelope and content, all but the final dot. Raises Refused, Deferred or Unreachable."""
        smtp = self._open()
        try:
            self._envelope(smtp, sender, recipient)
            self._in_content = True
            with phase("body"):
                smtp.send(message.replace(b"\r\n.", b"\r\n.."))
        except TransportError as error:
            self._recover(error)
            raise

    def finish(self) -> Reply:
        """Write the final dot and return the relay's 250. Raises Refused, Deferred or Uncertain."""
        smtp = self._smtp
        assert smtp is not None
        assert smtp.sock is not None
        try:
            with phase("final_dot", lost=Uncertain):
                smtp.sock.settimeout(settings.SMTP_FINAL_TIMEOUT)
                smtp.send(b".\r\n")
                code, text = smtp.getreply()
                smtp.sock.settimeout(settings.SMTP_TIMEOUT)
            if code == -1:
                raise Uncertain(Reply(0, "no reply", "final_dot"))
            self._in_content = False
            reply = checked(code, text, "final_dot")
        except Uncertain:
            self.abort()
            raise
        self._count()
        return reply

    def abort(self) -> None:
        """Cut the connection: content without its final dot is never delivered (RFC 5321, 4.1.1.4)."""
        if self._smtp:
            self._smtp.close()
        self._smtp, self._sent, self._in_content = None, 0, False

    def close(self) -> None:
        """Say QUIT and close, or cut the connection in the midst of content; a relay that is gone is no error."""
        if self._smtp and not self._in_content:
            try:
                self._smtp.quit()
            except (OSError, smtplib.SMTPException):
                logger.debug("the relay was gone before QUIT")
        self.abort()

    def _open(self) -> smtplib.SMTP:
        if self._smtp is None:
            with phase("connect", lost=Unreachable):
                self._smtp = self._connect()
        return self._smtp

    def _connect(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if settings.SMTP_SECURITY == "tls":
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(
                settings.SMTP_HOST, settings.SMTP_PORT, timeout=settings.SMTP_TIMEOUT, context=context
            )
        else:
            smtp = smtplib.SMTP(settings.SMTP_HOST, settings.SMTP_PORT, timeout=settings.SMTP_TIMEOUT)
        try:
            if settings.SMTP_SECURITY == "starttls":
                smtp.starttls(context=context)
            if settings.SMTP_USER:
                smtp.login(settings.SMTP_USER, settings.SMTP_PASSWORD)
            smtp.ehlo_or_helo_if_needed()
            assert smtp.sock is not None
            # The final dot is a small write of its own: without this it waits 40 ms for the receiver's delayed ACK.
            smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _envelope(self, smtp: smtplib.SMTP, sender: str, recipient: str) -> None:
        with phase("mail"):
            code, text = smtp.mail(sender)
        checked(code, text, "mail")
        with phase("rcpt"):
            code, text = smtp.rcpt(recipient)
        checked(code, text, "rcpt")
        with phase("data"):
            code, text = smtp.docmd("DATA")
        checked(code, text, "data", expect=354)

    def _recover(self, error: TransportError) -> None:
        """Keep the connection after a refusal in words, drop it after anything else (421 announces a close)."""
        if error.reply.code in (0, -1, 421) or error.reply.phase == "body" or self._smtp is None:
            self.abort()
            return
        try:
            self._smtp.rset()
        except (OSError, smtplib.SMTPException):
            self.abort()

    def _count(self) -> None:
        self._sent += 1
        if self._sent >= settings.SMTP_MESSAGES_PER_CONNECTION:
            self.close()
