"""A real Postfix on loopback, to learn from: it takes mail like a relay, logs like one, and discards what it took.

It has folders of its own for configuration, queue and data and leaves the system's alone. No agent that could send
mail exists in it. It can't be had everywhere: its master must run as root.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

MISSING = "no Postfix was found, and none could be installed (that needs root and Debian's apt-get)"
POLICY = Path("/usr/sbin/policy-rc.d")
FETCH_SECONDS = 300
COMMAND_SECONDS = 30
SETTLING_SECONDS = 15

# Every transport discards, and master.cf below knows no other agent. What is set here is what a relay on the sender's
# own machine must have otherwise; all else is Postfix's default.
MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {log}
maillog_file_prefixes = {log.parent}
myhostname = relay.example.com
mydestination =
inet_protocols = ipv4
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
alias_maps =
alias_database =
local_recipient_maps =
notify_classes =
default_transport = discard:
local_transport = discard:
relay_transport = discard:
virtual_transport = discard:
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
RECEIVED = re.compile(r"/discard\[\d+\]: \w+: to=<([^>]*)>")


@cache
def available() -> bool:
    """Tell whether a Postfix can be run here, after installing it where we may."""
    return os.geteuid() == 0 and (found() or (Path("/etc/debian_version").exists() and installed()))


def found() -> bool:
    return shutil.which("postfix", path="/usr/sbin:/sbin") is not None


def installed() -> bool:
    with nothing_started():
        fetch("update")
        fetch("install", "-y", "--no-install-recommends", "postfix")
    return found()


@contextmanager
def nothing_started() -> Iterator[None]:
    """Keep packages from starting the services they bring (invoke-rc.d asks policy-rc.d; 101 means: don't)."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def fetch(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ("apt-get", "-q", *arguments)
    subprocess.run(command, env=environment, capture_output=True, timeout=FETCH_SECONDS, check=False)


class Postfix:
    """Use as a context manager; `folder` receives the log and keeps it, `settings` go into main.cf.

    `port` is the relay's on 127.0.0.1, `log` the file it logs to: in the traditional format, in the machine's time.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.log = folder / "maillog"
        self.settings = settings or {}
        self.port = free_port()

    def __enter__(self) -> Postfix:
        # Its processes run as their own user, who can't enter the folders that pytest makes.
        self.root = Path(tempfile.mkdtemp(prefix="postfix-"))
        self.root.chmod(0o755)
        try:
            self._configure()
            self._postfix("start")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def queued(self) -> Counter[str]:
        """Count by recipient what entered the queue, once all of it has come out again and was logged."""
        wait_until(lambda: not any(self._committed()), "the queue did not empty")
        self._flush_log()
        return Counter(RECEIVED.findall(self.log.read_text("utf-8", "replace")))

    def _configure(self) -> None:
        for name in ("etc", "queue", "data"):
            (self.root / name).mkdir(mode=0o755)
        shutil.chown(self.root / "data", "postfix")
        lines = [f"{name} = {value}\n" for name, value in self.settings.items()]
        (self.root / "etc/main.cf").write_text(MAIN.format(root=self.root, log=self.log) + "".join(lines))
        (self.root / "etc/master.cf").write_text(MASTER.format(port=self.port))

    def _postfix(self, command: str) -> None:
        self._run("postfix", "-c", str(self.root / "etc"), command)

    def _run(self, *command: str) -> None:
        """Run one of Postfix's commands in the machine's time zone: Django has put its own into TZ."""
        environment = {name: value for name, value in os.environ.items() if name != "TZ"}
        environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(command, env=environment, capture_output=True, timeout=COMMAND_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).decode('utf-8', 'replace')}")

    def _remove(self) -> None:
        pid = self._master()
        try:
            if pid:
                self._postfix("stop")
                wait_until(lambda: not Path(f"/proc/{pid}").exists(), "Postfix did not stop")
        finally:
            shutil.rmtree(self.root)

    def _master(self) -> int | None:
        file = self.root / "queue/pid/master.pid"
        return int(file.read_text()) if file.exists() else None

    def _committed(self) -> Iterator[Path]:
        """Yield the queue files that are whole: Postfix sets the owner's execute bit when it commits one."""
        for name in ("maildrop", "incoming", "active", "deferred"):
            yield from filter(is_committed, (self.root / "queue" / name).rglob("*"))

    def _flush_log(self) -> None:
        """Wait until what was logged so far is in the file: lines go one after another through the log daemon."""
        mark = uuid.uuid4().hex
        self._run("postlog", "-c", str(self.root / "etc"), "-t", "postfix/mark", mark)
        wait_until(lambda: mark in self.log.read_text("utf-8", "replace"), "the log daemon is behind")


def is_committed(path: Path) -> bool:
    try:
        return path.is_file() and bool(path.stat().st_mode & 0o100)
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + SETTLING_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
