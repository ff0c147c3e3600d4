"""A provider's HTTP API on loopback: it answers as told, request by request, and keeps its own ledger of what it took.

It understands as much of Postmark's and of Resend's words as anymail says. A recipient is in the ledger before the
answer is written, whether or not the client lives to read it.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parseaddr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

TOKEN = "a-token-for-tests"
AT_ONCE_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass(frozen=True)
class Answer:
    """What to answer; a request is taken where `taken` says so, else where the status is 200."""

    status: int = 200
    body: dict[str, Any] | bytes | None = None  # empty: the usual one
    headers: dict[str, str] = field(default_factory=dict)
    taken: bool | None = None
    seconds: float = 0.0  # before it is answered
    cut: bool = False  # the connection is reset instead


@dataclass(frozen=True)
class Request:
    number: int
    recipient: str
    path: str
    headers: dict[str, str]
    payload: dict[str, Any]

    @property
    def fields(self) -> dict[str, str]:
        """Return the header fields that the mail is to have, by their names in lower case."""
        if self.path == "/emails":
            return {name.lower(): value for name, value in self.payload["headers"].items()}
        return {item["Name"].lower(): item["Value"] for item in self.payload["Headers"]}


def refusal(code: int, words: str) -> Answer:
    """Return a refusal by Postmark's ErrorCode."""
    return Answer(422, {"ErrorCode": code, "Message": words})


@dataclass
class ProviderApi:
    """Use as a context manager; `script` tells what to answer to a request, None for the usual answer."""

    log: Path  # a line per message taken: its recipient
    script: Callable[[Request], Answer | None] = lambda request: None
    deaf: Callable[[int], bool] = lambda number: False  # the n-th request's connection is reset before it is read
    keep: bool = True
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)  # the last message's id by recipient
    recipients: Counter[str] = field(default_factory=Counter)
    count: int = 0
    connections: int = 0

    def __enter__(self) -> ProviderApi:
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.ledger: TextIO = self.log.open("a", buffering=1)
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.api = self
        if self.tls:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)
        self.ledger.close()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.server.server_address[1]}/"

    @property
    def postmark(self) -> dict[str, Any]:
        """Return what ANYMAIL has to say for Postmark's backend to come here."""
        return {"POSTMARK_SERVER_TOKEN": TOKEN, "POSTMARK_API_URL": self.url, "REQUESTS_TIMEOUT": 5.0}

    @property
    def resend(self) -> dict[str, Any]:
        return {"RESEND_API_KEY": TOKEN, "RESEND_API_URL": self.url, "REQUESTS_TIMEOUT": 5.0}

    def next_number(self) -> int:
        with self.lock:
            self.count += 1
            return self.count

    def take(self, request: Request) -> str:
        """Write the recipient down and return the message's id."""
        with self.lock:
            self.ledger.write(f"{request.recipient}\n")
            self.recipients[request.recipient] += 1
            self.ids[request.recipient] = f"0a1b2c3d-{request.number:012d}"
            return self.ids[request.recipient]


class Server(ThreadingHTTPServer):
    api: ProviderApi
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close at once, without the courtesy that would turn a reset into an orderly end."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(30)
        self.server.api.connections += 1

    def do_POST(self) -> None:
        api = self.server.api
        number = api.next_number()
        if api.deaf(number):
            self.reset()
            return
        request = self.read(number)
        told = api.script(request) or Answer()
        if not self.is_known():
            told = Answer(401, {"ErrorCode": 10, "Message": "No Account or Server API tokens were supplied"})
        taken = told.status == 200 if told.taken is None else told.taken
        message_id = api.take(request) if taken else ""
        api.ending.wait(told.seconds) if told.seconds else None
        if told.cut:
            self.reset()
        else:
            self.answer(told, usual(request, message_id))

    def read(self, number: int) -> Request:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        to = payload["to"][0] if self.path == "/emails" else payload["To"]
        request = Request(number, parseaddr(to)[1], self.path, dict(self.headers), payload)
        if self.server.api.keep:
            self.server.api.requests.append(request)
        return request

    def is_known(self) -> bool:
        return TOKEN in (self.headers["X-Postmark-Server-Token"], (self.headers["Authorization"] or "")[7:])

    def answer(self, told: Answer, usual: dict[str, Any]) -> None:
        body = told.body if isinstance(told.body, bytes) else json.dumps(told.body or usual).encode()
        self.send_response(told.status)
        for name, value in {"Content-Type": "application/json", **told.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE_RESET)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


def usual(request: Request, message_id: str) -> dict[str, Any]:
    """Return the provider's usual answer to what it took."""
    if request.path == "/emails":
        return {"id": message_id}
    return {"To": request.payload["To"], "MessageID": message_id, "ErrorCode": 0, "Message": "OK"}
