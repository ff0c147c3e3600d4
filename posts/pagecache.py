"""Public pages, each made once and kept as bytes in this process, in front of Django: a hit asks nobody anything.

What a kept page is made from is taken away from the request first: cookies, languages, unknown query parameters. So
nothing of one visitor can get into what all are served.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode

import brotli
from django.conf import settings
from django.http import HttpResponseBase
from django.http.request import split_domain_port, validate_host
from django.urls import Resolver404, resolve
from django.utils.http import parse_etags, parse_http_date_safe

from posts.siteversion import Clock, Version

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]
T = TypeVar("T")
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

# Browsers ask each time (a 304 costs nothing), so that nobody sees the page of before a correction. A shared cache in
# front may answer by itself for some seconds. What it may do while it asks or can't ask stands in a header of its own
# (RFC 9213): browsers would serve old pages by it, too, and beside s-maxage it does not count (RFC 9111, 5.2.2.10).
FRESH = [
    ("Cache-Control", "public, max-age=0, s-maxage=5"),
    ("CDN-Cache-Control", "public, max-age=5, stale-while-revalidate=30, stale-if-error=86400"),
]
STALE = [
    ("Cache-Control", "public, max-age=0, s-maxage=1"),
    ("CDN-Cache-Control", "public, max-age=1, stale-if-error=86400"),
]
FORMER_SECONDS = 60.0  # so long after a change the page of before may be served while the new one is made
RENDER_SECONDS = 10.0  # so long others wait for the thread that makes a page
OVERHEAD = 4096  # bytes of memory that a page costs besides its text
MIN_SIZE = 200  # below that compressing makes nothing smaller
BROTLI_QUALITY, GZIP_LEVEL = 5, 6
COMPRESSIBLE = ("text/", "application/json", "application/feed+json", "application/atom+xml", "application/rss+xml",
                "application/xml", "application/manifest+json", "image/svg+xml")  # fmt: skip
# A value that can name something in a query: anything else, such as 007, is Django's to answer.
PLAIN_VALUE = re.compile(r"[A-Za-z1-9][\w-]{0,99}", re.ASCII)
TEXT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,200}")
# Conditions and ranges that kept pages do not know.
ODD_HEADERS = ("HTTP_RANGE", "HTTP_IF_MATCH", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_AUTHORIZATION")
OWN_HEADERS = {"etag", "content-length", "vary"}


def kept(
    *parameters: str, text: Sequence[str] = ()
) -> Callable[[Callable[..., HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """Mark a view whose pages are the same for everybody and may be kept; it sees these query parameters only.

    A value has to be plain; of those in `text` any words are taken.
    """

    def mark(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        def marked(*args: Any, **kwargs: Any) -> HttpResponseBase:
            return view(*args, **kwargs)

        marked.kept_parameters = {  # type: ignore[attr-defined]  # read by `known_parameters`
            name: TEXT if name in text else PLAIN_VALUE for name in sorted({*parameters, *text})
        }
        return marked

    return mark


# What was asked already for the version under which the page being made is kept.
KNOWN: ContextVar[dict[Any, Any] | None] = ContextVar("KNOWN", default=None)


def once_a_version(ask: Callable[[], T]) -> Callable[[], T]:
    """Ask what many pages show, such as the years of the archive, once for each version of the site in a process.

    The answer, which nobody may change, is at least as new as the version that it is kept under, as a page is. Where no
    page is being made to be kept, `ask` is asked each time.
    """

    @wraps(ask)
    def answered() -> T:
        known = KNOWN.get()
        if known is None:
            return ask()
        if ask not in known:
            known[ask] = ask()
        found: T = known[ask]
        return found

    return answered


Parameters = dict[str, re.Pattern[str]]  # what the value of each has to match


@lru_cache(4096)
def known_parameters(path: str) -> Parameters | None:
    """Return the query parameters that the page at `path` knows, or None where it is not kept."""
    try:
        return getattr(resolve(path).func, "kept_parameters", None)
    except Resolver404:
        return None


class Key(NamedTuple):
    path: str
    query: str
    secure: bool


@dataclass(slots=True)
class Variant:
    """A page in one encoding, with all its headers, ready to be sent."""

    etag: str
    body: bytes
    fresh: Headers
    stale: Headers

    @classmethod
    def of(cls, headers: Headers, body: bytes, digest: str, encoding: str) -> Variant:
        etag = f'"{digest}-{encoding}"' if encoding else f'"{digest}"'
        coded = [("Content-Encoding", encoding)] if encoding else []
        head = [*headers, *coded, ("Content-Length", str(len(body))), ("ETag", etag), ("Vary", "Accept-Encoding")]
        if any(name.lower() == "cache-control" for name, _value in headers):  # the view knows better
            return cls(etag, body, head, head)
        return cls(etag, body, head + FRESH, head + STALE)


@dataclass(slots=True)
class Page:
    """A page that Django made, in each encoding, and the version before which it was not made."""

    version: Version
    variants: dict[str, Variant]
    last_modified: int | None
    size: int

    @classmethod
    def of(cls, answer: Answer, version: Version) -> Page:
        headers = [(name, value) for name, value in answer.headers if name.lower() not in OWN_HEADERS]
        found = {name.lower(): value for name, value in headers}
        forms = _forms(answer.body, found.get("content-type", ""))
        digest = hashlib.blake2b(answer.body, digest_size=12).hexdigest()
        variants = {encoding: Variant.of(headers, form, digest, encoding) for encoding, form in forms.items()}
        modified = parse_http_date_safe(found.get("last-modified", ""))
        return cls(version, variants, modified, OVERHEAD + sum(map(len, forms.values())))

    def send(self, environ: Environ, start_response: StartResponse, *, stale: bool = False) -> list[bytes]:
        """Answer the request: with the bytes, with their headers alone, or with “not modified”."""
        variants = self.variants
        variant = variants.get(preferred(environ.get("HTTP_ACCEPT_ENCODING", ""))) or variants[""]
        headers = variant.stale if stale else variant.fresh
        if self._is_known(environ, variant.etag):
            unsent = ("content-type", "content-length", "content-encoding", "content-language")
            start_response("304 Not Modified", [item for item in headers if item[0].lower() not in unsent])
            return []
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [variant.body]

    def _is_known(self, environ: Environ, etag: str) -> bool:
        """Tell whether the visitor has these bytes already (RFC 9110, 13.1.2 and 13.1.3)."""
        if known := environ.get("HTTP_IF_NONE_MATCH"):
            return known.strip() == "*" or etag in [one.removeprefix("W/") for one in parse_etags(known)]
        since = environ.get("HTTP_IF_MODIFIED_SINCE")
        if not since or self.last_modified is None:
            return False
        return (parse_http_date_safe(since) or 0) >= self.last_modified


@lru_cache(512)
def preferred(accepted: str) -> str:
    """Return the best encoding that an Accept-Encoding header takes: br, gzip, or none."""
    taken = set()
    for item in accepted.lower().split(","):
        name, _semicolon, weight = item.replace(" ", "").partition(";q=")
        if not weight or weight.strip("0."):
            taken.add(name)
    return next((encoding for encoding in ("br", "gzip") if encoding in taken), "")


def _forms(body: bytes, content_type: str) -> dict[str, bytes]:
    """Return the body as it is and, where that makes it smaller, compressed."""
    if len(body) < MIN_SIZE or not content_type.startswith(COMPRESSIBLE):
        return {"": body}
    packed = gzip.compress(body, GZIP_LEVEL, mtime=0)
    return {"": body, "br": brotli.compress(body, quality=BROTLI_QUALITY), "gzip": packed}


@dataclass(slots=True)
class Answer:
    """What Django answered to a request, read to its end."""

    status: str
    headers: Headers
    body: bytes
    streaming: bool

    @classmethod
    def of(cls, application: Application, environ: Environ) -> Answer:
        started: list[Any] = []

        def start_response(status: str, headers: Headers, _exc_info: Any = None) -> None:
            started[:] = [status, headers]

        response = application(environ, start_response)
        try:
            body = b"".join(response)
        finally:
            if close := getattr(response, "close", None):
                close()
        return cls(started[0], started[1], body, getattr(response, "streaming", False))

    @property
    def is_page(self) -> bool:
        return self.status.startswith("200")

    @property
    def is_for_everybody(self) -> bool:
        """Tell whether another visitor may be given the same."""
        if self.streaming:
            return False
        for name, value in self.headers:
            match name.lower():
                case "set-cookie" | "content-encoding":
                    return False
                case "cache-control" if re.search(r"private|no-store|no-cache", value.lower()):
                    return False
                case "vary" if value.strip().lower() != "accept-encoding":
                    return False
        return not self.status.startswith("5")

    def send(self, environ: Environ, start_response: StartResponse, *, stale: bool = False) -> list[bytes]:
        start_response(self.status, self.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


@dataclass(slots=True)
class Making:
    """A page that a thread is making, and what came of it, if that may be given to those who wait."""

    done: threading.Event = field(default_factory=threading.Event)
    answer: Page | Answer | None = None


class PageCache:
    """A WSGI application before Django's: it answers by itself what it keeps and passes everything else on."""

    def __init__(self, django: Application, *, capacity: int, clock: Clock | None = None) -> None:
        self.django, self.capacity, self.size = django, capacity, 0
        self.clock = clock or Clock()
        self._pages: OrderedDict[Key, Page] = OrderedDict()
        self._making: dict[Key, Making] = {}
        self._known: tuple[Version | None, dict[Any, Any]] = (None, {})
        self._lock = threading.Lock()
        self._is_allowed = lru_cache(256)(_is_allowed)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        key = self._key(environ)
        version = key and self.clock.version()
        if key is None or version is None:
            return self.django(environ, start_response)
        page = self._pages.get(key)
        if page is None or page.version != version:
            return self._answer_anew(key, version, environ, start_response)
        with suppress(KeyError):  # dropped by another thread just now
            self._pages.move_to_end(key)
        return page.send(environ, start_response, stale=self.clock.is_away)

    def _key(self, environ: Environ) -> Key | None:
        """Return what the page is kept under; None where it is not, or where Django has to look at the request."""
        parameters = known_parameters(environ["PATH_INFO"])
        if parameters is None or environ["REQUEST_METHOD"] not in ("GET", "HEAD") or environ.get("SCRIPT_NAME"):
            return None
        secure = is_secure(environ)
        if (settings.SECURE_SSL_REDIRECT and not secure) or not self._is_allowed(environ.get("HTTP_HOST", "")):
            return None
        if any(name in environ for name in ODD_HEADERS):
            return None
        query = environ.get("QUERY_STRING", "")
        plain = known_query(query, parameters) if query and parameters else ""
        return None if plain is None else Key(environ["PATH_INFO"], plain, secure)

    def _answer_anew(
        self, key: Key, version: Version, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        answer = self._make(key, version, environ)
        if answer is None:
            return self.django(environ, start_response)
        return answer.send(environ, start_response, stale=isinstance(answer, Page) and answer.version != version)

    def _make(self, key: Key, version: Version, environ: Environ) -> Page | Answer | None:
        """Let one thread make the page; the others get the page of before, if it is not old, or wait.

        Returns None where what that thread was answered may not be given to others.
        """
        with self._lock:
            page, making = self._pages.get(key), self._making.get(key)
            if page and page.version == version:  # made just now
                return page
            if is_ours := making is None:
                making = self._making[key] = Making()
        if is_ours:
            return self._lead(key, version, making, environ)
        if page and self._is_recent(page):
            return page
        making.done.wait(RENDER_SECONDS)
        return making.answer

    def _lead(self, key: Key, version: Version, making: Making, environ: Environ) -> Page | Answer:
        """Make the page, and tell those who wait unless it is for one visitor only."""
        known = KNOWN.set(self._known_of(version))
        try:
            answer = Answer.of(self.django, anonymous(environ, key))
            former = self._pages.get(key)
            if answer.status.startswith("503") and former:  # the database is away
                making.answer = former
            elif answer.is_for_everybody:
                making.answer = self._kept(key, Page.of(answer, version)) if answer.is_page else answer
            return making.answer or answer
        finally:
            KNOWN.reset(known)
            with self._lock:
                del self._making[key]
            making.done.set()

    def _known_of(self, version: Version) -> dict[Any, Any]:
        """Return what was asked for pages of this version; what was for another one is forgotten."""
        known = self._known
        if known[0] != version:
            self._known = known = (version, {})
        return known[1]

    def _is_recent(self, page: Page) -> bool:
        """Tell whether a page was current until just now."""
        is_former = page.version in (self.clock.current, self.clock.former)
        return is_former and time.monotonic() - self.clock.changed_at < FORMER_SECONDS

    def _kept(self, key: Key, page: Page) -> Page:
        """Keep the page, and drop those that nobody asked for longest until all fit."""
        with self._lock:
            if old := self._pages.pop(key, None):
                self.size -= old.size
            self._pages[key] = page
            self.size += page.size
            while self.size > self.capacity:
                _key, dropped = self._pages.popitem(last=False)
                self.size -= dropped.size
        return page


def anonymous(environ: Environ, key: Key) -> Environ:
    """Return the request as anybody would make it who asks for `key`: what Django can't see can't get into the page."""
    proxy = settings.SECURE_PROXY_SSL_HEADER
    named = {"HTTP_HOST", proxy[0]} if proxy else {"HTTP_HOST"}
    plain = {name: value for name, value in environ.items() if not name.startswith("HTTP_") or name in named}
    for name in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        plain.pop(name, None)
    return plain | {"REQUEST_METHOD": "GET", "QUERY_STRING": key.query, "wsgi.input": io.BytesIO()}


def known_query(query: str, parameters: Parameters) -> str | None:
    """Return the part of a query that the page knows, in one order; None where a value is not as it should be."""
    try:
        query = query.encode("latin-1").decode()  # PEP 3333: what a server gives is bytes; Django, too, reads them so
        given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=100))  # the last of two counts
    except ValueError:
        return None
    found = {name: given[name] for name in parameters if name in given}
    if not all(parameters[name].fullmatch(value) for name, value in found.items()):
        return None
    return urlencode({name: " ".join(value.split()) for name, value in found.items()})


def is_secure(environ: Environ) -> bool:
    """Tell whether the visitor came by https, as `HttpRequest.scheme` does."""
    if proxy := settings.SECURE_PROXY_SSL_HEADER:
        said = environ.get(proxy[0])
        if said is not None:
            return bool(said.split(",", 1)[0].strip() == proxy[1])
    return bool(environ.get("wsgi.url_scheme") == "https")


def _is_allowed(host: str) -> bool:
    """Tell whether Django would answer for this Host header."""
    domain, _port = split_domain_port(host)
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def in_front_of(django: Application) -> Application:
    """Return the application with its pages kept, as PAGE_CACHE_MB allows; with 0 each page is made anew."""
    capacity = settings.PAGE_CACHE_MB * 1024 * 1024
    return PageCache(django, capacity=capacity) if capacity > 0 else django
