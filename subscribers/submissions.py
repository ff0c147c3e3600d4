"""What comes in through the public forms: kept by the same insert for every address, decided by a worker.

So neither the answer nor the time that it takes tells whether an address is known. What a worker decides, only the
owner of the address learns, by mail.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from dataclasses import asdict

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from subscribers import addresses, names, subscription
from subscribers.models import Submission, SystemMail
from subscribers.subscription import Circumstances

logger = logging.getLogger(__name__)

SECONDS_AT_ONCE = 20.0
KEPT = dt.timedelta(days=2)  # longer than anything that throttling counts
WAITED = dt.timedelta(days=7)


def submit(
    kind: str, address: str, circumstances: Circumstances, *, source: str = "", campaign: dict[str, str] | None = None
) -> Submission:
    """Keep what a form brought, to be decided later; whoever commits may hint at it."""
    told = {name: value for name, value in asdict(circumstances).items() if name != "at"}
    sent = {"address": address, "source": source, "campaign": campaign or {}, "circumstances": told}
    return Submission.objects.create(kind=kind, network=addresses.network(circumstances.ip), sent=sent)


def decide(submission_id: int) -> SystemMail | None:
    """Decide what becomes of a form, once; return the mail owed, if any. Asks DNS before it locks anything."""
    waiting = Submission.objects.waiting().filter(pk=submission_id)
    submission = waiting.first()
    if submission is None:
        return None
    takes_mail = submission.kind != Submission.Kind.JOIN or _takes_mail(submission.sent["address"])
    with transaction.atomic():
        submission = waiting.select_for_update(skip_locked=True).first()
        if submission is None:
            return None
        mail = _act(submission) if takes_mail else None
        submission.sent, submission.decided_at = {}, timezone.now()
        submission.save(update_fields=["sent", "decided_at"])
    return mail


def decide_waiting(limit: int = 200, *, seconds: float = SECONDS_AT_ONCE) -> int:
    """Decide what no worker was told of, and begin nothing after `seconds`; return how many mails are owed for it.

    One that can't be decided is logged, holds up no other, and is tried again until it is forgotten.
    """
    until, owed = time.monotonic() + seconds, 0
    for submission_id in list(Submission.objects.waiting().order_by("pk").values_list("pk", flat=True)[:limit]):
        if time.monotonic() > until:
            break
        try:
            owed += decide(submission_id) is not None
        except Exception:
            logger.exception("submission %s could not be decided", submission_id)
    return owed


def forget_old() -> None:
    """Delete what throttles count no more, and what could not be decided in a week."""
    now = timezone.now()
    Submission.objects.exclude(decided_at=None).filter(created_at__lt=now - KEPT).delete()
    Submission.objects.waiting().filter(created_at__lt=now - WAITED).delete()


def _takes_mail(address: str) -> bool:
    domain = addresses.canonical(address).rpartition("@")[2]
    return not settings.CHECK_MX or names.takes_mail(domain)


def _act(submission: Submission) -> SystemMail | None:
    sent = submission.sent
    circumstances = Circumstances(**sent["circumstances"], at=submission.created_at)
    if submission.kind == Submission.Kind.LINK:
        return subscription.send_link(sent["address"], circumstances)
    return subscription.join(sent["address"], circumstances, source=sent["source"], campaign=sent["campaign"])
