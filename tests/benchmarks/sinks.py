"""Where the benchmarks send to, and what they are compared with: Postfix's sink and source, Django's SMTP backend."""

from __future__ import annotations

import contextlib
import email
import email.policy
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import IO

from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.management.base import CommandError

from subscribers.models import Subscriber
from tests.benchmarks import debian
from tests.smtpd import SmtpServer

SESSIONS = 16  # of smtp-source
BATCH = 100  # messages that Django's backend is given at once
START_SECONDS = 10.0
NOBODY = "nobody"
KEPT = ("Message-ID", "Date", "Reply-To", "List-", "Archived-At", "Feedback-ID", "Precedence", "X-")


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT; raises ValueError."""
        host, _colon, port = text.rpartition(":")
        return cls(host or "127.0.0.1", int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Postfix:
    """Two programs of Debian's package postfix; `libraries` is empty where the package is installed."""

    programs: Path
    libraries: str = ""

    @classmethod
    def find(cls) -> Postfix:
        """Return the installed programs, or fetch the package without installing it. Raises CommandError."""
        for folder in (*os.get_exec_path(), "/usr/sbin"):
            if (Path(folder) / "smtp-source").exists() and (Path(folder) / "smtp-sink").exists():
                return cls(Path(folder))
        unpacked = debian.fetch("postfix")
        return cls(unpacked / "usr/sbin", str(unpacked / "usr/lib/postfix"))

    def start(self, name: str, *words: str, output: IO[bytes], as_user: str = "") -> subprocess.Popen[bytes]:
        """Start a program that ends with this process, however it ends."""
        command = [str(self.programs / name), *words]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, *_identity(as_user), "--pdeathsig=KILL", *command]
        env = {**os.environ, **({"LD_LIBRARY_PATH": self.libraries} if self.libraries else {})}
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd="/", start_new_session=True
        )

    @contextlib.contextmanager
    def sink(self, sessions: int) -> Iterator[Address]:
        """Run smtp-sink, which takes all and keeps nothing, on a free port; it refuses to run as root."""
        address = Address("127.0.0.1", free_port())
        with tempfile.TemporaryFile() as output:
            user = NOBODY if os.geteuid() == 0 else ""
            child = self.start("smtp-sink", "-m", str(max(256, sessions + 16)), str(address), "1024", output=output,
                               as_user=user)  # fmt: skip
            try:
                _await_greeting(address, child, output)
                yield address
            finally:
                child.kill()
                child.wait()

    def source(self, address: Address, content: bytes, *, messages: int, seconds: float) -> float:
        """Let smtp-source send `content` over 16 kept connections; return messages a second. Raises CommandError."""
        with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile() as output:
            file.write(content.replace(b"\r\n", b"\n"))  # what arrives has one empty line more at its end
            file.flush()
            words = ["-s", str(SESSIONS), "-d", "-m", str(messages), "-F", file.name, "-f", "author@example.org",
                     "-t", "reader@example.org", str(address)]  # fmt: skip
            began = time.monotonic()
            child = self.start("smtp-source", *words, output=output)
            try:
                if child.wait(seconds):
                    raise CommandError(f"smtp-source failed: {tail(output)}")
                return messages / (time.monotonic() - began)
            except subprocess.TimeoutExpired as error:
                raise CommandError(f"smtp-source did not end within {seconds:.0f} s.") from error
            finally:
                child.kill()
                child.wait()


@dataclass(frozen=True)
class Parts:
    """A message decoded, as a program that uses Django's e-mail classes would hold it."""

    subject: str
    text: str
    html: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """One reader's message as our pipeline made it: what the others are given to send."""

    content: bytes
    reader: Subscriber

    @classmethod
    def of(cls, server: SmtpServer) -> Sample:
        mail = server.mails[0]
        return cls(mail.content, Subscriber.objects.get(address=mail.recipient))

    @property
    def parts(self) -> Parts:
        found = email.message_from_bytes(self.content, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        text, html = (part.get_content().replace("\r\n", "\n") for part in found.iter_parts())
        headers = {name: str(value) for name, value in found.items() if name.startswith(KEPT)}
        return Parts(str(found["Subject"]), text, html, headers)


def logging_server(*, keep_content: bool = False) -> SmtpServer:
    """Return the tests' own server, which counts what it took by recipient; it says that it takes commands in a row."""
    return SmtpServer(extensions=("PIPELINING", "8BITMIME"), keep_content=keep_content)


def django_backend(address: Address, sample: Sample, *, messages: int) -> float:
    """Send by Django's own means, in this process over one kept connection; return messages a second."""
    readers = list(Subscriber.objects.order_by("pk")[:messages])
    backend = get_connection(
        "django.core.mail.backends.smtp.EmailBackend", host=address.host, port=address.port, username="", password="",
        use_tls=False, use_ssl=False,
    )  # fmt: skip
    backend.open()
    try:
        began = time.monotonic()
        sent = sum(backend.send_messages(batch) or 0 for batch in _batches(sample, readers))
        seconds = time.monotonic() - began
    finally:
        backend.close()
    if sent != len(readers):
        raise CommandError(f"Django's backend sent {sent} of {len(readers)} messages.")
    return sent / seconds


def _batches(sample: Sample, readers: list[Subscriber]) -> Iterator[list[EmailMultiAlternatives]]:
    parts = sample.parts
    for first in range(0, len(readers), BATCH):
        yield [_personal(parts, sample.reader, reader) for reader in readers[first : first + BATCH]]


def _personal(parts: Parts, known: Subscriber, reader: Subscriber) -> EmailMultiAlternatives:
    """Build a reader's message from the sample, in which his name, address and unsubscribe id stand for `known`'s."""

    def personal(text: str) -> str:
        text = text.replace(known.name, reader.name).replace(known.address, reader.address)
        return text.replace(str(known.unsubscribe_id), str(reader.unsubscribe_id))

    headers = {name: personal(value) for name, value in parts.headers.items()}
    message = EmailMultiAlternatives(
        personal(parts.subject), personal(parts.text), "author@example.org", [reader.address], headers=headers
    )
    message.attach_alternative(personal(parts.html), "text/html")
    return message


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(output: IO[bytes]) -> str:
    """Return the last words of a program's output."""
    output.seek(0)
    return output.read().decode(errors="replace")[-1500:].strip()


def _identity(user: str) -> list[str]:
    return [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []


def _await_greeting(address: Address, child: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), 2) as client:
            if client.recv(3) == b"220":
                return
        if child.poll() is not None or time.monotonic() > until:
            raise CommandError(f"smtp-sink did not start: {tail(output)}")
        time.sleep(0.05)
