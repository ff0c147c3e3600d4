"""A worker is killed with -9 in the middle of an issue: everyone gets his copy once, and what is unknown says so."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from newsletter import delivery
from newsletter.models import Delivery, Issue
from posts.models import Publication
from tests.factories import make_issue, make_post, make_readers
from tests.smtpd import SmtpServer
from tests.workers import Workers, wait_until

# The same test at full size: RECIPIENTS=20000 pytest tests/faults -s
RECIPIENTS = int(os.environ.get("RECIPIENTS", "800"))
CONNECTIONS = 2  # worker processes, each with one connection
State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900)]


@pytest.fixture
def relay(tmp_path: Path) -> Any:
    with SmtpServer(keep_content=False, log=tmp_path / "recipients.log") as server:
        yield server


def sending(publication: Publication) -> Issue:
    make_readers(RECIPIENTS)
    issue = make_issue(make_post(body="Word " * 800))
    delivery.send_now(issue)
    return issue


def is_through(issue: Issue) -> bool:
    issue.refresh_from_db()
    return issue.state not in (Issue.State.FROZEN, Issue.State.SENDING)


def logged(relay: SmtpServer) -> Counter[str]:
    """Count what the server itself wrote down, line by line."""
    assert relay.log is not None
    return Counter(relay.log.read_text().split())


def test_an_issue_reaches_everyone_once(publication: Publication, relay: SmtpServer, tmp_path: Path) -> None:
    issue = sending(publication)
    with Workers(relay, tmp_path):
        wait_until(lambda: is_through(issue), seconds=600, why=issue.counts)
    recipients = logged(relay)
    print(f"\n{issue.counts()}; the server logged {len(recipients)} recipients, {max(recipients.values())} time each")
    assert issue.state == Issue.State.COMPLETED
    assert (len(recipients), set(recipients.values())) == (RECIPIENTS, {1})


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(
    publication: Publication, relay: SmtpServer, tmp_path: Path
) -> None:
    issue = sending(publication)
    with Workers(relay, tmp_path) as workers:
        wait_until(lambda: len(relay.recipients) > RECIPIENTS // 3, seconds=300, why=issue.counts)
        workers.kill(workers.children[0])
        workers.start("worker")
        wait_until(lambda: is_through(issue), seconds=600, why=issue.counts)
    recipients, counts = logged(relay), issue.counts()
    print(f"\n{counts}; the server logged {len(recipients)} recipients, {max(recipients.values())} time each")
    assert set(recipients.values()) == {1}
    assert counts.open == 0
    assert counts.unknown <= CONNECTIONS
    accepted = set(issue.deliveries.filter(state=State.ACCEPTED).values_list("address", flat=True))
    assert accepted <= set(recipients)
    assert counts.sent + counts.unknown == RECIPIENTS
    assert issue.state == (Issue.State.NEEDS_REVIEW if counts.unknown else Issue.State.COMPLETED)
