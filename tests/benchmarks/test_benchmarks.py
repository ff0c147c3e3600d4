"""The benchmarks at a small size: they run, say what they promise, and refuse where figures would be worth nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from newsletter.embedded import Servers
from tests.workers import wait_until

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "benchmark"]


def environment(**values: str) -> dict[str, str]:
    """Return an environment that names no servers, so that the benchmark starts its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return {**inherited, "EMBEDDED_DIR": str(settings.EMBEDDED_DIR), **values}


def run(*words: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=environment(**values), capture_output=True, text=True, timeout=200, check=False
    )


def figures(*words: str) -> dict[str, Any]:
    """Return what a benchmark prints on standard output, which is JSON and nothing else."""
    ended = run(*words, "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert (found["fsync"], found["synchronous_commit"]) == ("on", "on")
    return found


def test_delivery_is_measured_beside_the_others_and_everyone_got_his_copy() -> None:
    found = figures("delivery", "--recipients=120", "--body-kb=40", "--pairs=2", "--django-messages=20")
    assert (found["sent"], found["intents"], found["lost"], found["duplicated"]) == (120, 120, 0, 0)
    assert (found["recipients"], found["body_kb"], found["processes"], found["connections"]) == (120, 40, 2, 16)
    assert 39_000 < found["message_bytes"] < 46_000
    assert [set(pair) for pair in found["pairs"]] == [{"ours", "smtp_source", "django", "ratio"}] * 2
    assert min(found["messages_per_s"], found["ratio_smtp_source"], found["ratio_django"], found["peak_rss_mb"]) > 0
    cpu = found["cpu_us_per_message"]
    assert cpu["ours"] + cpu["postgresql"] == pytest.approx(cpu["total"], abs=0.2)
    assert found["sink"] == "smtp-sink"


def test_freezing_is_measured_beside_a_plain_insert() -> None:
    found = figures("freeze", "--subscribers=300", "--pairs=2")
    assert found["subscribers"] == 300
    assert [set(pair) for pair in found["pairs"]] == [{"freeze", "insert_select", "ratio"}] * 2
    assert min(found["rows_per_s"], found["ratio_insert_select"]) > 0


def test_memory_is_measured_at_each_count_and_a_sample_stops_early() -> None:
    found = figures("memory", "--recipients", "50", "20000", "--sample=50", "--body-kb=5")
    assert found["recipients"] == [50, 20000]
    assert found["sent"][0] == 50
    assert 50 <= found["sent"][1] < 20000
    assert found["ratio"] == pytest.approx(found["peak_rss_mb"][1] / found["peak_rss_mb"][0], abs=0.01)


def test_the_authors_pages_are_measured_and_all_come() -> None:
    found = figures("desk", "--readers=200", "--issues=5", "--posts=20", "--full=2")
    assert (found["readers"], found["copies"]) == (200, 400)
    assert len(found["pages"]) > 30
    assert min(min(seconds) for seconds in (found["page_s"], *found["pages"].values())) > 0


def test_the_readers_pages_are_measured_beside_nginx_and_beside_a_send() -> None:
    found = figures("site", "--posts=40", "--words=200", "--seconds=1", "--rounds=1", "--connections", "1", "4",
                    "--readers=300")  # fmt: skip
    for page in ("profile", "archive", "post", "search", "feed"):
        for connections in ("1", "4"):
            kept, anew = found[page]["cached"][connections], found[page]["uncached"][connections]
            assert min(kept["rps"], kept["p50_ms"], kept["p99_ms"], kept["ratio_nginx"], kept["bytes"]) > 0
            assert min(anew["rps"], anew["p50_ms"], anew["p99_ms"], anew["bytes"]) > 0
            assert 0 < anew["queries"] <= 4
    assert found["post"]["cached"]["4"]["rps"] > 3 * found["post"]["uncached"]["4"]["rps"]
    assert found["beside_send"]["factor"] > 0
    assert min(found["pss_mb"].values()) > 0


def test_signing_up_is_measured_and_every_kind_of_address_gets_the_same_answer() -> None:
    found = figures("signups", "--readers=100", "--requests=5", "--seconds=1")
    assert set(found["enumeration"]) == {"sign-up", "json", "magic link"}
    for door in found["enumeration"].values():
        assert door["answers"] == 1
        assert len(door["auc"]) == 15
        assert min(door["p50_ms"].values()) > 0
    assert min(found["signup_rps"], found["signup_p99_ms"], found["signups_decided"]) > 0
    assert found["signups_taken"] >= found["signup_rps"] * 0.9


def test_bringing_readers_along_is_measured_beside_a_plain_insert() -> None:
    # So few rows that the ratio may be too small.
    ended = run("subscribers", "--rows=3000", "--requests=5", "--seconds=1", "--json")
    found = json.loads(ended.stdout)
    assert (found["fsync"], found["rows"], len(found["pairs"])) == ("on", 3000, 1)
    figures = ("import_rows_per_s", "ratio_insert_select", "ratio_copy", "list_ms", "export_rows_per_s", "peak_rss_mb",
               "signup_rps", "signup_p99_ms")  # fmt: skip
    assert min(found[name] for name in figures) > 0


def test_a_server_without_fsync_is_refused(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "fleeting", postgres_bin=settings.SERVERS.postgres_bin, durable=False)
    with servers.running():
        ended = run("freeze", "--subscribers=10", "--json", DATABASE_URL=servers.database_url, **secrets(servers))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "fsync must be on" in ended.stderr


def secrets(servers: Servers) -> dict[str, str]:
    return {"REDIS_URL": servers.redis_url, "SECRET_KEY": settings.SECRET_KEY, "PEPPER": settings.PEPPER}


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, whatever session they are in."""
    with contextlib.suppress(OSError):
        children = set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return children.union(*map(descendants, children))
    return set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_it_started_ends_with_it(number: signal.Signals, tmp_path: Path) -> None:
    words = ["delivery", "--recipients=50000", "--pairs=1"]
    with (tmp_path / "stderr").open("wb") as log:
        parent = subprocess.Popen([*COMMAND, *words], env=environment(), stdout=log, stderr=log)
    wait_until(lambda: is_sending(parent.pid), seconds=90, why=(tmp_path / "stderr").read_text)
    started = descendants(parent.pid)
    parent.send_signal(number)
    assert parent.wait(60) == 128 + number
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def is_sending(pid: int) -> bool:
    """Tell whether both sending processes run."""
    return sum(b"sender" in command(child) for child in descendants(pid)) == 2


def command(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []
