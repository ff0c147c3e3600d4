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
from django.core.exceptions import ValidationError
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from newsletter import message
from newsletter.models import Issue, IssuePost
from posts import markdown
from posts.models import Post, Publication
from subscribers.models import Subscriber

VIEW_SALT = "newsletter.view-in-browser"
# Gmail clips HTML beyond about 102,400 bytes, and the way to unsubscribe with it.
SIZE_WARN = 80_000
SIZE_BLOCK = 100_000
INLINER = css_inline.CSSInliner(keep_at_rules=True, keep_style_tags=False, load_remote_stylesheets=False)


def render_issue(
    issue: Issue, *, date: dt.datetime | None = None, items: Iterable[IssuePost] | None = None
) -> dict[str, Any]:
    """Return the JSON-able source of an issue; every copy of it, and the page “view in browser”, is made of this.

    Raises ValueError where the publication's sender or reply-to is not one address, or a text can't be rendered.
    """
    holes = message.Holes(issue.pk)
    context = _context(issue, holes, issue.issue_posts.select_related("post") if items is None else items)
    return {
        **_identity(issue, context["publication"]),
        "date": format_datetime((date or timezone.now()).astimezone(dt.UTC)),
        "subject": context["subject"],
        "html": INLINER.inline(render_to_string("emails/issue/body.html", context)),
        "text": render_to_string("emails/issue/body.txt", context).strip() + "\n",
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


def check_size(issue: Issue) -> None:
    """Raise ValidationError where Gmail would cut the HTML part off, and with it the way to unsubscribe (MSG-6)."""
    size = size_bytes(issue)
    if size > SIZE_BLOCK:
        raise ValidationError(
            _(
                "The mail's HTML part has %(size)s kB and Gmail cuts off what exceeds 100, the unsubscribe link too. "
                "Shorten the issue, or give a post as a teaser."
            ),
            params={"size": round(size / 1000)},
        )


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


def _context(issue: Issue, holes: message.Holes, items: Iterable[IssuePost]) -> dict[str, Any]:
    publication = Publication.current()
    introduction = holes.replace(issue.introduction)
    return {
        "issue": issue,
        "publication": publication,
        "subject": holes.replace(issue.subject),
        "preheader": holes.replace(issue.preheader),
        "introduction_html": markdown.render(introduction, target="email", prefix="intro-"),
        "introduction_text": markdown.render_text(introduction),
        "items": [_item(item) for item in items],
        "site_url": settings.SITE_URL,
        "web_url": view_url(issue),
        "unsubscribe_url": holes.mark("unsubscribe_url"),
        "address": holes.mark("address", "you"),
        "preferences_url": f"{settings.SITE_URL}/preferences/",
        "privacy_url": f"{settings.SITE_URL}/privacy/",
    }


def _item(item: IssuePost) -> dict[str, Any]:
    post = item.post
    full = item.mode == IssuePost.Mode.FULL
    web = post.visibility != post.Visibility.EMAIL_ONLY
    return {
        "post": post,
        "full": full,
        "url": settings.SITE_URL + post.get_absolute_url() if web else "",
        "html": markdown.render(post.body, target="email", prefix=f"p{post.pk}-") if full else "",
        "text": markdown.render_text(post.body) if full else "",
        "teaser": textwrap.fill(post.summary, markdown.TEXT_WIDTH),
        "underline": "=" * min(len(post.title), markdown.TEXT_WIDTH),
    }
