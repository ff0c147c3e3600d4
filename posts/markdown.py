"""Turn an author's Markdown into sanitised HTML for the web or for mail, and into plain text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rendered:
    """A text made ready: sanitised web HTML, plain text, and minutes to read it."""

    html: str
    text: str
    reading_minutes: int


def render(text: str, target: str = "web") -> str:
    """Return sanitised HTML of Markdown `text` for `target`: "web" or "email"."""
    raise LookupError(target)


def render_text(text: str) -> str:
    """Return Markdown `text` as plain text that reads well in a mail: links as [1] with a list, or in line."""
    raise LookupError(text)


def render_post(text: str) -> Rendered:
    """Return what a post stores of its Markdown."""
    raise LookupError(text)
