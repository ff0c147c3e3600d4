"""Keep one embedded server for as long as anyone uses it: start it, wait for the last user to go, stop it.

Run as a program of its own, by its path, so that no command has to outlive another for the server's sake. A user is
whoever holds the lock on IN_USE; the kernel releases it when a process ends, even by kill -9. If the keeper itself is
killed, the kernel sends the signal STOP to the server.

    keeper.py IN_USE ALIVE STOP USER COMMAND...     (an empty USER: as ourselves)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_SECONDS = 30.0
LIBC = ctypes.CDLL(None)


def main(in_use: str, alive: str, stop: str, user: str, *command: str) -> int:
    with open(alive, "a") as sign_of_life:
        fcntl.flock(sign_of_life, fcntl.LOCK_SH)
        child = start(list(command), signal.Signals[stop], user)
        threading.Thread(target=end_after_use, args=(child, signal.Signals[stop], in_use), daemon=True).start()
        return child.wait()


def start(command: list[str], stop: signal.Signals, user: str) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, without any right of ours that `user` lacks."""
    keeper = os.getpid()

    def die_with_keeper() -> None:
        if sys.platform == "linux":
            LIBC.prctl(PR_SET_PDEATHSIG, stop)
        if os.getppid() != keeper:
            os._exit(1)

    group = pwd.getpwnam(user).pw_gid if user else None
    return subprocess.Popen(  # noqa: S603  embedded.py's words, no shell
        command,
        user=user or None,
        group=group,
        extra_groups=[] if user else None,
        start_new_session=True,
        preexec_fn=die_with_keeper,  # noqa: PLW1509  there is one thread only yet
    )


def end_after_use(child: subprocess.Popen[bytes], stop: signal.Signals, in_use: str) -> None:
    """Stop the server when the last user has gone, by force after a while; newcomers wait at the lock meanwhile."""
    with open(in_use, "a") as use, contextlib.suppress(ProcessLookupError):
        fcntl.flock(use, fcntl.LOCK_EX)
        os.killpg(child.pid, stop) if stop == signal.SIGKILL else child.send_signal(stop)
        time.sleep(STOP_SECONDS)
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
