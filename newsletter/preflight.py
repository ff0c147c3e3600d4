"""Preflight: what is wrong with an issue, before its readers see it, and what the author let stand.

What blocks keeps the issue from being scheduled until it is mended, or waived with a reason that stays for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from newsletter import doctor
from newsletter.inspection import Inspection, ask_links, look_at
from newsletter.models import Issue, Waiver
from newsletter.rules import RULES, Hit, Rule, Severity

DEAD_LINKS = {"link-dead", "link-inside"}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found; `check_id` and `place` name it, also after the text around it has changed."""

    check_id: str
    severity: Severity
    message: str
    place: str
    where: str
    line: int = 0
    post_id: int | None = None
    waivable: bool = True
    waiver: Waiver | None = None

    @property
    def blocks(self) -> bool:
        return self.severity == Severity.BLOCKS and self.waiver is None

    @property
    def can_be_waived(self) -> bool:
        return self.blocks and self.waivable

    @property
    def location(self) -> str:
        """Return where to look, in words."""
        return _("%(where)s, line %(line)s") % {"where": self.where, "line": self.line} if self.line else self.where

    @property
    def in_words(self) -> str:
        """Return what is wrong, where, and the name of the check."""
        values = {"message": self.message, "location": self.location, "id": self.check_id}
        return _("%(message)s (%(location)s; %(id)s)") % values

    def as_dict(self) -> dict[str, object]:
        waiver = self.waiver
        return {
            "id": self.check_id,
            "severity": str(self.severity),
            "message": self.message,
            "place": self.place,
            "where": self.where,
            "line": self.line or None,
            "waived": {"reason": waiver.reason, "by": waiver.by, "at": waiver.at.isoformat()} if waiver else None,
        }


def inspect(issue: Issue, *, links: bool = False) -> list[Finding]:
    """Return what is found of an issue, the gravest first, waived findings marked as such.

    With `links` the network is asked for at most linkcheck.ALL_SECONDS: never inside a transaction.
    """
    found = look_at(issue)
    return _with_waivers(issue, ask_links(found) if links else found)


def _with_waivers(issue: Issue, found: Inspection) -> list[Finding]:
    waivers = {(waiver.check_id, waiver.place): waiver for waiver in issue.waivers.all()}
    everything = [*of_the_domain(), *findings(found)]
    marked = [replace(each, waiver=waivers.get((each.check_id, each.place))) for each in everything]
    return sorted(marked, key=lambda finding: (_rank(finding), finding.waiver is not None))


def findings(found: Inspection) -> list[Finding]:
    """Return what the checks say of an inspection, the gravest first; pure."""
    seen: dict[tuple[str, str], Finding] = {}
    for rule in RULES.values():
        for hit in rule.look(found):
            finding = _finding(rule, hit)
            seen.setdefault((finding.check_id, finding.place), finding)
    return sorted(seen.values(), key=_rank)


def of_the_domain() -> list[Finding]:
    """Return what the doctor found wrong with the sending domain (MSG-7); nothing where nobody asked him lately."""
    return [
        Finding(
            f"domain-{each.id.replace('_', '-')}",
            Severity.BLOCKS,
            " ".join(f"{each.title}. {each.found} {each.to_do}".split()),
            "domain",
            _("The sending domain, as the doctor found it"),
        )
        for each in doctor.blocking(ask=False)
    ]


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _finding(rule: Rule, hit: Hit) -> Finding:
    spot = hit.spot
    place = " ".join(f"{spot.key}: {hit.what}".split()) if hit.what else spot.key
    if len(place) > 250:
        place = f"{place[:230]}… {hashlib.sha256(place.encode()).hexdigest()[:16]}"
    return Finding(
        rule.check_id, rule.severity, hit.message, place, spot.label, spot.line, spot.post_id, waivable=rule.waivable
    )


def blocking(issue: Issue) -> list[Finding]:
    """Return what keeps the issue from being scheduled: findings that block and are not waived."""
    return [finding for finding in inspect(issue) if finding.blocks]


def last_look(issue: Issue) -> list[str]:
    """Return in words what the author should know of an issue about to go: what blocks it, and what links are dead.

    Asks the network: never inside a transaction.
    """
    return [each.in_words for each in inspect(issue, links=True) if each.blocks or each.check_id in DEAD_LINKS]


def dead_links(issue: Issue) -> list[str]:
    """Return in words which links lead nowhere. Asks the network: never inside a transaction."""
    return [each.in_words for each in inspect(issue, links=True) if each.check_id in DEAD_LINKS]


def check_clear(issue: Issue) -> None:
    """Raise ValidationError naming each finding that blocks and is not waived."""
    if found := blocking(issue):
        raise ValidationError([each.in_words for each in found])


def waive(issue: Issue, check_id: str, place: str, reason: str, by: str) -> Waiver:
    """Let a blocking finding stand, with the reason, for ever. Raises ValidationError."""
    if not (reason := reason.strip()):
        raise ValidationError(_("Write why this may stand: the reason is kept with the issue."))
    found = next((each for each in inspect(issue) if (each.check_id, each.place) == (check_id, place)), None)
    if found is None:
        raise ValidationError(_("This is no longer found: there is nothing to waive."))
    if found.waiver:
        raise ValidationError(_("This was waived before."))
    if found.severity != Severity.BLOCKS:
        raise ValidationError(_("This keeps nothing from being sent, so there is nothing to waive."))
    if not found.waivable:
        raise ValidationError(_("This can't be waived: %(message)s"), params={"message": found.message})
    try:
        with transaction.atomic():
            return Waiver.objects.create(issue=issue, check_id=check_id, place=place, reason=reason, by=by)
    except IntegrityError as error:
        raise ValidationError(_("This was waived before.")) from error


def panel(issue: Issue) -> dict[str, Any]:
    """Return what the issue's page shows of preflight."""
    looked = look_at(issue)
    found = _with_waivers(issue, looked)
    return {
        "size_kb": round(looked.size / 1000),
        "findings": found,
        "blockers": sum(each.blocks for each in found),
        "past_waivers": past_waivers(issue, found),
    }


def past_waivers(issue: Issue, found: Iterable[Finding]) -> list[Waiver]:
    """Return the waivers whose finding is no longer there: they stay to be seen."""
    live = {each.waiver.pk for each in found if each.waiver}
    return [waiver for waiver in issue.waivers.all() if waiver.pk not in live]
