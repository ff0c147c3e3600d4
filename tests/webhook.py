"""A small HTTP server on loopback that takes what is posted to it as JSON: the author's end of ALERT_WEBHOOK_URL."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Webhook:
    """Keeps each message it was sent; answers 200, or what `status` says."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.status = 200
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"webhook": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/alerts"

    def __enter__(self) -> Webhook:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


class Answer(BaseHTTPRequestHandler):
    webhook: Webhook

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.webhook.messages.append(json.loads(content))
        self.send_response(self.webhook.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing for each request."""
