"""Keys that stand in addresses, taken out of what is logged or kept: whoever reads a log must not become a reader."""

import logging
import re

# The path segment after one of these is somebody's key.
KEYED = re.compile(r"(/(?:u|never|preferences/[a-z-]+|subscribe/confirm)/)[^/\s\"'?#&<>]+")


def redacted(text: str) -> str:
    """Return `text` with a mark in place of each key that stands in an address."""
    return KEYED.sub(r"\1[key]", text)


class RedactingFormatter(logging.Formatter):
    """Format a record, tracebacks included, without the keys in it."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
