"""Links are asked, and nothing that an author writes makes this machine ask what only it can reach."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from newsletter import linkcheck, preflight
from newsletter.linkcheck import Answer, Failed, Outcome, ask, ask_all, is_public
from tests.factories import make_issue, make_post, make_slot
from tests.smtpd import make_certificates

Handler = Callable[[socket.socket, str], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Server:
    """A web server on 127.0.0.1 that does with each connection what it is told, and keeps what was asked."""

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self.asked: list[str] = []
        self.most_at_once = self._open = 0
        self.tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _peer = self._listener.accept()
                threading.Thread(target=self._serve, args=[link], daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with self._lock:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        with plain, suppress(OSError), self._dressed(plain) as link:
            data = b""
            while b"\r\n\r\n" not in data and (chunk := link.recv(4096)):
                data += chunk
            line = data.decode("latin-1").split("\r\n")[0]
            self.asked.append(line)
            self.handle(link, line)
        with self._lock:
            self._open -= 1

    def _dressed(self, link: socket.socket) -> socket.socket:
        return self.tls.wrap_socket(link, server_side=True) if self.tls else link

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Handler | bytes], Server]]:
    servers: list[Server] = []

    def start(handle: Handler | bytes) -> Server:
        servers.append(Server((lambda link, line: link.sendall(handle)) if isinstance(handle, bytes) else handle))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def redirect(to: str, status: int = 301) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def anywhere(_address: Any, _port: int) -> bool:
    return True


def only(*ports: int) -> linkcheck.Allowed:
    return lambda address, port: port in ports


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[list[str]]]) -> Iterator[list[str]]:
    """Let the resolver answer from `table`: a name's n-th question gets its n-th list; keep what was asked."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in table:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        answers = table[host][min(asked.count(host), len(table[host])) - 1]
        return [found for address in answers for found in real(address, port, *args, **kwargs)]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield asked


def failure(url: str, **values: Any) -> Answer:
    with pytest.raises(Failed) as failed:
        ask(url, **values)
    return failed.value.answer


# Which addresses may be asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "fec0::1",
        "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:c0a8:101::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe", "168.63.129.16", "192.0.0.192", "192.88.99.1", "3fff::1", "5f00::1",
        "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_what_only_this_machine_or_network_can_reach_is_never_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address), 443)


@pytest.mark.parametrize(
    "address",
    [
        "9.9.9.9",
        "172.32.0.1",
        "192.169.0.1",
        "2606:4700::1111",
        "64:ff9b::909:909",
        "2002:909:909::1",
        "::ffff:9.9.9.9",
    ],
)
def test_what_anybody_can_reach_is_public_at_the_ports_of_the_web_alone(address: str) -> None:
    assert is_public(ipaddress.ip_address(address), 80)
    assert is_public(ipaddress.ip_address(address), 443)
    assert not is_public(ipaddress.ip_address(address), 25)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_no_spelling_of_this_machine_is_asked(serve: Any, host: str) -> None:
    server = serve(OK)
    for allowed in ({}, {"allowed": lambda address, port: is_public(address, 443)}):
        assert failure(f"http://{host}:{server.port}/", **allowed).outcome == Outcome.INSIDE
    assert server.asked == []


def test_the_test_servers_are_reached_where_the_predicate_lets_them(serve: Any) -> None:
    server = serve(OK)
    assert ask(f"{server.url}/a?b=c#d", allowed=only(server.port)) == Answer(Outcome.OK, "answers 200", status=200)
    assert server.asked == ["HEAD /a?b=c HTTP/1.1"]


def test_a_name_with_a_public_and_a_private_address_is_not_asked(serve: Any, monkeypatch: Any) -> None:
    server = serve(OK)
    judged: list[str] = []

    def allowed(address: Any, _port: int) -> bool:
        judged.append(str(address))
        return str(address) != "127.0.0.2"

    with names(monkeypatch, {"both.example": [["127.0.0.1", "127.0.0.2"]]}):
        assert failure(f"http://both.example:{server.port}/", allowed=allowed).outcome == Outcome.INSIDE
    assert judged == ["127.0.0.1", "127.0.0.2"]
    assert server.asked == []


def test_a_name_that_turns_private_after_it_was_judged_leads_nowhere_new(serve: Any, monkeypatch: Any) -> None:
    """DNS rebinding: the second answer is private, and nobody asks for it within one request."""
    server = serve(OK)
    allowed: linkcheck.Allowed = lambda address, port: str(address) == "127.0.0.1"  # noqa: E731
    with names(monkeypatch, {"turns.example": [["127.0.0.1"], ["127.0.0.2"]]}) as asked:
        assert ask(f"http://turns.example:{server.port}/", allowed=allowed).outcome == Outcome.OK
        assert asked == ["turns.example"]
        assert failure(f"http://turns.example:{server.port}/", allowed=allowed).outcome == Outcome.INSIDE
    assert len(server.asked) == 1


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_loopback_is_judged_anew_and_not_followed(serve: Any, status: int) -> None:
    inside = serve(OK)
    outside = serve(redirect(f"{inside.url}/secret", status))
    answer = failure(outside.url, allowed=only(outside.port))
    assert (answer.outcome, answer.detail) == (Outcome.INSIDE, f"leads to 127.0.0.1, port {inside.port}")
    assert inside.asked == []


@pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://127.0.0.1/_x", "ftp://127.0.0.1/", "//[bad/"])
def test_a_redirect_to_what_is_no_web_address_is_not_followed(serve: Any, to: str) -> None:
    server = serve(redirect(to))
    assert failure(server.url, allowed=anywhere).outcome in (Outcome.UNKNOWN, Outcome.DEAD)
    assert len(server.asked) == 1


def test_a_permanent_redirect_says_where_to_and_a_passing_one_is_good(serve: Any) -> None:
    goal = serve(OK)
    moved, passing = serve(redirect(f"{goal.url}/new")), serve(redirect("/login", 302))
    answer = ask(moved.url, allowed=anywhere)
    assert (answer.outcome, answer.final) == (Outcome.MOVED, f"{goal.url}/new")
    passing.handle = lambda link, line: link.sendall(OK if "/login" in line else redirect("/login", 302))
    assert ask(passing.url, allowed=anywhere).outcome == Outcome.OK


def test_redirects_in_a_ring_end(serve: Any) -> None:
    server = serve(b"")
    server.handle = lambda link, line: link.sendall(redirect("/again"))
    assert failure(server.url, allowed=anywhere).detail == "more than 3 redirects"
    assert len(server.asked) == 4


# Answers


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, Outcome.OK), (204, Outcome.OK), (404, Outcome.DEAD), (410, Outcome.DEAD), (403, Outcome.UNKNOWN),
     (429, Outcome.UNKNOWN), (503, Outcome.UNKNOWN), (999, Outcome.UNKNOWN)],
)  # fmt: skip
def test_only_what_is_gone_is_called_dead(serve: Any, status: int, outcome: Outcome) -> None:
    server = serve(f"HTTP/1.1 {status} Words\r\n\r\n".encode())
    assert ask(server.url, allowed=anywhere).outcome == outcome


def test_where_head_is_refused_get_is_tried(serve: Any) -> None:
    server = serve(b"")
    server.handle = lambda link, line: link.sendall(OK if line.startswith("GET") else b"HTTP/1.1 405 No\r\n\r\n")
    assert ask(server.url, allowed=anywhere).outcome == Outcome.OK
    assert [line.split()[0] for line in server.asked] == ["HEAD", "GET"]


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nX: y", b"\0" * 100])
def test_what_is_no_answer_is_unknown(serve: Any, answer: bytes) -> None:
    assert failure(serve(answer).url, allowed=anywhere).outcome == Outcome.UNKNOWN


def test_a_huge_body_is_not_read(serve: Any) -> None:
    sent: list[int] = []

    def pour(link: socket.socket, line: str) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
        with suppress(OSError):
            for _megabyte in range(200):
                link.sendall(b"x" * 1_000_000)
                sent.append(1)

    assert ask(serve(pour).url, allowed=anywhere).outcome == Outcome.OK
    time.sleep(0.2)
    assert len(sent) < 20


def test_a_header_without_end_is_given_up(serve: Any) -> None:
    def pour(link: socket.socket, line: str) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\n")
        with suppress(OSError):
            while True:
                link.sendall(b"X-Header: " + b"y" * 4000 + b"\r\n")

    assert failure(serve(pour).url, allowed=anywhere).outcome == Outcome.UNKNOWN


def drip(link: socket.socket, line: str) -> None:
    for octet in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200:
        link.sendall(bytes([octet]))
        time.sleep(0.05)


def test_an_answer_that_drips_ends_with_its_time(serve: Any) -> None:
    began = time.monotonic()
    answer = failure(serve(drip).url, allowed=anywhere, until=began + 0.5)
    assert (answer.outcome, answer.detail) == (Outcome.UNKNOWN, "no answer in time")
    assert time.monotonic() - began < 3


def test_a_whole_run_ends_with_its_time_and_what_was_left_is_unknown(serve: Any) -> None:
    slow = serve(lambda link, line: time.sleep(5))
    began = time.monotonic()
    found = ask_all([f"{slow.url}/{n}" for n in range(30)], allowed=anywhere, seconds=0.6, threads=3)
    assert time.monotonic() - began < 3
    assert {answer.outcome for answer in found.values()} == {Outcome.UNKNOWN}
    assert len(found) == 30
    assert slow.most_at_once <= 3


def test_each_link_is_asked_once_whatever_its_fragment(serve: Any) -> None:
    server = serve(OK)
    urls = [f"{server.url}/a", f"{server.url}/a#one", f"{server.url}/a#two", f"{server.url}/b"]
    found = ask_all([*urls, *urls], allowed=anywhere)
    assert [found[url].outcome for url in urls] == [Outcome.OK] * 4
    assert sorted(server.asked) == ["HEAD /a HTTP/1.1", "HEAD /b HTTP/1.1"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_dead_host_proves_nothing_where_no_link_answers_at_all(serve: Any) -> None:
    dead, alive = f"http://127.0.0.1:{closed_port()}/", serve(OK).url
    assert ask_all([dead], allowed=anywhere)[dead].outcome == Outcome.UNKNOWN
    assert ask_all([dead, alive], allowed=anywhere)[dead].outcome == Outcome.DEAD


@pytest.mark.parametrize(
    "url", ["http://[bad/", "http://example.com:99999/", "http://a..b/", "ftp://9.9.9.9/", "http:///a"]
)
def test_an_address_that_can_not_be_read_is_no_accident(url: str) -> None:
    assert ask_all([url], allowed=anywhere)[url].outcome in (Outcome.DEAD, Outcome.UNKNOWN)


def test_what_an_address_carries_stays_one_line_and_tells_no_password(serve: Any) -> None:
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def once() -> None:
            link, _peer = listener.accept()
            with link:
                heads.append(link.recv(65536))
                link.sendall(OK)

        waiting = threading.Thread(target=once)
        waiting.start()
        ask(f"http://me:secret@127.0.0.1:{port}/a b\r\nX-Evil: 1/ü?q=\x01\u2028", allowed=anywhere)
        waiting.join(5)
    lines = heads[0].decode("ascii").split("\r\n")
    assert lines[0] == "HEAD /a%20bX-Evil:%201/%C3%BC?q=%01%E2%80%A8 HTTP/1.1"
    assert not [line for line in lines if line.startswith("X-Evil") or "secret" in line or "bWU6" in line]


@pytest.mark.parametrize(
    ("name", "trusted", "outcome"),
    [("server", True, Outcome.OK), ("elsewhere", True, Outcome.DEAD), ("server", False, Outcome.DEAD)],
)
def test_a_certificate_that_browsers_would_refuse_makes_a_dead_link(
    serve: Any, tmp_path: Path, monkeypatch: Any, name: str, trusted: bool, outcome: Outcome
) -> None:
    certificates = make_certificates(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = serve(OK)
    server.tls = getattr(certificates, name)
    url = server.url.replace("http:", "https:")
    answer = ask(url, allowed=anywhere) if outcome == Outcome.OK else failure(url, allowed=anywhere)
    assert answer.outcome == outcome
    assert ("certificate" in answer.detail) == (outcome == Outcome.DEAD)


# In an issue


@pytest.mark.usefixtures("publication")
def test_an_issue_with_links_asks_nothing_private_and_says_so(serve: Any) -> None:
    server = serve(OK)
    issue = make_issue(make_post(body=f"[a page]({server.url}/) and [a file](ftp://example.com/)"))
    found = {each.check_id: each for each in preflight.inspect(issue, links=True)}
    assert "leads to 127.0.0.1" in found["link-inside"].message
    assert server.asked == []
    assert "link-inside" not in {each.check_id for each in preflight.inspect(issue)}
    assert any("127.0.0.1" in words for words in preflight.dead_links(issue))


@pytest.mark.usefixtures("publication")
def test_scheduling_says_which_links_lead_nowhere_and_schedules_all_the_same(
    admin_client: Client, monkeypatch: Any
) -> None:
    slot = make_slot()
    issue = make_issue(make_post(body="[the notes](https://notes.example/)"))
    with names(monkeypatch, {"notes.example": [["10.0.0.7"]]}):
        page = admin_client.post(
            f"/admin/newsletter/issue/{issue.pk}/act/", {"act": "schedule", "slot": slot.pk}, follow=True
        ).text
    assert "the issue is now “Scheduled”" in page
    assert "leads where readers can" in page
    assert "leads to 10.0.0.7, port 443" in page
