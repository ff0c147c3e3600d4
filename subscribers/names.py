"""What DNS says of a name: asked with little patience, and believed only where the name server knows the world."""

from __future__ import annotations

import ipaddress
from typing import Any

import dns.exception
import dns.name
import dns.resolver
import dns.reversename
from django.utils.translation import gettext as _

SECONDS = 4.0  # for one question, all name servers and tries together
PATIENCE = 1.5  # of who waits for one of many answers
ROOT = "."
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unasked(Exception):
    """A question could not be put to anybody; the words say why."""


class Names:
    """DNS through one resolver; an answer is kept for as long as this object lives."""

    def __init__(self, resolver: dns.resolver.Resolver | None = None, *, seconds: float | None = None) -> None:
        self._resolver, self._seconds = resolver, seconds
        self._known: dict[tuple[str, str], list[Any] | None] = {}

    def texts(self, name: str) -> list[str]:
        """Return the TXT records at a name, the pieces of each joined (RFC 7208, 3.3)."""
        return [b"".join(record.strings).decode("utf-8", "replace") for record in self._at(name, "TXT") or ()]

    def addresses(self, name: str) -> list[Address]:
        """Return the addresses of a name, or the address itself."""
        if literal := address(name):
            return [literal]
        found = [record for kind in ("A", "AAAA") for record in self._at(name, kind) or ()]
        return [ipaddress.ip_address(record.address) for record in found]

    def exchanges(self, name: str) -> list[str]:
        """Return the hosts that take a domain's mail, the preferred first; "." is a domain that takes none."""
        found = sorted(self._at(name, "MX") or (), key=lambda record: int(record.preference))
        return [shown(record.exchange) for record in found]

    def pointers(self, of: Address) -> list[str]:
        return [shown(record.target) for record in self._at(reversed_name(of), "PTR") or ()]

    def exists(self, name: str) -> bool:
        """Tell whether there is such a name, whatever stands there."""
        return self._at(name, "A") is not None

    def _at(self, name: str, kind: str) -> list[Any] | None:
        """Return what stands at a name, None where there is no such name. Raises Unasked."""
        if (name, kind) not in self._known:
            self._known[name, kind] = self._ask(name, kind)
        return self._known[name, kind]

    def _ask(self, name: str, kind: str) -> list[Any] | None:
        """Ask, and believe that there is nothing only where the name server knows the world at all."""
        found = self._answer(name, kind)
        if not found and name != ROOT and not self._at(ROOT, "NS"):
            words = _("the name server does not know %(name)s (%(kind)s), nor the root of all names: it tells nothing")
            raise Unasked(words % {"name": name, "kind": kind})
        return found

    def _answer(self, name: str, kind: str) -> list[Any] | None:
        try:
            resolver = self._resolver or dns.resolver.default_resolver or dns.resolver.Resolver()
            answer = resolver.resolve(
                name, kind, search=False, raise_on_no_answer=False, lifetime=self._seconds or SECONDS
            )
        except dns.resolver.NXDOMAIN:
            return None
        except dns.exception.Timeout as error:
            words = _("no name server answered the question for %(name)s (%(kind)s) within %(seconds)d seconds")
            raise Unasked(words % {"name": name, "kind": kind, "seconds": self._seconds or SECONDS}) from error
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise Unasked(f"{name} ({kind}): {error}") from error
        return list(answer.rrset or ())


def shown(name: dns.name.Name) -> str:
    """Return a name without its last dot; the root is "."."""
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else "."


def reversed_name(of: Address) -> str:
    return shown(dns.reversename.from_address(str(of)))


def address(words: str) -> Address | None:
    """Return the address that the words are, if they are one."""
    try:
        return ipaddress.ip_address(words.strip("[]"))
    except ValueError:
        return None


def takes_mail(domain: str, names: Names | None = None) -> bool:
    """Tell whether a domain may have mailboxes; where DNS can't be asked, it may.

    False for a domain that does not exist, one that says that it takes no mail (a null MX, RFC 7505), and one that has
    neither an exchange nor an address (RFC 5321, 5.1). No mail server is asked.
    """
    names = names or Names(seconds=PATIENCE)
    try:
        if exchanges := names.exchanges(domain):
            return exchanges != [ROOT]
        return bool(names.addresses(domain))
    except Unasked:
        return True
