"""E-mail addresses: validity, the canonical form that is a person's identity, and the keyed hash that outlives him."""

import hashlib
import hmac

from django.conf import settings
from email_validator import EmailNotValidError, validate_email


class InvalidAddress(ValueError):
    """The text is no address that mail can reach; the message says what to mend."""


def canonical(address: str) -> str:
    """Return the identity of `address`: NFC, ASCII lower-case local part, A-label domain. Raises InvalidAddress."""
    if len(address) > 320:
        raise InvalidAddress("The address is too long: at most 254 characters.")
    try:
        found = validate_email(
            address.strip(),
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
