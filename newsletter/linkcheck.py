"""Ask whether links lead anywhere, without letting an author's text reach what only this machine can reach.

A host's name is resolved once, each of its addresses is judged, and the connection goes to the very address that was
judged, so a name that answers differently a moment later (DNS rebinding) gains nothing. Each redirect is judged anew.
No body is read, nothing that identifies us is sent, and the whole run ends when its time is over.
"""

from __future__ import annotations

import enum
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import quote, urljoin, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Allowed = Callable[[Address, int], bool]

THREADS = 6
ALL_SECONDS = 20.0
EACH_SECONDS = 5.0
MOST_REDIRECTS = 3
MOST_HEADER_BYTES = 64 * 1024
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits
# What the ipaddress module calls global, or did until lately, and yet leads to the machine's own cloud or nowhere.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "5f00::/16", "3fff::/20")
]
GONE = {404, 410}
MOVED_FOR_GOOD = {301, 308}
MOVED = MOVED_FOR_GOOD | {302, 303, 307}
HEADERS_END = b"\r\n\r\n"
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
LOCATION = re.compile(rb"\r\nlocation:[ \t]*([^\r\n]*)", re.IGNORECASE)


class Outcome(enum.Enum):
    OK = "ok"
    MOVED = "moved"  # for good, to `final`
    DEAD = "dead"
    INSIDE = "inside"  # leads to an address that readers can't reach; it was not asked
    UNKNOWN = "unknown"  # could not ask, or the answer says nothing about a reader's


@dataclass(frozen=True)
class Answer:
    """What was found of one link; `detail` says in a few words how."""

    outcome: Outcome
    detail: str = ""
    final: str = ""
    status: int = 0


class Failed(Exception):
    """A link could not be followed to its end; carries what is to be said of it."""

    def __init__(self, outcome: Outcome, detail: str, *, by_network: bool = False) -> None:
        super().__init__(detail)
        self.answer = Answer(outcome, detail)
        self.by_network = by_network  # a machine without a network would have found the same


def is_public(address: Address, port: int) -> bool:
    """Tell whether anybody on the Internet could ask this address: no port but the web's, nothing private or local."""
    if port not in PORTS.values():
        return False
    inner = _inner(address)
    if any(inner in network for network in NOT_PUBLIC):
        return False
    return inner.is_global and not (
        inner.is_multicast or inner.is_reserved or inner.is_unspecified or getattr(inner, "is_site_local", False)
    )


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one leads to by mapping, 6to4, Teredo or NAT64, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)


def ask_all(
    urls: Iterable[str], *, allowed: Allowed = is_public, seconds: float = ALL_SECONDS, threads: int = THREADS
) -> dict[str, Answer]:
    """Ask each of `urls` once, a few at a time; what has not answered within `seconds` is unknown.

    `allowed` judges every address before anything is sent to it.
    """
    bare = {url: _bare(url) for url in urls}
    run = _Run(set(bare.values()), allowed, time.monotonic() + seconds)
    workers = [threading.Thread(target=run.work, name="linkcheck", daemon=True) for _n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, run.until - time.monotonic()))
    found = run.answers()
    late = Answer(Outcome.UNKNOWN, "no answer in time")
    return {url: found.get(bare_url, late) for url, bare_url in bare.items()}


def _bare(url: str) -> str:
    """Return `url` without its fragment, which no server sees."""
    return url.partition("#")[0]


class _Run:
    """One run over a set of links; its threads may outlive it by a name's resolution, which nothing can stop."""

    def __init__(self, urls: set[str], allowed: Allowed, until: float) -> None:
        self.allowed, self.until = allowed, until
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._found: dict[str, Answer | Failed] = {}
        for url in sorted(urls):
            self._waiting.put(url)

    def work(self) -> None:
        while time.monotonic() < self.until:
            try:
                url = self._waiting.get_nowait()
            except queue.Empty:
                return
            self._found[url] = self._ask(url)

    def answers(self) -> dict[str, Answer]:
        """Return what was found; where nothing on the network answered at all, a dead name proves nothing."""
        found = dict(self._found)
        reached = any(isinstance(each, Answer) for each in found.values())
        return {url: _judge(each, reached) for url, each in found.items()}

    def _ask(self, url: str) -> Answer | Failed:
        try:
            return ask(url, allowed=self.allowed, until=min(self.until, time.monotonic() + EACH_SECONDS))
        except Failed as failed:
            return failed


def _judge(found: Answer | Failed, reached: bool) -> Answer:
    if isinstance(found, Answer):
        return found
    if found.by_network and not reached:
        return replace(found.answer, outcome=Outcome.UNKNOWN)
    return found.answer


def ask(url: str, *, allowed: Allowed = is_public, until: float | None = None, method: str = "") -> Answer:
    """Follow one link to its end: HEAD, and GET where that is refused; or `method`, which follows no redirect.

    Raises Failed where no answer came.
    """
    until = time.monotonic() + EACH_SECONDS if until is None else until
    if method:
        return _verdict(url, url, _exchange(url, method, allowed, until)[0])
    final, for_good = url, True
    for _hop in range(MOST_REDIRECTS + 1):
        status, location = _head_or_get(final, allowed, until)
        if status not in MOVED or not location:
            return _verdict(url, final if for_good else url, status)
        for_good = for_good and status in MOVED_FOR_GOOD
        final = _next(final, location)
    raise Failed(Outcome.UNKNOWN, f"more than {MOST_REDIRECTS} redirects")


def _next(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Failed(Outcome.UNKNOWN, "it redirects to what can't be read") from error


def _verdict(url: str, final: str, status: int) -> Answer:
    """Say what an answer means to a reader: many sites refuse what is no browser, so most refusals prove nothing."""
    detail = f"answers {status}"
    if status in GONE:
        return Answer(Outcome.DEAD, detail, status=status)
    if status >= 400 or status in MOVED:
        return Answer(Outcome.UNKNOWN, detail, status=status)
    if _bare(final) != _bare(url):
        return Answer(Outcome.MOVED, detail, final, status)
    return Answer(Outcome.OK, detail, status=status)


def _head_or_get(url: str, allowed: Allowed, until: float) -> tuple[int, str]:
    try:
        status, location = _exchange(url, "HEAD", allowed, until)
    except Failed as failed:
        if failed.answer.outcome != Outcome.UNKNOWN or time.monotonic() >= until:
            raise
        return _exchange(url, "GET", allowed, until)
    return (status, location) if status < 400 else _exchange(url, "GET", allowed, until)


def _exchange(url: str, method: str, allowed: Allowed, until: float) -> tuple[int, str]:
    """Send one request and return the answer's status and where it redirects to. Raises Failed."""
    try:
        parts = urlsplit(url)
        host, port = _host(parts.hostname or ""), parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise Failed(Outcome.DEAD, "the address can't be read") from error
    if parts.scheme not in PORTS or not host:
        raise Failed(Outcome.UNKNOWN, f"not a web address: {parts.scheme or url[:40]}")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    )
    try:
        with _connect(host, port, allowed, until) as plain, _secure(plain, host, parts.scheme, until) as link:
            link.sendall(_request(method, target, host if port == PORTS[parts.scheme] else f"{host}:{port}"))
            return _read_answer(link, until)
    except ssl.SSLCertVerificationError as error:
        raise Failed(Outcome.DEAD, f"its certificate is not trusted: {error.verify_message}") from error
    except TimeoutError as error:
        raise Failed(Outcome.UNKNOWN, "no answer in time") from error
    except ConnectionRefusedError as error:
        raise Failed(Outcome.DEAD, "nothing answers there", by_network=True) from error
    except OSError as error:
        raise Failed(Outcome.UNKNOWN, f"could not ask: {error.strerror or type(error).__name__}") from error


def _host(name: str) -> str:
    """Return a host in ASCII; an IPv6 address keeps its brackets. Raises ValueError."""
    if ":" in name:
        return f"[{name}]"
    return name if name.isascii() else name.encode("idna").decode()


def _connect(host: str, port: int, allowed: Allowed, until: float) -> socket.socket:
    """Connect to one of the addresses that were judged; one that may not be asked forbids them all. Raises Failed."""
    addresses = _resolve(host.strip("[]"), port)
    for address in addresses:
        if not allowed(ipaddress.ip_address(address), port):
            raise Failed(Outcome.INSIDE, f"leads to {address}, port {port}")
    problem: OSError = TimeoutError()
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left(until))
        except OSError as error:
            problem = error
    raise problem


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise Failed(Outcome.DEAD, "there is no such host", by_network=True) from error
        raise Failed(Outcome.UNKNOWN, "could not ask: the name can't be looked up now") from error
    except (UnicodeError, ValueError) as error:
        raise Failed(Outcome.DEAD, "the host's name can't be read") from error
    return list(dict.fromkeys(str(each[4][0]).partition("%")[0] for each in found))


def _secure(plain: socket.socket, host: str, scheme: str, until: float) -> socket.socket:
    if scheme != "https":
        return plain
    plain.settimeout(_left(until))
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host.strip("[]"))


def _request(method: str, target: str, host: str) -> bytes:
    body = b"List-Unsubscribe=One-Click" if method == "POST" else b""
    kind = "Content-Type: application/x-www-form-urlencoded\r\n" if body else ""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    fields = "Accept: */*\r\nUser-Agent: Mozilla/5.0 (compatible; link check of a newsletter)\r\nConnection: close\r\n"
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}{kind}{length}\r\n".encode("ascii") + body


def _read_answer(link: socket.socket, until: float) -> tuple[int, str]:
    """Read until the header ends: however slowly it comes and whatever follows, no longer than `until`."""
    data = b""
    while HEADERS_END not in data:
        link.settimeout(_left(until))
        chunk = link.recv(4096)
        data += chunk
        if not chunk or len(data) > MOST_HEADER_BYTES:
            break
    head = data.partition(HEADERS_END)[0]
    status = STATUS_LINE.match(head + b"\r")
    if not status or HEADERS_END not in data:
        raise Failed(Outcome.UNKNOWN, "its answer can't be read")
    location = LOCATION.search(head)
    return int(status[1]), location[1].decode("utf-8", "replace").strip() if location else ""


def _left(until: float) -> float:
    """Return the seconds that are left. Raises TimeoutError where none are."""
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left
