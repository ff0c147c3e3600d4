"""What the doctor goes by, and the words in which he answers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.db import Error, connection
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from newsletter.doctor.records import is_public
from newsletter.smtp import machine_name
from posts.models import Publication
from subscribers.names import Address, Names, Unasked, address


class Status(StrEnum):
    OK = "ok"
    UNASKED = "could not ask"
    WARNS = "warns"
    FAILS = "fails"

    @property
    def words(self) -> str:
        return {"ok": _("well"), "warns": _("to look at"), "fails": _("wrong")}.get(self.value, _("could not be asked"))


class Record(NamedTuple):
    """A DNS record to add."""

    name: str
    type: str
    value: str


class Said(NamedTuple):
    """What a check has to say: how it stands, what was found, what to do about it."""

    status: Status
    found: str
    to_do: str = ""
    record: Record | None = None


@dataclass(frozen=True)
class Finding:
    id: str
    group: str
    title: str
    status: Status
    found: str
    to_do: str = ""
    record: Record | None = None

    @property
    def word(self) -> str:
        """The status as a person reads it."""
        return {"ok": _("ok"), "warns": _("look at it"), "fails": _("wrong")}.get(self.status, _("could not ask"))

    @property
    def mark(self) -> str:
        """The status as a style sheet names it."""
        return self.status.name.lower()

    def as_dict(self) -> dict[str, Any]:
        values = {name: str(getattr(self, name)) for name in ("id", "group", "title", "status", "found", "to_do")}
        return {**values, "record": self.record._asdict() if self.record else None}


@dataclass(frozen=True)
class Facts:
    """Who sends, through what, and from where; read before any question is put."""

    names: Names
    sender: str  # the domain behind the sender's @, empty where the publication could not be read
    replies: str = ""
    bounces: str = ""  # the envelope's domain
    why_no_database: str = ""
    site_url: str = ""
    selector: str = ""
    relay: str = ""
    port: int = 25
    by_api: bool = False  # a provider's API takes the issues, not SMTP
    clock_ahead: float | None = None  # seconds before the database's
    site_host: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "site_host", urlsplit(self.site_url).hostname or "")

    def the_sender(self) -> str:
        """Return the sender's domain. Raises Unasked."""
        self.need_database()
        if not self.sender:
            raise Unasked(_("the publication names no sender"))
        return self.sender

    def need_database(self) -> None:
        """Raise Unasked where the database did not answer before: to ask again would only take time."""
        if self.why_no_database:
            raise Unasked(self.why_no_database)

    @property
    def relay_is_here(self) -> bool:
        """Whether the relay is on this machine or in its own network, so that the operator runs it."""
        literal = address(self.relay)
        if literal is not None:
            return not is_public(literal)
        return "." not in self.relay or self.relay.lower() == socket.gethostname().lower()

    def relay_addresses(self) -> list[Address]:
        """Return the addresses by which the world knows the relay. Raises Unasked."""
        if self.by_api:
            raise Unasked(_("issues go through a provider's API, which sends from addresses of its own"))
        host = machine_name() if self.relay_is_here else self.relay
        if host.startswith("[") or "." not in host:
            raise Unasked(_("the relay is on this machine or network, which has no name that the world knows"))
        found = [each for each in self.names.addresses(host) if is_public(each)]
        if not found:
            raise Unasked(_("%(host)s has no address that the world knows") % {"host": host})
        return found


@dataclass(frozen=True)
class Check:
    """One question. Those that ask the database do so in the thread of who asks, on its connection."""

    id: str
    title: str | Promise
    ask: Callable[[Facts], Said | None]
    asks_database: bool = False


def ok(found: str, to_do: str = "") -> Said:
    return Said(Status.OK, found, to_do)


def warns(found: str, to_do: str, record: Record | None = None) -> Said:
    return Said(Status.WARNS, found, to_do, record)


def fails(found: str, to_do: str, record: Record | None = None) -> Said:
    return Said(Status.FAILS, found, to_do, record)


def unasked(found: str, to_do: str = "") -> Said:
    return Said(Status.UNASKED, found, to_do)


def one_line(said: object) -> str:
    """Return what a driver or a server said in one line, without a full stop."""
    return " ".join(str(said).split()).rstrip(".")


def gather(names: Names | None = None) -> Facts:
    """Read what the checks go by; where the database is away the rest is asked nevertheless."""
    names = names or Names()
    try:
        publication, ahead, why = Publication.current(), clock_ahead(), ""
    except Error as error:
        publication, ahead, why = None, None, _("the database does not answer: %(error)s") % {"error": one_line(error)}
    sender = domain(publication.sender_address) if publication else ""
    return Facts(
        names,
        sender,
        replies=domain(publication.reply_to) if publication else "",
        bounces=settings.BOUNCE_DOMAIN.lower() or sender,
        why_no_database=why,
        site_url=settings.SITE_URL,
        selector=settings.DKIM_SELECTOR,
        relay=settings.SMTP_HOST,
        port=settings.SMTP_PORT,
        by_api=bool(settings.SEND_BACKEND),
        clock_ahead=ahead,
    )


def domain(address: str) -> str:
    """Return the domain of an address as DNS writes it."""
    name = address.rpartition("@")[2].lower()
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def clock_ahead() -> float:
    """Return how many seconds this machine's clock is before the database's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    return float((timezone.now() - now).total_seconds())
