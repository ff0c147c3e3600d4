"""A scriptable SMTP server on loopback: it answers as told, phase by phase, and keeps its own ledger of what it took.

The ledger is the oracle of every test about sending: a message is in it when the server read its final dot and was
about to answer 250, whether or not the client lived to read that.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

DROP = "DROP"  # close the connection instead of answering
OK = "250 2.0.0 Ok"
# What a script may answer: a reply line, DROP, seconds to wait before the usual answer, or None for the usual answer.
Answer = str | float | None
Script = Callable[["Session"], Answer]


@dataclass
class Mail:
    sender: str
    recipient: str
    content: bytes


@dataclass
class Session:
    """One connection; `number` counts them from 1, `messages` those taken on it."""

    number: int
    sender: str = ""
    recipient: str = ""
    messages: int = 0


@dataclass
class SmtpServer:
    """Use as a context manager; `script` maps a phase (greeting, ehlo, mail, rcpt, data, final_dot) to an answer."""

    script: dict[str, Script] = field(default_factory=dict)
    keep_content: bool = True
    log: Path | None = None
    take_before_drop: bool = True
    mails: list[Mail] = field(default_factory=list)
    recipients: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    port: int = 0

    def __enter__(self) -> SmtpServer:
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=[ready], daemon=True)
        self.thread.start()
        assert ready.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(Session(self.connections), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as many tests make it do
        finally:
            writer.close()

    async def _talk(self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._answer("greeting", session, writer, "220 test.example.org ESMTP"):
            return
        while line := await reader.readline():
            verb = line[:4].upper().decode("ascii", "replace").strip()
            if verb == "QUIT":
                writer.write(b"221 2.0.0 Bye\r\n")
                await writer.drain()
                return
            if not await self._command(verb, line, session, reader, writer):
                return

    async def _command(self, verb: str, line: bytes, session: Session, reader: Any, writer: Any) -> bool:
        address = re.search(rb"<([^>]*)>", line)
        named = address.group(1).decode() if address else ""
        if verb == "DATA":
            return await self._data(session, reader, writer)
        if verb == "MAIL":
            session.sender = named
        elif verb == "RCPT":
            session.recipient = named
        usual = "250-test.example.org\r\n250 8BITMIME" if verb == "EHLO" else OK
        return await self._answer(verb.lower(), session, writer, usual)

    async def _data(self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        go_on, code = await self._told("data", session, writer, "354 Go ahead")
        if not go_on or code != "354":
            return go_on
        content = await reader.readuntil(b"\r\n.\r\n")
        answer = await self._resolve("final_dot", session, OK)
        if answer.startswith("250") or (answer == DROP and self.take_before_drop):
            self._take(session, content[:-3])
        return await self._write(answer, writer)

    def _take(self, session: Session, content: bytes) -> None:
        session.messages += 1
        self.recipients[session.recipient] += 1
        if self.keep_content:
            self.mails.append(Mail(session.sender, session.recipient, content))
        if self.log:
            with self.log.open("a") as log:
                log.write(session.recipient + "\n")

    async def _answer(self, phase: str, session: Session, writer: asyncio.StreamWriter, usual: str) -> bool:
        return (await self._told(phase, session, writer, usual))[0]

    async def _told(self, phase: str, session: Session, writer: asyncio.StreamWriter, usual: str) -> tuple[bool, str]:
        answer = await self._resolve(phase, session, usual)
        return await self._write(answer, writer), answer[:3]

    async def _resolve(self, phase: str, session: Session, usual: str) -> str:
        told = self.script[phase](session) if phase in self.script else None
        if isinstance(told, float | int):
            await asyncio.sleep(told)
            return usual
        return usual if told is None else told

    async def _write(self, answer: str, writer: asyncio.StreamWriter) -> bool:
        if answer == DROP:
            return False
        writer.write(answer.encode() + b"\r\n")
        await writer.drain()
        return True
