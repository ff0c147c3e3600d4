"""Read a table of text in any sane form, in bounded memory: encoding, delimiter, quotes and header are found out.

A row that can't be read spoils no other: it comes with its line number, its text and what is wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

DELIMITERS = ",;\t|"
SAMPLE_BYTES = 65536
SAMPLE_ROWS = 50
BLOCK_BYTES = 1 << 20
LONGEST_CELL_LINES = 200  # a quote that is open for longer was never meant to be one
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
NO_TEXT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as “CSV UTF-8”",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save the sheet as “CSV UTF-8”",
    b"\x1f\x8b": "compressed: unpack it with gunzip",
    b"%PDF": "a PDF: export the readers as CSV",
}
LOOKS_LIKE_ADDRESS = re.compile(r"\s*[^@\s,;]+@[^@\s,;]+\s*")

Opener = Callable[[], IO[bytes]]


class UnreadableFile(ValueError):
    """The file as a whole can't be taken; the message says what to do."""


class Row(NamedTuple):
    """One row: where it begins (first line: 1), its cells, and what is wrong with it, if anything is."""

    line: int
    cells: list[str]
    text: str
    problem: str = ""


@dataclass(frozen=True)
class Shape:
    """How a file is written."""

    encoding: str
    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None
    before: int = 0  # lines before the header: Excel's sep=;
    has_header: bool = True


class Table:
    """A file of rows under a header. `open_file` answers the bytes from their beginning, each time it is called.

    Raises UnreadableFile where they are no text or hold nothing.
    """

    def __init__(self, open_file: Opener) -> None:
        self.open_file = open_file
        self.shape = _sniff(open_file)
        first = next(iter(self._records()), None)
        if first is None:
            raise UnreadableFile("The file holds no rows.")
        if not self.shape.has_header:
            self.header = [
                "email" if LOOKS_LIKE_ADDRESS.fullmatch(cell) else f"column {number}"
                for number, cell in enumerate(first.cells, 1)
            ]
        else:
            self.header = [cell.strip() for cell in first.cells]

    def rows(self) -> Iterator[Row]:
        """Yield the rows below the header, in order; empty ones are left out."""
        width, records = len(self.header), self._records()
        if self.shape.has_header:
            next(records, None)
        for row in records:
            if len(row.cells) > width and any(map(str.strip, row.cells[width:])):
                cells = len(row.cells)
                yield row._replace(problem=f"The row has {cells} cells and the header {width}: is a comma not quoted?")
            elif len(row.cells) < width and not row.problem:
                yield row._replace(cells=row.cells + [""] * (width - len(row.cells)))
            else:
                yield row

    def sample(self, count: int) -> list[Row]:
        """Return the first rows."""
        rows = self.rows()
        return [row for row, _number in zip(rows, range(count), strict=False)]

    def _records(self) -> Iterator[Row]:
        with self.open_file() as file:
            text = io.TextIOWrapper(file, self.shape.encoding, errors="replace", newline=None)
            yield from _parse(_Records(text, self.shape), self.shape)


class _Records:
    """The text of each row for csv.reader, with line breaks inside quotes; remembers where the last one began."""

    def __init__(self, text: Iterator[str], shape: Shape) -> None:
        self.text, self.quote, self.escape = enumerate(text, 1), shape.quote, shape.escape
        for _number in range(shape.before):
            next(self.text, None)
        self.waiting: deque[tuple[int, str]] = deque()
        self.taken: list[tuple[int, str]] = []
        self.line, self.record, self.is_open = 0, "", False

    def __iter__(self) -> Iterator[str]:
        while True:
            found = self.waiting.popleft() if self.waiting else next(self.text, None)
            if found is None:
                return
            self.line, self.record = found
            self.taken.clear()
            self.is_open = False
            if "\0" in self.record:
                self.record = self.record.replace("\0", "")
            if self.quote in self.record and self._is_odd(self.record):
                self._gather(found)
            yield "" if self.is_open else self.record

    def give_back(self) -> None:
        """Read the lines after the first of this record anew, each as a row of its own."""
        self.waiting.extendleft(reversed(self.taken[1:]))
        self.record = self.taken[0][1]

    def _gather(self, first: tuple[int, str]) -> None:
        self.taken.append(first)
        while len(self.taken) < LONGEST_CELL_LINES:
            found = self.waiting.popleft() if self.waiting else next(self.text, None)
            if found is None:
                break
            self.taken.append(found)
            if self._is_odd(found[1]):
                self.record = "".join(line for _number, line in self.taken).replace("\0", "")
                return
        self.is_open = True
        self.give_back()

    def _is_odd(self, line: str) -> bool:
        if self.escape:
            line = line.replace(self.escape + self.quote, "")
        return line.count(self.quote) % 2 == 1


def _parse(records: _Records, shape: Shape) -> Iterator[Row]:
    reader = csv.reader(
        iter(records),
        delimiter=shape.delimiter,
        quotechar=shape.quote,
        escapechar=shape.escape,
        doublequote=True,
        skipinitialspace=False,
    )
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = "A quote is opened and not closed." if records.taken else f"The row is no CSV: {error}."
            if records.taken:
                records.give_back()
            yield Row(records.line, [], records.record, problem)
            continue
        if records.is_open:
            yield Row(records.line, [], records.record, "A quote is opened and not closed.")
        elif cells and (any(cells) and any(map(str.strip, cells))):
            yield Row(records.line, cells, records.record)


# Finding out


def _sniff(open_file: Opener) -> Shape:
    with open_file() as file:
        head = file.read(SAMPLE_BYTES)
    if not head.strip():
        raise UnreadableFile("The file is empty.")
    for magic, what in NO_TEXT.items():
        if head.startswith(magic):
            raise UnreadableFile(f"The file is {what}, then import that.")
    encoding = _encoding(open_file, head)
    sample = codecs.getincrementaldecoder(encoding)("replace").decode(head).replace("\r\n", "\n").replace("\r", "\n")
    named = re.match(r"sep=(.)\n", sample)
    body = sample[named.end() :] if named else sample
    quote = "'" if re.match(r"\s*'[^'\n]*'\s*[,;\t|]\s*'", body) else '"'
    escape = "\\" if re.search(r'[^"\\,;\t|\n]\\"[^,;\t|\n]', body) else None
    shapes = [Shape(encoding, mark, quote, escape, 1 if named else 0) for mark in (named[1] if named else DELIMITERS)]
    shape = max(shapes, key=lambda shape: _fitness(sample, shape))
    first = next((row.cells for row in _sample_rows(sample, shape)), [])
    is_data = any(LOOKS_LIKE_ADDRESS.fullmatch(cell) for cell in first)
    return Shape(encoding, shape.delimiter, quote, escape, shape.before, not is_data)


def _encoding(open_file: Opener, head: bytes) -> str:
    """Return the encoding: as a byte order mark says, UTF-16 where every other byte is empty, UTF-8 where the whole
    file is that (a few bad bytes are no other encoding), else Windows-1252, which spreadsheets write."""
    for mark, encoding in BOMS.items():
        if head.startswith(mark):
            return encoding
    if head.count(0) > len(head) // 4:
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    bad = beyond_ascii = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with open_file() as file:
        while block := file.read(BLOCK_BYTES):
            if block.isascii() and not decoder.getstate()[0]:
                continue
            text = decoder.decode(block)
            bad += text.count("\ufffd") - block.count("\ufffd".encode())
            beyond_ascii += len(text) - len(text.encode("ascii", "ignore"))
    return "utf-8" if bad * 10 <= beyond_ascii else "cp1252"


def _fitness(sample: str, shape: Shape) -> tuple[float, int]:
    """Return how well a delimiter explains the sample: the share of rows as wide as the first, and how wide."""
    widths = Counter(len(row.cells) for row in _sample_rows(sample, shape) if not row.problem)
    if not widths:
        return (0.0, 0)
    width, count = widths.most_common(1)[0]
    return (count / widths.total() if width > 1 else 0.0, width)


def _sample_rows(sample: str, shape: Shape) -> list[Row]:
    rows = _parse(_Records(io.StringIO(sample), shape), shape)
    return [row for row, _number in zip(rows, range(SAMPLE_ROWS), strict=False)]
