"""How often one mailbox may be sent a mail that anyone can ask for, and how often one network may ask.

Counted from the rows themselves, so the counters survive the loss of Valkey.
"""

import datetime as dt
import ipaddress

from django.utils import timezone

from subscribers.models import Consent, SystemMail

# A mailbox: at most this many in each of these spans.
MAILBOX_LIMITS = [(dt.timedelta(minutes=15), 1), (dt.timedelta(hours=24), 3), (dt.timedelta(days=30), 5)]
NETWORK_SPAN, NETWORK_LIMIT = dt.timedelta(hours=1), 60
ASKED_FOR = [SystemMail.Kind.CONFIRM, SystemMail.Kind.ALREADY, SystemMail.Kind.MAGIC_LINK]


def mailbox_allows(mailbox: str, kind: str) -> bool:
    """Tell whether `mailbox` may be sent one more mail of `kind`."""
    kinds = [SystemMail.Kind.MAGIC_LINK] if kind == SystemMail.Kind.MAGIC_LINK else ASKED_FOR[:2]
    sent = SystemMail.objects.filter(mailbox=mailbox, kind__in=kinds)
    now = timezone.now()
    return all(sent.filter(created_at__gt=now - span).count() < most for span, most in MAILBOX_LIMITS)


def network_allows(ip: str | None) -> bool:
    """Tell whether the network of `ip` (/24, or /64 of IPv6) may ask once more this hour."""
    if ip is None:
        return True
    prefix = 24 if ipaddress.ip_address(ip).version == 4 else 64
    network = ipaddress.ip_network(f"{ip}/{prefix}", strict=False)
    asked = Consent.objects.filter(
        kind=Consent.Kind.REQUESTED,
        ip__range=(str(network[0]), str(network[-1])),
        at__gt=timezone.now() - NETWORK_SPAN,
    )
    return asked.count() < NETWORK_LIMIT
