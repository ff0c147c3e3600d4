"""What the demo is made of: children that end with their parent, a mailbox that counts for itself, and its data."""

import contextlib
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from newsletter import figures, processes
from newsletter.demo import seed
from newsletter.mailbox import Server
from newsletter.models import Issue
from posts.models import Post, Publication
from subscribers.models import Subscriber
from tests.workers import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = """
import sys, time
from pathlib import Path
from newsletter import processes
sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
child = processes.start("child", sleeper, env={}, logs=Path(sys.argv[1]))
print(child.process.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_a_child_that_ignores_the_request_is_ended_by_force(tmp_path: Path) -> None:
    child = processes.start("stubborn", [sys.executable, "-c", STUBBORN], env={}, logs=tmp_path)
    wait_until(lambda: "up" in child.last_words())
    began = time.monotonic()
    processes.stop_all([child], grace=0.5)
    assert child.is_dead
    assert time.monotonic() - began < 10


def test_a_parent_killed_takes_its_children_along(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_until(lambda: not is_alive(child))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mailbox() -> Iterator[dict[str, Any]]:
    smtp, http = free_port(), free_port()
    with Server(smtp, http):
        with smtplib.SMTP("127.0.0.1", smtp) as client:
            for recipient in ("ada@example.org", "bo@example.org", "bo@example.org"):
                content = f"Feedback-ID: 4:newsletter:issue:x\r\nTo: {recipient}\r\nSubject: Hello\r\n\r\nHello <b>\r\n"
                client.sendmail("author@example.org", [recipient], content)
        yield {"url": f"http://127.0.0.1:{http}"}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def test_the_mailbox_counts_distinct_recipients_of_an_issue(mailbox: dict[str, Any]) -> None:
    found = json.loads(get(f"{mailbox['url']}/count.json?feedback=4:"))
    assert found == {"recipients": 2, "messages": 3, "twice": 1}
    assert json.loads(get(f"{mailbox['url']}/count.json?feedback=44:"))["recipients"] == 0


def test_the_mailbox_shows_each_mail(mailbox: dict[str, Any]) -> None:
    assert "bo@example.org" in get(f"{mailbox['url']}/")
    assert "bo@example.org" not in get(f"{mailbox['url']}/?q=ada")
    assert "Hello <b>" in get(f"{mailbox['url']}/1/text")
    assert "Feedback-ID" in get(f"{mailbox['url']}/1/source")
    assert "sandbox" in get(f"{mailbox['url']}/1/")


@pytest.mark.django_db
def test_the_demo_has_readers_in_every_state_and_issues_that_balance(settings: Any) -> None:
    assert seed.is_empty()
    seed.fill()
    assert Post.objects.count() == 12
    assert Subscriber.objects.count() == sum(seed.STATES.values()) == 1500
    assert Subscriber.objects.mailable().count() == seed.STATES["active"]
    past = Issue.objects.exclude(started_at=None)
    assert past.count() == 3
    for issue in past:
        counts = issue.counts()
        assert counts.audience == counts.sent + counts.skipped + counts.failed
        assert issue.candidates == counts.audience
    assert Issue.objects.get(started_at=None).missing() == {}
    now = figures.growth(readers=figures.audience().readers, now=timezone.now(), zone=Publication.current().zone)
    assert now.left == seed.STATES["unsubscribed"]
