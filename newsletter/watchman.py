"""Sweep from a worker when nobody else does: no beat, no broker, or every message lost.

A thread of the worker's parent process, which runs no tasks, asks the database how long ago the last sweep was. Where
it is overdue the work is done by `manage.py sweep --send`, a process of its own, which needs neither beat nor broker.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import suppress

from django.conf import settings
from django.db import Error, connection

from newsletter import sweeper

logger = logging.getLogger(__name__)


class Watchman:
    """Looks every SWEEP_SECONDS; has at most one process at work."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchman", daemon=True).start()

    def stop(self) -> None:
        """Start nothing more; ask the process at work to drain, and wait until it has.

        A container ends with this process, and whatever still hands a copy over in it would be killed.
        """
        self._ended.set()
        if process := self._process:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(settings.SMTP_FINAL_TIMEOUT)

    def _watch(self) -> None:
        while not self._ended.wait(settings.SWEEP_SECONDS):
            try:
                if sweeper.is_overdue():
                    self._sweep()
            except Error as error:
                logger.warning("the database can't be asked when the last sweep was: %s", error)
            finally:
                connection.close()  # this process forks: nothing is to be inherited

    def _sweep(self) -> None:
        logger.warning("nobody has swept for %s s: this worker does", 3 * settings.SWEEP_SECONDS)
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "sweep", "--send"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603  our own words, no shell
        if self._ended.is_set():
            self._process.terminate()
        self._process.wait()
        self._process = None
