"""E-mail addresses: validity, the canonical form that is a person's identity, and the keyed hash that outlives him."""

import hashlib
import hmac
import ipaddress
import re

from django.conf import settings
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

# What nearly all addresses look like: of these the canonical form is the lower-case one, and asking email-validator,
# which takes thirty times as long, would say the same. Everything else is left to it.
PLAIN = re.compile(
    r"(?=.{6,254}\Z)(?!.{65,}@)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*"
    r"@(?:(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,24})",
    re.ASCII | re.IGNORECASE,
)
SPECIAL = {name.rpartition(".")[2] for name in SPECIAL_USE_DOMAIN_NAMES}


class InvalidAddress(ValueError):
    """The text is no address that mail can reach; the message says what to mend."""


def canonical(address: str) -> str:
    """Return the identity of `address`: NFC, ASCII lower-case local part, A-label domain. Raises InvalidAddress."""
    if len(address) > 320:
        raise InvalidAddress("The address is too long: at most 254 characters.")
    address = address.strip()
    plain = PLAIN.fullmatch(address)
    if plain and plain[1].lower() not in SPECIAL:
        return address.lower()
    try:
        found = validate_email(
            address,
            check_deliverability=False,
            allow_smtputf8=False,
            test_environment=settings.ALLOW_TEST_ADDRESSES,
            globally_deliverable=not settings.ALLOW_TEST_ADDRESSES,
        )
    except EmailNotValidError as error:
        raise InvalidAddress(str(error)) from error
    return (found.ascii_email or found.normalized).lower()


def keyed_hash(key: str) -> bytes:
    """Return HMAC-SHA256 of a canonical address under PEPPER (GDP-5)."""
    return hmac.digest(settings.PEPPER.encode(), b"address:" + key.encode(), hashlib.sha256)


def mailbox(key: str) -> str:
    """Return the mailbox that a canonical address ends in, for throttling only: no +tag, and no dots at Gmail."""
    local, _at, domain = key.rpartition("@")
    local = local.partition("+")[0]
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.replace(".", ""), "gmail.com"
    return f"{local}@{domain}"


def mailbox_hash(key: str) -> str:
    """Return what is kept of a mailbox, to count what it was sent: it outlives the reader's row and names nobody."""
    return hmac.digest(settings.PEPPER.encode(), b"mailbox:" + mailbox(key).encode(), hashlib.sha256).hex()


def network(ip: str | None) -> str | None:
    """Return the first address of the network of `ip` (/24, or /64 of IPv6), which stands for it when it is counted."""
    if ip is None:
        return None
    prefix = 24 if ipaddress.ip_address(ip).version == 4 else 64
    return str(ipaddress.ip_network(f"{ip}/{prefix}", strict=False)[0])


def is_ip(text: str) -> bool:
    """Tell whether `text` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
