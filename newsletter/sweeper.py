"""What time asks for: slots to make, issues to freeze and start, leases to end, mail still owed.

Each step asks the database what is due by the database's clock and may run twice, at once, or late, unharmed.
"""

from __future__ import annotations

import datetime as dt
import logging

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models.functions import Now
from django.utils import timezone

from newsletter import delivery, schedule
from newsletter.models import Delivery, Issue, Slot
from posts.models import Post, Publication
from subscribers import emails
from subscribers.models import SystemMail

logger = logging.getLogger(__name__)

SLOTS_AHEAD = 8
WARN_BEFORE = dt.timedelta(hours=24)

EXPIRE = """
UPDATE newsletter_delivery
   SET state = CASE state WHEN 'claimed' THEN 'pending' ELSE 'uncertain' END,
       next_attempt_at = CASE state WHEN 'claimed' THEN now() END,
       reply_text = CASE state WHEN 'claimed' THEN reply_text
                    ELSE 'the worker was lost after the hand-over began, before the reply was written down' END,
       lease_until = NULL, updated_at = now()
 WHERE state IN ('claimed', 'handing_over') AND lease_until < now()
RETURNING state
"""


def dispatch_due() -> list[int]:
    """Bring the calendar up to date, freeze and start what is due; return the issues whose sending began."""
    ensure_slots()
    publish_scheduled_posts()
    warn_of_empty_slots()
    miss_overdue()
    due = list(Issue.objects.due().order_by("due_at").values_list("pk", flat=True))
    for issue_id in due:
        freeze_or_tell(issue_id)
    return start_frozen()


def freeze_or_tell(issue_id: int) -> None:
    """Freeze one issue; what keeps it from being made ready is told to the author and holds up no other issue."""
    try:
        delivery.freeze(issue_id)
    except Exception as error:
        logger.exception("issue %s could not be frozen", issue_id)
        issue = Issue.objects.get(pk=issue_id)
        if not SystemMail.objects.filter(kind=SystemMail.Kind.ALERT, context__event="freeze_failed",
                                         context__issue=str(issue)).exists():  # fmt: skip
            alert("freeze_failed", {"issue": str(issue), "error": f"{type(error).__name__}: {error}"})


def sweep() -> list[int]:
    """Repair what a crash or a lost message left behind; return the issues that have copies due now."""
    end_leases()
    start_frozen()
    for issue_id in Issue.objects.filter(state__in=[Issue.State.SENDING, Issue.State.NEEDS_REVIEW]).values_list(
        "pk", flat=True
    ):
        delivery.settle_issue(issue_id)
    emails.send_all_due(limit=200)
    return issues_with_work()


def issues_with_work() -> list[int]:
    """Return the sending issues that have at least one copy due now."""
    due = Delivery.objects.filter(
        issue_id=models.OuterRef("pk"),
        state__in=[Delivery.State.PENDING, Delivery.State.DEFERRED],
        next_attempt_at__lte=Now(),
    )
    return list(Issue.objects.sending().filter(models.Exists(due)).values_list("pk", flat=True))


def start_frozen() -> list[int]:
    """Start every frozen issue; return those that this call started."""
    frozen = Issue.objects.filter(state=Issue.State.FROZEN).values_list("pk", flat=True)
    return [issue_id for issue_id in list(frozen) if delivery.start(issue_id)]


def end_leases() -> None:
    """End expired leases: a claimed copy goes back, one whose hand-over had begun becomes uncertain, never pending."""
    with connection.cursor() as cursor:
        cursor.execute(EXPIRE)
        states = [state for (state,) in cursor.fetchall()]
    if states:
        logger.warning("%s leases ended, %s of them uncertain", len(states), states.count(Delivery.State.UNCERTAIN))


def ensure_slots() -> None:
    """Make the slots of the next eight weeks, and bring unmoved ones in line with the publication's rhythm."""
    publication = Publication.current()
    dates = schedule.next_dates(
        publication.send_weekday,
        after=timezone.now(),
        zone=publication.zone,
        local_time=publication.send_time,
        count=SLOTS_AHEAD,
    )
    with transaction.atomic():
        Publication.objects.select_for_update().get(pk=publication.pk)
        _drop_strange(publication)
        Slot.objects.bulk_create(
            [Slot(local_date=date, due_at=_instant(publication, date)) for date in dates], ignore_conflicts=True
        )
        for slot in Slot.objects.upcoming().filter(moved=False).select_for_update():
            _realign(slot, _instant(publication, slot.local_date))


def _instant(publication: Publication, date: dt.date) -> dt.datetime:
    return schedule.instant(date, publication.send_time, publication.zone)


def _drop_strange(publication: Publication) -> None:
    """Remove open dates that the rhythm no longer has; a taken one stays until the author moves its issue."""
    weekday = (publication.send_weekday + 1) % 7 + 1  # the database counts Sunday as 1
    Slot.objects.upcoming().open().filter(moved=False).exclude(local_date__week_day=weekday).delete()


def _realign(slot: Slot, due_at: dt.datetime) -> None:
    if slot.due_at == due_at:
        return
    Slot.objects.filter(pk=slot.pk).update(due_at=due_at)
    Issue.objects.filter(slot=slot, state=Issue.State.SCHEDULED).update(due_at=due_at)


def publish_scheduled_posts() -> None:
    """Put scheduled posts on the web whose instant has come."""
    for post in Post.objects.filter(status=Post.Status.SCHEDULED, published_at__lte=Now()):
        post.publish()


def warn_of_empty_slots() -> None:
    """Tell the author, once a slot, that nothing is ready 24 hours before it."""
    soon = Slot.objects.upcoming().open().filter(due_at__lte=timezone.now() + WARN_BEFORE, warned_at=None)
    for slot in soon:
        if Slot.objects.filter(pk=slot.pk, warned_at=None).update(warned_at=Now()):
            alert("empty_slot", {"date": str(slot), "due_at": slot.due_at.isoformat()})


def miss_overdue() -> None:
    """Never send by itself what is late by more than the catch-up window: the slot is missed, the issue asks."""
    window = dt.timedelta(hours=Publication.current().catch_up_hours)
    overdue = Issue.objects.due().filter(due_at__lt=timezone.now() - window)
    for issue_id in list(overdue.values_list("pk", flat=True)):
        with transaction.atomic():
            issue = overdue.select_for_update(of=("self",)).filter(pk=issue_id).first()
            if issue:
                _miss(issue)


def _miss(issue: Issue) -> None:
    assert issue.due_at is not None
    context = {"issue": str(issue), "due_at": issue.due_at.isoformat()}
    if issue.slot:
        Slot.objects.filter(pk=issue.slot.pk).update(state=Slot.State.MISSED)
    issue.state, issue.due_at, issue.slot = Issue.State.DRAFT, None, None
    issue.save(update_fields=["state", "due_at", "slot"])
    alert("missed", context)


def alert(event: str, context: dict[str, str]) -> None:
    """Owe the author a mail about `event`."""
    publication = Publication.current()
    emails.owe(
        SystemMail.Kind.ALERT,
        address=publication.reply_to or publication.sender_address,
        context={"event": event, **context, "site": settings.SITE_URL},
    )
