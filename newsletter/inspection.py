"""What preflight looks at: an issue as it would go, read once, with everything that needs the database or a file.

The author's Markdown is taken apart into prose, links, pictures, code and headings, each with its line, so that the
checks are plain functions over it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from uuid import UUID, uuid4

from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import default_storage
from django.core.handlers.base import BaseHandler
from django.db import transaction
from django.test import RequestFactory
from django.urls import Resolver404, resolve, reverse
from django.utils.translation import gettext as _
from markdown_it.token import Token
from PIL import Image, UnidentifiedImageError

from newsletter import linkcheck, message, rendering
from newsletter.models import Issue, IssuePost
from posts import markdown
from posts.models import Post, Publication, Redirect
from subscribers.models import Subscriber

logger = logging.getLogger(__name__)

CODE_TAGS = {"code", "kbd", "pre", "samp", "script", "style"}
ENDINGS = {"jpg": "JPEG", "jpeg": "JPEG"} | {
    ending: ending.upper() for ending in ("png", "gif", "webp", "avif", "svg", "bmp", "tif", "tiff", "heic", "ico")
}
# A reader as most are, for what is read; how large the mail can become is measured with the longest values.
TYPICAL = message.Values("reader@example.com", "Alex", UUID(int=0), "<preflight@example.com>")


@dataclass(frozen=True)
class Spot:
    """A place in what the author wrote: `key` names it for ever, `label` and `line` tell a person where to look."""

    key: str
    label: str
    line: int = 0
    post_id: int | None = None

    def at(self, line: int) -> Spot:
        return replace(self, line=line)


@dataclass(frozen=True)
class Prose:
    """Words of one line, without code."""

    words: str
    line: int


@dataclass(frozen=True)
class Link:
    href: str
    words: str
    line: int


@dataclass(frozen=True)
class Picture:
    src: str
    alt: str | None
    line: int


@dataclass(frozen=True)
class Code:
    """A block of code; `line` is where its content begins."""

    content: str
    line: int
    closed: bool = True


@dataclass(frozen=True)
class Heading:
    level: int
    words: str
    line: int


@dataclass(frozen=True)
class RawTag:
    """A tag of HTML that stands in the Markdown."""

    name: str
    attributes: dict[str, str]
    line: int


@dataclass
class Text:
    """A Markdown text of the issue, taken apart."""

    spot: Spot
    body: str
    prose: list[Prose] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    tags: list[RawTag] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """What is known of a picture: `kind` is the format's name, sizes are 0 where it lies elsewhere."""

    kind: str
    size: int = 0
    width: int = 0
    height: int = 0
    missing: bool = False


@dataclass(frozen=True)
class Entry:
    """A post of the issue: whether it goes in full, has a page on the web, and which issue brought it before."""

    spot: Spot
    full: bool
    has_page: bool
    mailed_as: str = ""


@dataclass(frozen=True)
class Inspection:
    """An issue as it would go out. `html` and `text` are filled with a typical reader's values."""

    publication: Publication
    raw_subject: str
    raw_preheader: str
    subject: str
    preheader: str
    html: str
    text: str
    size: int  # bytes of the HTML part with the longest values
    texts: list[Text]
    entries: list[Entry]
    last_subject: str
    files: dict[str, File]
    nowhere: frozenset[str]  # links to this site that lead to no page a reader can see
    error: str = ""  # why it could not be rendered
    unsubscribe_problem: str = ""
    answers: dict[str, linkcheck.Answer] = field(default_factory=dict)
    unsubscribe_answer: linkcheck.Answer | None = None

    @property
    def links(self) -> Iterator[tuple[Text, Link]]:
        return ((text, link) for text in self.texts for link in text.links)

    @property
    def pictures(self) -> Iterator[tuple[Text, Picture]]:
        return ((text, picture) for text in self.texts for picture in text.pictures)

    @property
    def prose(self) -> Iterator[tuple[Text, Prose]]:
        return ((text, prose) for text in self.texts for prose in text.prose)


# Where things stand


def whole_issue() -> Spot:
    return Spot("issue", _("the issue"))


def subject_line() -> Spot:
    return Spot("subject", _("the subject"))


def preheader_line() -> Spot:
    return Spot("preheader", _("the preheader"))


def of_publication() -> Spot:
    return Spot("publication", _("the publication"))


def look_at(issue: Issue) -> Inspection:
    """Render the issue and gather all that the checks ask for; asks no network."""
    publication = Publication.current()
    items = list(issue.issue_posts.select_related("post"))
    texts = _texts(issue, items)
    source, error = _render(issue)
    template = message.Template(source) if source else None
    return Inspection(
        publication=publication,
        raw_subject=issue.subject,
        raw_preheader=issue.preheader,
        subject=template.subject(TYPICAL) if template else issue.subject,
        preheader=message.PLACEHOLDER.sub(TYPICAL.name, issue.preheader),
        html=template.html(TYPICAL) if template else "",
        text=template.text(TYPICAL) if template else "",
        size=len(template.html(message.LONGEST).encode()) if template else 0,
        texts=texts,
        entries=_entries(issue, items),
        last_subject=_last_subject(issue),
        files={picture.src: _file(picture.src) for text in texts for picture in text.pictures},
        nowhere=_nowhere(texts, items),
        error=error,
        unsubscribe_problem=unsubscribe_problem(),
    )


def ask_links(found: Inspection) -> Inspection:
    """Return the inspection with what the network says of its links and of the unsubscribe address."""
    urls = [url for _text, link in found.links if (url := web_address(link.href))]
    return replace(found, answers=linkcheck.ask_all(urls), unsubscribe_answer=_ask_unsubscribe())


def web_address(href: str) -> str:
    """Return what a link leads to from a mail where that is a web address, else nothing."""
    with suppress(ValueError):
        whole = href if urlsplit(href).scheme else urljoin(f"{settings.SITE_URL}/", href)
        if not href.startswith("#") and urlsplit(whole).scheme in ("http", "https"):
            return whole
    return ""


def is_own(url: str) -> bool:
    """Tell whether `url` leads to this site."""
    return url == settings.SITE_URL or url.startswith((f"{settings.SITE_URL}/", f"{settings.SITE_URL}?"))


def _render(issue: Issue) -> tuple[dict[str, Any], str]:
    try:
        return issue.source or rendering.render_issue(issue), ""
    except ValueError as error:
        return {}, str(error)


def _last_subject(issue: Issue) -> str:
    sent = Issue.objects.archived().exclude(pk=issue.pk).order_by("-started_at")
    return sent.values_list("subject", flat=True).first() or ""


def _entries(issue: Issue, items: list[IssuePost]) -> list[Entry]:
    earlier = IssuePost.objects.filter(post__in=[item.post_id for item in items], issue__started_at__isnull=False)
    mailed = {item.post_id: str(item.issue) for item in earlier.exclude(issue=issue).select_related("issue")}
    return [
        Entry(
            _spot(item.post),
            full=item.mode == IssuePost.Mode.FULL,
            has_page=item.post.visibility != Post.Visibility.EMAIL_ONLY,
            mailed_as=mailed.get(item.post_id, ""),
        )
        for item in items
    ]


def _spot(post: Post) -> Spot:
    return Spot(f"post {post.pk}", f"“{post.title}”", post_id=post.pk)


def _texts(issue: Issue, items: list[IssuePost]) -> list[Text]:
    """Take apart what of the issue is Markdown and goes into the mail."""
    parts = [(Spot("introduction", _("the introduction")), issue.introduction)] if issue.introduction else []
    parts += [(_spot(item.post), item.post.body) for item in items if item.mode == IssuePost.Mode.FULL]
    return [read(spot, body) for spot, body in parts]


def read(spot: Spot, body: str) -> Text:
    """Take a Markdown text apart; one that the renderer would refuse comes back with its source alone."""
    try:
        return _Reading(spot, body).text
    except (ValueError, RecursionError):
        return Text(spot, body)


class _Reading(HTMLParser):
    """Goes once through a text's tokens, and through the tags that stand among them."""

    def __init__(self, spot: Spot, body: str) -> None:
        super().__init__()
        self.text = Text(spot, body)
        self.lines = body.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._line = 0  # of the token at hand, from 1
        self._before = 0  # lines before the tag at hand
        self._quiet = 0  # how many raw tags of code are open
        self._words: list[str] = []
        self._open: tuple[str, int, list[str]] | None = None
        if len(body) > markdown.MAX_CHARACTERS:
            raise ValueError("too long")
        self._blocks(markdown.PARSERS["email"].parse(body, {}))

    def _blocks(self, tokens: Sequence[Token]) -> None:
        level = 0
        for token in tokens:
            self._line = token.map[0] + 1 if token.map else self._line
            level = int(token.tag[1]) if token.type == "heading_open" else level
            if token.type in ("fence", "code_block"):
                self._code(token)
            elif token.type == "html_block":
                self._quiet = 0
                self._html(token.content)
                self._end_line()
            elif token.type == "inline":
                self._quiet = 0
                start = self._line
                self._inline(token.children or [])
                if level:
                    self.text.headings.append(Heading(level, token.content, start))
                level = 0

    def _inline(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            if token.type in ("softbreak", "hardbreak"):
                self._say(" ")
                self._end_line()
                self._line += 1
            elif token.type == "text":
                self._say(token.content)
            elif token.type == "code_inline":
                self._say(token.content, code=True)
            elif token.type == "image":
                self._image(str(token.attrGet("src") or ""), token.content or None)
            elif token.type == "html_inline":
                self._html(token.content)
            elif token.type == "link_open":
                self._open_link(str(token.attrGet("href") or ""))
            elif token.type == "link_close":
                self._close_link()
        self._close_link()
        self._end_line()

    def _code(self, token: Token) -> None:
        fenced = token.type == "fence"
        closed = not fenced or self._is_closed(token)
        self.text.codes.append(Code(token.content, self._line + fenced, closed))

    def _is_closed(self, token: Token) -> bool:
        first, end = token.map or [0, 0]
        last = self.lines[end - 1].strip(" >\t") if end - 1 > first else ""
        return len(last) >= len(token.markup) and not last.strip(token.markup[0])

    def _say(self, words: str, *, code: bool = False) -> None:
        self._words.append("`…`" if code or self._quiet else words)
        if self._open:
            self._open[2].append(words)

    def _end_line(self) -> None:
        if words := "".join(self._words).strip():
            self.text.prose.append(Prose(words, self._line))
        self._words.clear()

    def _image(self, src: str, alt: str | None) -> None:
        self.text.pictures.append(Picture(src, alt, self._line))
        if self._open:
            self._open[2].append(alt or "[image]")

    def _open_link(self, href: str) -> None:
        self._close_link()
        self._open = (href, self._line, [])

    def _close_link(self) -> None:
        if self._open:
            href, line, words = self._open
            self.text.links.append(Link(href, " ".join("".join(words).split()), line))
        self._open = None

    # Raw HTML

    def _html(self, fragment: str) -> None:
        self.reset()
        self._before = self._line - 1
        with suppress(AssertionError):  # what the parser says of a declaration that is none
            self.feed(fragment)
            self.close()
        self._line = self._before + 1 + fragment.rstrip("\n").count("\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._line = self._before + self.getpos()[0]
        given = {name: value or "" for name, value in attrs}
        self.text.tags.append(RawTag(tag, given, self._line))
        self._quiet += tag in CODE_TAGS
        if tag == "a" and "href" in given:
            self._open_link(given["href"])
        elif tag == "img":
            self._image(given.get("src", ""), given.get("alt"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._close_link()
        elif tag in CODE_TAGS:
            self._quiet = max(0, self._quiet - 1)

    def handle_data(self, data: str) -> None:
        first = self._before + self.getpos()[0]
        for number, words in enumerate(data.split("\n")):
            if number:
                self._end_line()
            self._line = first + number
            self._say(words if not number else f" {words}")


# Pictures and pages of our own


def _file(src: str) -> File:
    """Return what is known of a picture: of our own the file's, of any other what its name says."""
    try:
        path = unquote(urlsplit(src.removeprefix(settings.SITE_URL)).path)
    except ValueError:
        return File("")
    if not is_own(web_address(src)):
        return File(ENDINGS.get(path.rpartition(".")[2].lower(), ""))
    if not path.startswith(settings.MEDIA_URL):
        return File("", missing=not path.startswith(settings.STATIC_URL))
    name = path.removeprefix(settings.MEDIA_URL)
    try:
        size = default_storage.size(name)
        with default_storage.open(name) as file, Image.open(file) as image:
            return File(image.format or "", size, *image.size)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return File("?")
    except (OSError, ValueError, SuspiciousFileOperation):
        return File("", missing=True)


def _nowhere(texts: list[Text], items: list[IssuePost]) -> frozenset[str]:
    """Return the links to this site behind which no reader will find a page once the issue is out."""
    hrefs = (link.href for text in texts for link in text.links)
    ours = {href for href in hrefs if href.startswith(("/", settings.SITE_URL)) and is_own(web_address(href))}
    going = {item.post.slug for item in items if item.post.visibility != Post.Visibility.EMAIL_ONLY}
    return frozenset(href for href in ours if not _leads_somewhere(urlsplit(web_address(href)).path or "/", going))


def _leads_somewhere(path: str, going: set[str]) -> bool:
    try:
        match = resolve(path if path.endswith("/") or "." in path.rpartition("/")[2] else f"{path}/")
    except Resolver404:
        return Redirect.objects.filter(path=path).exists()
    if match.view_name != "posts:post":
        return True
    slug = match.kwargs["slug"]
    return slug in going or Post.objects.published().filter(slug=slug).exists() or _is_redirected(path)


def _is_redirected(path: str) -> bool:
    return Redirect.objects.filter(path=path).exists()


# The way out


def unsubscribe_problem() -> str:
    """Say what keeps a reader's one press from unsubscribing him (RFC 8058); nothing where it works.

    A reader is made, the POST goes through the whole site in this process, and all of it is rolled back. What works is
    asked once a process, for nothing in it changes.
    """
    try:
        _try_unsubscribing()
    except _Refused as refusal:
        return str(refusal)
    return ""


class _Refused(Exception):
    """Unsubscribing did not work; says how."""


@lru_cache(maxsize=1)
def _try_unsubscribing() -> None:
    """Unsubscribe a reader who never was. Raises _Refused, which the cache does not keep."""
    with transaction.atomic():
        reader = Subscriber.objects.create(address=f"preflight-{uuid4().hex}@example.com")
        try:
            copy_context().run(_press, reader)  # what the site keeps of the request under way stays as it is
        finally:
            transaction.set_rollback(True)


def _press(reader: Subscriber) -> None:
    handler = BaseHandler()
    handler.load_middleware()
    site = urlsplit(settings.SITE_URL)
    path = reverse("subscribers:unsubscribe", args=[reader.unsubscribe_id])
    request = RequestFactory().post(path, {"List-Unsubscribe": "One-Click"}, headers={"host": site.netloc})
    response = handler.get_response(request)
    if response.status_code != 200:
        raise _Refused(_("it answers %(status)s") % {"status": response.status_code})
    reader.refresh_from_db()
    if reader.status != Subscriber.Status.UNSUBSCRIBED:
        raise _Refused(_("the reader stayed subscribed"))


def _ask_unsubscribe() -> linkcheck.Answer:
    """Ask our own address from outside, with a reader's key that is nobody's: all but 200 and 404 is wrong."""
    url = settings.SITE_URL + reverse("subscribers:unsubscribe", args=[UUID(int=0)])
    try:
        return linkcheck.ask(url, method="POST")
    except linkcheck.Failed as failed:
        return failed.answer
