"""The version of everything that pages show, as one process knows it: read at most every half second.

Triggers count the number up in the transaction that changes something. A scheduled post appears without any write, so
the posts whose instant has come are counted along; and since form tokens are made of the day, the day counts, too.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time

from django.db import Error, connection
from django.utils import timezone

logger = logging.getLogger(__name__)

READ_SECONDS = 0.5
WAIT_SECONDS = 1.0  # for another thread that reads
AWAY_SECONDS = 5.0  # without an answer, from then on what is kept is said to be stale

# Our clock and not the database's: pages, which are made by ours, must not be behind what the version says.
QUERY = """
SELECT coalesce((SELECT number FROM posts_siteversion WHERE id = 1), 0),
       (SELECT count(*) FROM posts_post WHERE status = 'scheduled' AND published_at <= %s)
"""

Version = tuple[int, int, dt.date]


class Clock:
    """Tells the version; one request's thread reads it while the others go on with what is known.

    A page that is made after `version()` was asked is never older than the answer: if something changes meanwhile, the
    page is newer than the version it is kept under, and is made again as soon as the next reading tells of the change.
    """

    def __init__(self) -> None:
        self.current: Version | None = None
        self.former: Version | None = None
        self.changed_at = self.read_at = self._read_after = float("-inf")
        self._failed = False
        self._reading = threading.Lock()

    def version(self) -> Version | None:
        """Return what was current half a second ago or later; None where the database has not answered yet."""
        now = time.monotonic()
        if now < self._read_after:
            return self.current
        if self._reading.acquire(blocking=False):
            try:
                self._read(now)
            finally:
                self._reading.release()
        elif not self._failed and now - self.read_at > 2 * READ_SECONDS:
            self._await_reader()
        return self.current

    @property
    def is_away(self) -> bool:
        """Tell whether the database has been silent for so long that nobody can say what is current."""
        return self._failed and time.monotonic() - self.read_at > AWAY_SECONDS

    def _await_reader(self) -> None:
        """Wait for the reading under way: what is known is too old, as after an hour without a visitor."""
        if self._reading.acquire(timeout=WAIT_SECONDS):
            self._reading.release()
        else:
            self._failed = True  # the database does not even refuse: nobody waits for it a second time

    def _read(self, now: float) -> None:
        try:
            version = _ask()
        except Error as error:
            if not self._failed:
                logger.error("the version of the site can't be read, kept pages are served on: %s", error)
            self._failed = True
        else:
            if version != self.current:
                self.former, self.current, self.changed_at = self.current, version, now
            self.read_at, self._failed = now, False
        self._read_after = now + READ_SECONDS


def _ask() -> Version:
    """Ask the database, once more over a new connection where an old one broke unnoticed. Raises django.db.Error."""
    try:
        return _query()
    except Error:
        connection.close()
        return _query()


def _query() -> Version:
    now = timezone.now()
    with connection.cursor() as cursor:
        cursor.execute(QUERY, [now])
        number, due = cursor.fetchone()
    return number, due, now.date()
