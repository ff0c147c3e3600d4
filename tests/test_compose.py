"""The compose file is well formed, and each of its commands that is ours comes up on real servers and stops in time.

No container engine runs here: the file is held against a schema, and the commands run as processes with the
environment that the containers would have.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import psycopg
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LASTING = ["web", "worker", "worker-system", "beat"]
OURS = [*LASTING, "migrate"]


def test_the_file_keeps_to_the_schema() -> None:
    jsonschema.validate(COMPOSE, json.loads((ROOT / "tests" / "compose.schema.json").read_text()))


def test_all_services_are_there() -> None:
    assert set(SERVICES) == {*OURS, "postgres", "redis", "mailpit"}


def test_what_is_named_exists() -> None:
    mounts = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert mounts == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_every_lasting_service_is_watched_and_restarted() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"migrate"}
    assert {name for name, service in SERVICES.items() if service["restart"] == "no"} == {"migrate"}


def test_ours_start_after_the_migrations_and_run_without_privileges() -> None:
    for name in LASTING:
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in OURS:
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_mailpit_runs_in_development_alone() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["mailpit"]


def test_the_broker_keeps_its_queues() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_a_worker_may_wait_for_the_answer_to_its_last_message() -> None:
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > 600 + 30


def test_the_image_is_lean_and_not_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert "uv sync --frozen --no-dev --no-default-groups" in stages[0]
    assert "collectstatic" in stages[0]
    assert re.search(r"^USER (?!root)", stages[1], re.MULTILINE)
    assert "uv " not in stages[1]


def test_the_image_starts_the_web_service() -> None:
    (command,) = re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == SERVICES["web"]["command"]


def test_every_folder_of_ours_that_is_copied_is_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert f"!{name}" in ignore
        assert (ROOT / name).exists()


def seconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


# From here on the commands run.


@dataclass
class Machine:
    """The environment that the containers would have, on this machine's PostgreSQL and Redis."""

    environment: dict[str, str]
    logs: Path

    @property
    def port(self) -> int:
        return int(self.environment["GRANIAN_PORT"])

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=240
        )

    def manage(self, *arguments: str) -> str:
        done = self.run([sys.executable, "manage.py", *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, name: str, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the service's command; a process that the test left behind is killed with all its children."""
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                SERVICES[name]["command"],
                cwd=ROOT,
                env={**self.environment, **changes},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def healthy(self, name: str) -> bool:
        """Run the service's own health check."""
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        words = [word.replace("$$", "$") for word in words]
        return self.run(["sh", "-c", *words] if kind == "CMD-SHELL" else words).returncode == 0

    def wait_until_healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 90
        while not self.healthy(name):
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < until, self.log(name)
            time.sleep(0.5)

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")[-4000:]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]  # the test's own words, no one's input


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def named(variable: str) -> str:
    address = os.environ.get(variable, "")
    assert address, f"tests marked services need {variable}: .ci/run sets it"
    return address


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database made for these tests, on the server that DATABASE_URL names."""
    server, name = urlsplit(named("DATABASE_URL")), f"masthead_services_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server._replace(path="/postgres").geturl(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]  # a name made here
        yield server._replace(path=f"/{name}").geturl()
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]  # as above


@pytest.fixture(scope="module")
def machine(database: str, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine after what the image's build and the one-shot service have done."""
    work = tmp_path_factory.mktemp("machine")
    for name in ("static", "media", "tmp", "logs"):
        (work / name).mkdir()
    machine = Machine(
        environment={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(work),
            "TMPDIR": str(work / "tmp"),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": database,
            "REDIS_URL": named("REDIS_URL"),
            "SECRET_KEY": "services " * 8,
            "PEPPER": "pepper of the services test, forty letters",
            "SITE_URL": "https://news.example.org",
            "TRUST_PROXY": "True",
            "MEDIA_ROOT": str(work / "media"),
            "STATIC_ROOT": str(work / "static"),
            "GRANIAN_HOST": "127.0.0.1",
            "GRANIAN_PORT": str(free_port()),
        },
        logs=work / "logs",
    )
    machine.manage("collectstatic", "--noinput", "--skip-checks")
    migrated = machine.run(SERVICES["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    return machine


def stop(machine: Machine, name: str, process: subprocess.Popen[bytes]) -> None:
    """Do as the engine does: SIGTERM, and within the grace period nothing of the service may be left."""
    process.terminate()
    # An idle service owes nobody anything, so it gets far less than its grace.
    process.wait(timeout=min(seconds(SERVICES[name]["stop_grace_period"]), 60))
    assert process.returncode in (0, -signal.SIGTERM), machine.log(name)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def get(machine: Machine, path: str, *, host: str = "news.example.org") -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{machine.port}{path}", headers={"Host": host, "X-Forwarded-Proto": "https"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.services
def test_migrating_again_changes_nothing(machine: Machine) -> None:
    done = machine.run(SERVICES["migrate"]["command"])
    assert done.returncode == 0, done.stderr
    assert "No migrations to apply" in done.stdout


@pytest.mark.services
@pytest.mark.parametrize("name", LASTING)
def test_a_service_comes_up_and_stops_when_told(machine: Machine, name: str) -> None:
    with machine.running(name) as process:
        machine.wait_until_healthy(name, process)
        stop(machine, name, process)


@pytest.mark.services
def test_the_web_service_answers_for_its_own_host_with_pages_style_and_images(machine: Machine) -> None:
    (Path(machine.environment["MEDIA_ROOT"]) / "image.png").write_bytes(b"\x89PNG")
    with machine.running("web") as process:
        machine.wait_until_healthy("web", process)
        assert get(machine, "/healthz/") == (200, b'{"database": "ok", "broker": "ok"}')
        assert get(machine, "/admin/login/")[0] == 200
        assert get(machine, "/media/image.png") == (200, b"\x89PNG")
        assert get(machine, "/static/admin/css/base.css")[0] == 200
        assert get(machine, "/admin/login/", host="elsewhere.example.org")[0] == 400


@pytest.mark.services
def test_the_web_service_without_a_database_says_so(machine: Machine) -> None:
    with machine.running("web", DATABASE_URL="postgres://nobody@127.0.0.1:1/none") as process:
        until = time.monotonic() + 60
        answer = 0
        while answer != 503 and time.monotonic() < until:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                answer, body = get(machine, "/healthz/")
            time.sleep(0.2)
        assert answer == 503, machine.log("web")
        assert json.loads(body)["database"] == "away"
        assert process.poll() is None


@pytest.mark.services
def test_a_tick_of_beat_reaches_the_database_through_the_broker_and_the_worker(machine: Machine) -> None:
    with (
        machine.running("worker-system") as worker,
        machine.running("beat", DISPATCH_SECONDS="1", SWEEP_SECONDS="1") as beat,
    ):
        until = time.monotonic() + 90
        while machine.query("SELECT count(*) FROM newsletter_slot") == [(0,)]:
            assert time.monotonic() < until, machine.log("beat") + machine.log("worker-system")
            time.sleep(0.5)
        assert machine.query("SELECT count(*) FROM newsletter_slot") == [(8,)]
        stop(machine, "beat", beat)
        stop(machine, "worker-system", worker)
