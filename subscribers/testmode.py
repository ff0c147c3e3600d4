"""Test mode: while TEST_MODE_ADDRESS is set all mail goes there instead, and a banner names whom it was for."""

from __future__ import annotations

import re
from typing import NamedTuple

from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.html import format_html
from django.utils.translation import gettext as _

BODY = re.compile(r"<body\b[^>]*>", re.IGNORECASE)
STYLE = "margin:0;padding:12px 16px;background:#fde68a;color:#451a03;font:bold 15px/1.4 sans-serif"


class Parts(NamedTuple):
    """What of a mail a person reads."""

    subject: str
    text: str
    html: str


def marked(parts: Parts, *, whom: str) -> Parts:
    """Return the parts with a banner that names the true recipient, or the mark that stands for him."""
    words = _("Test mode: this mail was for %(whom)s and did not go there.") % {"whom": whom}
    banner = format_html('<p style="{}">{}</p>', STYLE, words)
    found = BODY.search(parts.html)
    at = found.end() if found else 0
    return Parts(
        subject=_("[Test mode, for %(whom)s] %(subject)s") % {"whom": whom, "subject": parts.subject},
        text=f"*** {words} ***\n\n{parts.text}",
        html=parts.html[:at] + banner + parts.html[at:],
    )


def redirected(mail: EmailMessage) -> EmailMessage:
    """Lead a system mail to TEST_MODE_ADDRESS; outside test mode it stays as it is."""
    if not settings.TEST_MODE_ADDRESS:
        return mail
    whom = ", ".join(mail.recipients())
    given = mail.alternatives if isinstance(mail, EmailMultiAlternatives) else []
    parts = marked(Parts(str(mail.subject), str(mail.body), str(given[0][0]) if given else ""), whom=whom)
    mail.subject, mail.body = parts.subject, parts.text
    if isinstance(mail, EmailMultiAlternatives) and given:
        given.clear()
        mail.attach_alternative(parts.html, "text/html")
    mail.to, mail.cc, mail.bcc = [settings.TEST_MODE_ADDRESS], [], []
    mail.extra_headers["X-Original-To"] = whom
    return mail
