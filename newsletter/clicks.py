"""Counted links: where the author wants it, an issue's links lead through this site, which counts them.

What is kept is one number a link and issue: no reader, no address, no instant, no cookie. An address /c/<signed id>/
names a Link row, whose destination was fixed at freeze; it holds no destination of its own (ABU-13).

What machines follow is left out as far as a bare number lets one tell: HEAD, prefetches, programs that say what they
are, all of the first minute after the issue began, and sweeps (many links of an issue from one network address within
seconds). A scanner that poses as a browser and opens a link or two later on is counted, so a count is an upper bound.
"""

from __future__ import annotations

import base64
import datetime as dt
import html
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import F, Value
from django.db.models.functions import Greatest, Now
from django.urls import reverse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.http import base36_to_int, int_to_base36

from newsletter.models import Issue, Link

SALT = "newsletter.click"
QUIET = dt.timedelta(seconds=60)  # after the issue began: what is followed so soon is followed by scanners
SWEEP_LINKS, SWEEP_SECONDS = 4, 5.0
SWEEPS_KEPT = 10_000
MOST_LINKS = 1_000
LONGEST_URL = 2_000  # characters; Django refuses to redirect to what is much longer
# The first part of our own paths that always stay what they are: leaving must not depend on counting (UNS-4).
UNTOUCHED = {"u", "preferences", "privacy", "subscribe", "never"}
ANCHOR = re.compile(r"""<a\s(?:[^"'<>]|"[^"]*"|'[^']*')*>""", re.IGNORECASE)
ATTRIBUTE = re.compile(r"""([^\s"'<>/=]+)(\s*=\s*)"([^"]*)\"""")
MACHINE = re.compile(
    r"(?<!cu)bot\b|crawl|spider|slurp|scan|preview|prefetch|monitor|validat|headless|phantomjs|selenium|puppeteer"
    r"|curl|wget|python|java/|okhttp|go-http|libwww|http-?client|axios|node-fetch|undici|ruby|perl|php|postman"
    r"|proofpoint|mimecast|barracuda|trend ?micro|safelinks|forcepoint|symantec|messagelabs|fortinet|sophos"
    r"|facebookexternalhit|google-(?:safety|inspection|read)",
    re.IGNORECASE,
)
AHEAD = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")  # say that nobody has followed the link yet


def lead_through(issue: Issue, source: dict[str, Any]) -> dict[str, Any]:
    """Return `source` with the links of its HTML led through this site, where the issue counts clicks.

    Writes their destinations down; so it is called once, when the issue is frozen. Links that differ from reader to
    reader, and the ways out, stay as they are.
    """
    if not issue.count_clicks:
        return source
    urls = [url for url in dict.fromkeys(_urls(source["html"])) if _may_count(url, source)][:MOST_LINKS]
    links = Link.objects.bulk_create([Link(issue=issue, number=n, url=url) for n, url in enumerate(urls, start=1)])
    addresses = {link.url: address(link) for link in links}
    return {**source, "html": _replace(source["html"], addresses)}


def lead_straight(issue: Issue, shown: str) -> str:
    """Return the mail's HTML for the web, where nothing is counted: each link leads to its destination again."""
    if not issue.count_clicks:
        return shown
    return _replace(shown, {address(link): link.url for link in issue.links.all()})


def address(link: Link) -> str:
    """Return what stands in the mail instead of the link's own address."""
    name = int_to_base36(link.pk)
    return settings.SITE_URL + reverse("newsletter:click", args=[f"{name}-{_proof(name)}"])


def find(token: str) -> Link | None:
    """Return the link that a signed id names; None where we have not made it."""
    name, _dash, proof = token.partition("-")
    if not constant_time_compare(proof, _proof(name)):
        return None
    return Link.objects.filter(pk=base36_to_int(name)).first()


def count(link: Link, headers: Mapping[str, str], *, ip: str | None) -> None:
    """Count that somebody followed `link`, unless a machine seems to have."""
    if is_machine(headers) or RECENT.is_sweep(ip, link):
        return
    begun = Link.objects.filter(pk=link.pk, issue__started_at__lt=Now() - QUIET)
    if begun.update(clicks=F("clicks") + 1):
        RECENT.counted(ip, link)


def is_machine(headers: Mapping[str, str]) -> bool:
    """Tell whether a request says of itself that no person made it."""
    agent = headers.get("User-Agent", "")
    return not agent or bool(MACHINE.search(agent)) or any(headers.get(name) for name in AHEAD)


class Recent:
    """Who followed which links within the last seconds, to tell sweeps.

    Only in this process's memory and only as a hash under a key that dies with it. What was counted of a sweep before
    it was known as one is taken back. With several web processes each sees its share of a sweep.
    """

    def __init__(self) -> None:
        self._key = secrets.token_hex(32)
        self._seen: OrderedDict[tuple[bytes, int], tuple[float, Counter[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def is_sweep(self, ip: str | None, link: Link) -> bool:
        """Note that `link` was followed from `ip`; tell whether that is part of a sweep."""
        if ip is None:
            return False
        with self._lock:
            self._forget()
            _since, followed = self._seen.setdefault(self._who(ip, link), (time.monotonic(), Counter()))
            followed[link.pk] += 0
            if len(followed) < SWEEP_LINKS:
                return False
            back = {pk: count for pk, count in followed.items() if count}
            followed.update({pk: -count for pk, count in back.items()})
        for pk, clicks in back.items():
            Link.objects.filter(pk=pk).update(clicks=Greatest(F("clicks") - clicks, Value(0)))
        return True

    def counted(self, ip: str | None, link: Link) -> None:
        """Remember that a click was counted, for the case that it turns out to be part of a sweep."""
        with self._lock:
            if ip is not None and (found := self._seen.get(self._who(ip, link))):
                found[1][link.pk] += 1

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()

    def _who(self, ip: str, link: Link) -> tuple[bytes, int]:
        return salted_hmac(SALT, ip, secret=self._key, algorithm="sha256").digest()[:16], link.issue_id

    def _forget(self) -> None:
        until = time.monotonic() - SWEEP_SECONDS
        while self._seen and (len(self._seen) > SWEEPS_KEPT or next(iter(self._seen.values()))[0] < until):
            self._seen.popitem(last=False)


RECENT = Recent()


def _proof(name: str) -> str:
    """Return 72 bits that only we can write; under the pepper, so that links in old mail work for ever."""
    digest = salted_hmac(SALT, name, secret=settings.PEPPER, algorithm="sha256").digest()
    return base64.urlsafe_b64encode(digest[:9]).decode()


def _urls(shown: str) -> list[str]:
    """Return where the links of a mail lead, in their order."""
    return [
        html.unescape(attribute[3])
        for anchor in ANCHOR.findall(shown)
        for attribute in ATTRIBUTE.finditer(anchor)
        if attribute[1].lower() == "href"
    ]


def _replace(shown: str, addresses: Mapping[str, str]) -> str:
    """Give each link of a mail the address that `addresses` says instead of its own."""

    def attribute(found: re.Match[str]) -> str:
        new = addresses.get(html.unescape(found[3])) if found[1].lower() == "href" else None
        return f'{found[1]}{found[2]}"{html.escape(new)}"' if new else found[0]

    return ANCHOR.sub(lambda anchor: ATTRIBUTE.sub(attribute, anchor[0]), shown)


def _may_count(url: str, source: dict[str, Any]) -> bool:
    """Tell whether a link may lead through us: to the web, the same for all readers, and not a way out."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or len(url) > LONGEST_URL:
        return False
    if any(mark in url for mark, *_rest in source["holes"]):
        return False
    own = host == urlsplit(settings.SITE_URL).hostname
    return not (own and _is_untouched(parts.path))


def _is_untouched(path: str) -> bool:
    first, _slash, rest = path.lstrip("/").partition("/")
    return first in UNTOUCHED or (first == "issues" and rest.startswith("view"))
