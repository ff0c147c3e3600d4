"""What the log of a Postfix on this machine says of messages of which we don't know whether it took them.

Postfix logs a message's Message-ID while it still reads the headers, so such a line proves nothing: a client that goes
before its final dot leaves one too. Only once the queue file is whole does qmgr speak of it. Postfix promises no format
of its log; what is read here was seen in the log of Postfix 3.7.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, cast
from zoneinfo import ZoneInfo

EVIDENCE_CHARACTERS = 500
LINE_BYTES = 65_536  # longer ones are cut: a crash can leave megabytes of NUL
REMEMBERED = 10_000  # sessions and queue files of others' messages
TAIL_LINES = 1_000  # searched backwards for the last line of Postfix
SECOND = timedelta(seconds=1)
TOLD_LATE = timedelta(hours=1)  # after which a logger has long told what it dropped
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")

STAMP = (
    rb"\0*"
    rb"(?:(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d))"
    rb"|(?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)) "
)
TIME = re.compile(STAMP)
# The time, the host, syslog_name and the process. The name may have slashes itself: postfix/submission/smtpd.
LINE = re.compile(
    STAMP + rb"(?P<host>\S{1,255}) \S{1,255}/(?P<process>[\w-]{1,64})\[(?P<pid>\d{1,10})\]: (?P<text>[^\r\n]*)"
)
QUEUE_ID = rb"(?P<queue_id>[0-9A-Za-z]{5,32}): "
BEGUN = re.compile(QUEUE_ID + rb"client=")
NAMED = re.compile(QUEUE_ID + rb"message-id=(?P<id>.*)")
ACTIVE = re.compile(QUEUE_ID + rb"from=<")
REFUSED = re.compile(QUEUE_ID + rb"(?:(?:milter-)?reject: END-OF-MESSAGE|reject: (?:header|body) )")
# Only with a number of bytes was content under way: after a DATA that was refused there is none.
CUT_OFF = re.compile(rb"(?:lost connection|timeout) after DATA \(\d+ bytes\) from ")
# journald and rsyslog say so where they dropped lines; of whose and how many is not asked.
LOST = re.compile(rb"Suppressed \d+ messages|[Mm]essages? lost|[Rr]ate[- ]limit(?:ed|ing)")
MESSAGE_ID = re.compile(rb"<[^<>\s]+>")

# The queue id of one host; pids are a host's own as well.
QueueFile = tuple[bytes, bytes]
V = TypeVar("V")


class Verdict(StrEnum):
    TAKEN = "taken"
    NOT_TAKEN = "not_taken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """A verdict and the lines that it rests on, at most 500 characters."""

    verdict: Verdict
    evidence: str


def read_postfix_log(
    lines: Iterable[bytes], *, wanted: Mapping[str, tuple[datetime, datetime]], zone: tzinfo | None = None
) -> dict[str, Finding]:
    """Return a finding for each Message-ID (in angle brackets) of `wanted`.

    `wanted` names the instants between which it can have been handed over; times without offset are in `zone`, this
    machine's where none is given. TAKEN: qmgr has the queue file to which the Message-ID belongs. NOT_TAKEN: the log
    goes from before the first instant to after the second one, tells of no lines lost between, and shows either no such
    message, or for each try that it came to nothing. A message that was begun and not seen again is UNKNOWN: it may be
    held, or wait for qmgr.
    """
    reading = Reading(wanted)
    tail: deque[bytes] = deque(maxlen=TAIL_LINES)
    head = None
    holes: deque[bytes] = deque(maxlen=TAIL_LINES + 1)
    for line in lines:
        tail.append(line)
        head = head or LINE.match(line)
        if (
            b": message-id=" in line
            or b"(queue active)" in line
            or b": client=" in line
            or b" after DATA (" in line
            or b"reject: " in line
        ):
            reading.read(line)
        if is_hole(line):
            holes.append(line)
    last = next(filter(None, map(LINE.match, reversed(tail))), None)
    return reading.findings(Coverage(head, last, zone or machine_zone(), tuple(holes)))


def is_hole(line: bytes) -> bool:
    """Tell whether a logger says here that it dropped lines; what Postfix says of others' limits is none."""
    likely = b"Suppressed " in line or b" lost" in line or b"imit" in line
    return likely and bool(LOST.search(line)) and not LINE.match(line)


class Recent(OrderedDict[Hashable, V], Generic[V]):
    """Remembers the last that were set, so many that a log in disorder does no harm, and no more."""

    def __setitem__(self, key: Hashable, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


class Reading:
    """What was read so far of the wanted messages, and just enough of the others."""

    def __init__(self, wanted: Mapping[str, tuple[datetime, datetime]]) -> None:
        self.wanted = wanted
        self.keys = {key.encode("utf-8", "replace"): key for key in wanted}
        self.taken: dict[str, str] = {}
        self.came_to_nothing: dict[str, str] = {}
        self.unsettled: Counter[str] = Counter()
        self.lines: dict[str, bytes] = {}
        self.files: dict[QueueFile, str] = {}
        self.sessions: Recent[QueueFile] = Recent()
        self.ended: Recent[bytes] = Recent()
        self.keeps_names = False

    def read(self, line: bytes) -> None:
        """Take in one line; what is not of a kind known here is passed over."""
        found = LINE.match(line)
        if not found:
            return
        process, text, host = found["process"], found["text"], found["host"]
        session = (host, found["pid"])
        if process == b"smtpd" and CUT_OFF.match(text):
            self._ended(self.sessions.pop(session, None), line)
        elif process == b"cleanup" and (named := NAMED.match(text)):
            self._named((host, named["queue_id"]), named["id"], line)
        elif process == b"qmgr" and (active := ACTIVE.match(text)):
            self._active((host, active["queue_id"]), line)
        elif begun := BEGUN.match(text):
            self._begun((host, begun["queue_id"]), session)
        elif refused := REFUSED.match(text):
            self._ended((host, refused["queue_id"]), line)

    def findings(self, coverage: Coverage) -> dict[str, Finding]:
        return {key: self._finding(key, coverage) for key in self.wanted}

    def _begun(self, file: QueueFile, session: QueueFile) -> None:
        """A queue id that begins anew names another file: a short one comes back once its file is gone."""
        self.files.pop(file, None)
        self.ended.pop(file, None)
        self.sessions[session] = file

    def _named(self, file: QueueFile, message_id: bytes, line: bytes) -> None:
        self.keeps_names = True
        self.files.pop(file, None)
        found = MESSAGE_ID.search(message_id)
        key = self.keys.get(found[0] if found else message_id.strip())
        if key is None:
            return
        self.files[file] = key
        self.unsettled[key] += 1
        self.lines[key] = line
        # The end may well stand before the name: cleanup is given the headers in a lump, if need be when all is over.
        if ended := self.ended.pop(file, None):
            self._ended(file, ended)

    def _active(self, file: QueueFile, line: bytes) -> None:
        if key := self.files.pop(file, None):
            self.taken.setdefault(key, evidence(self.lines[key], line))

    def _ended(self, file: QueueFile | None, line: bytes) -> None:
        """Note that this queue file was given up before it was whole."""
        if file is None:
            return
        if key := self.files.pop(file, None):
            self.unsettled[key] -= 1
            self.came_to_nothing[key] = evidence(self.lines[key], line)
        else:
            self.ended[file] = line

    def _finding(self, key: str, coverage: Coverage) -> Finding:
        if key in self.taken:
            return Finding(Verdict.TAKEN, self.taken[key])
        if self.unsettled[key]:
            return Finding(Verdict.UNKNOWN, evidence(self.lines[key]))
        # A log without a single name is one that keeps warnings only.
        if self.keeps_names and coverage.holds(*self.wanted[key]):
            return Finding(Verdict.NOT_TAKEN, self.came_to_nothing.get(key) or coverage.evidence)
        return Finding(Verdict.UNKNOWN, self.came_to_nothing.get(key, ""))


@dataclass(frozen=True)
class Coverage:
    """The first and the last line of Postfix in a log, and the zone of times that name none."""

    first: re.Match[bytes] | None
    last: re.Match[bytes] | None
    zone: tzinfo
    holes: tuple[bytes, ...] = ()  # lines that tell of others that were dropped

    def holds(self, earliest: datetime, latest: datetime) -> bool:
        """Tell whether the log surely began before `earliest`, went on after `latest` and has no hole in between."""
        if any(self.may_be_within(hole, earliest, latest) for hole in self.holes) or len(self.holes) > TAIL_LINES:
            return False
        if not (self.first and self.last):
            return False
        began = moments(self.first, self.zone, near=earliest)
        ended = moments(self.last, self.zone, near=latest)
        return bool(began and ended) and max(began) < earliest and min(ended) > latest

    def may_be_within(self, hole: bytes, earliest: datetime, latest: datetime) -> bool:
        """Tell whether lines may be lost of that span: what a logger dropped, it says some time after."""
        time = TIME.match(hole)
        told = moments(time, self.zone, near=latest) if time else ()
        return not told or (max(told) >= earliest and min(told) <= latest + TOLD_LATE)

    @property
    def evidence(self) -> str:
        return evidence(*(found[0] for found in (self.first, self.last) if found))


def moments(line: re.Match[bytes], zone: tzinfo, *, near: datetime) -> tuple[datetime, ...]:
    """Return the first and last instant that the line's time may mean, or nothing where it is no time.

    Without a fraction it means a whole second; without an offset it comes twice when clocks go back.
    """
    try:
        if line["iso"]:
            moment = datetime.fromisoformat(line["iso"].decode("ascii"))
            return moment, moment if b"." in line["iso"] else moment + SECOND
        local = with_year(line, near.astimezone(zone))
        return local.astimezone(UTC), local.replace(fold=1).astimezone(UTC) + SECOND
    except (ValueError, OverflowError):
        return ()


def with_year(line: re.Match[bytes], near: datetime) -> datetime:
    """Return the traditional time in the year that puts it at most a month after `near`, else before it.

    Not in the nearest year: a log that ended months ago must not seem to have been written later on.
    """
    month = MONTHS.index(line["month"]) + 1
    day, hour, minute, second = (int(line[name]) for name in ("day", "hour", "minute", "second"))
    for year in (near.year + 1, near.year, near.year - 1):
        if (month, day) == (2, 29) and not is_leap(year):
            continue
        moment = datetime(year, month, day, hour, minute, second, tzinfo=near.tzinfo)
        if moment - near <= timedelta(days=31):
            return moment
    raise ValueError("no year fits")


def is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


@cache
def machine_zone() -> tzinfo:
    """Return the zone that syslog writes in: /etc/localtime. Not this process's own, which Django sets by TZ."""
    try:
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC


def evidence(*lines: bytes) -> str:
    share = EVIDENCE_CHARACTERS // len(lines) - 1
    return "\n".join(line.decode("utf-8", "replace").strip("\0\r\n")[:share] for line in lines)


def open_log(path: Path) -> Iterator[bytes]:
    """Yield the lines of the log before the last rotation, where it is kept beside (.1 or .1.gz), then of this one.

    A line that is still being written, the last one without its end, is left out. Raises OSError where the log can't
    be read or the older one is damaged: what is missing in the middle would pass for silence.
    """
    with ExitStack() as files:
        for file in opened(path, files):
            yield from filter(is_whole, iter(partial(file.readline, LINE_BYTES), b""))


def is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") or len(line) == LINE_BYTES


def opened(path: Path, files: ExitStack) -> list[BinaryIO]:
    """Open the older log and this one, again where they were rotated in between."""
    current = files.enter_context(path.open("rb"))
    older = [files.enter_context(file) for file in opened_older(path)]
    if os.path.samestat(os.fstat(current.fileno()), path.stat()):
        return [*older, current]
    return opened(path, files)


def opened_older(path: Path) -> list[BinaryIO]:
    try:
        return [path.with_name(path.name + ".1").open("rb")]
    except FileNotFoundError:
        pass
    try:
        return [cast(BinaryIO, Whole(path.with_name(path.name + ".1.gz")))]
    except FileNotFoundError:
        return []


class Whole(gzip.GzipFile):
    """A gzip file whose damage is an OSError like every other."""

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return super().readline(-1 if size is None else size)
        except (EOFError, zlib.error) as error:
            raise OSError(f"{self.name} is damaged") from error
