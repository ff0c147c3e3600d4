"""What time asks for: slots to make, issues to freeze and start, leases to end, mail still owed.

Each step asks the database what is due by the database's clock and may run twice, at once, or late, unharmed.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable

from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from newsletter import alarms, delivery, digest, preflight, reconciliation, schedule
from newsletter.models import Heartbeat, Issue, Slot
from posts.models import Post, Publication
from subscribers import emails, instance, notes, spool, submissions, subscription
from subscribers.models import ReaderCount

logger = logging.getLogger(__name__)

SLOTS_AHEAD = 8
SWEEP, FORGET = "sweep", "forget"
LOOK_AGAIN = dt.timedelta(hours=1)  # before an issue goes

END_LEASES = """
UPDATE newsletter_lease SET ended_at = now()
 WHERE id IN (SELECT id FROM newsletter_lease WHERE ended_at IS NULL AND expires_at <= now()
               ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING id, issue_id
"""

LEFT = """
SELECT id, issue_id FROM newsletter_lease l
 WHERE ended_at > now() - make_interval(secs => %s)
   AND NOT EXISTS (SELECT 1 FROM newsletter_lease o WHERE o.issue_id = l.issue_id AND o.ended_at IS NULL)
"""

# Found by looking through the issue's rows: no index speaks of leases, and a worker seldom dies.
TAKE_BACK = """
UPDATE newsletter_delivery d
   SET state = CASE WHEN d.state = 'handing_over' THEN 'uncertain' WHEN i.state = 'cancelled' THEN 'skipped'
                    ELSE 'pending' END,
       reason = CASE WHEN d.state = 'claimed' AND i.state = 'cancelled' THEN 'cancelled' ELSE d.reason END,
       next_attempt_at = CASE WHEN d.state = 'handing_over' THEN now() + make_interval(secs => %s)
                              WHEN i.state <> 'cancelled' THEN now() END,
       reply_text = CASE d.state WHEN 'claimed' THEN d.reply_text
                    ELSE 'the worker was lost after the hand-over began, before the reply was written down' END,
       updated_at = now()
  FROM newsletter_issue i
 WHERE i.id = d.issue_id AND d.issue_id = ANY(%s) AND d.lease_id = ANY(%s) AND d.state IN ('claimed', 'handing_over')
RETURNING d.state
"""


def dispatch_due() -> list[int]:
    """Bring the calendar up to date, freeze and start what is due; return the issues whose sending began."""
    if not _is_armed():
        return []
    ensure_slots()
    publish_scheduled_posts()
    guarded(digest.assemble)
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
        context = {**alarms.about(issue), "error": f"{type(error).__name__}: {error}"}
        alarms.alert("freeze_failed", context, once=f"freeze:{issue_id}:{issue.due_at}")


def sweep() -> list[int]:
    """Repair what a crash or a lost message left behind; return the issues that have copies due now.

    A step that fails is logged and holds up no other. Mail goes before the relay's log is read, which may be long.
    """
    if _is_armed():
        for step in STEPS:
            guarded(step)
        with_work = issues_with_work()
    else:
        with_work = []
    Heartbeat.objects.update_or_create(name=SWEEP, defaults={"at": Now()})
    return with_work


def guarded(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        logger.exception("a step of the sweep failed: %s", step.__name__)
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()  # the next step opens another


def send_mail() -> None:
    emails.send_all_due(limit=200)


def forget() -> None:
    """Delete, once an hour, who never confirmed and what throttling counts no more."""
    if Heartbeat.objects.filter(name=FORGET, at__gt=Now() - dt.timedelta(hours=1)).exists():
        return
    subscription.forget_unconfirmed()
    submissions.forget_old()
    emails.forget_nobodys()
    Heartbeat.objects.update_or_create(name=FORGET, defaults={"at": Now()})


def unsubscribe_late() -> None:
    """Carry out what was unsubscribed while the database could not write."""
    if count := spool.replay(subscription.unsubscribe_late):
        logger.warning("%s unsubscribes were carried out late: the database could not write", count)


def settle_unknown() -> None:
    """Look into the unknown copies whose time has come, and bring to their end the issues that waited for them."""
    if reconciliation.settle_unknown():
        settle_issues()


def is_overdue() -> bool:
    """Tell whether nobody has swept for three times SWEEP_SECONDS."""
    late = Now() - dt.timedelta(seconds=3 * settings.SWEEP_SECONDS)
    return not Heartbeat.objects.filter(name=SWEEP, at__gt=late).exists()


def issues_with_work() -> list[int]:
    """Return the sending issues that have at least one copy due now."""
    return [issue.pk for issue in Issue.objects.sending().defer("source") if issue.has_due()]


def settle_issues() -> None:
    """Bring to their end the issues that have nothing left to send."""
    running = Issue.objects.filter(state__in=[Issue.State.SENDING, Issue.State.NEEDS_REVIEW])
    for issue_id in list(running.values_list("pk", flat=True)):
        delivery.settle_issue(issue_id)


def resume_paused() -> None:
    """Go on with the issues that paused by themselves until an instant that has come."""
    rested = Issue.objects.filter(state=Issue.State.PAUSED, resume_at__lte=Now())
    rested.update(state=Issue.State.SENDING, pause_reason="", resume_at=None)


def skip_cancelled() -> None:
    """Leave out what still waits of a cancelled issue, such as what came back from a worker since."""
    for issue in Issue.objects.filter(state=Issue.State.CANCELLED, prepared_at__isnull=False).defer("source"):
        issue.skip_waiting()


def _is_armed() -> bool:
    if reason := instance.why_not():
        logger.error("%s", reason)
    return not reason


def start_frozen() -> list[int]:
    """Start every frozen issue; return those that this call started."""
    frozen = Issue.objects.filter(state=Issue.State.FROZEN).values_list("pk", flat=True)
    return [issue_id for issue_id in list(frozen) if delivery.start(issue_id)]


def end_leases() -> None:
    """End expired leases: a claimed copy goes back, one whose hand-over had begun becomes uncertain, never pending.

    The leases are ended first and under their locks, so that nothing more is claimed under them.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(END_LEASES)
        states = _take_back(cursor.fetchall())
    if states:
        logger.warning("%s copies taken back, %s of them uncertain", len(states), states.count("uncertain"))


def find_left_behind() -> None:
    """Take back what is still held under a lease that its worker ended: none can be, so it is told as an error.

    Asked only in the minutes after the last worker left an issue, since its rows are looked through.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(LEFT, [4 * settings.SWEEP_SECONDS])
        states = _take_back(cursor.fetchall())
    if states:
        logger.error("%s copies were held by nobody, %s of them uncertain", len(states), states.count("uncertain"))


def _take_back(ended: list[tuple[int, int]]) -> list[str]:
    """Take back what is held under these leases, given with their issues; return the states that it came to."""
    if not ended:
        return []
    leases, issues = zip(*ended, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(TAKE_BACK, [settings.UNKNOWN_SETTLE_SECONDS, list(set(issues)), list(leases)])
        return [state for (state,) in cursor.fetchall()]


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


def miss_overdue() -> None:
    """Never send by itself what is late by more than the catch-up window: the slot is missed, the issue asks."""
    window = dt.timedelta(hours=Publication.current().catch_up_hours)
    overdue = Issue.objects.due().filter(due_at__lt=Now() - window)
    for issue_id in list(overdue.values_list("pk", flat=True)):
        with transaction.atomic():
            issue = overdue.select_for_update(of=("self",)).filter(pk=issue_id).first()
            if issue:
                _miss(issue)


def _miss(issue: Issue) -> None:
    assert issue.due_at is not None
    context = {**alarms.about(issue), "due_at": issue.due_at.isoformat()}
    once = f"missed:{issue.pk}:{issue.due_at}"
    if issue.slot:
        Slot.objects.filter(pk=issue.slot.pk).update(state=Slot.State.MISSED)
    issue.state, issue.due_at, issue.slot = Issue.State.DRAFT, None, None
    issue.save(update_fields=["state", "due_at", "slot"])
    alarms.alert("missed", context, once=once)


def look_before_sending() -> None:
    """Ask the links again of what goes within the hour, and tell the author what is dead or blocks it; once a date.

    It asks the network for up to linkcheck.ALL_SECONDS, so it comes after all that others wait for.
    """
    soon = Issue.objects.filter(state=Issue.State.SCHEDULED, due_at__gt=Now(), due_at__lte=Now() + LOOK_AGAIN)
    for issue in soon:
        assert issue.due_at is not None
        duty = f"preflight:{issue.pk}"
        if Heartbeat.objects.filter(name=duty, at__gt=issue.due_at - LOOK_AGAIN).exists():
            continue
        if found := preflight.last_look(issue):
            alarms.tell_before_sending(issue, found)
        Heartbeat.objects.update_or_create(name=duty, defaults={"at": Now()})


STEPS = (
    unsubscribe_late,
    end_leases,
    find_left_behind,
    start_frozen,
    resume_paused,
    skip_cancelled,
    settle_issues,
    alarms.look,
    submissions.decide_waiting,
    notes.tell_of_new_readers,
    send_mail,
    forget,
    settle_unknown,
    ReaderCount.refresh,
    look_before_sending,
)
