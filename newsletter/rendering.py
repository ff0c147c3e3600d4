"""Render an issue into the source that freeze keeps: subject, HTML and text with marks where a reader's values go."""

from __future__ import annotations

import datetime as dt
import textwrap
from collections.abc import Iterable
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import css_inline
from django.conf import settings
from django.core import signing
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import pgettext

from newsletter import message
from newsletter.models import Issue, IssuePost
from posts import markdown, theme
from posts.models import Post, Publication
from subscribers.models import Subscriber

VIEW_SALT = "newsletter.view-in-browser"
# Gmail clips HTML beyond about 102,400 bytes, and the way to unsubscribe with it.
SIZE_WARN = 80_000
SIZE_BLOCK = 100_000
# Only the article's styles are put inline here: the frame around it has its own from MJML, with comments for Outlook
# and a stylesheet that stay as they are.
INLINER = css_inline.CSSInliner(minify_css=True, load_remote_stylesheets=False)
TINT, DARK_TINT = "#f3f1eb", "#272d33"  # the darkest ground of the light mail, and the lightest of the dark one
LOGO_WIDTH, LOGO_HEIGHT = 240, 48  # pixels at most
ALERT_COLORS = {
    "note": ("#1f5fa8", "#7db4f5"),
    "tip": ("#1b6e3c", "#6cc58d"),
    "important": ("#6a3fb5", "#bb9cf3"),
    "warning": ("#8a5300", "#e2ac57"),
    "caution": ("#b3261e", "#f38b83"),
}


def render_issue(
    issue: Issue, *, date: dt.datetime | None = None, items: Iterable[IssuePost] | None = None
) -> dict[str, Any]:
    """Return the JSON-able source of an issue; every copy of it, and the page “view in browser”, is made of this.

    It is in the publication's language, whoever asks for it. Raises ValueError where the publication's sender or
    reply-to is not one address, or a text can't be rendered.
    """
    publication, holes = Publication.current(), message.Holes(issue.pk)
    with translation.override(publication.language):
        shown = issue.issue_posts.select_related("post") if items is None else items
        context = _context(issue, publication, holes, shown)
        html = render_to_string("emails/issue/body.html", context)
        text = render_to_string("emails/issue/body.txt", context).strip() + "\n"
    return {
        **_identity(issue, publication),
        "date": format_datetime((date or timezone.now()).astimezone(dt.UTC)),
        "subject": context["subject"],
        "html": html,
        "text": text,
        "holes": holes.as_json(),
    }


def preview_html(issue: Issue, subscriber: Subscriber | None = None) -> str:
    """Return the HTML part as `subscriber`, or a reader without a name, would get it."""
    return message.Template(_source(issue)).html(_values(issue, subscriber))


def preview_text(issue: Issue, subscriber: Subscriber | None = None) -> str:
    """Return the text part as `subscriber`, or a reader without a name, would get it."""
    return message.Template(_source(issue)).text(_values(issue, subscriber))


def preview_post(post: Post) -> tuple[str, int]:
    """Return the HTML part of a mail that holds `post` alone, saved or not, and its size as `size_bytes` has it."""
    issue = Issue(pk=0, subject=post.title)
    source = render_issue(issue, items=[IssuePost(issue=issue, post=post, mode=IssuePost.Mode.FULL)])
    return message.Template(source).html(_values(issue, None)), message.size_of_html(source)


def size_bytes(issue: Issue) -> int:
    """Return the size of the HTML part in bytes, with the longest values a reader can have; see SIZE_WARN."""
    return message.size_of_html(_source(issue))


def view_url(issue: Issue) -> str:
    """Return the signed address of “view in browser”; it names the issue and no reader."""
    token = signing.Signer(salt=VIEW_SALT).sign(str(issue.pk))
    return settings.SITE_URL + reverse("newsletter:view_in_browser", args=[token])


def web_html(issue: Issue) -> str:
    """Return the HTML part for the web: no reader's values, and the way out leads to the preferences."""
    source = _source(issue)
    shown = message.Template(source).html(_values(issue, None))
    return shown.replace(f"{settings.SITE_URL}/u/{UUID(int=0)}/", f"{settings.SITE_URL}/preferences/")


def _source(issue: Issue) -> dict[str, Any]:
    return issue.source or render_issue(issue)


def _values(issue: Issue, subscriber: Subscriber | None) -> message.Values:
    return message.Values(
        address=subscriber.address if subscriber else "",
        name=subscriber.name if subscriber else "",
        unsubscribe_id=subscriber.unsubscribe_id if subscriber else UUID(int=0),
        message_id="",
    )


def _identity(issue: Issue, publication: Publication) -> dict[str, Any]:
    host = urlsplit(settings.SITE_URL).hostname or "localhost"
    return {
        "publication": publication.name,
        "from_name": publication.sender,
        "from_address": message.sender_address(publication.sender_address),
        "reply_to": message.sender_address(publication.reply_to) if publication.reply_to else "",
        "list_id": f"newsletter.{host}",
        "archive_url": settings.SITE_URL + reverse("newsletter:issues"),
        "help_url": settings.SITE_URL + "/preferences/",
        "web_url": view_url(issue),
        # Gmail's feedback loop: never a field that tells one reader from another.
        "feedback_id": f"{issue.pk}:newsletter:issue:{host.replace('.', '')[:15]:-<5}",
    }


def _context(
    issue: Issue, publication: Publication, holes: message.Holes, items: Iterable[IssuePost]
) -> dict[str, Any]:
    introduction = holes.replace(issue.introduction)
    look = _look(publication)
    css = render_to_string("emails/issue/article.css", look)
    return {
        **look,
        "issue": issue,
        "publication": publication,
        "subject": holes.replace(issue.subject),
        "preheader": holes.replace(issue.preheader),
        "introduction_html": _article(introduction, "intro-", css),
        "introduction_text": markdown.render_text(introduction),
        "items": [_item(item, css) for item in items],
        "site_url": settings.SITE_URL,
        "web_url": view_url(issue),
        "unsubscribe_url": holes.mark("unsubscribe_url"),
        "address": holes.mark("address", pgettext("the mail goes to", "you")),
        "preferences_url": f"{settings.SITE_URL}/preferences/",
        "privacy_url": f"{settings.SITE_URL}/privacy/",
    }


def _look(publication: Publication) -> dict[str, Any]:
    """Return the colours of the mail, each with what it becomes on a dark ground, and the logo."""
    accent = publication.accent_color
    return {
        "accent": {
            "light": theme.shade(accent, surface=TINT, toward="#000000"),
            "dark": theme.shade(accent, surface=DARK_TINT, toward="#ffffff"),
        },
        "code_colors": markdown.CODE_COLORS,
        "alert_colors": list(ALERT_COLORS.values()),
        "alerts": ALERT_COLORS,
        "logo": _logo(publication),
    }


def _logo(publication: Publication) -> dict[str, Any] | None:
    """Return the logo's address and the size at which it is shown; None where there is none, or its file is gone."""
    url = markdown.absolute(publication.logo.url) if publication.logo else ""
    size = markdown.image_size(url) if url else None
    if not size:
        return None
    scale = min(1, LOGO_WIDTH / size[0], LOGO_HEIGHT / size[1])
    return {"url": url, "width": round(size[0] * scale), "height": round(size[1] * scale)}


def _article(text: str, prefix: str, css: str) -> str:
    """Return Markdown as HTML for a mail, with its styles in the text: some Gmail accounts drop every stylesheet."""
    return INLINER.inline_fragment(markdown.render(text, target="email", prefix=prefix), css) if text else ""


def _item(item: IssuePost, css: str) -> dict[str, Any]:
    post = item.post
    full = item.mode == IssuePost.Mode.FULL
    web = post.visibility != post.Visibility.EMAIL_ONLY
    return {
        "post": post,
        "full": full,
        "url": settings.SITE_URL + post.get_absolute_url() if web else "",
        "html": _article(post.body, f"p{post.pk}-", css) if full else "",
        "text": markdown.render_text(post.body) if full else "",
        "title": (title := textwrap.fill(post.title, markdown.TEXT_WIDTH)),
        "underline": "=" * max(map(len, title.splitlines()), default=0),
        "subtitle": textwrap.fill(post.subtitle, markdown.TEXT_WIDTH),
        "teaser": textwrap.fill(post.summary, markdown.TEXT_WIDTH),
    }
