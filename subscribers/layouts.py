"""What the columns and words of other tools' files mean here: which cell is the address, and who may be mailed.

The rule for a state: of several signs the lowest counts, and what is not understood is not mailable.
"""

from __future__ import annotations

import ast
import csv
import datetime as dt
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any, NamedTuple

from django.utils.translation import gettext_lazy as _

from subscribers import addresses
from subscribers.csvfile import LOOKS_LIKE_ADDRESS, Row, Table, UnreadableFile

NAME_LENGTH, CELL_LENGTH, TAG_LENGTH = 100, 1000, 100
# A cell that a spreadsheet may take for a formula, and how it or our export keeps it from that: a quote before it.
DANGEROUS = re.compile(r"[\s\"']*[=+\-@＝＋－＠]|[\t\r]")
FORMULA = re.compile(rf"'(?={DANGEROUS.pattern})")

# From what may be mailed down to what may never be; a row moves a person to the right only.
STATES = ("active", "unknown", "pending", "unsubscribed", "bounced", "complained", "blocked", "asked")
SEVERITY = {state: number for number, state in enumerate(STATES)}
STATE_LABELS = {
    "active": _("Active: confirmed, wants mail"),
    "unknown": _("Not understood: no mail"),
    "pending": _("Not confirmed: no mail"),
    "unsubscribed": _("Left: no mail"),
    "bounced": _("Bounced: never mailed"),
    "complained": _("Complained: never mailed"),
    "blocked": _("Blocked: never mailed"),
    "asked": _("Asked never to be mailed"),
}
# Reasons of a Suppression.
SUPPRESSED = {"bounced": "bounced", "complained": "complained", "blocked": "manual", "asked": "asked"}

# The words of Kit, Substack, Ghost, Buttondown, Mailchimp, listmonk, beehiiv, MailerLite and ourselves.
WORDS = {
    "active": "active subscribed confirmed enabled true yes 1 y t on cold regular premium gifted trialed churning "
    "churned past_due opted_in opt_in optin",
    "pending": "pending unconfirmed not_confirmed not_activated unactivated unverified validating invalid "
    "nonsubscribed needs_attention upcoming unpaid paused transactional never_subscribed",
    "unsubscribed": "unsubscribed cancelled canceled inactive false no 0 n f off deleted removed disabled opted_out "
    "opt_out optout archived left unsub",
    "bounced": "bounced cleaned undeliverable hard_bounced hard_bounce bounce",
    "complained": "complained complaint spam junk spam_complaint marked_as_spam reported_spam",
    "blocked": "blocked blocklisted blacklisted suppressed banned manual",
    "asked": "asked",
}
MEANINGS = {word.replace("_", " "): state for state, words in WORDS.items() for word in words.split()}
NOTHING = {"", "false", "no", "0", "n", "f", "off", "none", "null", "never", "n/a", "-"}

# What a column can be. The names are compared without case, and with spaces for "_" and "-"; of two columns that fit,
# the one named first here counts.
COLUMNS = {
    "address": "email,e mail,email address,e mail address,subscriber email,emailaddress,e mail adresse,"
    "deine e mail adresse,adresse e mail,courriel,correo electrónico,correo electronico,mail,subscriber,address",
    "name": "name,full name,nombre,nom,display name",
    "first_name": "first name,firstname,fname,given name,vorname,prénom,prenom",
    "last_name": "last name,lastname,lname,surname,family name,nachname,apellido",
    "state": "state,status,subscriber state,subscriber type,subscription status,email status,subscribed,"
    "subscribed to emails,email marketing,opt in status,estado,statut",
    "receives": "receiving emails for",
    "left": "unsubscribed at,unsub time,unsubscription date,unsubscribed on,cancelled at,canceled at,cancelled on,"
    "deleted at,opt out time,optout time,email disabled,unsubscribed,opted out,is unsubscribed",
    "bounced": "clean time,bounced at,bounced,hard bounced",
    "complained": "complained at,complained,spam complaint,marked as spam",
    "blocked": "blocked,blocklisted,blacklisted",
    "confirmed_at": "confirmed at,confirm time,confirmed,confirmed on,subscribed at,subscription date,subscribed on,"
    "opt in date",
    "created_at": "created at,created,created on,creation date,optin time,opt in time,date added,signup date,joined at,"
    "joined,subscribed date",
    "ip": "confirm ip,optin ip,opt in ip,ip address,ip",
    "tags": "tags,labels,tag",
    "source": "source",
    "attributes": "attributes,metadata,fields",
    # What only the other tool can use, and what it guessed about people.
    "skip": "id,uuid,secondary id,leid,euid,latitude,longitude,gmtoff,dstoff,timezone,cc,region,member rating,"
    "last changed,updated at,last modified,user id,channel id,opens,clicks,stripe customer id,"
    "stripe connected customer id",
}
TARGETS = {name: column for column, names in COLUMNS.items() for name in names.split(",")}
RANKS = {name: number for names in COLUMNS.values() for number, name in enumerate(names.split(","))}
ONE_ONLY = ("address", "name", "source")
SIGNS = ("left", "bounced", "complained", "blocked")  # true, or a date: it is so; empty or false: nothing is said
TARGET_LABELS = {
    "address": _("E-mail address"),
    "name": _("Name"),
    "first_name": _("First name"),
    "last_name": _("Last name"),
    "state": _("State"),
    "receives": _("Which mail is received"),
    "left": _("Left (date, or yes and no)"),
    "bounced": _("Bounced (date, or yes and no)"),
    "complained": _("Complained (date, or yes and no)"),
    "blocked": _("Blocked (date, or yes and no)"),
    "confirmed_at": _("Confirmed at"),
    "created_at": _("Joined at"),
    "ip": _("IP address of the consent"),
    "tags": _("Tags"),
    "source": _("Source"),
    "attributes": _("More fields (JSON)"),
    "field": _("Keep as a field"),
    "skip": _("Leave out"),
}

# Whose file it is, by columns that only it has together.
TOOLS = {
    "Mailchimp": ({"leid", "euid"},),
    "listmonk": ({"uuid", "attributes", "status"},),
    "Substack": ({"email disabled"}, {"subscription type", "receiving emails for"}),
    "Ghost": ({"subscribed to emails"},),
    "Buttondown": ({"subscriber type"},),
    "beehiiv": ({"status", "unsubscribed at"}, {"status", "tier", "first name"}),
    "Masthead": ({"state", "source", "fields"},),
    "Kit": ({"first name", "status", "created at"}, {"first name", "state", "created at"}),
}
# Words that mean something else in one tool. listmonk's is the account's: who left the list is "enabled" as well.
WORDS_OF = {"Kit": {"inactive": "pending"}, "listmonk": {"enabled": "unknown"}}
# Mailchimp tells a state by the file alone, and so do people who name a file after it.
FILE_NAMES = {
    "unsubscribed": "unsubscribed", "cancelled": "unsubscribed", "canceled": "unsubscribed", "cleaned": "bounced",
    "bounced": "bounced", "complained": "complained", "nonsubscribed": "pending", "unconfirmed": "pending",
    "blocklisted": "blocked", "blocked": "blocked",
}  # fmt: skip
FILE_COLUMNS = {"unsub time": "unsubscribed", "clean time": "bounced"}
DELETED = "@deletion-request.substack.com"


@dataclass(frozen=True)
class Mapping:
    """What each column is (in the file's order), what words mean beyond the table, and how low everybody stands."""

    targets: list[str]
    words: dict[str, str] = field(default_factory=dict)
    floor: str = "active"
    tool: str = ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Mapping:
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Person(NamedTuple):
    """One row, understood; `refusal` says why it can't be taken."""

    address: str
    key: str
    name: str
    state: str
    word: str  # of the state, where it is not understood
    created_at: dt.datetime | None
    confirmed_at: dt.datetime | None
    left_at: dt.datetime | None
    ip: str
    source: str
    fields: dict[str, Any]
    refusal: str


def guess(table: Table, name: str) -> Mapping:
    """Return what the columns of a file named `name` are. Raises UnreadableFile where none holds the address."""
    names = [normal(cell) for cell in table.header]
    tool = next((tool for tool, signs in TOOLS.items() if any(sign <= set(names) for sign in signs)), "")
    targets = [TARGETS.get(name, "field" if name else "skip") for name in names]
    for target in ONE_ONLY:
        taken = [number for number, found in enumerate(targets) if found == target]
        for number in sorted(taken, key=lambda number: RANKS[names[number]])[1:]:
            targets[number] = "field"
    if "address" not in targets:
        targets[_address_column(table)] = "address"
    if "first_name" in targets:
        targets = ["field" if target == "name" else target for target in targets]
    return Mapping(targets, WORDS_OF.get(tool, {}), _floor(names, name), tool)


def changed(mapping: Mapping, table: Table, columns: dict[str, str], words: dict[str, str]) -> Mapping:
    """Return `mapping` with columns (by their header) and words as given. Raises UnreadableFile on unknown ones."""
    targets, names = list(mapping.targets), [normal(cell) for cell in table.header]
    for column, target in columns.items():
        if normal(column) not in names or target not in TARGET_LABELS:
            known = ", ".join(TARGET_LABELS) if normal(column) in names else ", ".join(table.header)
            raise UnreadableFile(f"“{column}={target}” names nothing that is there; known are: {known}.")
        if target in ONE_ONLY:
            targets = ["field" if found == target else found for found in targets]
        targets[names.index(normal(column))] = target
    for word, state in words.items():
        if state not in SEVERITY:
            raise UnreadableFile(f"“{word}={state}” names no state; known are: {', '.join(STATES)}.")
    known_words = {normal(word): state for word, state in words.items()}
    return replace(mapping, targets=targets, words={**mapping.words, **known_words})


def normal(name: str) -> str:
    """Return a column's name or a word as it is compared: lower case, one space for "_", "-" and white space."""
    return re.sub(r"[\s_\-]+", " ", name).strip(" \ufeff").lower()


def _address_column(table: Table) -> int:
    """Return the column whose cells look like addresses."""
    rows = table.sample(20)
    hits = [
        sum(bool(LOOKS_LIKE_ADDRESS.fullmatch(row.cells[number])) for row in rows if not row.problem)
        for number in range(len(table.header))
    ]
    if not hits or max(hits) * 2 <= len(rows):
        names = COLUMNS["address"].replace(",", ", ")
        raise UnreadableFile(f"No column holds the address. The first line must name one of: {names}.")
    return hits.index(max(hits))


def _floor(names: list[str], file_name: str) -> str:
    """Return how low everybody of a file stands: as its columns or the beginning of its name tell."""
    begins = re.match(r"[a-z]+", PurePath(file_name).name.lower())
    found = [FILE_COLUMNS[name] for name in names if name in FILE_COLUMNS]
    found += [FILE_NAMES[begins[0]]] if begins and begins[0] in FILE_NAMES else []
    return max(found, key=SEVERITY.__getitem__, default="active")


class Interpreter:
    """Understands the rows of one file by its mapping."""

    def __init__(self, header: Sequence[str], mapping: Mapping, *, now: dt.datetime) -> None:
        self.header, self.now = header, now
        self.meanings = {**MEANINGS, **mapping.words}
        self.floor, self.targets = mapping.floor, mapping.targets
        at = {target: [n for n, found in enumerate(mapping.targets) if found == target] for target in TARGET_LABELS}
        self.address = at["address"][0]
        self.names = (at["first_name"] or at["name"]) + at["last_name"]
        self.states, self.receives, self.tags = at["state"], at["receives"], at["tags"]
        self.signs = [(number, "unsubscribed" if sign == "left" else sign) for sign in SIGNS for number in at[sign]]
        self.created, self.confirmed = at["created_at"], at["confirmed_at"]
        self.ips, self.sources, self.attributes, self.fields = at["ip"], at["source"], at["attributes"], at["field"]
        # Where nothing else tells a state, a confirmation that is left empty was not given.
        says_when = [number for number in self.confirmed if "confirm" in normal(header[number])]
        self.proofs = [] if self.states or mapping.tool else says_when

    def person(self, row: Row) -> Person:
        """Return who a row is about."""
        cells = row.cells
        if row.problem:
            return _refused("", row.problem)
        if "'" in row.text:
            cells = [FORMULA.sub("", cell, count=1) if cell[:1] == "'" else cell for cell in cells]
        typed = cells[self.address].strip()
        try:
            key = addresses.canonical(typed)
        except addresses.InvalidAddress as error:
            return _refused(typed, str(error))
        if key.endswith(DELETED):
            return _refused("", "Substack put this in the place of somebody who asked to be deleted.")
        state, word, left_at = self._state(cells)
        fields: dict[str, Any] = {}
        created_at = self._moment(cells, self.created, fields)
        return Person(
            typed,
            key,
            self._name(cells),
            state,
            word,
            created_at,
            self._moment(cells, self.confirmed, fields),
            left_at,
            next((cells[n].strip() for n in self.ips if addresses.is_ip(cells[n].strip())), ""),
            next((cells[n].strip()[:100] for n in self.sources), "import"),
            self._fields(cells, fields),
            "",
        )

    def _state(self, cells: list[str]) -> tuple[str, str, dt.datetime | None]:
        """Return the lowest state that a row gives a sign of, the word that is not understood, and since when."""
        state, strange, left_at = self.floor, "", None
        for number in self.states:
            word = normal(cells[number])
            found = self.meanings.get(word, "unknown")
            if found == "unknown":
                strange = word or "(empty)"
            if SEVERITY[found] > SEVERITY[state]:
                state = found
        for number in self.receives:
            if not cells[number].strip() and SEVERITY[state] < SEVERITY["unknown"]:
                state, strange = "unknown", "(empty)"
        for number in self.confirmed:
            cell = cells[number].strip().lower()
            if (cell in NOTHING and (cell or number in self.proofs)) and SEVERITY[state] < SEVERITY["pending"]:
                state = "pending"
        for number, found in self.signs:
            cell = cells[number].strip()
            if cell.lower() in NOTHING:
                continue
            left_at = left_at or self._past(moment(cell))
            if SEVERITY[found] > SEVERITY[state]:
                state = found
        return state, strange if state == "unknown" else "", left_at

    def _name(self, cells: list[str]) -> str:
        name = " ".join(" ".join(cells[number] for number in self.names).split())
        return name if name.isprintable() and len(name) <= NAME_LENGTH else _printable(name)

    def _moment(self, cells: list[str], columns: list[int], fields: dict[str, Any]) -> dt.datetime | None:
        """Return the first instant of some columns; a text that is none is kept as a field."""
        for number in columns:
            if cell := cells[number].strip():
                if found := moment(cell):
                    return self._past(found)
                fields[self.header[number]] = cell[:CELL_LENGTH]
        return None

    def _past(self, found: dt.datetime | None) -> dt.datetime | None:
        return min(found, self.now) if found else None

    def _fields(self, cells: list[str], fields: dict[str, Any]) -> dict[str, Any]:
        for number in self.fields:
            if cell := cells[number].strip():
                fields[self.header[number][:TAG_LENGTH] or f"column {number + 1}"] = cell[:CELL_LENGTH]
        for number in self.attributes:
            if cell := cells[number].strip():
                fields.update(_attributes(cell, self.header[number]))
        tags = sorted({tag for number in self.tags for tag in split_tags(cells[number])})
        return {**fields, "tags": tags} if tags else fields


def _refused(typed: str, why: str) -> Person:
    return Person(typed, "", "", "", "", None, None, None, "", "", {}, why)


def _printable(name: str) -> str:
    return "".join(character for character in name if character.isprintable())[:NAME_LENGTH].strip()


def formula_safe(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; an import takes the quote away again."""
    return f"'{cell}" if DANGEROUS.match(cell) else cell


def split_tags(cell: str) -> list[str]:
    """Return the tags of a cell: a CSV of its own (Mailchimp), else parted by ";" (Buttondown) or "," (Kit, Ghost)."""
    cell = cell.strip()
    if not cell:
        return []
    if '"' in cell:
        parts: Iterable[str] = next(csv.reader([cell], skipinitialspace=True), [])
    else:
        parts = cell.split(";" if ";" in cell else ",")
    return [_printable(part.strip())[:TAG_LENGTH] for part in parts if part.strip()]


def _attributes(cell: str, column: str) -> dict[str, Any]:
    """Return the fields of a cell that holds JSON (listmonk) or a dict as Python prints it (Buttondown)."""
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(cell[: 10 * CELL_LENGTH])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            texts = {str(name)[:TAG_LENGTH]: found[name] for name in found if str(name) != "tags"}
            return {name: str(value)[:CELL_LENGTH] for name, value in texts.items() if value not in (None, "", [], {})}
    return {} if cell in ("{}", "null") else {column: cell[:CELL_LENGTH]}


# "2023-03-24 10:23:10 UTC", "… +0000", Go's "… +0000 UTC"; a day alone; a year before that the world had no mail.
STAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?))?"
    r"\s*(Z|UTC|GMT|[+-]\d{2}:?\d{2})?(?:\s+[A-Z]{3,4})?"
)


def moment(text: str) -> dt.datetime | None:
    """Return the instant that a cell names, without a zone in UTC; None where it is no date or could be two."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        spelled = STAMP.fullmatch(text)
        if spelled is None:
            return None
        day, clock, zone = spelled.groups()
        zone = "+00:00" if zone in (None, "Z", "UTC", "GMT") else zone
        try:
            found = dt.datetime.fromisoformat(f"{day}T{(clock or '00:00')[:15]}{zone}")
        except ValueError:
            return None
    found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    return found if dt.datetime(1971, 1, 2, tzinfo=dt.UTC) < found else None
