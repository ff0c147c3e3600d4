"""Domains of throw-away mailboxes: refused only where the author wants it, and never those that he allows."""

from disposable_email_domains import blocklist
from django.conf import settings


def is_refused(key: str) -> bool:
    """Tell whether a canonical address is at a throw-away provider, or below one, that REFUSE_DISPOSABLE turns away."""
    if not settings.REFUSE_DISPOSABLE:
        return False
    domains = _domains(key.rpartition("@")[2])
    allowed = {domain.strip().lower() for domain in settings.ALLOWED_DOMAINS}
    return not allowed.intersection(domains) and any(domain in blocklist for domain in domains)


def _domains(domain: str) -> list[str]:
    """Return a domain and those above it that have a dot."""
    labels = domain.split(".")
    return [".".join(labels[at:]) for at in range(len(labels) - 1)]
