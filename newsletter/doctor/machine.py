"""What the doctor asks about this machine: clock, broker, beat, workers, what waits too long, disk and settings."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
from django.conf import settings
from django.core import checks
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from kombu import Connection
from kombu.exceptions import OperationalError

from newsletter.celery import app
from newsletter.doctor.domain import HTTP_SECONDS, reason
from newsletter.doctor.facts import Facts, Said, fails, ok, one_line, unasked, warns
from newsletter.models import Heartbeat, Issue, Lease
from subscribers.models import SystemMail

CLOCK_SECONDS = 5  # a Date header is a whole second, and on its way for another
SWEEP = "sweep"  # what the sweep leaves behind, each SWEEP_SECONDS
QUEUES = ("bulk", "system")
INSPECT_SECONDS = 3.0
LATE_MAIL, VERY_LATE_MAIL = dt.timedelta(minutes=10), dt.timedelta(hours=1)
LITTLE_SPACE, NO_SPACE = 2 * 1024**3, 256 * 1024**2
GIGABYTE = 1024**3


def clock(facts: Facts) -> Said:
    """Compare this machine's clock with the database's and with the Date that the site answers."""
    ahead = {_("the database"): facts.clock_ahead} if facts.clock_ahead is not None else {}
    why = ""
    try:
        answer = requests.get(f"{facts.site_url}/healthz/", allow_redirects=False, timeout=HTTP_SECONDS)
        said = parsedate_to_datetime(answer.headers["Date"])
        ahead[facts.site_host] = time.time() - said.timestamp() - 0.5  # it is cut to the second
    except (requests.RequestException, KeyError, ValueError) as error:
        why = _("%(host)s could not be asked: %(error)s") % {"host": facts.site_host, "error": reason(error)}
    if not ahead:
        return unasked(_("Neither the database nor the site tells the time. %(why)s") % {"why": why})
    words = ", ".join(f"{name}: {seconds:+.1f} s" for name, seconds in ahead.items())
    words = _("This machine's clock is ahead by: %(words)s.") % {"words": words} + (f" {why}." if why else "")
    if max(map(abs, ahead.values())) > CLOCK_SECONDS:
        return fails(words, _("Let every machine follow the same time server: chrony or systemd-timesyncd."))
    return ok(words)


def broker(_facts: Facts) -> Said:
    """Ask the broker for a connection."""
    with app.connection_for_write() as connection:
        values = {"broker": connection.as_uri().replace(":**@", "")}  # its password is out already
        try:
            _connect(connection)
        except OperationalError as error:
            words = _("%(broker)s does not answer: %(error)s") % {**values, "error": one_line(error)}
            to_do = _("Start Redis or Valkey, or mend REDIS_URL. Until then each step waits for the next sweep.")
            return fails(words, to_do)
    return ok(_("%(broker)s answers.") % values)


def _connect(connection: Connection) -> None:
    """Connect with little patience. Raises OperationalError."""
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)


def worker(_facts: Facts) -> Said:
    """Ask the workers which queues they empty; an answer comes from their main process, however busy they are."""
    with app.connection_for_write() as connection:
        try:
            _connect(connection)
            found = app.control.inspect(timeout=INSPECT_SECONDS, connection=connection).active_queues() or {}
        except OperationalError as error:
            return unasked(_("The broker carries no question to them: %(error)s.") % {"error": one_line(error)})
    served = {queue["name"] for queues in found.values() for queue in queues}
    idle = [queue for queue in QUEUES if queue not in served]
    names = ", ".join(sorted(found))
    if not found:
        to_do = _("Start them: celery -A newsletter worker --queues bulk, and another with --queues system.")
        return fails(_("No worker answers."), to_do)
    if idle:
        words = _("Workers answer (%(names)s), but nobody empties the queue %(queues)s.")
        to_do = _("Start one: celery -A newsletter worker --queues %(queue)s") % {"queue": idle[0]}
        return fails(words % {"names": names, "queues": ", ".join(idle)}, to_do)
    return ok(_("Workers answer and empty both queues: %(names)s.") % {"names": names})


def beat(facts: Facts) -> Said:
    """Look when the last sweep was: beat asked for it, the broker carried that, and a worker did it."""
    facts.need_database()
    age = models.ExpressionWrapper(Now() - models.F("at"), output_field=models.DurationField())
    last = Heartbeat.objects.filter(name=SWEEP).annotate(age=age).first()
    to_do = _("Start beat (celery -A newsletter beat), and a worker of the queue system.")
    if last is None:
        return fails(_("Nobody has ever swept here: nothing due would begin by itself."), to_do)
    seconds: dt.timedelta = last.age
    words = _("The last sweep was %(seconds)d seconds ago; one is due every %(every)d.")
    words %= {"seconds": seconds.total_seconds(), "every": settings.SWEEP_SECONDS}
    if seconds.total_seconds() > 10 * settings.SWEEP_SECONDS:
        return fails(words, to_do)
    if seconds.total_seconds() > 3 * settings.SWEEP_SECONDS:
        return warns(words, to_do)
    return ok(words)


def system_mail(facts: Facts) -> Said:
    """Look how long the oldest confirmation or alert has been due."""
    facts.need_database()
    due = SystemMail.objects.due().order_by("due_at")
    oldest, count = due.first(), due.count()
    lost = SystemMail.objects.filter(failed_at__gte=Now() - dt.timedelta(days=7)).count()
    to_do = _("Look at “System mail” in the admin: each row keeps its last error.")
    if oldest and (age := timezone.now() - oldest.due_at) > LATE_MAIL:
        words = ngettext(
            "%(count)d mail is due, for %(age)s.", "%(count)d mails are due, the oldest for %(age)s.", count
        ) % {"count": count, "age": timesince(oldest.due_at)}
        words += f" {oldest.error}" if oldest.error else ""
        return fails(words, to_do) if age > VERY_LATE_MAIL else warns(words, to_do)
    if lost:
        words = ngettext("%(count)d mail was given up this week.", "%(count)d mails were given up this week.", lost)
        return warns(words % {"count": lost}, to_do)
    return ok(_("No confirmation, link or alert waits longer than ten minutes."))


def deliveries(facts: Facts) -> Said:
    """Look for issues that have not begun in time, and for due copies that nobody takes up."""
    facts.need_database()
    late = Issue.objects.filter(state__in=[Issue.State.SCHEDULED, Issue.State.FROZEN])
    late = (
        late.filter(due_at__lte=Now() - dt.timedelta(seconds=settings.LATE_SECONDS)).order_by("due_at").defer("source")
    )
    if (issue := late.first()) and issue.due_at:
        words = _("%(issue)s was due %(age)s ago and has not begun.")
        return fails(words % {"issue": issue, "age": timesince(issue.due_at)}, _("See beat and worker, here."))
    stuck = [issue for issue in _quiet() if issue.has_due()]
    if stuck:
        words = _("Copies of %(issue)s are due and none was handed over for %(age)s.")
        values = {"issue": stuck[0], "age": timesince(stuck[0].moved_at)}  # type: ignore[attr-defined]  # _quiet()'s own
        return fails(words % values, _("See worker and relay, here, and the page of the issue."))
    at_work = Lease.objects.filter(ended_at=None, expires_at__gt=Now()).count()
    words = ngettext(
        "Nothing due waits; %(count)d worker is at work.", "Nothing due waits; %(count)d are at work.", at_work
    )
    return ok(words % {"count": at_work})


def _quiet() -> Iterable[Issue]:
    """Return the sending issues of which no copy was settled for STALL_SECONDS."""
    moved = models.functions.Greatest(models.F("state_since"), models.Max("leases__settled_at"))
    quiet = Now() - dt.timedelta(seconds=settings.STALL_SECONDS)
    return Issue.objects.sending().annotate(moved_at=moved).filter(moved_at__lte=quiet).defer("source")


def disk(_facts: Facts) -> Said:
    """Look how much room is left where images lie, and in the embedded database's folder."""
    media = Path(settings.MEDIA_ROOT)
    folders = [media, *([Path(settings.EMBEDDED_DIR)] if settings.EMBEDDED else [])]
    free = {folder: shutil.disk_usage(_existing(folder)).free for folder in folders}
    least = min(free.values())
    words = ", ".join(f"{folder}: {space / GIGABYTE:.1f} GB" for folder, space in free.items())
    words = _("Free: %(words)s.") % {"words": words}
    if not os.access(_existing(media), os.W_OK):
        words = _("%(folder)s can't be written: no image can be uploaded.") % {"folder": media}
        return fails(words, _("Give it to the user that the site runs as."))
    to_do = _("Make room: PostgreSQL stops when its disk is full, and sending with it.")
    if least < LITTLE_SPACE:
        return fails(words, to_do) if least < NO_SPACE else warns(words, to_do)
    return ok(words if settings.EMBEDDED else words + " " + _("The database's disk can't be seen from here."))


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))


def settings_checks(facts: Facts) -> Said:
    """Run what `manage.py check --deploy --database default` runs; the last part where there is a database."""
    databases = [] if facts.why_no_database else ["default"]
    found = checks.run_checks(include_deployment_checks=True, databases=databases)
    bad = [each for each in found if each.level >= checks.WARNING and not each.is_silenced()]
    bad.sort(key=lambda each: (-each.level, each.id or ""))
    if not bad:
        return ok(_("manage.py check --deploy --database default has nothing to say."))
    # Some go on for a paragraph behind the sentence that counts.
    words = "\n".join(f"{each.id}: {' '.join(str(each.msg).split()).partition('. ')[0]}" for each in bad)
    hints = "\n".join(dict.fromkeys(" ".join(str(each.hint).split()) for each in bad if each.hint))
    return fails(words, hints) if any(each.is_serious() for each in bad) else warns(words, hints)
