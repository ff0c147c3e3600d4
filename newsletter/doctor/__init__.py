"""The doctor (MSG-7): ask the world and this machine whether an issue would arrive, and say what to do about the rest.

Questions to the network run at once, each in a thread of its own, those to the database in the thread of who asks.
Whatever goes wrong is said in words: no exception leaves here, and the whole takes less than twenty seconds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NamedTuple

from django.core.cache import cache
from django.db import Error
from django.utils import timezone, translation
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from newsletter.doctor import domain, machine, relay
from newsletter.doctor.facts import Check, Facts, Finding, Said, Status, gather, one_line, unasked
from subscribers.names import Unasked

__all__ = ["Facts", "Finding", "Report", "Status", "blocking", "examine", "gather", "last"]

logger = logging.getLogger(__name__)

SECONDS = 14.0  # for all that is asked of the network
CACHED_SECONDS = 600
GROUPS = {
    "domain": (
        Check("spf", _("SPF: who may send for the domain"), domain.spf),
        Check("dkim", _("DKIM: the key of the signatures"), domain.dkim),
        Check("dmarc", _("DMARC: what to do with forged mail"), domain.dmarc),
        Check("alignment", _("SPF and DKIM speak for the sender"), domain.alignment),
        Check("mx_sender", _("Mail to the sender"), domain.mail_to_sender),
        Check("mx_replies", _("Mail to Reply-To"), domain.mail_to_replies),
        Check("mx_bounces", _("Bounces come home"), domain.mail_to_bounces),
        Check("message_id", _("The domain of the Message-IDs"), domain.message_id),
        Check("one_click", _("One-click unsubscribe"), domain.one_click),
    ),
    "relay": (
        Check("ptr", _("The relay's address has a name, and back"), relay.reverse_name),
        Check("submission", _("Connection, TLS and login"), relay.submission),
    ),
    "machine": (
        Check("clock", _("Clock"), machine.clock),
        Check("broker", _("Broker"), machine.broker),
        Check("beat", _("Beat"), machine.beat, asks_database=True),
        Check("worker", _("Workers"), machine.worker),
        Check("system_mail", _("Confirmations and alerts"), machine.system_mail, asks_database=True),
        Check("deliveries", _("Issues and copies that are due"), machine.deliveries, asks_database=True),
        Check("disk", _("Disk"), machine.disk),
        Check("settings", _("Settings"), machine.settings_checks, asks_database=True),
    ),
}
TITLES = {"domain": _("The domain"), "relay": _("The relay"), "machine": _("This machine")}
# What makes a mail unwelcome with the large providers, whoever its readers are.
BLOCKING = ("spf", "dkim", "dmarc", "alignment", "one_click")


class Group(NamedTuple):
    id: str
    title: str
    findings: list[Finding]


class Report(NamedTuple):
    at: str  # ISO 8601
    findings: list[Finding]

    @property
    def worst(self) -> Status:
        order = [Status.OK, Status.UNASKED, Status.WARNS, Status.FAILS]
        return max((found.status for found in self.findings), key=order.index, default=Status.OK)

    @property
    def groups(self) -> list[Group]:
        found = [
            Group(id, str(title), [each for each in self.findings if each.group == id]) for id, title in TITLES.items()
        ]
        return [group for group in found if group.findings]

    @property
    def summary(self) -> str:
        """Return in a sentence how many stand how, the worst first."""
        counts = {status: sum(each.status == status for each in self.findings) for status in reversed(Status)}
        words = ", ".join(f"{count} {status.words}" for status, count in counts.items() if count)
        return f"{words}."


def examine(facts: Facts | None = None, *, only: Iterable[str] = ()) -> Report:
    """Ask every question, or only those named, and keep the answer for ten minutes."""
    facts = facts or gather()
    until = time.monotonic() + SECONDS
    wanted = set(only)
    chosen = [(group, check) for group, found in GROUPS.items() for check in found if not wanted or check.id in wanted]
    asked = {check.id: _begin(check, facts) for _group, check in chosen if not check.asks_database}
    said = {check.id: _ask(check, facts) for _group, check in chosen if check.asks_database}
    said |= {id: _await(future, until) for id, future in asked.items()}
    findings = [
        Finding(check.id, group, str(check.title), *words) for group, check in chosen if (words := said[check.id])
    ]
    report = Report(timezone.now().isoformat(), findings)
    keep(facts, report, part="domain" if wanted else "all")
    return report


def last(facts: Facts | None = None) -> Report | None:
    """Return the whole answer of the last ten minutes, if there is one for these settings and this sender."""
    return _kept("all", facts or gather())


def blocking(facts: Facts | None = None, *, ask: bool = True) -> list[Finding]:
    """Return what fails of the sending domain: with it an issue would be refused or take for spam.

    From an answer at most ten minutes old, else asked anew (some seconds); with `ask` off, nothing where none is kept.
    """
    facts = facts or gather()
    report = _kept("all", facts) or _kept("domain", facts)
    if report is None and ask:
        report = examine(facts, only=BLOCKING)
    found = report.findings if report else []
    return [each for each in found if each.id in BLOCKING and each.status == Status.FAILS]


# Threads


def _begin(check: Check, facts: Facts) -> Future[Said | None]:
    """Put a question in a daemon thread: one that hangs keeps neither the answer nor the process."""
    future: Future[Said | None] = Future()
    language = translation.get_language()

    def answer() -> None:
        with translation.override(language):
            future.set_result(_ask(check, facts))

    threading.Thread(target=answer, name=f"doctor-{check.id}", daemon=True).start()
    return future


def _ask(check: Check, facts: Facts) -> Said | None:
    try:
        return check.ask(facts)
    except Unasked as error:
        words = str(error)
        return unasked(f"{words[:1].upper()}{words[1:]}.")
    except Error as error:
        return unasked(gettext("The database does not answer: %(error)s.") % {"error": one_line(error)})
    except Exception as error:  # the report is worth more than any one question
        logger.exception("the doctor's question %s failed", check.id)
        return unasked(f"{type(error).__name__}: {error}")


def _await(future: Future[Said | None], until: float) -> Said | None:
    try:
        return future.result(max(0.0, until - time.monotonic()))
    except TimeoutError:
        return unasked(gettext("No answer within %(seconds)s seconds.") % {"seconds": f"{SECONDS:g}"})


# The last answer


def keep(facts: Facts, report: Report, *, part: str = "all") -> None:
    """Remember a report for ten minutes; a cache that is away costs only asking again."""
    try:
        cache.set(_key(part, facts), report, CACHED_SECONDS)
    except Exception as error:  # whatever the cache is made of
        logger.warning("the doctor's report can't be kept: %s", error)


def _kept(part: str, facts: Facts) -> Report | None:
    try:
        found = cache.get(_key(part, facts))
    except Exception as error:  # as above
        logger.warning("the doctor's last report can't be read: %s", error)
        return None
    return found if isinstance(found, Report) else None


def _key(part: str, facts: Facts) -> str:
    """Return a key that changes with the sender and the settings, so that what was mended is asked anew."""
    known = (facts.sender, facts.replies, facts.bounces, facts.site_url, facts.selector, facts.relay, facts.port)
    return f"doctor:{part}:{hashlib.sha256(repr(known).encode()).hexdigest()[:20]}"
