"""Test mode for issues: every copy goes to TEST_MODE_ADDRESS instead, says whom it was for, and leads nobody out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings

from newsletter import message
from newsletter.transport import Letter
from subscribers import testmode

NOBODY = UUID(int=0)


def source(source: dict[str, Any]) -> dict[str, Any]:
    """Return an issue's source with a banner that names each copy's reader; outside test mode as it is."""
    if not settings.TEST_MODE_ADDRESS:
        return source
    holes = message.Holes(None)
    parts = testmode.Parts(source["subject"], source["text"], source["html"])
    marked = testmode.marked(parts, whom=holes.mark("address"))
    return {**source, **marked._asdict(), "holes": [*source["holes"], *holes.as_json()]}


def letter(template: message.Template, values: message.Values) -> Letter:
    """Return a reader's copy as it goes to TEST_MODE_ADDRESS.

    Its links to unsubscribe are nobody's, so that no press on them takes the reader off the list, and a bounce does not
    come home as his.
    """
    content = template.fill(values._replace(unsubscribe_id=NOBODY))
    was, now = values.address, settings.TEST_MODE_ADDRESS
    content = content.replace(f"\r\nTo: {was}\r\n".encode(), f"\r\nTo: {now}\r\nX-Original-To: {was}\r\n".encode(), 1)
    return Letter(template.from_address, now, (content,))
