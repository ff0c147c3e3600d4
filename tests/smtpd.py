"""A scriptable SMTP server on loopback: it answers as told, phase by phase, and keeps its own ledger of what it took.

The ledger is the oracle of every test about sending: a message is in it when the server read its final dot and was
about to answer 250, whether or not the client lived to read that. It takes some thousands of messages a second.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TextIO

DROP = "DROP"  # close the connection instead of answering
OK = "250 2.0.0 Ok"
TOO_EARLY = "503 5.5.1 MAIL first"
FOR_NO_ONE = "554 5.5.1 No valid recipients"
ADDRESS = re.compile(rb"<([^>]*)>")
MESSAGE_ID = re.compile(rb"^Message-ID:\s*(\S+)", re.IGNORECASE | re.MULTILINE)
# What a script may answer: a reply line, DROP, raw bytes, seconds to wait before the usual answer, None for the usual
# answer; or several of these in turn, where seconds only wait.
Step = str | bytes | float | None
Answer = Step | Sequence[Step]
Then = Callable[[str | bytes], None]
Script = Callable[["Session"], Answer]


@dataclass
class Mail:
    sender: str
    recipient: str
    content: bytes


class Heard(NamedTuple):
    """A command line as the server read it, on which connection, and whether under TLS."""

    line: str
    session: int
    encrypted: bool


@dataclass
class Session:
    """One connection; `number` counts them from 1, `messages` those taken on it."""

    number: int
    sender: str = ""
    recipient: str = ""
    messages: int = 0
    encrypted: bool = False


@dataclass
class SmtpServer:
    """Use as a context manager; `script` maps a phase to an answer.

    The phases are greeting, ehlo, starttls, auth, mail, rcpt, data, body, final_dot, rset and quit. In the phase body,
    after 354, seconds are spent without reading, DROP hangs up, and a line is said in the midst of the content.
    """

    script: dict[str, Script] = field(default_factory=dict)
    keep_content: bool = True
    log: Path | None = None  # a line per message taken: its recipient,
    log_message_ids: bool = False  # and behind it, after a space, its Message-ID
    take_before_drop: bool = True  # a message whose final dot is answered by DROP or raw bytes is taken
    extensions: tuple[str, ...] = ("8BITMIME",)
    tls: ssl.SSLContext | None = None  # for STARTTLS, which is offered where `extensions` say so
    implicit_tls: bool = False
    users: dict[str, str] = field(default_factory=dict)  # passwords by name, for AUTH
    mails: list[Mail] = field(default_factory=list)
    recipients: Counter[str] = field(default_factory=Counter)
    heard: list[Heard] = field(default_factory=list)  # only where keep_content
    out_of_turn: list[str] = field(default_factory=list)  # commands sent ahead where PIPELINING is not offered
    connections: int = 0
    port: int = 0

    def __enter__(self) -> SmtpServer:
        self.loop = asyncio.new_event_loop()
        self.ledger: TextIO | None = self.log.open("a", buffering=1) if self.log else None
        self.open: set[Conversation] = set()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=[ready], daemon=True)
        self.thread.start()
        assert ready.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        if self.ledger:
            self.ledger.close()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        context = self.tls if self.implicit_tls else None
        serving = self.loop.create_server(lambda: Conversation(self), "127.0.0.1", 0, ssl=context, backlog=1024)
        server = self.loop.run_until_complete(serving)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()
        server.close()
        for conversation in list(self.open):
            conversation.hang_up()
        self.loop.run_until_complete(self._settle())
        self.loop.close()

    async def _settle(self) -> None:
        """Let the connections that were hung up close, and what still waits end."""
        await asyncio.sleep(0.01)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    def interject(self, words: str | bytes) -> None:
        """Say something, or hang up, on every open connection, and return when that has happened."""
        said = threading.Event()

        def speak() -> None:
            for conversation in list(self.open):
                conversation.say(words)
                conversation.flush()
            self.loop.call_later(0.02, said.set)

        self.loop.call_soon_threadsafe(speak)
        assert said.wait(5)

    def take(self, session: Session, content: bytes) -> None:
        """Write a message down, on disk first: the client may be told only of what is in the ledger."""
        if self.ledger:
            found = MESSAGE_ID.search(content) if self.log_message_ids else None
            self.ledger.write(session.recipient + (f" {found[1].decode()}" if found else "") + "\n")
        session.messages += 1
        self.recipients[session.recipient] += 1
        if self.keep_content:
            self.mails.append(Mail(session.sender, session.recipient, content))


class Conversation(asyncio.Protocol):
    """The server's side of a connection: commands and content are read in order, nothing while an answer waits."""

    def __init__(self, server: SmtpServer) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()
        self.unsaid = bytearray()  # replies go together where commands came together (RFC 2920, 3.2)
        self.scanned = 0
        self.in_content = False
        self.has_sender = self.has_recipient = False  # accepted in this transaction
        self.busy = False
        self.closed = False
        self.credentials: list[str] | None = None  # of AUTH LOGIN, as they come in

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        first, self.transport = self.transport is None, transport
        if not first:  # again, after STARTTLS
            return
        self.server.connections += 1
        self.server.open.add(self)
        self.session = Session(self.server.connections, encrypted=self.server.implicit_tls)
        self.answer("greeting", "220 test.example.org ESMTP")
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.server.open.discard(self)

    def eof_received(self) -> None:
        self.closed = True

    def hang_up(self) -> None:
        self.flush()
        self.closed = True
        assert self.transport is not None
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.go_on()

    def go_on(self) -> None:
        """Read on until an answer has to wait, or nothing whole is left."""
        while not (self.busy or self.closed):
            if not (self.read_content() if self.in_content else self.read_command()):
                break
        self.flush()

    # Answers

    def answer(self, phase: str, usual: str, then: Then | None = None) -> None:
        """Answer as the script tells; `then` gets each reply before it is written."""
        told = self.server.script[phase](self.session) if phase in self.server.script else None
        if told is None:
            self.say(usual, then)
        elif isinstance(told, str | bytes):
            self.say(told, then)
        else:
            steps: list[Step] = [told, None] if isinstance(told, float | int) else list(told)
            self.busy = True
            self.perform(steps, usual, then)

    def perform(self, steps: list[Step], usual: str, then: Then | None) -> None:
        """Take the steps one by one, though the client be gone: a message may be taken that no one hears of."""
        while steps:
            step = steps.pop(0)
            if isinstance(step, float | int):
                self.flush()
                self.server.loop.call_later(step, self.perform, steps, usual, then)
                return
            self.say(usual if step is None else step, then)
        self.busy = False
        self.go_on()

    def say(self, words: str | bytes, then: Then | None = None) -> None:
        if then:
            then(words)
        if words == DROP:
            self.hang_up()
        else:
            self.unsaid += words if isinstance(words, bytes) else words.encode() + b"\r\n"

    def flush(self) -> None:
        if self.unsaid and not self.closed:
            assert self.transport is not None
            self.transport.write(bytes(self.unsaid))
        self.unsaid.clear()

    # Commands

    def read_command(self) -> bool:
        """Read a line and answer it; return whether there was one."""
        end = self.buffer.find(b"\n")
        if end < 0:
            return False
        line = bytes(self.buffer[:end]).rstrip(b"\r")
        del self.buffer[: end + 1]
        if self.server.keep_content:
            self.server.heard.append(
                Heard(line.decode("utf-8", "replace"), self.session.number, self.session.encrypted)
            )
        if self.buffer and "PIPELINING" not in self.server.extensions:
            self.server.out_of_turn.append(bytes(self.buffer).decode("utf-8", "replace"))
        if self.credentials is not None:
            self.read_credential(line)
        else:
            self.command(line[:4].upper().decode("ascii", "replace").strip(), line)
        return True

    def command(self, verb: str, line: bytes) -> None:
        if verb == "MAIL":
            self.session.sender = named(line)
            self.answer("mail", OK, self.note_sender)
        elif verb == "RCPT":
            self.session.recipient = named(line)
            self.answer("rcpt", OK if self.has_sender else TOO_EARLY, self.note_recipient)
        elif verb == "DATA":
            self.answer("data", "354 Go ahead" if self.has_recipient else FOR_NO_ONE, self.begin_content)
        elif verb == "EHLO":
            self.answer("ehlo", self.introduction())
        elif verb == "STAR":
            self.answer("starttls", "220 2.0.0 Go ahead", self.begin_tls)
        elif verb == "AUTH":
            self.begin_auth(line)
        elif verb == "QUIT":
            self.answer("quit", "221 2.0.0 Bye")
            self.hang_up()
        else:
            self.has_sender = self.has_recipient = False
            self.answer(verb.lower(), OK)

    def note_sender(self, reply: str | bytes) -> None:
        self.has_sender, self.has_recipient = reply[:1] in ("2", b"2"), False

    def note_recipient(self, reply: str | bytes) -> None:
        self.has_recipient = reply[:1] in ("2", b"2")

    def introduction(self) -> str:
        offers = [word for word in self.server.extensions if word != "STARTTLS" or not self.session.encrypted]
        *lines, last = ["test.example.org", *offers]
        return "".join(f"250-{line}\r\n" for line in lines) + f"250 {last}"

    # Content

    def begin_content(self, reply: str | bytes) -> None:
        if reply[:3] not in ("354", b"354"):
            return
        self.in_content, self.scanned = True, 0
        told = self.server.script["body"](self.session) if "body" in self.server.script else None
        if isinstance(told, float | int):
            assert self.transport is not None
            self.transport.pause_reading()
            self.server.loop.call_later(told, self.transport.resume_reading)
        elif told is not None:
            steps: list[Step] = [told] if isinstance(told, str | bytes) else list(told)
            self.server.loop.call_soon(self.perform, steps, OK, None)

    def read_content(self) -> bool:
        """Look for the end of the content; what is behind it are commands. Return whether it was there."""
        if self.buffer.startswith(b".\r\n"):
            end = 0
        else:
            found = self.buffer.find(b"\r\n.\r\n", max(0, self.scanned - 4))
            if found < 0:
                self.scanned = len(self.buffer)
                return False
            end = found + 2
        content = bytes(self.buffer[:end]) if self.server.keep_content or self.server.log_message_ids else b""
        del self.buffer[: end + 3]
        self.in_content = False
        self.answer("final_dot", OK if self.has_recipient else FOR_NO_ONE, lambda reply: self.decide(reply, content))
        return True

    def decide(self, reply: str | bytes, content: bytes) -> None:
        """Take the message, once, if this first reply to its dot says so."""
        lost = reply == DROP or isinstance(reply, bytes)
        if self.has_recipient and (self.server.take_before_drop if lost else reply[:1] == "2"):
            self.server.take(self.session, content)
        self.has_sender = self.has_recipient = False

    # TLS and AUTH

    def begin_tls(self, reply: str | bytes) -> None:
        if reply[:3] == "220":
            assert self.transport is not None
            self.transport.pause_reading()
            self.busy = True
            self.server.loop.create_task(self.shake_hands())

    async def shake_hands(self) -> None:
        assert self.transport is not None
        assert self.server.tls is not None
        try:
            transport = await self.server.loop.start_tls(self.transport, self, self.server.tls, server_side=True)
        except OSError:
            return  # the client did not like the certificate, as some tests make it do
        if transport is None:  # a script hung up meanwhile
            return
        self.transport = transport
        self.session.encrypted = True
        self.busy = False
        self.go_on()

    def begin_auth(self, line: bytes) -> None:
        mechanism, *initial = line.decode().split()[1:]
        if mechanism.upper() == "PLAIN" and initial:
            _, user, password = base64.b64decode(initial[0]).decode().split("\0")
            self.check(user, password)
        elif mechanism.upper() == "LOGIN":
            self.credentials = []
            self.say("334 VXNlcm5hbWU6")
        else:
            self.say("504 5.5.4 Unknown mechanism")

    def read_credential(self, line: bytes) -> None:
        assert self.credentials is not None
        self.credentials.append(base64.b64decode(line).decode())
        if len(self.credentials) == 1:
            self.say("334 UGFzc3dvcmQ6")
            return
        user, password = self.credentials
        self.credentials = None
        self.check(user, password)

    def check(self, user: str, password: str) -> None:
        known = self.server.users.get(user) == password
        self.answer("auth", "235 2.7.0 Welcome" if known else "535 5.7.8 Wrong name or password")


def named(line: bytes) -> str:
    """Return the address in MAIL or RCPT."""
    found = ADDRESS.search(line)
    return found[1].decode() if found else ""


class Certificates(NamedTuple):
    """A throw-away authority and the keys it signed, as a client's and servers' contexts."""

    client: ssl.SSLContext
    server: ssl.SSLContext  # for 127.0.0.1
    elsewhere: ssl.SSLContext  # for another name


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and two certificates in `folder`, by the openssl of this machine."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    usage = ["-addext", "keyUsage=critical,keyCertSign", "-days", "2", "-subj", "/CN=Tests only"]
    openssl(folder, "req", "-x509", *key, *usage, "-keyout", "ca.key", "-out", "ca.pem")
    contexts = []
    for name, alternative in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.example.org")):
        (folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        openssl(folder, "req", "-new", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        contexts.append(context)
    return Certificates(ssl.create_default_context(cafile=str(folder / "ca.pem")), *contexts)


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
