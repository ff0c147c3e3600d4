"""What DNS says of a domain that sends mail: asked with little patience, read as RFC 7208, 6376 and 7489 want it."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from django.utils.translation import gettext as _

from subscribers.names import Address, Names

MOST_LOOKUPS = 10  # RFC 7208, 4.6.4
TERM = re.compile(r"([-+~?]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/]*))?(?:/(\d+))?(?://(\d+))?", re.IGNORECASE)
MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.IGNORECASE)
# Addresses that only their own network knows.
INSIDE = [
    ipaddress.ip_network(net)
    for net in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.168.0.0/16", "::/127", "fc00::/7", "fe80::/10"),
    )
]


def is_public(found: Address) -> bool:
    """Tell whether the world could know this address."""
    return not any(found in net for net in INSIDE)


def tags(record: str) -> dict[str, str]:
    """Return the `name=value` pairs of a DKIM or DMARC record, the names in lower case."""
    pairs = (part.partition("=") for part in record.split(";"))
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}


# SPF


def spf_records(names: Names, domain: str) -> list[str]:
    return [text for text in names.texts(domain) if text.lower().split(" ")[0] == "v=spf1"]


@dataclass
class Spf:
    """A record read to its end with all that it includes: how many look-ups that takes, and what it says of addresses.

    Macros (RFC 7208, 7) speak of a mail under way, so a record with some is counted but can't be followed everywhere.
    """

    names: Names
    lookups: int = 0
    problems: list[str] = field(default_factory=list)
    includes: list[str] = field(default_factory=list)
    ends: str = ""  # the qualifier of the record's own "all"

    def verdict(self, domain: str, of: Address | None) -> str:
        """Return the qualifier that the record gives the address: + - ~ ?, or nothing where it does not speak of it."""
        records = spf_records(self.names, domain)
        if len(records) != 1:
            words = _("%(domain)s has %(count)d SPF records, but it has to have one")
            self.problems.append(words % {"domain": domain, "count": len(records)})
            return ""
        found = redirect = ends = ""
        for term in records[0].split()[1:]:
            if modifier := MODIFIER.fullmatch(term):
                redirect = modifier[2] if modifier[1].lower() == "redirect" else redirect
                continue
            qualifier, is_match, is_all = self._read(term, domain, of)
            found = found or (qualifier if is_match else "")
            ends = qualifier if is_all else ends
        if redirect and not ends:
            self.includes.append(redirect)
            return found or (self.verdict(redirect, of) if self._may_look_up(redirect) else "")
        self.ends = ends
        return found

    def _read(self, term: str, domain: str, of: Address | None) -> tuple[str, bool, bool]:
        """Return a term's qualifier, whether it means the address, and whether it is the one that means all."""
        read = TERM.fullmatch(term)
        if not read:
            self.problems.append(_("“%(term)s” is no term that SPF knows") % {"term": term})
            return "", False, False
        qualifier, kind, value = read[1] or "+", read[2].lower(), read[3] or domain
        if kind == "all":
            return qualifier, True, True
        if kind in ("ip4", "ip6"):
            return qualifier, self._within(of, read[3] or "", read[4]), False
        if kind == "include":
            self.includes.append(value)
        if not self._may_look_up(value):
            return qualifier, False, False
        return qualifier, self._looked_up(kind, value, of, (read[4], read[5])), False

    def _may_look_up(self, name: str) -> bool:
        """Count a look-up, and tell whether to make it: not far beyond the limit, nor where a macro stands."""
        self.lookups += 1
        return self.lookups <= 2 * MOST_LOOKUPS and "%" not in name

    def _looked_up(self, kind: str, value: str, of: Address | None, lengths: tuple[str | None, str | None]) -> bool:
        if kind == "include":
            return self._beneath().verdict(value, of) == "+"
        if kind == "exists":
            return bool(self.names.addresses(value))
        hosts = {"a": lambda: [value], "mx": lambda: self.names.exchanges(value)}.get(kind, list)()
        found = [each for host in hosts if host != "." for each in self.names.addresses(host)]
        return any(self._within(of, str(each), lengths[each.version == 6]) for each in found)

    def _beneath(self) -> Spf:
        """Return a reader of an included record, whose look-ups and problems are this one's too."""
        return _Included(self.names, problems=self.problems, above=self)

    def _within(self, of: Address | None, base: str, length: str | None) -> bool:
        try:
            net = ipaddress.ip_network(f"{base}/{length}" if length else base, strict=False)
        except ValueError:
            self.problems.append(_("“%(address)s” is no address") % {"address": base})
            return False
        return of is not None and of in net


@dataclass
class _Included(Spf):
    above: Spf | None = None

    def _may_look_up(self, name: str) -> bool:
        assert self.above is not None
        return self.above._may_look_up(name)


# DMARC


class Dmarc(NamedTuple):
    domain: str
    text: str
    tags: dict[str, str]


def dmarc_records(names: Names, domain: str) -> list[Dmarc]:
    """Return the records at a domain and above it, its own first; two at one name count for none (RFC 7489, 6.6.3)."""
    labels = domain.split(".")
    found = []
    for start in range(max(1, len(labels) - 1)):
        above = ".".join(labels[start:])
        texts = [text for text in names.texts(f"_dmarc.{above}") if text.replace(" ", "").startswith("v=DMARC1")]
        if len(texts) == 1:
            found.append(Dmarc(above, texts[0], tags(texts[0])))
    return found


def are_aligned(one: str, other: str, organisation: str, *, strict: bool = False) -> bool:
    """Tell whether two domains are of one organisation, or the same (RFC 7489, 3.1)."""
    if one == other:
        return True
    return not strict and all(f".{domain}".endswith(f".{organisation}") for domain in (one, other))


def organisation(domain: str, records: list[Dmarc]) -> str:
    """Return the domain under which an organisation's names lie: the highest with a DMARC record.

    Where none has one, the last two labels: right for most, and said to be a guess.
    """
    return records[-1].domain if records else ".".join(domain.split(".")[-2:])


# DKIM


def key_bits(record: dict[str, str]) -> int | None:
    """Return about how long a DKIM record's RSA key is, None where it can't be read, 0 where it was taken back.

    A SubjectPublicKeyInfo is the modulus and 30 to 38 bytes of frame.
    """
    key = "".join(record.get("p", "").split())
    try:
        decoded = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return None
    return max(0, (len(decoded) - 30) // 32 * 256) if decoded else 0
