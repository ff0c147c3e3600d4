"""The nginx configuration that docs/serving.md shows, run as it is but for its paths and its port."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management.base import CommandError

from tests.benchmarks import debian
from tests.benchmarks.sinks import free_port
from tests.benchmarks.site import NGINX

pytestmark = pytest.mark.slow
HEAD = """
daemon off; worker_processes 1; pid {home}/pid; error_log stderr error; {user}
events {{}}
http {{
    access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
{site}
}}
"""


@dataclass
class Masthead:
    """A stand-in that notes what it is asked and says of pages what Masthead says."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked.append((self.command, self.path, self.headers.get("Accept-Encoding", "")))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                form = self.headers.get("Accept-Encoding", "")
                body = f"{self.path} as {form}".encode()
                self.send_response(200)
                if self.path.startswith("/posts/"):
                    self.send_header("Cache-Control", "public, max-age=0, s-maxage=5")
                    self.send_header("Vary", "Accept-Encoding")
                if form:
                    self.send_header("Content-Encoding", form)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_words: object) -> None:
                pass

        return Handler


def documented() -> str:
    text = (Path(settings.BASE_DIR) / "docs/serving.md").read_text()
    found = re.search(r"```nginx\n(.*?)```", text, re.S)
    assert found
    return found[1]


@dataclass
class Answer:
    status: int
    headers: Message
    body: bytes


@dataclass
class Proxy:
    port: int
    masthead: Masthead
    home: Path

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            client.request(method, path, body or None, {"Host": "news.example.org", **named})
            response = client.getresponse()
            return Answer(response.status, response.headers, response.read())


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    try:
        nginx = debian.program("nginx", *NGINX, folder="usr/sbin")
    except CommandError as missing:
        pytest.skip(str(missing))
    masthead, port = Masthead(), free_port()
    backend = ThreadingHTTPServer(("127.0.0.1", 0), masthead.handler())
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    site = documented().replace("127.0.0.1:8000", f"127.0.0.1:{backend.server_port}")
    site = site.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{port};")
    site = re.sub(r"\n *ssl_certificate.*", "", site)
    site = site.replace("/var/cache/nginx/masthead", f"{tmp_path}/cache").replace("/srv/masthead", str(tmp_path))
    site = site.replace("/var/log/nginx", str(tmp_path))
    for folder in ("staticfiles", "media"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.css").write_text("body {}")
    user = "user root;" if os.geteuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(HEAD.format(home=tmp_path, user=user, site=site))
    command = [str(nginx.path), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    tested = subprocess.run([*command, "-t"], env=nginx.environment, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    setpriv = [shutil.which("setpriv") or "setpriv", "--pdeathsig=TERM"] if shutil.which("setpriv") else []
    process = subprocess.Popen([*setpriv, *command], env=nginx.environment, start_new_session=True)
    try:
        await_port(port)
        yield Proxy(port, masthead, tmp_path)
    finally:
        process.terminate()
        process.wait(10)
        backend.shutdown()
        backend.server_close()


def await_port(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_page_is_asked_for_once_in_each_of_its_three_forms(proxy: Proxy) -> None:
    for accepted in ("br, gzip", "gzip, deflate, br", "gzip", "gzip;q=1.0", "", "zstd"):
        answer = proxy.ask("/posts/one/", Accept_Encoding=accepted)
        assert answer.status == 200
        assert answer.headers.get("Content-Encoding") == next(
            (form for form in ("br", "gzip") if form in accepted), None
        )
    assert [form for _method, _path, form in proxy.masthead.asked] == ["br", "gzip", ""]


def test_unsubscribing_is_passed_on_as_it_came_and_nothing_silent_is_kept(proxy: Proxy) -> None:
    for path in ("/u/some-id", "/u/some-id/", "/preferences/"):
        for _turn in range(2):
            answer = proxy.ask(path, "POST" if path.startswith("/u/") else "GET", body="List-Unsubscribe=One-Click")
            assert answer.status == 200
    assert [(method, path) for method, path, _form in proxy.masthead.asked] == [
        ("POST", "/u/some-id"), ("POST", "/u/some-id"), ("POST", "/u/some-id/"), ("POST", "/u/some-id/"),
        ("GET", "/preferences/"), ("GET", "/preferences/"),
    ]  # fmt: skip


def test_files_come_from_the_disk_with_a_long_life(proxy: Proxy) -> None:
    for path in ("/static/file.css", "/media/file.css"):
        answer = proxy.ask(path)
        lives = ", ".join(answer.headers.get_all("Cache-Control", []))
        assert (answer.status, answer.body) == (200, b"body {}")
        assert "max-age=31536000" in lives
        assert "public" in lives
        assert answer.headers.get("X-Content-Type-Options") == "nosniff"
    assert proxy.masthead.asked == []


def test_no_key_of_a_reader_stands_in_the_proxys_log(proxy: Proxy) -> None:
    key = "ca0f12ab-5f0e-4c1e-9d0e-0a1b2c3d4e5f"
    for path in (f"/u/{key}", f"/u/{key}/", f"/never/{key}/", f"/subscribe/confirm/{key}/?a=1"):
        proxy.ask(path, "POST")
    for door in ("open", "new-address", "old-address"):
        proxy.ask(f"/preferences/{door}/{key}/")
    proxy.ask("/preferences/data/")
    until = time.monotonic() + 10
    log = proxy.home / "masthead.log"
    while "/preferences/data/" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert key not in log.read_text()
    assert log.read_text().count("[key]") == 7
