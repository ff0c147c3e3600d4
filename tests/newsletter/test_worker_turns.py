"""Copy after copy on one connection, envelopes overlapping: no answer is lost, nor booked to another copy."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from newsletter import delivery, transport
from newsletter.models import Delivery, Issue
from newsletter.replies import Refused, Reply
from newsletter.smtp import Account, Connection
from newsletter.worker import Worker
from tests.factories import make_issue, make_readers
from tests.smtpd import Answer, SmtpServer, make_certificates

State = Delivery.State
# A worker speaks to the ledger on connections of its own, so what a test writes has to be committed.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]


@pytest.fixture
def relay(settings: Any) -> Iterator[SmtpServer]:
    """A relay that pipelines, and settings that make use of it on one connection."""
    with SmtpServer(extensions=("PIPELINING", "STARTTLS")) as server:
        settings.SMTP_HOST, settings.SMTP_PORT, settings.SMTP_OVERLAP = "127.0.0.1", server.port, True
        settings.SMTP_TIMEOUT = settings.SMTP_FINAL_TIMEOUT = 5
        settings.SMTP_CONNECTIONS = 1
        yield server


@pytest.fixture
def secured(relay: SmtpServer, settings: Any, tmp_path: Path) -> SmtpServer:
    relay.tls = make_certificates(tmp_path).server
    settings.SMTP_SECURITY, settings.SMTP_CA_FILE = "starttls", str(tmp_path / "ca.pem")
    return relay


def sending(readers: int) -> Issue:
    make_readers(readers)
    issue = make_issue()
    delivery.send_now(issue)
    return issue


def shown_as_sent(issue: Issue) -> Counter[str]:
    return Counter(issue.deliveries.filter(state=State.ACCEPTED).values_list("address", flat=True))


def test_copies_follow_each_other_under_tls(secured: SmtpServer) -> None:
    issue = sending(20)
    delivery.send_due(issue.pk)
    assert (len(secured.recipients), shown_as_sent(issue)) == (20, secured.recipients)


def test_a_withheld_dot_is_not_answered_by_the_copy_before(
    secured: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured.script["rcpt"] = lambda session: f"250 2.1.5 {session.recipient} Ok"  # so that no answer is the usual one
    issue = sending(6)
    sent: list[transport.Letter] = []
    send = transport.SmtpLink.send

    async def just_too_late(link: transport.SmtpLink, letter: transport.Letter, *args: Any, **values: Any) -> None:
        sent.append(letter)
        if len(sent) == 3:
            secured.interject("421 4.4.2 Timeout")
        await send(link, letter, *args, **values)

    monkeypatch.setattr(transport.SmtpLink, "send", just_too_late)
    delivery.send_due(issue.pk)
    assert shown_as_sent(issue) == secured.recipients


def test_what_was_taken_is_written_down_though_a_commit_broke_off(relay: SmtpServer) -> None:
    issue = sending(20)
    worker = Worker(issue)
    intend, commits = worker.ledger.intend, count(1)

    async def once_broken(copies: Any, accepted: Any) -> Any:
        if next(commits) == 6:
            raise psycopg.DataError
        return await intend(copies, accepted)

    worker.ledger.intend = once_broken  # type: ignore[method-assign]  # breaks once, else it is as it was
    with pytest.raises(psycopg.DataError):
        asyncio.run(worker.run(30))
    assert shown_as_sent(issue) == relay.recipients


def take_over(reply: Reply, waiter: asyncio.Future[Any]) -> bool:
    waiter.set_result(reply)
    return True


def test_a_reply_whose_first_line_comes_alone_leaves_nothing_behind(relay: SmtpServer) -> None:
    said: dict[str, Answer] = {
        "reader3@example.org": [b"250-Queued\r\n", 0.05, b"250 2.0.0 as three\r\n"],
        "reader5@example.org": "550 5.1.1 No such user",
    }
    relay.script["final_dot"] = lambda session: said.get(session.recipient)

    async def talk(connection: Connection) -> None:
        connection.begin("author@example.org", "reader0@example.org", 10)
        await connection.begun()
        for n in range(1, 7):
            await connection.send_whole((b"Hello\r\n",), ("author@example.org", f"reader{n}@example.org", 10))
            if await asyncio.wait_for(connection.listen(take_over), 5) is None:
                await connection.answered()
                await connection.begun()

    async def session() -> None:
        connection = await Connection.open(Account("127.0.0.1", relay.port, overlap=True))
        try:
            await talk(connection)
        finally:
            await connection.quit()

    with pytest.raises(Refused, match="No such user"):
        asyncio.run(session())
