"""Say in lines and words how one text differs from another, for people who compare two versions of a post."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

CONTEXT = 2  # unchanged lines shown around a change
TOKENS = re.compile(r"\s+|\w+|[^\w\s]")
MOST_TOKENS = 1500  # beyond that, lines are compared as wholes: the comparison takes time by the square
ALIKE = 0.35  # lines that share less of their words were replaced, not changed

SAME, GONE, NEW, SKIPPED = "same", "gone", "new", "skipped"
Part = tuple[str, str]


@dataclass(frozen=True)
class Line:
    """One line of a comparison: its kind, and its parts, each a kind and a text."""

    kind: str
    parts: list[Part] = field(default_factory=list)
    count: int = 0  # of the lines left out, where kind is “skipped”

    @property
    def mark(self) -> str:
        return {SAME: " ", GONE: "\u2212", NEW: "+"}.get(self.kind, "")


def compare(old: str, new: str) -> list[Line]:
    """Return how `new` differs from `old`, line by line with the words that changed; nothing where they are equal."""
    before, after = _lines(old), _lines(new)
    if before == after:
        return []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    found: list[Line] = []
    for kind, low, high, start, end in matcher.get_opcodes():
        if kind == "equal":
            found += [Line(SAME, [(SAME, text)]) for text in before[low:high]]
        else:
            found += _changed(before[low:high], after[start:end])
    return list(_shortened(found))


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def _changed(before: Sequence[str], after: Sequence[str]) -> Iterator[Line]:
    """Pair the lines of a changed passage, so that each shows its own words."""
    pairs = [_words(old, new) for old, new in zip(before, after, strict=False)]
    yield from (Line(GONE, gone) for gone, _new in pairs)
    yield from (Line(GONE, [(GONE, text)]) for text in before[len(pairs) :])
    yield from (Line(NEW, new) for _gone, new in pairs)
    yield from (Line(NEW, [(NEW, text)]) for text in after[len(pairs) :])


def _words(old: str, new: str) -> tuple[list[Part], list[Part]]:
    """Return a line before and after, its words marked where they differ."""
    before, after = TOKENS.findall(old), TOKENS.findall(new)
    if len(before) + len(after) > MOST_TOKENS:
        return [(GONE, old)], [(NEW, new)]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < ALIKE:
        return [(GONE, old)], [(NEW, new)]
    gone: list[Part] = []
    come: list[Part] = []
    for kind, low, high, start, end in matcher.get_opcodes():
        same = kind == "equal"
        gone += [(SAME if same else GONE, "".join(before[low:high]))] if high > low else []
        come += [(SAME if same else NEW, "".join(after[start:end]))] if end > start else []
    return gone, come


def _shortened(lines: Sequence[Line]) -> Iterator[Line]:
    """Leave out what is the same and far from any change, saying how much."""
    changed = [number for number, line in enumerate(lines) if line.kind != SAME]
    near = {number + step for number in changed for step in range(-CONTEXT, CONTEXT + 1)}
    left_out = 0
    for number, line in enumerate(lines):
        if number in near:
            yield from [Line(SKIPPED, count=left_out)] if left_out else []
            left_out = 0
            yield line
        else:
            left_out += 1
    yield from [Line(SKIPPED, count=left_out)] if left_out else []
