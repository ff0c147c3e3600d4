"""The relay's answers, phase by phase: what is certain may be retried, what is not is called uncertain."""

from collections.abc import Iterator
from typing import Any

import pytest

from newsletter.transport import Connection, Deferred, Refused, Uncertain, Unreachable
from tests.smtpd import DROP, SmtpServer

CONTENT = b"Subject: x\r\n\r\nHello\r\n"


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


def send(connection: Connection, recipient: str = "alice@example.org") -> None:
    connection.begin("author@example.org", recipient, CONTENT)
    connection.finish()


def test_one_connection_carries_many_messages(connection: Connection, relay: SmtpServer) -> None:
    for n in range(3):
        send(connection, f"reader{n}@example.org")
    connection.close()
    assert (relay.connections, len(relay.mails)) == (1, 3)


def test_a_leading_dot_arrives_as_one_dot(connection: Connection, relay: SmtpServer) -> None:
    connection.begin("author@example.org", "alice@example.org", b"Subject: x\r\n\r\n.hidden\r\n")
    connection.finish()
    assert b"\r\n..hidden" in relay.mails[0].content


def test_a_connection_is_renewed_after_its_share_of_messages(
    connection: Connection, relay: SmtpServer, settings: Any
) -> None:
    settings.SMTP_MESSAGES_PER_CONNECTION = 2
    for n in range(4):
        send(connection, f"reader{n}@example.org")
    assert relay.connections == 2


@pytest.mark.parametrize(("phase", "reply"), [("mail", "550 5.7.1 No"), ("rcpt", "550 5.1.1 Who?"), ("data", "554 No")])
def test_a_5xx_before_the_content_is_refused_and_the_connection_kept(
    connection: Connection, relay: SmtpServer, phase: str, reply: str
) -> None:
    relay.script[phase] = lambda session: reply if not relay.mails and relay.connections == 1 else None
    with pytest.raises(Refused) as refused:
        send(connection)
    assert (refused.value.reply.phase, refused.value.reply.code) == (phase, int(reply[:3]))
    relay.script.clear()
    send(connection)
    assert (relay.connections, len(relay.mails)) == (1, 1)


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "final_dot"])
def test_a_4xx_is_deferred(connection: Connection, relay: SmtpServer, phase: str) -> None:
    relay.script[phase] = lambda session: "451 4.7.1 Later"
    with pytest.raises(Deferred) as deferred:
        send(connection)
    assert deferred.value.reply.enhanced_code == "4.7.1"


@pytest.mark.parametrize("phase", ["ehlo", "mail", "rcpt", "data"])
def test_a_drop_before_the_final_dot_is_safe_to_retry(connection: Connection, relay: SmtpServer, phase: str) -> None:
    relay.script[phase] = lambda session: DROP
    with pytest.raises(Deferred):
        send(connection)
    assert not relay.mails


def test_a_drop_after_the_final_dot_is_uncertain(connection: Connection, relay: SmtpServer) -> None:
    relay.script["final_dot"] = lambda session: DROP
    with pytest.raises(Uncertain):
        send(connection)


def test_silence_after_the_final_dot_is_uncertain(connection: Connection, relay: SmtpServer, settings: Any) -> None:
    settings.SMTP_FINAL_TIMEOUT = 0.2
    relay.script["final_dot"] = lambda session: 1.0
    with pytest.raises(Uncertain):
        send(connection)


def test_a_5xx_to_the_final_dot_is_refused(connection: Connection, relay: SmtpServer) -> None:
    relay.script["final_dot"] = lambda session: "554 5.7.1 Spam"
    with pytest.raises(Refused):
        send(connection)


def test_closing_in_the_midst_of_content_delivers_nothing(relay: SmtpServer, connection: Connection) -> None:
    connection.begin("author@example.org", "alice@example.org", CONTENT)
    connection.close()
    send(connection, "bob@example.org")
    assert [mail.recipient for mail in relay.mails] == ["bob@example.org"]


def test_nobody_listening_is_unreachable(connection: Connection, settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    with pytest.raises(Unreachable):
        send(connection)


def test_a_greeting_of_421_is_unreachable(connection: Connection, relay: SmtpServer) -> None:
    relay.script["greeting"] = lambda session: "421 4.3.2 Not now"
    with pytest.raises(Unreachable):
        send(connection)


def test_garbage_instead_of_a_reply_is_deferred(connection: Connection, relay: SmtpServer) -> None:
    relay.script["rcpt"] = lambda session: "what?"
    with pytest.raises(Deferred):
        send(connection)
