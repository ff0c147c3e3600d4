"""What the doctor asks about the relay: whether it lets us in, how safely, and whether the world knows its name."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _

from newsletter import smtp, transport
from newsletter.doctor.facts import Facts, Record, Said, fails, ok, unasked, warns
from newsletter.doctor.records import is_public
from newsletter.replies import Unreachable
from subscribers.names import Address, Names, address, reversed_name

PATIENCE, GREETING_PATIENCE = 5.0, 6.0  # seconds
CERTIFICATE_DAYS = 14


def reverse_name(facts: Facts) -> Said:
    """Look whether each address of the relay has a name that leads back to it (Gmail 4.7.23, 5.7.25)."""
    found = facts.relay_addresses()
    wrong = {each: names for each in found if (names := _unconfirmed(facts.names, each)) is not None}
    values = {"addresses": ", ".join(map(str, found)), "relay": facts.relay}
    if not wrong:
        return ok(_("Each address of the relay (%(addresses)s) has a name that leads back to it.") % values)
    each, names = next(iter(wrong.items()))
    values |= {"address": str(each), "names": ", ".join(names)}
    words = (
        _("%(address)s has the name %(names)s, which does not lead back to it.")
        if names
        else _("%(address)s has no name (PTR).")
    ) % values
    if not facts.relay_is_here:
        to_do = _("Where %(relay)s is your provider's it may send from other addresses: ask there. Where it is yours:")
        return warns(words, to_do % values, Record(reversed_name(each), "PTR", f"{facts.relay}."))
    to_do = _("Ask who gives you the address to set its name, and give that name the address (A, AAAA).")
    return fails(words, to_do, Record(reversed_name(each), "PTR", f"{smtp.machine_name()}."))


def _unconfirmed(names: Names, of: Address) -> list[str] | None:
    """Return the names of an address of which none leads back to it; None where one does."""
    found = names.pointers(of)
    return None if any(of in names.addresses(name) for name in found) else found


def submission(facts: Facts) -> Said:
    """Connect as the workers do, with certificate and login; nothing is sent."""
    if facts.by_api:
        words = _("Issues go through %(backend)s, which can't be tried without a mail.")
        return unasked(words % {"backend": settings.SEND_BACKEND}, _("Send yourself a test from an issue."))
    try:
        account = _impatient(transport.account())
        # The names are asked for here, where nobody has to wait for the answer.
        where = socket.getaddrinfo(account.host, account.port, type=socket.SOCK_STREAM)
        smtp.machine_name()
    except socket.gaierror as error:
        words = _("%(host)s can't be found: %(error)s") % {"host": facts.relay, "error": error.strerror}
        return unasked(words, _("Is SMTP_HOST written right, and does this machine reach a name server?"))
    except (OSError, ValueError, OverflowError) as error:
        words = _("No connection can be made of SMTP_SECURITY=%(security)s and SMTP_CA_FILE=%(file)s: %(error)s")
        words %= {"security": settings.SMTP_SECURITY, "file": settings.SMTP_CA_FILE, "error": error}
        return fails(words, _("Mend them; SMTP_CA_FILE may be empty, for the system's own authorities."))
    is_near = not any(is_public(found) for entry in where if (found := address(str(entry[4][0]))))
    try:
        offers, certificate = asyncio.run(_met(account))
    except Unreachable as error:
        return _kept_out(facts, error)
    return _let_in(account, offers, certificate, is_near=is_near)


def _impatient(account: smtp.Account) -> smtp.Account:
    return replace(account, connect_seconds=PATIENCE, greeting_seconds=GREETING_PATIENCE, command_seconds=PATIENCE)


async def _met(account: smtp.Account) -> tuple[frozenset[str], dict[str, Any]]:
    connection = await smtp.Connection.open(account)
    offers, certificate = connection.offers, connection.certificate
    await connection.quit()
    return offers, certificate


def _kept_out(facts: Facts, error: Unreachable) -> Said:
    reply = error.reply
    values = {"host": facts.relay, "port": facts.port, "said": f"{reply.code or ''} {reply.text}".strip()}
    if reply.phase == "connect":
        words = _("%(host)s:%(port)s could not be reached: %(said)s") % values
        to_do = _("Mend SMTP_HOST and SMTP_PORT, start the relay, or open the way there: many hosts close port 25.")
        return fails(words, to_do) if isinstance(error.__cause__, ConnectionRefusedError) else unasked(words, to_do)
    if reply.phase == "auth":
        words = _("%(host)s does not let us log in: %(said)s") % values
        return fails(words, _("Mend SMTP_USER and SMTP_PASSWORD."))
    if reply.phase == "starttls":
        words = _("%(host)s:%(port)s: %(said)s") % values
        return fails(words, _("Use a port that offers it, usually 587, or SMTP_SECURITY=tls with port 465."))
    if reply.phase == "tls":
        words = _("No safe connection to %(host)s:%(port)s: %(said)s") % values
        to_do = _("SMTP_HOST has to be a name in its certificate; SMTP_CA_FILE names an authority of your own.")
        return fails(words, to_do)
    words = _("%(host)s:%(port)s does not greet us as a mail server does: %(said)s") % values
    return fails(words, _("Look into the relay's log; SMTP_SECURITY=tls is for port 465, starttls for 587."))


def _let_in(account: smtp.Account, offers: frozenset[str], certificate: dict[str, Any], *, is_near: bool) -> Said:
    values = {"host": account.host, "port": account.port, "user": account.user}
    logged_in = " " + _("The login as %(user)s works.") % values if account.user else ""
    if account.security != "none":
        return _secured(certificate, values, logged_in)
    if is_near:
        return ok(_("%(host)s:%(port)s lets us in, without TLS on its own network.") % values + logged_in)
    words = _("%(host)s:%(port)s lets us in, but nothing is encrypted.") % values + logged_in
    to_do = (
        _("It offers STARTTLS: set SMTP_SECURITY=starttls.")
        if "STARTTLS" in offers
        else _("It offers no STARTTLS: use another port (587, 465) or another relay.")
    )
    return fails(words, to_do) if account.user else warns(words, to_do)


def _secured(certificate: dict[str, Any], values: dict[str, Any], logged_in: str) -> Said:
    ends = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), dt.UTC)
    days = (ends - timezone.now()).days
    words = _("%(host)s:%(port)s lets us in over TLS; its certificate is good until %(ends)s.") % {
        **values,
        "ends": ends.date().isoformat(),
    }
    if days < CERTIFICATE_DAYS:
        return warns(words + logged_in, _("It ends in %(days)d days: see that it is renewed.") % {"days": days})
    return ok(words + logged_in)
