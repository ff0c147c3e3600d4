"""The checks of preflight: each looks at an Inspection and says where something is wrong and what to do.

All are pure, registered with an id that never changes, and with how grave it is. A false alarm costs more than a miss:
an author who has read three of them reads no fourth.
"""

from __future__ import annotations

import hashlib
import html
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit
from uuid import UUID

from django.conf import settings
from django.db import models
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from newsletter import linkcheck, message, rendering
from newsletter.inspection import (
    Inspection,
    Link,
    Spot,
    Text,
    is_own,
    of_publication,
    preheader_line,
    subject_line,
    web_address,
    whole_issue,
)


class Severity(models.TextChoices):
    BLOCKS = "blocks", gettext_lazy("Blocks")
    WARNS = "warns", gettext_lazy("Warns")
    NOTES = "notes", gettext_lazy("Notes")


class Hit(NamedTuple):
    """What a check came upon: where, what exactly (it names the finding for ever), and what to do about it."""

    spot: Spot
    what: str
    message: str


Hits = Iterator[Hit]
Look = Callable[[Inspection], Hits]


@dataclass(frozen=True)
class Rule:
    check_id: str
    severity: Severity
    waivable: bool
    look: Look


RULES: dict[str, Rule] = {}


def check(check_id: str, severity: Severity, *, waivable: bool = True) -> Callable[[Look], Look]:
    """Register a check."""

    def register(look: Look) -> Look:
        if check_id in RULES:
            raise ValueError(f"Two checks are called {check_id}.")
        RULES[check_id] = Rule(check_id, severity, waivable, look)
        return look

    return register


BLOCKS, WARNS, NOTES = Severity.BLOCKS, Severity.WARNS, Severity.NOTES


# Subject and preheader

LONG_SUBJECT = 70  # characters: what a desktop shows beside the sender; a phone shows about half
LONG_PREHEADER = 140
REPLY = re.compile(r"\s*(?:re|fwd?|aw|wg)\s*:", re.IGNORECASE)


@check("subject-empty", BLOCKS, waivable=False)
def subject_empty(found: Inspection) -> Hits:
    if not found.raw_subject.strip():
        yield Hit(subject_line(), "", _("An issue needs a subject: it is what the reader sees first."))


@check("subject-long", WARNS)
def subject_long(found: Inspection) -> Hits:
    if (length := len(found.subject)) > LONG_SUBJECT:
        text = _("The subject has %(length)s characters; most inboxes show fewer than %(most)s. Shorten it.")
        yield Hit(subject_line(), "", text % {"length": length, "most": LONG_SUBJECT})


@check("subject-repeated", WARNS)
def subject_repeated(found: Inspection) -> Hits:
    subject = found.raw_subject.strip().casefold()
    if subject and subject == found.last_subject.strip().casefold():
        text = _("The last issue had the same subject, and inboxes put mails of one subject together. Change it.")
        yield Hit(subject_line(), "", text)


@check("subject-shouts", NOTES)
def subject_shouts(found: Inspection) -> Hits:
    letters = [character for character in found.raw_subject if character.isalpha()]
    if "!!" in found.raw_subject or (len(letters) > 9 and all(character.isupper() for character in letters)):
        yield Hit(subject_line(), "", _("Capitals and rows of exclamation marks look like spam: write it calmly."))


@check("subject-reply", WARNS)
def subject_reply(found: Inspection) -> Hits:
    if REPLY.match(found.raw_subject):
        text = _("The subject begins like an answer, which it is not; mail providers punish that. Take it out.")
        yield Hit(subject_line(), "", text)


@check("preheader-missing", WARNS)
def preheader_missing(found: Inspection) -> Hits:
    if not found.raw_preheader.strip():
        text = _("There is no preheader, so inboxes show whatever comes first. Write a sentence that goes on from it.")
        yield Hit(preheader_line(), "", text)


@check("preheader-long", NOTES)
def preheader_long(found: Inspection) -> Hits:
    if (length := len(found.preheader)) > LONG_PREHEADER:
        text = _("The preheader has %(length)s characters; inboxes show at most about %(most)s. Shorten it.")
        yield Hit(preheader_line(), "", text % {"length": length, "most": LONG_PREHEADER})


@check("preheader-repeats", WARNS)
def preheader_repeats(found: Inspection) -> Hits:
    preheader = found.raw_preheader.strip().casefold()
    if preheader and preheader == found.raw_subject.strip().casefold():
        yield Hit(preheader_line(), "", _("The preheader says the same as the subject. Let it say what comes next."))


# The issue as a whole


@check("not-renderable", BLOCKS, waivable=False)
def not_renderable(found: Inspection) -> Hits:
    if found.error:
        yield Hit(whole_issue(), "", _("The mail can't be made: %(error)s") % {"error": found.error})


@check("issue-empty", BLOCKS, waivable=False)
def issue_empty(found: Inspection) -> Hits:
    if not found.entries and not any(text.body.strip() for text in found.texts):
        yield Hit(whole_issue(), "", _("The issue is empty: choose a post or write an introduction."))


@check("post-empty", WARNS)
def post_empty(found: Inspection) -> Hits:
    for text in found.texts:
        if text.spot.post_id and not text.body.strip():
            yield Hit(text.spot, "", _("This post has a title and no text. Write it, or take it out of the issue."))


@check("post-repeated", WARNS)
def post_repeated(found: Inspection) -> Hits:
    for entry in found.entries:
        if entry.mailed_as:
            text = _("This post was mailed before, with %(issue)s. Take it out unless you mean it.")
            yield Hit(entry.spot, "", text % {"issue": entry.mailed_as})


@check("teaser-without-page", WARNS)
def teaser_without_page(found: Inspection) -> Hits:
    for entry in found.entries:
        if not entry.full and not entry.has_page:
            text = _(
                "The teaser leads nowhere, for this post has no page on the web. Give it in full, or make it public."
            )
            yield Hit(entry.spot, "", text)


@check("size-near-limit", WARNS)
def size_near_limit(found: Inspection) -> Hits:
    if rendering.SIZE_WARN <= found.size <= rendering.SIZE_BLOCK:
        text = _("The mail's HTML part can have %(size)s kB; Gmail cuts off what exceeds 100. Shorten it soon.")
        yield Hit(whole_issue(), "", text % {"size": round(found.size / 1000)})


@check("size-over-limit", BLOCKS)
def size_over_limit(found: Inspection) -> Hits:
    if found.size > rendering.SIZE_BLOCK:
        text = _(
            "The mail's HTML part has %(size)s kB and Gmail cuts off what exceeds 100, the unsubscribe link too. "
            "Shorten the issue, or give a post as a teaser."
        )
        yield Hit(whole_issue(), "", text % {"size": round(found.size / 1000)})


@check("postal-address", BLOCKS, waivable=False)
def postal_address(found: Inspection) -> Hits:
    if not found.publication.postal_address.strip():
        text = _(
            "The publication has no postal address. The law asks for one at the foot of every issue: "
            "write it on the page of the publication."
        )
        yield Hit(of_publication(), "postal address", text)


@check("sender-no-reply", WARNS)
def sender_no_reply(found: Inspection) -> Hits:
    local = re.sub(r"[^a-z]", "", found.publication.sender_address.partition("@")[0].lower())
    if local in ("noreply", "donotreply") and not found.publication.reply_to:
        text = _("Readers can't answer this sender, and answers are what keeps a mail out of spam. Set “reply to”.")
        yield Hit(of_publication(), "sender", text)


@check("footer-incomplete", BLOCKS, waivable=False)
def footer_incomplete(found: Inspection) -> Hits:
    if not found.html:
        return
    way_out = f"{settings.SITE_URL}/u/{UUID(int=0)}/"
    address = found.publication.postal_address.strip().split("\n")[0].strip()
    parts = {"HTML": html.unescape(found.html), "text": found.text}
    for name, part in parts.items():
        if way_out not in part or address not in part:
            text = _("The %(part)s part lacks the unsubscribe link or the postal address. Mend the mail's template.")
            yield Hit(whole_issue(), name, text % {"part": name})


@check("unsubscribe-broken", BLOCKS, waivable=False)
def unsubscribe_broken(found: Inspection) -> Hits:
    """RFC 8058, 3.1: the POST is answered without a redirect."""
    if found.unsubscribe_problem:
        text = _("Unsubscribing by one press does not work here: %(problem)s. Have this installation mended first.")
        yield Hit(whole_issue(), "", text % {"problem": found.unsubscribe_problem})


@check("unsubscribe-outside", WARNS)
def unsubscribe_outside(found: Inspection) -> Hits:
    answer = found.unsubscribe_answer
    if answer and answer.status and answer.status not in (200, 404):
        text = _(
            "From outside, the unsubscribe link answers a POST with %(status)s instead of 200. "
            "Look at what stands before this site: it must neither redirect nor refuse it."
        )
        yield Hit(whole_issue(), "", text % {"status": answer.status})


@check("unsubscribe-not-https", NOTES)
def unsubscribe_not_https(found: Inspection) -> Hits:
    if not settings.SITE_URL.startswith("https://"):
        text = _("This site's address is not https, so mail programs show no button to unsubscribe. Set SITE_URL.")
        yield Hit(whole_issue(), "", text)


# Links, by how they look

SHORTENERS = {
    *("bit.ly", "buff.ly", "cutt.ly", "dlvr.it", "goo.gl", "is.gd", "lnkd.in", "ow.ly", "rb.gy", "rebrand.ly"),
    *("shorturl.at", "t.co", "t.ly", "tiny.cc", "tinyurl.com", "trib.al", "v.gd"),
}
TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|dclid|gbraid|wbraid|msclkid|yclid|twclid|igshid|mc_[ce]id|mkt_tok|_hs(?:enc|mi)|vero_id|s_cid"
)
VAGUE = {"here", "click", "click here", "click this", "this", "link", "this link", "see here", "read here", "this page"}
INSIDE_NAMES = (".local", ".internal", ".intranet", ".lan", ".corp", ".home.arpa", ".localdomain")
LOST_LINK = re.compile(r"\]\((?:https?:|/|www\.)\S*")
ID = re.compile(r"""\s(?:id|name)=["']?([^"'\s>]+)""")


def _split(href: str) -> SplitResult:
    try:
        return urlsplit(href.strip())
    except ValueError:
        return SplitResult("", "", "", "", "")


def _hit(text: Text, link: Link, message: str) -> Hit:
    return Hit(text.spot.at(link.line), link.href, message % {"link": Truncator(link.href).chars(80)})


def _of_links(found: Inspection, is_wrong: Callable[[Link], bool], message: str) -> Hits:
    """Yield a hit for each link of the author's that `is_wrong`."""
    return (_hit(text, link, message) for text, link in found.links if is_wrong(link))


def _host(href: str) -> str:
    """Return the host that a link names; nothing where it leads to this site, which may well be local in a trial."""
    return "" if is_own(href) else (_split(href).hostname or "").rstrip(".").lower()


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_this_machine(host: str) -> bool:
    ip = _ip(host)
    return host == "localhost" or host.endswith(".localhost") or bool(ip and (ip.is_loopback or ip.is_unspecified))


def _is_inside(host: str) -> bool:
    if not host or _is_this_machine(host):
        return False
    if ip := _ip(host):
        return not linkcheck.is_public(ip, 443)
    return "." not in host or host.endswith(INSIDE_NAMES)


@check("link-empty", WARNS)
def link_empty(found: Inspection) -> Hits:
    for text, link in found.links:
        if link.href.strip() in ("", "#") or not link.words:
            shown = Truncator(link.words or link.href).chars(80)
            words = _("The link “%(link)s” leads nowhere or has no words. Give it both, or take it out.")
            yield Hit(text.spot.at(link.line), shown, words % {"link": shown})


@check("link-lost", WARNS)
def link_lost(found: Inspection) -> Hits:
    for text, prose in found.prose:
        for lost in LOST_LINK.finditer(prose.words):
            words = _("This was meant to be a link and is none: “%(link)s”. Look for a bracket or a space too many.")
            yield _hit(text, Link(lost.group(), "", prose.line), words)


@check("link-relative", WARNS)
def link_relative(found: Inspection) -> Hits:
    def is_wrong(link: Link) -> bool:
        href = link.href.strip()
        return bool(href) and not _split(href).scheme and (href.startswith("//") or href[0] not in "/#")

    return _of_links(
        found, is_wrong, _("A mail has no page that “%(link)s” is relative to. Write it from https:// on.")
    )


@check("link-scheme", WARNS)
def link_scheme(found: Inspection) -> Hits:
    text = _("“%(link)s” is no web or mail address and is taken out of the mail. Link to an https:// address instead.")
    return _of_links(found, lambda link: _split(link.href).scheme not in ("", "http", "https", "mailto"), text)


@check("link-localhost", BLOCKS)
def link_localhost(found: Inspection) -> Hits:
    text = _("“%(link)s” leads to the reader's own machine. Put the public address there.")
    pictures = [(each, Link(picture.src, "", picture.line)) for each, picture in found.pictures]
    for each, link in [*found.links, *pictures]:
        if _is_this_machine(_host(link.href)):
            yield _hit(each, link, text)


@check("link-private", BLOCKS)
def link_private(found: Inspection) -> Hits:
    text = _("“%(link)s” leads into a private network, where readers can't go. Put the public address there.")
    pictures = [(each, Link(picture.src, "", picture.line)) for each, picture in found.pictures]
    for each, link in [*found.links, *pictures]:
        if _split(link.href).scheme in ("http", "https") and _is_inside(_host(link.href)):
            yield _hit(each, link, text)


@check("link-password", BLOCKS)
def link_password(found: Inspection) -> Hits:
    text = _("A link carries a password. Take it out of the address, and change the password if it is real.")
    for each, link in found.links:
        if _split(link.href).password:
            host = _split(link.href).hostname or ""
            yield Hit(each.spot.at(link.line), host, text)


@check("link-shortened", WARNS)
def link_shortened(found: Inspection) -> Hits:
    text = _("“%(link)s” hides where it leads, and spam filters distrust that. Link to the destination itself.")
    return _of_links(found, lambda link: _host(link.href).removeprefix("www.") in SHORTENERS, text)


@check("link-tracking", WARNS)
def link_tracking(found: Inspection) -> Hits:
    def is_wrong(link: Link) -> bool:
        return any(TRACKING.fullmatch(name.lower()) for name, _value in parse_qsl(_split(link.href).query))

    return _of_links(found, is_wrong, _("“%(link)s” carries what tracks readers. Take it out of the address."))


@check("link-http", WARNS)
def link_http(found: Inspection) -> Hits:
    def is_wrong(link: Link) -> bool:
        host = _host(link.href)
        return _split(link.href).scheme == "http" and bool(host) and not (_is_this_machine(host) or _is_inside(host))

    return _of_links(found, is_wrong, _("“%(link)s” is not encrypted. Write https:// if the site has it."))


@check("link-vague", WARNS)
def link_vague(found: Inspection) -> Hits:
    text = _("A link's words don't say where it leads (“%(link)s”): a list of links reads “here, here, here”. Name it.")
    return _of_links(found, lambda link: link.words.strip(" .,:;!→»").casefold() in VAGUE, text)


@check("link-anchor", NOTES)
def link_anchor(found: Inspection) -> Hits:
    targets = set(ID.findall(found.html))

    def is_wrong(link: Link) -> bool:
        return len(link.href) > 1 and link.href[0] == "#" and link.href[1:] not in targets

    return _of_links(found, is_wrong, _("“%(link)s” names no place in this mail, so the link does nothing there."))


@check("link-unpublished", WARNS)
def link_unpublished(found: Inspection) -> Hits:
    text = _("“%(link)s” leads to no page of this site that readers can see. Publish it, or mend the address.")
    return _of_links(found, lambda link: link.href in found.nowhere, text)


# Links, by what the network says


def _of_answers(found: Inspection, outcome: linkcheck.Outcome, message: str) -> Hits:
    for text, link in found.links:
        answer = found.answers.get(web_address(link.href))
        if answer and answer.outcome == outcome:
            words = {"link": Truncator(link.href).chars(80), "detail": answer.detail, "final": answer.final}
            yield Hit(text.spot.at(link.line), link.href, message % words)


@check("link-dead", WARNS)
def link_dead(found: Inspection) -> Hits:
    text = _("“%(link)s” is dead: %(detail)s. Mend or remove it.")
    return _of_answers(found, linkcheck.Outcome.DEAD, text)


@check("link-moved", NOTES)
def link_moved(found: Inspection) -> Hits:
    text = _("“%(link)s” has moved for good. Link to where it is now: %(final)s")
    return _of_answers(found, linkcheck.Outcome.MOVED, text)


@check("link-inside", WARNS)
def link_inside(found: Inspection) -> Hits:
    text = _("“%(link)s” was not asked, for it leads where readers can't go: %(detail)s. Look whether it is right.")
    answers = {url: answer for url, answer in found.answers.items() if not is_own(url)}
    return _of_answers(replace(found, answers=answers), linkcheck.Outcome.INSIDE, text)


@check("link-not-asked", NOTES)
def link_not_asked(found: Inspection) -> Hits:
    text = _("Could not ask whether “%(link)s” works: %(detail)s. Try it in a browser.")
    return _of_answers(found, linkcheck.Outcome.UNKNOWN, text)


# Pictures

LAZY_ALT = {
    *("image", "img", "picture", "photo", "photograph", "screenshot", "graphic", "figure", "diagram", "chart", "alt"),
    *("alt text", "untitled", "logo", "icon", "pic", "an image", "a picture", "a photo"),
}
FILE_NAME = re.compile(
    r"\S+\.(?:png|jpe?g|gif|webp|svg|avif|heic)|(?:img|dsc|image|photo|screenshot|picture)[\s_-]*[\d_-]+", re.IGNORECASE
)
HEAVY_IMAGE = 1_000_000
WIDE_IMAGE = 1600


def _name(src: str) -> str:
    return Truncator("data:…" if src.startswith("data:") else src).chars(80)


def _of_pictures(found: Inspection, is_wrong: Callable[[str, str | None], bool], message: str) -> Hits:
    for text, picture in found.pictures:
        if is_wrong(picture.src, picture.alt):
            spot = text.spot.at(picture.line)
            yield Hit(spot, _name(picture.src), message % {"picture": _name(picture.src)})


@check("alt-missing", WARNS)
def alt_missing(found: Inspection) -> Hits:
    """An empty alt text that a tag states is the author's word that the picture only decorates."""
    text = _("The picture %(picture)s has no alt text. Say in a few words what it shows: many see only that.")
    return _of_pictures(found, lambda src, alt: alt is None, text)


@check("alt-lazy", WARNS)
def alt_lazy(found: Inspection) -> Hits:
    def is_lazy(src: str, alt: str | None) -> bool:
        words = (alt or "").strip(" .").casefold()
        return words in LAZY_ALT or bool(FILE_NAME.fullmatch(words))

    text = _("The alt text of the picture %(picture)s says nothing. Say what it shows, not that it is a picture.")
    return _of_pictures(found, is_lazy, text)


@check("image-missing", BLOCKS)
def image_missing(found: Inspection) -> Hits:
    text = _("The picture “%(picture)s” is not there or can't be read. Upload it again, or take it out.")
    return _of_pictures(
        found, lambda src, alt: not src or found.files[src].missing or found.files[src].kind == "?", text
    )


@check("image-embedded", BLOCKS)
def image_embedded(found: Inspection) -> Hits:
    text = _("A picture stands in the text itself (data:), which mail programs don't show. Upload it as a file.")
    return _of_pictures(found, lambda src, alt: src.startswith("data:"), text)


@check("image-heavy", WARNS)
def image_heavy(found: Inspection) -> Hits:
    for text, picture in found.pictures:
        if (size := found.files[picture.src].size) > HEAVY_IMAGE:
            words = _("The picture %(picture)s has %(size)s kB, which is slow on a phone. Keep it under 1,000.")
            message = words % {"picture": _name(picture.src), "size": round(size / 1000)}
            yield Hit(text.spot.at(picture.line), _name(picture.src), message)


@check("image-wide", WARNS)
def image_wide(found: Inspection) -> Hits:
    for text, picture in found.pictures:
        if (width := found.files[picture.src].width) > WIDE_IMAGE:
            words = _(
                "The picture %(picture)s is %(width)s pixels wide; a mail shows at most %(most)s. Make it smaller."
            )
            message = words % {"picture": _name(picture.src), "width": width, "most": WIDE_IMAGE}
            yield Hit(text.spot.at(picture.line), _name(picture.src), message)


@check("image-format", WARNS)
def image_format(found: Inspection) -> Hits:
    text = _("The picture %(picture)s is neither PNG nor JPEG, the two that all mail programs show. Convert it.")
    return _of_pictures(found, lambda src, alt: found.files[src].kind not in ("", "?", "PNG", "JPEG"), text)


@check("image-http", WARNS)
def image_http(found: Inspection) -> Hits:
    def is_wrong(src: str, alt: str | None) -> bool:
        host = _host(src)
        return _split(src).scheme == "http" and bool(host) and not (_is_this_machine(host) or _is_inside(host))

    return _of_pictures(
        found, is_wrong, _("The picture %(picture)s is loaded unencrypted. Upload it, or use https://.")
    )


# Code

PHONE_COLUMNS = 40  # of 13 px type on a screen of 390 px
ENOUGH_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
DARK_GROUND = "#121212"  # where a block of code has no ground of its own
HEX = r"(#[0-9a-f]{6}|#[0-9a-f]{3})\b"
BLOCK = re.compile(r"((?:<td\b[^>]*>\s*)?<pre\b[^>]*>)(.*?)</pre>", re.DOTALL | re.IGNORECASE)
STYLE = re.compile(r"""\bstyle=(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)
COLOUR = re.compile(rf"(?<![\w-])color:\s*{HEX}", re.IGNORECASE)
GROUND = re.compile(rf"background(?:-color)?:\s*{HEX}", re.IGNORECASE)
DARK_RULES = re.compile(r"prefers-color-scheme:\s*dark\s*\)\s*\{((?:[^{}]*\{[^{}]*\})*)", re.IGNORECASE)
OF_CODE = re.compile(r"[^{}]*(?:\.code\b|\bpre\b)[^{}]*\{([^{}]*)\}", re.IGNORECASE)
INSTEAD = re.compile(rf"""\[style\*=["']?{HEX}["']?\]\s*\{{[^{{}}]*(?<![\w-])color:\s*{HEX}""", re.IGNORECASE)


@check("fence-unclosed", BLOCKS)
def fence_unclosed(found: Inspection) -> Hits:
    text = _("The block of code that begins here is never closed, so all that follows is code. Close it with ```.")
    for each in found.texts:
        for code in each.codes:
            if not code.closed:
                first = code.content.partition("\n")[0]
                yield Hit(each.spot.at(code.line - 1), Truncator(first).chars(80), text)


@check("code-wide", NOTES)
def code_wide(found: Inspection) -> Hits:
    """One finding a block, at its widest line: more would only say the same."""
    for each in found.texts:
        for code in each.codes:
            lines = [line.expandtabs(4).rstrip() for line in code.content.split("\n")]
            widest = max(lines, key=len)
            if len(widest) > PHONE_COLUMNS:
                text = _(
                    "A line of code has %(width)s characters; a phone shows %(most)s and wraps it. Break it sooner."
                )
                message = text % {"width": len(widest), "most": PHONE_COLUMNS}
                yield Hit(each.spot.at(code.line + lines.index(widest)), Truncator(widest.strip()).chars(80), message)


@check("code-contrast", WARNS)
def code_contrast(found: Inspection) -> Hits:
    """By what the mail's stylesheet makes of code in dark mode: its ground, and other colours instead of some."""
    dark = "".join(DARK_RULES.findall(found.html))
    grounds = [ground for rule in OF_CODE.findall(dark) for ground in GROUND.findall(rule)]
    instead = {light.lower(): colour for light, colour in INSTEAD.findall(dark)}
    pale = {}
    for opening, content in BLOCK.findall(found.html):
        ground = [*grounds, *reversed(GROUND.findall(opening)), DARK_GROUND][0]
        for colour, behind in _colours(content, ground):
            seen = instead.get(colour, colour)
            if (ratio := contrast(seen, behind)) < ENOUGH_CONTRAST:
                pale[f"{seen} / {behind}"] = ratio
    for pair, ratio in sorted(pale.items()):
        text = _(
            "Code in %(pair)s has a contrast of %(ratio).1f in dark mode; %(enough)s is needed. Change the colours."
        )
        yield Hit(whole_issue(), pair, text % {"pair": pair, "ratio": ratio, "enough": ENOUGH_CONTRAST})


def _colours(content: str, ground: str) -> Iterator[tuple[str, str]]:
    """Yield the colours of a block of code, each with what is behind it."""
    for quoted in STYLE.findall(content):
        style = "".join(quoted).lower()
        for colour in COLOUR.findall(style):
            yield colour, (GROUND.findall(style) or [ground])[0]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours such as #0d1117, from 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


BLACK = re.compile(
    r"(?<![\w-])color:\s*(?:black|#000|#000000|rgb\(\s*0\s*,\s*0\s*,\s*0\s*\))\s*(?:!|;|$)", re.IGNORECASE
)


@check("text-black", WARNS)
def text_black(found: Inspection) -> Hits:
    """Only where mail keeps a tag's style."""
    text = _("Text is set to black here and can't be seen in dark mode. Take the colour out: the mail brings its own.")
    for each in found.texts:
        for tag in each.tags:
            if tag.name in ("span", "td", "th") and BLACK.search(tag.attributes.get("style", "")):
                yield Hit(each.spot.at(tag.line), tag.attributes["style"], text)


# Words

FILLED_IN = r"\{\{.*?\}\}|\{%.*?%\}|\*\|[A-Z][A-Z_:0-9]*\|\*|%recipient[._]\w+%|\[(?:FIRST|LAST)[ _]?NAME\]"
PLACEHOLDERS = re.compile(FILLED_IN)
TK = re.compile(r"(?<![\w/-])(?:TK)+(?![\w/-])")
TODO = re.compile(r"(?:^|[\[(])\s*(?:TODO|FIXME|XXX)\b(?!s?\s+(?:list|app|item|comment))|\b(?:TODO|FIXME|XXX):")
LOREM = re.compile(r"\blorem ipsum\b", re.IGNORECASE)
FOOTNOTE = re.compile(r"\[\^[^\]\s]{1,60}\]")
ATTACHED = re.compile(
    r"\b(?:I(?:['’]ve| have|['’]m| am)? attach(?:ed|ing)?(?! to)\b|find attached|attached (?:you|is the|are the)"
    r"|(?:see|open) (?:the )?attach(?:ed|ment)|the attached (?:file|pdf|document|spreadsheet|slides|zip|picture|image)"
    r"|in the attachment|attachment (?:below|to this (?:mail|e-?mail)))",
    re.IGNORECASE,
)


def _written_by_hand(found: Inspection) -> Iterator[tuple[Spot, str]]:
    """Yield the texts in which placeholders are filled in: subject, preheader and the introduction's prose."""
    yield subject_line(), found.raw_subject
    yield preheader_line(), found.raw_preheader
    for text, prose in found.prose:
        if text.spot.key == "introduction":
            yield text.spot.at(prose.line), prose.words


def _of_prose(found: Inspection, pattern: re.Pattern[str], message: str) -> Hits:
    for text, prose in found.prose:
        for each in pattern.finditer(prose.words):
            around = Truncator(prose.words[max(0, each.start() - 20) : each.start() + 80]).chars(60)
            yield Hit(text.spot.at(prose.line), around, message % {"words": each.group().strip()})


@check("placeholder-unknown", BLOCKS)
def placeholder_unknown(found: Inspection) -> Hits:
    text = _(
        "“%(words)s” is no placeholder here, and readers would see it as it stands. Only {{ name|there }} is known."
    )
    for spot, words in _written_by_hand(found):
        for each in PLACEHOLDERS.findall(words):
            if not message.PLACEHOLDER.fullmatch(each):
                yield Hit(spot, each, text % {"words": Truncator(each).chars(60)})


@check("placeholder-bare", WARNS)
def placeholder_bare(found: Inspection) -> Hits:
    text = _("Most readers gave no name, so “%(words)s” leaves a gap. Say what stands there then: {{ name|there }}.")
    for spot, words in _written_by_hand(found):
        for each in message.PLACEHOLDER.finditer(words):
            if not each.group(2):
                yield Hit(spot, each.group(), text % {"words": each.group()})


@check("placeholder-in-post", WARNS)
def placeholder_in_post(found: Inspection) -> Hits:
    text = _("“%(words)s” is filled in only in subject, preheader and introduction: here it stays. Write it otherwise.")
    for each, prose in found.prose:
        for known in message.PLACEHOLDER.finditer(prose.words) if each.spot.post_id else ():
            yield Hit(each.spot.at(prose.line), known.group(), text % {"words": known.group()})


@check("left-tk", WARNS)
def left_tk(found: Inspection) -> Hits:
    return _of_prose(found, TK, _("“%(words)s” says that something is still to come. Fill it in."))


@check("left-todo", WARNS)
def left_todo(found: Inspection) -> Hits:
    return _of_prose(found, TODO, _("“%(words)s” still stands in the text. Do it, or take it out."))


@check("left-lorem", WARNS)
def left_lorem(found: Inspection) -> Hits:
    return _of_prose(found, LOREM, _("“%(words)s” holds a place for words of your own. Write them."))


@check("footnote-missing", WARNS)
def footnote_missing(found: Inspection) -> Hits:
    return _of_prose(
        found, FOOTNOTE, _("The footnote %(words)s is not written anywhere, so readers see its mark. Write it.")
    )


@check("attachment-missing", WARNS)
def attachment_missing(found: Inspection) -> Hits:
    text = _("“%(words)s”: an issue carries no attachments. Link to the file instead.")
    return _of_prose(found, ATTACHED, text)


@check("heading-skipped", WARNS)
def heading_skipped(found: Inspection) -> Hits:
    """A post's title is of the first level; an introduction has none."""
    for text in found.texts:
        last = 1 if text.spot.post_id else 6
        for heading in text.headings:
            if heading.level > last + 1:
                words = _("“%(words)s” is a heading of level %(level)s below one of level %(last)s. Leave none out.")
                values = {"words": Truncator(heading.words).chars(60), "level": heading.level, "last": last}
                yield Hit(text.spot.at(heading.line), heading.words, words % values)
            last = heading.level


@check("heading-empty", WARNS)
def heading_empty(found: Inspection) -> Hits:
    for text in found.texts:
        for heading in text.headings:
            if not heading.words.strip():
                yield Hit(text.spot.at(heading.line), "", _("A heading has no words. Write them, or take it out."))


# Secrets: searched for in the whole source, code and addresses too. What is found is never written down whole.

AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?i:aws_secret_access_key)\W{1,5}[A-Za-z0-9/+]{40}\b")
GITHUB = re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})")
SLACK = re.compile(r"\bxox[abeprs]-(?=[A-Za-z-]*\d)[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w{20,}")
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?=[\s\S]{0,300}?[A-Za-z0-9+/=]{40})")
JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}")
OTHER_TOKEN = re.compile(
    r"\b(?:[sr]k_live_[A-Za-z0-9]{16,}|AIza[\w-]{35}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,}"
    r"|SG\.[\w-]{22}\.[\w-]{43})"
)
AWS_ACCOUNT = re.compile(
    r"\barn:aws[\w-]*:[\w-]*:[\w-]*:(\d{12}):|\b(\d{12})\.dkr\.ecr\.|\baccount(?:[ _-]?id)?\W{1,5}(\d{12})\b",
    re.IGNORECASE,
)
# What documentation uses: it stands for an account and is none.
NO_ACCOUNT = {"123456789012", "111122223333", "444455556666", "123412341234", "012345678901", "210987654321"}


def _is_made_up(secret: str) -> bool:
    """Tell an example from a real one: it says so, or has hardly more than one character, as xxxxxxxx does."""
    return "EXAMPLE" in secret.upper() or len(set(secret[-16:])) < 5


def _of_secrets(found: Inspection, pattern: re.Pattern[str], message: object) -> Hits:
    sources = [(subject_line(), found.raw_subject), (preheader_line(), found.raw_preheader)]
    for spot, source in [*sources, *((text.spot, text.body) for text in found.texts)]:
        for each in pattern.finditer(source):
            secret = next((group for group in each.groups() if group), each.group())
            if not _is_made_up(secret):
                line = source.count("\n", 0, each.start()) + 1
                yield Hit(spot.at(line), _masked(secret), str(message) % {"secret": secret[:4]})


def _masked(secret: str) -> str:
    """Name a secret without telling it: waivers are kept for ever."""
    return f"{secret[:4]}… ({hashlib.sha256(secret.encode()).hexdigest()[:12]})"


SECRETS = {
    "secret-aws-key": (
        AWS_KEY,
        gettext_lazy(
            "An AWS access key stands in the text (“%(secret)s…”). Take it out, and revoke it if it was ever real."
        ),
    ),
    "secret-github-token": (
        GITHUB,
        gettext_lazy(
            "A GitHub token stands in the text (“%(secret)s…”). Take it out, and revoke it if it was ever real."
        ),
    ),
    "secret-slack-token": (
        SLACK,
        gettext_lazy(
            "A Slack token stands in the text (“%(secret)s…”). Take it out, and revoke it if it was ever real."
        ),
    ),
    "secret-private-key": (
        PRIVATE_KEY,
        gettext_lazy("A private key stands in the text. Take it out, and replace the key if it was ever used."),
    ),
    "secret-jwt": (
        JWT,
        gettext_lazy(
            "A signed token (JWT) stands in the text (“%(secret)s…”). Take it out: whoever has it may use it."
        ),
    ),
    "secret-other-token": (
        OTHER_TOKEN,
        gettext_lazy(
            "A service's secret key stands in the text (“%(secret)s…”). Take it out, and revoke it if it is real."
        ),
    ),
}
for check_id, (pattern, text) in SECRETS.items():
    check(check_id, BLOCKS)(partial(_of_secrets, pattern=pattern, message=text))


@check("secret-aws-account", WARNS)
def secret_aws_account(found: Inspection) -> Hits:
    text = _("An AWS account's number stands in the text (“%(secret)s…”). Write 123456789012 in its stead.")
    return (hit for hit in _of_secrets(found, AWS_ACCOUNT, text) if hit.what not in map(_masked, NO_ACCOUNT))
