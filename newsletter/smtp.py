"""An SMTP client (RFC 5321) on asyncio: one process drives many connections, each with one message under way.

The final dot is a step of its own: until it is written a copy is certainly not taken, from then until its reply is read
nobody can know (RFC 1047). Replies are counted strictly, so that none is ever held for the answer to something else.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import inf
from typing import Any, Literal, NamedTuple, Self

from newsletter.replies import Deferred, Dropped, Refused, Reply, TransportError, Uncertain, Unreachable

MOST_PIECES = 1000  # in one write; Linux takes 1024
REPLY_BYTES = 64 * 1024
TEXT_CHARACTERS = 1000
QUIT_SECONDS = 5.0
SECURITY = ("none", "starttls", "tls")
ENVELOPE = ("mail", "rcpt", "data")
ROUND = ("final_dot", *ENVELOPE)  # what is expected where envelopes overlap
# No address may break out of its brackets or its line, nor be anything that UTF-8 can't carry.
FORBIDDEN = re.compile("[\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]")
# A line that begins with a dot; a bare LF counts too, since some servers end lines at it. Twice as quick as `in`.
LEADING_DOT = re.compile(rb"\n\.")
LINE_END = re.compile(rb"\r\n|\r|\n")

Envelope = tuple[str, str, int]  # sender, recipient, size in bytes
Heard = Callable[[Reply, "asyncio.Future[Any]"], bool]
Stage = Literal["idle", "envelope", "content", "whole"]  # the body is whole when the kernel has all of it


@dataclass(frozen=True)
class Account:
    """A relay and how to talk to it; the times are in seconds, by default those of RFC 5321, 4.5.3.2."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    security: str = "none"  # none, starttls, tls
    helo: str = ""  # empty: this machine's name, or an address literal
    messages_per_connection: int = 500
    overlap: bool = False  # write the next envelope together with the final dot
    tls: ssl.SSLContext | None = None  # empty: the system's authorities, certificate and name verified
    connect_seconds: float = 30
    greeting_seconds: float = 300
    command_seconds: float = 300
    data_seconds: float = 120
    body_seconds: float = 180
    final_seconds: float = 600

    def __post_init__(self) -> None:
        if self.security not in SECURITY:
            raise ValueError(f"security is one of {', '.join(SECURITY)}, not {self.security}")

    @property
    def seconds(self) -> dict[str, float]:
        """Return how long the relay may take to answer, by phase."""
        return {
            **dict.fromkeys(("ehlo", "starttls", "auth", "mail", "rcpt", "rset"), self.command_seconds),
            "tls": self.connect_seconds,
            "greeting": self.greeting_seconds,
            "data": self.data_seconds,
            "final_dot": self.final_seconds,
            "bare_dot": self.final_seconds,
            "quit": QUIT_SECONDS,
        }


class Answer(NamedTuple):
    """A reply as it was read: the code, and the lines without it."""

    code: int
    text: bytes

    @property
    def granted(self) -> bool:
        return 200 <= self.code < 300

    def reply(self, phase: str) -> Reply:
        return Reply(self.code, printable(self.text), phase)


def boot_time() -> float:
    """Return seconds that go on while the machine sleeps: an intent must not outlive a suspended laptop."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def printable(raw: bytes) -> str:
    """Return what a relay said as one line of text fit to be stored and shown."""
    text = raw[: 4 * TEXT_CHARACTERS].decode("utf-8", "replace").rstrip()
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return text[:TEXT_CHARACTERS].strip()


@lru_cache(64)  # most lines are one of three or four
def reply_line(line: bytes) -> tuple[Answer, bool]:
    """Return a line's code, 0 where it has none, with its text, and whether it is the last of its reply."""
    digits, mark = line[:3], line[3:4]
    code = int(digits) if digits.isdigit() else 0
    if not 200 <= code < 600 or mark not in b" -\r":
        code = 0
    return Answer(code, line[4:]), mark != b"-"


@cache
def machine_name() -> str:
    """Return this machine's full name, or an address literal where it has none (RFC 5321, 4.1.3 and 4.1.4)."""
    name = socket.getfqdn()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name):
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except OSError:
        return "[127.0.0.1]"


@cache
def system_authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


def dot_stuffed(content: bytes) -> bytes:
    """Return the content with CRLF line ends throughout and every leading dot doubled (RFC 5321, 4.5.2)."""
    lines = LINE_END.sub(b"\r\n", content)
    return (b"." if lines.startswith(b".") else b"") + lines.replace(b"\r\n.", b"\r\n..")


def _lines(content: bytes, *, dotless: bool) -> bytes:
    """Return the content fit to be followed by the dot."""
    if not dotless and (content.startswith(b".") or LEADING_DOT.search(content)):
        content = dot_stuffed(content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"


class Tls:
    """TLS between two buffers in memory, so that one protocol reads both before and after STARTTLS."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.ready = False

    @property
    def certificate(self) -> dict[str, Any]:
        """Return the other side's certificate, verified, as ssl describes it."""
        return dict(self._session.getpeercert() or {})

    def shake_hands(self) -> None:
        """Go on with the handshake as far as the data read allow. Raises ssl.SSLError."""
        try:
            self._session.do_handshake()
            self.ready = True
        except ssl.SSLWantReadError:
            pass

    def opened(self, data: bytes) -> bytes:
        """Return what could be decrypted. Raises ssl.SSLError."""
        self._incoming.write(data)
        if not self.ready:
            self.shake_hands()
        plain = bytearray()
        try:
            while self.ready and (chunk := self._session.read(REPLY_BYTES)):
                plain += chunk
        except ssl.SSLWantReadError:
            pass
        return bytes(plain)

    def sealed(self, data: bytes) -> bytes:
        """Return `data` encrypted, after whatever TLS itself has to say. Raises ssl.SSLError."""
        view = memoryview(data)
        while view:
            view = view[self._session.write(view) :]
        return self._outgoing.read()


class Connection(asyncio.Protocol):
    """One connection: begin, begun, send_body, write_dot, answered, and again; a call out of turn is a RuntimeError.

    Where it `overlaps`, send_whole takes the place of send_body and write_dot.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tls: Tls | None = None
        self._early = select.poll()
        self._descriptor = -1
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._seconds = account.seconds
        self._lost = ""  # why this connection is of no more use
        self._extensions: dict[str, str] = {}
        self._pipelining = False
        self.overlaps = False  # the next envelope may follow the dot in one write
        self.writes_whole = False  # send_whole() has something to gain: it writes past TLS
        # What is under way.
        self._stage: Stage = "idle"
        self._dot: Literal["", "written", "withheld"] = ""
        self._objection: TransportError | None = None  # why the envelope was not written at all
        self._steps: tuple[tuple[str, bytes], ...] = ()  # the rest of an envelope where there is no pipelining
        self._count = 0
        # Replies: the phases that wait for one, oldest first, those read, and the one being read.
        self._expected: deque[str] = deque()
        self._answers: dict[str, Answer] = {}
        self._granting = b""  # how the relay last let an overlapping envelope begin: three replies, as they came
        self._granted_whole = False  # those were what came behind the answer to the dot
        self._partial = b""
        self._lines: list[bytes] = []
        self._code = 0
        self._held = 0
        # Who waits, for what, and until when.
        self._waiter: asyncio.Future[Any] | None = None
        self._heard: Heard | None = None
        self._awaited = ""
        self._full = False
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    @classmethod
    async def open(cls, account: Account) -> Self:
        """Connect, secure, log in. Raises Unreachable: phase connect, greeting, ehlo, starttls, tls or auth."""
        connection = cls(account)
        try:
            await connection._connect()
            await connection._make_ready()
        except BaseException:
            connection.abort()
            raise
        return connection

    @property
    def usable(self) -> bool:
        """Tell whether another message may begin here when the present one is through."""
        return not self._lost and self._count < self._account.messages_per_connection

    @property
    def offers(self) -> frozenset[str]:
        """Return the keywords of the relay's last EHLO, which under STARTTLS is the one after it."""
        return frozenset(self._extensions)

    @property
    def certificate(self) -> dict[str, Any]:
        """Return the relay's certificate as ssl describes it, nothing without TLS."""
        return self._tls.certificate if self._tls else {}

    def begin(self, sender: str, recipient: str, size: int) -> None:
        """Write MAIL, RCPT and DATA at once where the relay allows it (RFC 2920), else MAIL alone."""
        if self._stage != "idle" or self._dot or self._expected:
            raise RuntimeError("begin() in the midst of a message")
        self._answers.clear()
        commands = self._enter(sender, recipient, size)
        if commands:
            self._write(commands)
            self._wind()

    async def begun(self) -> None:
        """Wait until the relay wants the content. Raises Refused, Deferred or Dropped: phase mail, rcpt or data."""
        if self._stage != "envelope":
            raise RuntimeError("begun() without begin()")
        if self._granted_whole:
            self._stage, self._granted_whole = "content", False
            return
        if self._objection is None:
            await self._envelope_answered()
        error = self._objection or self._refusal()
        if error is None:
            self._stage = "content"
            return
        self._stage = "idle"
        if not self._objection:
            await self._recover()
        raise error

    async def send_body(self, content: bytes, *, dotless: bool = False) -> None:
        """Hand the whole content, without its dot, to the kernel. Raises Dropped.

        `dotless` vouches that no line begins with a dot: looking for one in 40 KB costs as much as sending it.
        """
        if self._stage != "content":
            raise RuntimeError("send_body() before 354")
        await self._send_rest(_lines(content, dotless=dotless))

    async def _send_rest(self, content: bytes) -> None:
        if not self._lost:
            self._write(content)
        if self._full:
            self._set_deadline(self._account.body_seconds)
            await self._wait("drained")
            self._wind()
        if self._lost:
            raise Dropped(Reply(0, self._lost, "body"))
        self._stage = "whole"

    def write_dot(self, then: Envelope | None = None) -> bool:
        """Write the final dot and, where the account overlaps and the relay pipelines, the next envelope behind it.

        Return whether that envelope is begun: then begun() answers for it after answered(), else begin() has yet to be
        called. Where the relay has spoken or hung up already, the dot is withheld, and answered() raises Dropped.
        """
        if self._stage != "whole":
            raise RuntimeError("write_dot() before the whole content was sent")
        self._stage = "idle"
        self._answers.clear()  # the last one's to the dot among them
        if not self._may_write_dot():
            self._dot = "withheld"
            return False
        end, overlaps = self._end(then)
        self._write(end)
        self._wind()
        return overlaps

    async def send_whole(
        self, pieces: tuple[bytes, ...], then: Envelope | None = None, *, until: float = inf, dotless: bool = False
    ) -> bool:
        """Write the content's pieces, final dot and next envelope at once, so that the relay wakes once a message.

        What the kernel does not take of it goes the way of send_body() and write_dot(), so that a dot never waits in a
        buffer of ours; after the boot-time instant `until` it is withheld. Returns as write_dot() does. Raises Dropped.
        """
        if self._stage != "content":
            raise RuntimeError("send_whole() before 354")
        if not dotless or len(pieces) > MOST_PIECES or not pieces[-1].endswith(b"\r\n"):
            pieces = (_lines(b"".join(pieces), dotless=dotless),)
        sent = 0
        if self.writes_whole and self._may_write_dot():
            end, overlaps = self._end(then)
            sent = self._write_now((*pieces, end))
            if (left := sum(map(len, pieces), len(end)) - sent) < len(end):  # the dot is on its way
                if left:
                    self._write(end[-left:])
                self._wind()
                return overlaps
            self._take_back(overlaps)
        await self._send_rest(b"".join(pieces)[sent:])
        if boot_time() > until:
            self._fail("the content took too long")
        return self.write_dot(then)

    def _may_write_dot(self) -> bool:
        """Tell whether the relay still waits for content: one that spoke or hung up before the dot gets none."""
        if not self._lost and self._early.poll(0):
            self._fail("the relay spoke or hung up before the final dot")
        return not self._lost

    def _end(self, then: Envelope | None) -> tuple[bytes, bool]:
        """Return the dot with the envelope that may follow in the same write, and expect their replies."""
        self._stage, self._dot, self._granted_whole = "idle", "written", False
        self._answers.clear()
        self._expected.append("final_dot")
        if then is None or not self.overlaps or not self.usable:
            return b".\r\n", False
        return b".\r\n" + self._enter(*then), True

    def _take_back(self, overlaps: bool) -> None:
        """Undo what _end() expected: not a byte of it was written."""
        self._count -= overlaps and self._objection is None
        self._stage, self._dot = "content", ""
        self._expected.clear()

    def _write_now(self, pieces: tuple[bytes, ...]) -> int:
        """Hand all to the kernel past the transport, whose buffer is empty; return how many bytes it took."""
        try:
            return os.writev(self._descriptor, pieces)
        except BlockingIOError:
            return 0
        except OSError as error:  # then it took nothing
            self._fail(str(error))
            return 0

    def listen(self, heard: Heard | None) -> asyncio.Future[Any]:
        """Return a future that ends when answered() can return or raise at once.

        But where the dot is granted and the next message is begun, as usual, `heard` is called with the reply and that
        future; if it says yes, both are its own and the next message's content may be sent: no answered(), no begun().
        """
        waiter: asyncio.Future[Any] = self._loop.create_future()
        if self._lost or "final_dot" in self._answers:
            waiter.set_result(None)
        else:
            self._waiter, self._awaited, self._heard = waiter, "final_dot", heard
        return waiter

    async def answered(self) -> Reply:
        """Return the 2xx to the dot. Raises Refused (5xx), Deferred (4xx), Dropped (no dot), else Uncertain."""
        if not self._dot:
            raise RuntimeError("answered() without write_dot()")
        answer = self._answers.get("final_dot") or await self._wait("final_dot")
        written, self._dot = self._dot == "written", ""
        if answer is None:
            raise (Uncertain if written else Dropped)(Reply(0, self._lost, "final_dot"))
        if answer.granted:
            return answer.reply("final_dot")
        raise self._verdict(answer, "final_dot", otherwise=Uncertain)

    def abort(self) -> None:
        """Cut the connection at once: content without its dot is never delivered (RFC 5321, 4.1.1.4)."""
        self._fail("aborted")

    async def quit(self) -> None:
        """Say QUIT and close, or abort where something is under way; a relay that is gone is no error."""
        try:
            if self._stage == "idle" and not (self._lost or self._dot or self._expected):
                await self._ask("quit", b"QUIT")
        finally:
            self.abort()
        await self._gone

    # Opening

    async def _connect(self) -> None:
        account = self._account
        try:
            async with asyncio.timeout(account.connect_seconds):
                await self._loop.create_connection(lambda: self, account.host, account.port, happy_eyeballs_delay=0.25)
        except (OSError, UnicodeError, OverflowError) as error:  # a name or a port that can't be, besides the usual
            reason = str(error) or "timed out"
            raise Unreachable(Reply(0, reason, "connect")) from error

    async def _make_ready(self) -> None:
        security = self._account.security
        if security == "tls":
            self._start_tls()
            await self._granted("tls")
        await self._granted("greeting")
        await self._hello()
        if security == "starttls":
            await self._upgrade()
            await self._hello()
        if self._account.user:
            await self._log_in()

    async def _hello(self) -> None:
        """Introduce ourselves and learn what the relay can do; by HELO where it does not know EHLO."""
        name = (self._account.helo or await self._loop.run_in_executor(None, machine_name)).encode()
        answer = await self._ask("ehlo", b"EHLO " + name)
        extended = answer is None or not 500 <= answer.code < 600
        if not extended:
            await self._ask("ehlo", b"HELO " + name)
        _, *lines = (await self._granted("ehlo")).text.decode("ascii", "replace").upper().split("\n")
        words = [line.replace("AUTH=", "AUTH ").split() for line in lines] if extended else []
        self._extensions = {keyword: " ".join(rest) for keyword, *rest in filter(None, words)}
        self._pipelining = "PIPELINING" in self._extensions
        self.overlaps = self._account.overlap and self._pipelining
        self.writes_whole = self.overlaps and self._tls is None

    async def _upgrade(self) -> None:
        """Turn to TLS by STARTTLS; without it nothing more is said in clear, and nothing said in clear is believed."""
        if "STARTTLS" not in self._extensions:
            raise Unreachable(Reply(0, "the relay does not offer STARTTLS", "starttls"))
        await self._ask("starttls", b"STARTTLS")
        await self._granted("starttls")
        self._expect("tls")
        self._start_tls()
        await self._granted("tls")

    def _start_tls(self) -> None:
        try:
            self._tls = Tls(self._account.tls or system_authorities(), self._account.host)
            self._tls.shake_hands()
        except (ssl.SSLError, ValueError) as error:
            raise Unreachable(Reply(0, str(error), "tls")) from error
        self._write(b"")

    async def _log_in(self) -> None:
        """Log in by PLAIN (RFC 4616) or LOGIN; we come here without TLS only where the account wants none."""
        user, password = self._account.user.encode(), self._account.password.encode()
        offered = self._extensions.get("AUTH", "").split()
        if "PLAIN" in offered:
            await self._ask("auth", b"AUTH PLAIN " + base64.b64encode(b"\0" + user + b"\0" + password))
        elif "LOGIN" in offered:
            for line in (b"AUTH LOGIN", base64.b64encode(user)):
                answer = await self._ask("auth", line)
                if answer is None or answer.code != 334:
                    break
            else:
                await self._ask("auth", base64.b64encode(password))
        else:
            raise Unreachable(Reply(0, "the relay offers neither AUTH PLAIN nor AUTH LOGIN", "auth"))
        await self._granted("auth")

    async def _granted(self, phase: str) -> Answer:
        """Return the answer to `phase` if it is 2xx. Raises Unreachable."""
        answer = await self._wait(phase)
        if answer is not None and not answer.granted:
            raise Unreachable(answer.reply(phase))
        if answer is None or self._lost:  # lost too where something came behind the answer, such as text after STARTTLS
            raise Unreachable(Reply(0, self._lost, phase))
        return answer

    # Envelopes

    def _enter(self, sender: str, recipient: str, size: int) -> bytes:
        """Return the commands to write now and expect their replies; nothing where begun() is to raise an objection."""
        self._stage = "envelope"
        self._objection = self._objection_to(sender, recipient, size)
        if self._objection:
            return b""
        self._count += 1
        extensions = self._extensions
        parameters = f" SIZE={size}" if "SIZE" in extensions else ""
        if not (sender.isascii() and recipient.isascii()):
            parameters += " SMTPUTF8"
        if self._pipelining:
            self._expected.extend(ENVELOPE)
            return f"MAIL FROM:<{sender}>{parameters}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
        self._expected.append("mail")
        self._steps = (("rcpt", f"RCPT TO:<{recipient}>".encode()), ("data", b"DATA"))
        return f"MAIL FROM:<{sender}>{parameters}\r\n".encode()

    def _objection_to(self, sender: str, recipient: str, size: int) -> TransportError | None:
        """Return what speaks against this envelope before a word is said."""
        if self._lost:
            return Dropped(Reply(0, self._lost, "mail"))
        if FORBIDDEN.search(sender):
            return Refused(Reply(553, "5.1.3 Character not allowed in the sender's address", "mail"))
        if not recipient or FORBIDDEN.search(recipient):
            return Refused(Reply(553, "5.1.3 Character not allowed in the recipient's address", "rcpt"))
        if not (sender.isascii() and recipient.isascii()) and "SMTPUTF8" not in self._extensions:
            return Refused(Reply(553, "5.6.7 The relay takes ASCII addresses only", "rcpt"))
        limit = self._extensions.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit) < size:
            return Refused(Reply(552, f"5.3.4 {size} bytes are more than the {limit} the relay takes", "mail"))
        return None

    async def _envelope_answered(self) -> None:
        phase = "data" if self._pipelining else "mail"
        answer = self._answers.get(phase) or await self._wait(phase)
        if self._pipelining:
            return
        for following, line in self._steps:
            if answer is None or not answer.granted:
                return
            answer = await self._ask(following, line)

    def _refusal(self) -> TransportError | None:
        """Return the error that the first answer short of a yes amounts to."""
        for phase in ENVELOPE:
            answer = self._answers.get(phase)
            if answer is None:
                return Dropped(Reply(0, self._lost, phase))
            if answer.code != 354 if phase == "data" else not answer.granted:
                return self._verdict(answer, phase, otherwise=Dropped)
        return None

    def _verdict(self, answer: Answer, phase: str, *, otherwise: type[TransportError]) -> TransportError:
        """Return the error for a reply that is no yes; one that is no no either means that we are out of step."""
        if 500 <= answer.code < 600:
            return Refused(answer.reply(phase))
        if 400 <= answer.code < 500:
            return Deferred(answer.reply(phase))
        self._fail(f"out of step: {answer.code}")
        return otherwise(answer.reply(phase))

    async def _recover(self) -> None:
        """Bring a refused envelope to its end, so that the next may begin."""
        data, rcpt = self._answers.get("data"), self._answers.get("rcpt")
        if self._lost:
            return
        if data is None or data.code != 354:
            answer = await self._ask("rset", b"RSET")
            if answer is None or not answer.granted:
                self._fail("RSET was refused")
        elif rcpt is None or rcpt.granted:
            self.abort()  # MAIL alone was refused: a dot might deliver an empty message
        else:
            await self._ask("bare_dot", b".")  # content for no one ends with nothing in it (RFC 2920, 3.1)

    # Waiting

    async def _ask(self, phase: str, line: bytes) -> Answer | None:
        """Write a line and return its answer, or None where the connection is lost."""
        if self._lost:
            return None
        self._answers.pop(phase, None)
        self._expect(phase)
        self._write(line + b"\r\n")
        return await self._wait(phase)

    def _expect(self, phase: str) -> None:
        self._expected.append(phase)
        self._wind()

    async def _wait(self, phase: str) -> Answer | None:
        """Return the answer to `phase` once it is there, or None where the connection is lost first."""
        while phase not in self._answers and not self._lost and (phase != "drained" or self._full):
            self._awaited = phase
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._answers.get(phase)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter, self._awaited, self._heard = None, "", None

    def _wind(self) -> None:
        """Set the deadline of the oldest phase that waits for a reply; bytes that trickle in do not move it."""
        if self._expected:
            self._set_deadline(self._seconds[self._expected[0]])
        else:
            self._deadline = inf

    def _set_deadline(self, seconds: float) -> None:
        """Set the deadline; the timer is touched only where it would ring too late, so hardly ever."""
        self._deadline = self._loop.time() + seconds
        if self._deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._ring) if self._deadline < inf else None

    def _ring(self) -> None:
        self._timer, self._timer_at = None, inf
        if self._loop.time() >= self._deadline:
            self._fail("timed out")
        else:
            self._set_timer()

    def _fail(self, why: str) -> None:
        """Give the connection up, for the first reason that is named, and tell whoever waits."""
        if self._lost:
            return
        self._lost = why
        self._expected.clear()
        self._deadline = inf
        self._set_timer()
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # Reading and writing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._lost:
            transport.abort()
            return
        self._transport = transport
        # The final dot is a small write of its own: without this it waits for the receiver's delayed ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._early.register(self._descriptor, select.POLLIN)
        self._expected.extend(("tls", "greeting") if self._account.security == "tls" else ("greeting",))
        self._wind()

    def eof_received(self) -> None:
        self._fail("the relay closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc) if exc else "the relay closed the connection")
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._awaited == "drained":
            self._wake()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        if self._tls is not None:
            try:
                data = self._tls.sealed(data)
            except ssl.SSLError as error:
                self._fail(str(error))
                return
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            data = self._opened(data)
        if self._granting and self._heard_usual(data):
            return
        waiting, together = len(self._expected), not self._partial and tuple(self._expected) == ROUND
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            answer, last = reply_line(line)
            if last and not self._lines and answer.code:
                self._settle(answer)
            elif answer.code:
                self._read_further(answer, last=last)
            else:
                self._fail("garbage: " + printable(line))
            if self._lost:
                return
        if self._held + len(self._partial) > REPLY_BYTES:
            self._fail("garbage: a reply without an end")
        if (self._partial or self._lines) and not self._expected:
            self._fail("out of step: " + printable(self._partial))
        if len(self._expected) < waiting:
            self._wind()
        if together and len(lines) == len(ROUND) and not self._expected:
            self._learn(data)

    def _learn(self, data: bytes) -> None:
        """Keep the replies that let an overlapping envelope begin, so as to know them when they come again."""
        mail, rcpt, begin = [self._answers[phase] for phase in ENVELOPE]
        if mail.granted and rcpt.granted and begin.code == 354:
            self._granting = data.partition(b"\n")[2]

    def _heard_usual(self, data: bytes) -> bool:
        """Take a 2xx to the dot with the same three replies behind it as last time, which began the next message.

        Read line by line they cost more than sending the message they are about.
        """
        line, _end, rest = data.partition(b"\n")
        if rest != self._granting or self._partial or self._lines or tuple(self._expected) != ROUND:
            return False
        answer, last = reply_line(line)
        if not last or not answer.granted:
            return False
        self._expected.clear()
        self._deadline = inf
        self._answers["final_dot"], self._granted_whole = answer, True
        if self._awaited == "final_dot":
            self._tell(answer)
        return True

    def _tell(self, answer: Answer) -> None:
        """Give the usual answer to whoever listens, else wake him."""
        heard, waiter = self._heard, self._waiter
        if heard and waiter and not waiter.done():
            self._heard = None
            if heard(answer.reply("final_dot"), waiter):
                self._waiter, self._awaited, self._dot = None, "", ""
                self._stage, self._granted_whole = "content", False
                return
        self._wake()

    def _opened(self, data: bytes) -> bytes:
        """Return the plain bytes in what was read; the handshake's end counts as the answer to the phase tls."""
        assert self._tls is not None
        assert self._transport is not None
        shaking = not self._tls.ready
        try:
            plain = self._tls.opened(data)
        except ssl.SSLError as error:
            self._transport.write(self._tls.sealed(b""))  # the alert that says so
            self._fail(str(error))
            return b""
        if shaking:
            self._transport.write(self._tls.sealed(b""))
            if self._tls.ready:
                self._settle(Answer(220, b""))
        return plain

    def _read_further(self, answer: Answer, *, last: bool) -> None:
        """Read a line of a reply of several; they all bear one code."""
        if self._lines and answer.code != self._code:
            self._fail(f"garbage: {self._code} and {answer.code} in one reply")
            return
        self._code = answer.code
        self._lines.append(answer.text)
        self._held += len(answer.text) + 4
        if self._held > REPLY_BYTES:
            self._fail("garbage: a reply without an end")
        elif last:
            whole = b"\n".join(self._lines)
            self._lines, self._held = [], 0
            self._settle(Answer(answer.code, whole))

    def _settle(self, answer: Answer) -> None:
        """Give an answer to the oldest phase that waits for one: where there is none, we are out of step."""
        if not self._expected:
            self._fail(f"out of step: {answer.code} {printable(answer.text)}")
            return
        phase = self._expected.popleft()
        self._answers[phase] = answer
        if answer.code == 421:
            self._fail(f"the relay is closing: {answer.code} {printable(answer.text)}")
        if phase == self._awaited:
            self._wake()
