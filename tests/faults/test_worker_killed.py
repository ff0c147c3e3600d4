"""A worker is killed with -9 in the middle of an issue: everyone gets his copy once, and what is unknown says so."""

import os
from pathlib import Path

import pytest

from newsletter import delivery
from newsletter.models import Issue
from posts.models import Publication
from tests.factories import make_issue, make_post, make_readers
from tests.faults.conftest import assert_promise, is_through, logged
from tests.smtpd import SmtpServer
from tests.workers import Workers, wait_until

# The same test at full size: RECIPIENTS=20000 pytest tests/faults -s
RECIPIENTS = int(os.environ.get("RECIPIENTS", "800"))
PROCESSES, CONNECTIONS = 2, 4
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900)]


def sending(publication: Publication) -> Issue:
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 800))
    delivery.send_now(issue)
    return issue


def test_an_issue_reaches_everyone_once(
    publication: Publication, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    issue = sending(publication)
    with Workers(relay, tmp_path, env={**scaled, "SMTP_CONNECTIONS": str(CONNECTIONS)}):
        wait_until(lambda: is_through(issue), seconds=600, why=issue.counts)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (len(logged(relay)), issue.state) == (RECIPIENTS, Issue.State.COMPLETED)


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(
    publication: Publication, relay: SmtpServer, tmp_path: Path, scaled: dict[str, str]
) -> None:
    issue = sending(publication)
    with Workers(relay, tmp_path, env={**scaled, "SMTP_CONNECTIONS": str(CONNECTIONS)}) as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 3, seconds=300, why=issue.counts)
        workers.kill(workers.children[0])
        workers.start("worker")
        wait_until(lambda: is_through(issue), seconds=600, why=issue.counts)
    assert_promise(issue, relay, unknown_at_most=PROCESSES * CONNECTIONS)
    counts = issue.counts()
    assert counts.sent + counts.unknown == RECIPIENTS
    assert issue.state == (Issue.State.NEEDS_REVIEW if counts.unknown else Issue.State.COMPLETED)
