"""The SMTP client and a server that answers well, badly, late or not at all: what is sure is told from what isn't."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from newsletter.replies import Deferred, Dropped, Refused, Reply, TransportError, Uncertain, Unreachable
from newsletter.smtp import Account, Connection, boot_time, dot_stuffed
from tests.smtpd import DROP, Answer, Certificates, SmtpServer, Step, make_certificates

AUTHOR, ALICE, BOB = "author@example.org", "alice@example.org", "bob@example.org"
CONTENT = b"Subject: x\r\n\r\nHello\r\n"
LONG = b"Subject: x\r\n\r\n" + b"Seventy characters in a line and some more of them to fill it up\r\n" * 200_000
PLAIN, PIPELINING = ("8BITMIME",), ("PIPELINING", "8BITMIME")
Talk = Callable[[Connection], Awaitable[Any]]


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    """A server that offers PIPELINING."""
    with SmtpServer(extensions=PIPELINING) as server:
        yield server


@pytest.fixture(params=[PLAIN, PIPELINING], ids=["plain", "pipelining"])
def either(request: pytest.FixtureRequest) -> Iterator[SmtpServer]:
    """A server that takes one command at a time, and one that takes several."""
    with SmtpServer(extensions=request.param) as server:
        yield server
        assert not server.out_of_turn


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secured(server: SmtpServer, certificates: Certificates) -> SmtpServer:
    """A server that offers STARTTLS and logs in one user."""
    server.tls, server.users = certificates.server, {"masthead": "secret ü"}
    server.extensions = ("PIPELINING", "STARTTLS", "AUTH PLAIN LOGIN")
    return server


def account(server: SmtpServer, **values: Any) -> Account:
    return Account("127.0.0.1", server.port, helo="client.example.org", **values)


def on(server: SmtpServer, talk: Talk, **values: Any) -> Any:
    """Open a connection, have the talk on it and quit."""

    async def session() -> Any:
        connection = await Connection.open(account(server, **values))
        try:
            return await talk(connection)
        finally:
            await connection.quit()

    return asyncio.run(session())


def unreachable(server: SmtpServer, **values: Any) -> Reply:
    """Fail to open a connection, and return why."""
    with pytest.raises(Unreachable) as error:
        on(server, nothing, **values)
    return error.value.reply


async def nothing(connection: Connection) -> None:
    pass


async def up_to_the_dot(connection: Connection, recipient: str = ALICE, content: bytes = CONTENT) -> None:
    connection.begin(AUTHOR, recipient, len(content))
    await connection.begun()
    await connection.send_body(content)


async def send(connection: Connection, recipient: str = ALICE, content: bytes = CONTENT) -> Reply:
    await up_to_the_dot(connection, recipient, content)
    connection.write_dot()
    return await connection.answered()


async def fails(kind: type[TransportError], attempt: Awaitable[Any]) -> Reply:
    """Await the attempt, which has to fail as this kind exactly, and return what the relay said."""
    with pytest.raises(kind) as error:
        await attempt
    assert type(error.value) is kind
    return error.value.reply


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def lines(server: SmtpServer) -> list[str]:
    return [heard.line for heard in server.heard]


# Sending


def test_one_connection_carries_many_messages(either: SmtpServer) -> None:
    async def talk(connection: Connection) -> list[Reply]:
        return [await send(connection, f"reader{n}@example.org") for n in range(3)]

    assert on(either, talk) == [Reply(250, "2.0.0 Ok", "final_dot")] * 3
    assert [mail.recipient for mail in either.mails] == [f"reader{n}@example.org" for n in range(3)]
    assert (either.connections, lines(either)[-1]) == (1, "QUIT")


def test_the_content_arrives_as_it_was(either: SmtpServer) -> None:
    on(either, lambda connection: send(connection, content=CONTENT))
    assert (either.mails[0].sender, either.mails[0].content) == (AUTHOR, CONTENT)


def test_nothing_is_taken_before_the_final_dot(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        await up_to_the_dot(connection)
        await asyncio.sleep(0.1)
        assert not server.recipients
        connection.write_dot()
        await connection.answered()

    on(server, talk)
    assert server.recipients == {ALICE: 1}


def test_a_connection_is_of_no_more_use_after_its_share_of_messages(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> list[bool]:
        usable = []
        for _ in range(2):
            await send(connection)
            usable.append(connection.usable)
        return usable

    assert on(server, talk, messages_per_connection=2) == [True, False]


def test_the_share_of_messages_counts_for_an_overlapping_envelope(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> bool:
        await up_to_the_dot(connection)
        began = connection.write_dot((AUTHOR, BOB, 10))
        await connection.answered()
        return began

    assert on(server, talk, messages_per_connection=1, overlap=True) is False
    assert lines(server)[-1] == "QUIT"


def test_calls_out_of_turn_are_errors(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        for attempt in (connection.begun, connection.answered, lambda: connection.send_body(CONTENT)):
            with pytest.raises(RuntimeError):
                await attempt()
        connection.begin(AUTHOR, ALICE, 10)
        with pytest.raises(RuntimeError):
            connection.begin(AUTHOR, BOB, 10)
        await connection.begun()
        with pytest.raises(RuntimeError):
            connection.write_dot()

    on(server, talk)
    assert not server.recipients


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (b".\r\n", b"..\r\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\r\n..b", b"a\r\n...b\r\n"),
        (b"a\n.\nQUIT\n", b"a\r\n..\r\nQUIT\r\n"),
        (b"", b"\r\n"),
        (b"no end of line", b"no end of line\r\n"),
    ],
)
def test_a_leading_dot_is_doubled_and_the_last_line_ended(server: SmtpServer, content: bytes, taken: bytes) -> None:
    on(server, lambda connection: send(connection, content=content))
    assert [mail.content for mail in server.mails] == [taken]


def test_a_body_known_to_have_no_leading_dot_is_not_searched(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        connection.begin(AUTHOR, ALICE, 10)
        await connection.begun()
        await connection.send_body(b"a=2E\r\n=2E", dotless=True)
        connection.write_dot()
        await connection.answered()

    on(server, talk)
    assert server.mails[0].content == b"a=2E\r\n=2E\r\n"


def test_the_body_waits_for_a_slow_reader_and_the_dot_for_the_body(server: SmtpServer) -> None:
    server.script["body"] = lambda session: 0.5

    async def talk(connection: Connection) -> float:
        started = time.monotonic()
        await up_to_the_dot(connection, content=LONG)
        elapsed = time.monotonic() - started
        connection.write_dot()
        await connection.answered()
        return elapsed

    assert on(server, talk) > 0.4
    assert server.mails[0].content == LONG


def test_a_reader_slower_than_the_bodys_deadline_is_dropped(server: SmtpServer) -> None:
    server.script["body"] = lambda session: 2.0

    async def talk(connection: Connection) -> Reply:
        reply = await fails(Dropped, up_to_the_dot(connection, content=LONG))
        assert not connection.usable
        return reply

    assert on(server, talk, body_seconds=0.2) == Reply(0, "timed out", "body")
    assert not server.recipients


# Overlapping


def test_an_overlapping_envelope_is_answered_behind_the_dot(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        await up_to_the_dot(connection, ALICE)
        for recipient in (BOB, "carol@example.org"):
            assert connection.write_dot((AUTHOR, recipient, 10))
            assert (await connection.answered()).code == 250
            await connection.begun()
            await connection.send_body(f"To: {recipient}".encode())
        assert not connection.write_dot()
        await connection.answered()

    on(server, talk, overlap=True)
    assert [mail.recipient for mail in server.mails] == [ALICE, BOB, "carol@example.org"]
    assert server.mails[2].content == b"To: carol@example.org\r\n"


def test_without_pipelining_the_next_envelope_waits() -> None:
    async def talk(connection: Connection) -> bool:
        await up_to_the_dot(connection, ALICE)
        began = connection.write_dot((AUTHOR, BOB, 10))
        await connection.answered()
        await send(connection, BOB)
        return began

    with SmtpServer(extensions=PLAIN) as server:
        assert on(server, talk, overlap=True) is False
        assert (server.recipients, server.out_of_turn) == ({ALICE: 1, BOB: 1}, [])


def test_a_refused_overlapping_envelope_leaves_the_message_before_it_taken(server: SmtpServer) -> None:
    server.script["rcpt"] = lambda session: "550 5.1.1 Who?" if session.recipient == BOB else None

    async def talk(connection: Connection) -> Reply:
        await up_to_the_dot(connection, ALICE)
        assert connection.write_dot((AUTHOR, BOB, 10))
        assert (await connection.answered()).code == 250
        refused = await fails(Refused, connection.begun())
        await send(connection, "carol@example.org")
        return refused

    assert on(server, talk, overlap=True) == Reply(550, "5.1.1 Who?", "rcpt")
    assert (server.connections, list(server.recipients)) == (1, [ALICE, "carol@example.org"])


def test_an_overlapping_envelope_that_may_not_be_sent_does_not_hold_back_the_dot(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        await up_to_the_dot(connection, ALICE)
        assert connection.write_dot((AUTHOR, "b ob@example.org", 10))
        assert (await connection.answered()).code == 250
        assert (await fails(Refused, connection.begun())).code == 553
        await send(connection, BOB)

    on(server, talk, overlap=True)
    assert server.recipients == {ALICE: 1, BOB: 1}


def test_a_refused_message_leaves_the_overlapping_envelope_standing(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: "554 5.7.1 Spam" if not session.messages and not spoken else None
    spoken: list[str] = []

    async def talk(connection: Connection) -> None:
        await up_to_the_dot(connection, ALICE)
        connection.write_dot((AUTHOR, BOB, 10))
        spoken.append((await fails(Refused, connection.answered())).text)
        await connection.begun()
        await connection.send_body(CONTENT)
        connection.write_dot()
        await connection.answered()

    on(server, talk, overlap=True)
    assert (spoken, server.recipients) == (["5.7.1 Spam"], {BOB: 1})


def test_a_drop_behind_the_dot_dooms_the_message_not_the_overlapping_envelope(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: DROP

    async def talk(connection: Connection) -> Reply:
        await up_to_the_dot(connection, ALICE)
        connection.write_dot((AUTHOR, BOB, 10))
        await fails(Uncertain, connection.answered())
        return await fails(Dropped, connection.begun())

    assert on(server, talk, overlap=True).phase == "mail"


# The whole message and the next envelope in one write


def whole(server: SmtpServer, *recipients: str, content: bytes = CONTENT, until: float = inf) -> list[Reply]:
    """Send to all on one connection, message and next envelope together; return the answers."""

    async def talk(connection: Connection) -> list[Reply]:
        said = []
        connection.begin(AUTHOR, recipients[0], len(content))
        for following in (*recipients[1:], None):
            await connection.begun()
            then = (AUTHOR, following, len(content)) if following else None
            if not await connection.send_whole((content[:1], content[1:]), then, until=until) and then:
                said.append(await connection.answered())
                connection.begin(*then)
            else:
                said.append(await connection.answered())
        return said

    found: list[Reply] = on(server, talk, overlap=True)
    return found


@pytest.mark.parametrize("content", [CONTENT, b".\r\n..\r\n.dots\n.", LONG], ids=["short", "dots", "long"])
def test_a_message_in_one_write_arrives_whole_and_once(either: SmtpServer, content: bytes) -> None:
    replies = whole(either, ALICE, BOB, content=content)
    assert [reply.code for reply in replies] == [250, 250]
    assert either.recipients == {ALICE: 1, BOB: 1}
    assert {mail.content for mail in either.mails} == {dot_stuffed(content.rstrip() + b"\r\n")}


def test_the_dot_of_a_long_message_is_withheld_after_its_instant(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> tuple[Reply, bool]:
        connection.begin(AUTHOR, ALICE, len(LONG))
        await connection.begun()
        assert not await connection.send_whole((LONG,), (AUTHOR, BOB, 10), until=boot_time() - 1)
        return await fails(Dropped, connection.answered()), connection.usable

    assert on(server, talk, overlap=True) == (Reply(0, "the content took too long", "final_dot"), False)
    assert not server.recipients


def test_a_relay_that_speaks_before_the_message_gets_none_of_it(server: SmtpServer) -> None:
    server.script["data"] = lambda session: ["354 Go", "421 4.3.2 Going down"]

    async def message(connection: Connection) -> None:
        connection.begin(AUTHOR, ALICE, len(CONTENT))
        await connection.begun()
        await asyncio.sleep(0.1)
        await connection.send_whole((CONTENT,), (AUTHOR, BOB, 10))

    assert on(server, lambda connection: fails(Dropped, message(connection)), overlap=True).code == 0
    assert not server.recipients


class Listener:
    """Whoever is told of usual answers, and takes them over or not."""

    def __init__(self, *, takes_over: bool = True) -> None:
        self.takes_over, self.heard = takes_over, [Reply(0, "", "")][:0]

    def __call__(self, reply: Reply, waiter: asyncio.Future[Any]) -> bool:
        self.heard.append(reply)
        if self.takes_over:
            waiter.set_result("taken over")
        return self.takes_over


async def listened(connection: Connection, listener: Listener, then: str) -> Any:
    """Send a message that is begun, with an envelope behind it, and return what the future ended with."""
    assert await connection.send_whole((CONTENT,), (AUTHOR, then, 10))
    return await asyncio.wait_for(connection.listen(listener), 5)


@pytest.mark.parametrize("takes_over", [True, False])
def test_usual_answers_can_be_taken_over(server: SmtpServer, *, takes_over: bool) -> None:
    listener = Listener(takes_over=takes_over)

    async def talk(connection: Connection) -> None:
        connection.begin(AUTHOR, ALICE, 10)
        await connection.begun()
        for n in range(9):
            if await listened(connection, listener, f"reader{n}@example.org") is None:
                assert (await connection.answered()).code == 250
                await connection.begun()
        await connection.send_whole((CONTENT,))
        assert (await connection.answered()).code == 250

    on(server, talk, overlap=True)
    assert (len(server.recipients), set(server.recipients.values()), server.out_of_turn) == (10, {1}, [])
    assert {reply.code for reply in listener.heard} == {250}  # not each time, since some answers come in pieces


@pytest.mark.parametrize(
    ("said", "kind"),
    [("554 5.7.1 Spam", Refused), ("451 4.3.0 Later", Deferred), (DROP, Uncertain), ("299", None)],
)
def test_an_unusual_answer_is_not_taken_over(server: SmtpServer, said: Answer, kind: type[TransportError]) -> None:
    server.script["final_dot"] = lambda session: said if session.recipient == BOB else None
    listener = Listener()

    async def talk(connection: Connection) -> None:
        connection.begin(AUTHOR, ALICE, 10)
        await connection.begun()
        if await listened(connection, listener, BOB) is None:
            await connection.answered()
            await connection.begun()
        before = len(listener.heard)
        ended = await listened(connection, listener, "carol@example.org")
        if kind is None:
            assert ended == "taken over"
            return
        assert (ended, len(listener.heard)) == (None, before)
        await fails(kind, connection.answered())

    on(server, talk, overlap=True)


def test_an_extra_reply_among_known_ones_is_found_out(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: ["250 2.0.0 Ok"] * (2 if session.recipient == BOB else 1)
    listener = Listener()

    async def talk(connection: Connection) -> Reply:
        connection.begin(AUTHOR, ALICE, 10)
        await connection.begun()
        if await listened(connection, listener, BOB) is None:
            await connection.answered()
            await connection.begun()
        assert await listened(connection, listener, "carol@example.org") is None
        await connection.answered()
        return await fails(Dropped, connection.begun())

    assert on(server, talk, overlap=True).phase == "data"
    assert server.recipients == {ALICE: 1, BOB: 1}


# Answers to the envelope


@pytest.mark.parametrize(
    ("phase", "said", "kind"),
    [
        ("mail", "550 5.7.1 No", Refused),
        ("rcpt", "550 5.1.1 Who?", Refused),
        ("data", "554 5.5.1 No", Refused),
        ("mail", "451 4.7.1 Later", Deferred),
        ("rcpt", "450 4.2.0 Greylisted", Deferred),
        ("data", "451 4.3.0 Later", Deferred),
    ],
)
def test_an_envelope_is_refused_or_deferred_and_the_connection_goes_on(
    either: SmtpServer, phase: str, said: str, kind: type[TransportError]
) -> None:
    either.script[phase] = lambda session: said

    async def talk(connection: Connection) -> Reply:
        reply = await fails(kind, send(connection))
        assert connection.usable
        del either.script[phase]
        await send(connection, BOB)
        return reply

    reply = on(either, talk)
    assert (reply.code, reply.phase, reply.enhanced_code) == (int(said[:3]), phase, said.split()[1])
    assert (either.connections, either.recipients) == (1, {BOB: 1})


def test_a_connection_goes_on_after_rset(either: SmtpServer) -> None:
    either.script["mail"] = either.script["rcpt"] = either.script["data"] = lambda session: "503 5.5.1 No"
    on(either, lambda connection: fails(Refused, send(connection)))
    assert lines(either)[-2:] == ["RSET", "QUIT"]


def test_content_wanted_for_no_recipient_ends_with_a_bare_dot(server: SmtpServer) -> None:
    server.script["rcpt"] = lambda session: "550 5.1.1 Who?" if session.recipient == ALICE else None
    server.script["data"] = lambda session: "354 Go ahead"

    async def talk(connection: Connection) -> None:
        assert (await fails(Refused, send(connection))).phase == "rcpt"
        await send(connection, BOB)

    on(server, talk)
    assert (server.connections, server.recipients) == (1, {BOB: 1})
    assert "RSET" not in lines(server)


def test_content_wanted_of_a_refused_sender_is_never_ended(server: SmtpServer) -> None:
    server.script["mail"] = lambda session: "550 5.7.1 No"
    server.script["rcpt"], server.script["data"] = lambda session: "250 2.1.5 Ok", lambda session: "354 Go ahead"

    async def talk(connection: Connection) -> bool:
        assert (await fails(Refused, send(connection))).phase == "mail"
        return connection.usable

    assert on(server, talk) is False
    assert not server.recipients


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize(
    "said", [DROP, b"what?\r\n", b"\xff\x00\r\n", b"250 Ok\r\n221 Out of step\r\n", b"x" * 1_000_000]
)
def test_a_drop_or_garbage_before_the_content_is_certain(either: SmtpServer, phase: str, said: Answer) -> None:
    either.script[phase] = lambda session: said

    async def talk(connection: Connection) -> bool:
        with pytest.raises(Dropped):
            await send(connection)
        return connection.usable

    assert on(either, talk) is False
    assert not either.recipients


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
def test_an_answer_that_fits_nothing_is_dropped(either: SmtpServer, phase: str) -> None:
    either.script[phase] = lambda session: "250 Ok" if phase == "data" else "354 Go ahead"
    assert on(either, lambda connection: fails(Dropped, send(connection))).phase == phase


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
def test_silence_before_the_content_is_dropped(either: SmtpServer, phase: str) -> None:
    either.script[phase] = lambda session: 1.0
    reply = on(either, lambda connection: fails(Dropped, send(connection)), command_seconds=0.2, data_seconds=0.2)
    assert reply == Reply(0, "timed out", phase)


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "final_dot"])
def test_421_is_deferred_and_ends_the_connection(either: SmtpServer, phase: str) -> None:
    either.script[phase] = lambda session: "421 4.3.2 Closing"

    async def talk(connection: Connection) -> Reply:
        reply = await fails(Deferred, send(connection))
        assert not connection.usable
        return reply

    assert on(either, talk) == Reply(421, "4.3.2 Closing", phase)


# Content


@pytest.mark.parametrize("said", [DROP, "421 4.4.2 Enough", "552 5.3.4 Too big"])
def test_a_server_that_hangs_up_or_speaks_in_the_content_took_nothing(server: SmtpServer, said: str) -> None:
    server.script["body"] = lambda session: said

    async def attempt(connection: Connection) -> None:
        await up_to_the_dot(connection, content=LONG)
        await until(lambda: not connection.usable)
        connection.write_dot()
        await connection.answered()

    on(server, lambda connection: fails(Dropped, attempt(connection)))
    assert not server.recipients


@pytest.mark.parametrize("said", ["250 2.0.0 Ok", "421 4.4.2 Enough", DROP])
def test_the_dot_is_withheld_where_the_relay_spoke_first(server: SmtpServer, said: str) -> None:
    async def talk(connection: Connection) -> Reply:
        await up_to_the_dot(connection)
        server.interject(said)
        assert connection.write_dot((AUTHOR, BOB, 10)) is False
        return await fails(Dropped, connection.answered())

    assert on(server, talk, overlap=True).phase == "final_dot"
    assert not server.recipients


def test_content_cut_off_is_never_delivered(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        await up_to_the_dot(connection)
        connection.abort()
        connection.write_dot()
        await fails(Dropped, connection.answered())

    on(server, talk)
    on(server, lambda connection: send(connection, BOB))
    assert server.recipients == {BOB: 1}


def test_quitting_in_the_midst_of_content_aborts(server: SmtpServer) -> None:
    on(server, up_to_the_dot)
    on(server, lambda connection: send(connection, BOB))
    assert (server.recipients, lines(server).count("QUIT")) == ({BOB: 1}, 1)


def test_quitting_a_server_that_is_gone_or_dumb_is_no_error(server: SmtpServer) -> None:
    server.script["quit"] = lambda session: DROP
    on(server, send)
    assert server.recipients == {ALICE: 1}


# The answer to the final dot


@pytest.mark.parametrize(
    ("said", "kind"), [("554 5.7.1 Spam", Refused), ("452 4.3.1 Full", Deferred), ("354 More", Uncertain)]
)
def test_the_final_dot_is_refused_deferred_or_uncertain(
    either: SmtpServer, said: str, kind: type[TransportError]
) -> None:
    either.script["final_dot"] = lambda session: said

    async def talk(connection: Connection) -> bool:
        reply = await fails(kind, send(connection))
        assert (reply.code, reply.text, reply.phase) == (int(said[:3]), said[4:], "final_dot")
        return connection.usable

    assert on(either, talk) is (kind is not Uncertain)


@pytest.mark.parametrize(
    "said",
    [
        DROP,
        b"what?\r\n",
        b"250\xff Ok\r\n",
        b"2500 Ok\r\n",
        b"25\r\n",
        b"\xb2\xb5\xb0 Ok\r\n",
        b"999 Ok\r\n",
        b"250-Ok\r\n550 No\r\n",
        b"250-" + b"x" * 70_000 + b"\r\n250 Ok\r\n",
        b"250-a\r\n" * 150_000 + b"250 Ok\r\n",
        b"250 " + b"x" * 1_000_000,
    ],
    ids=lambda said: repr(said[:12]),
)
@pytest.mark.parametrize("taken", [True, False])
def test_a_drop_or_garbage_after_the_final_dot_is_uncertain(server: SmtpServer, said: Answer, *, taken: bool) -> None:
    server.take_before_drop = taken
    server.script["final_dot"] = lambda session: said

    async def talk(connection: Connection) -> bool:
        reply = await fails(Uncertain, send(connection))
        assert (reply.phase, len(reply.text) <= 1000) == ("final_dot", True)
        return connection.usable

    assert on(server, talk) is False
    assert server.recipients == ({ALICE: 1} if taken else {})


def test_a_reply_just_within_the_deadline_counts(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: 0.3
    assert on(server, send, final_seconds=0.6).code == 250


def test_a_reply_just_past_the_deadline_is_uncertain(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: 0.6
    reply = on(server, lambda connection: fails(Uncertain, send(connection)), final_seconds=0.3)
    assert reply == Reply(0, "timed out", "final_dot")


def test_the_deadline_counts_from_each_phase(server: SmtpServer) -> None:
    server.script = dict.fromkeys(("mail", "rcpt", "data", "final_dot"), lambda session: 0.25)
    times = dict.fromkeys(("command_seconds", "data_seconds", "final_seconds"), 0.5)
    assert on(server, send, **times).code == 250


@pytest.mark.parametrize(("phase", "kind"), [("mail", Dropped), ("final_dot", Uncertain)])
def test_a_slow_drip_does_not_put_off_the_deadline(server: SmtpServer, phase: str, kind: type[TransportError]) -> None:
    drip: list[Step] = [0.05, b"250-drop\r\n"] * 40
    server.script[phase] = lambda session: drip
    started = time.monotonic()
    on(server, lambda connection: fails(kind, send(connection)), command_seconds=0.3, final_seconds=0.3)
    assert time.monotonic() - started < 1


def test_a_long_reply_is_kept_short_and_free_of_controls(server: SmtpServer) -> None:
    said = b"554-5.7.1 Gr\xc3\xbc\xc3\x9fe \xff\x07\x1b[31m\r\n554-\xe2\x80\xaered\r\n554 " + b"x" * 5000 + b"\r\n"
    server.script["final_dot"] = lambda session: said
    reply = on(server, lambda connection: fails(Refused, send(connection)))
    assert reply.text.startswith("5.7.1 Grüße \ufffd  [31m")
    assert (len(reply.text), reply.text.isprintable(), reply.enhanced_code) == (1000, True, "5.7.1")


def test_replies_ended_by_lf_alone_and_without_text_are_read(server: SmtpServer) -> None:
    server.script = {"mail": lambda session: b"250\n", "rcpt": lambda session: b"250-\r\n250\r\n"}
    assert on(server, send).code == 250


def test_a_reply_in_single_bytes_is_read(server: SmtpServer) -> None:
    said = b"250-2.0.0 Ok\r\n250 2.0.0 Really\r\n"
    bytes_apart: list[Step] = [step for byte in said for step in (bytes([byte]), 0.002)]
    server.script["final_dot"] = lambda session: bytes_apart
    assert on(server, send).text == "2.0.0 Ok  2.0.0 Really"


# Counting replies


@pytest.mark.parametrize("extra", ["250 2.0.0 Ok", "421 4.4.2 Idle too long", b"2"])
def test_a_reply_nobody_waits_for_ends_the_connection(server: SmtpServer, extra: str | bytes) -> None:
    server.script["final_dot"] = lambda session: ["250 2.0.0 Ok", 0.1, extra]

    async def talk(connection: Connection) -> Reply:
        assert (await send(connection)).code == 250
        await until(lambda: not connection.usable)
        return await fails(Dropped, send(connection, BOB))

    assert on(server, talk).phase == "mail"
    assert server.recipients == {ALICE: 1}


def test_an_extra_reply_is_never_taken_for_the_next_messages(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: ["250 2.0.0 Ok", "250 2.0.0 Ok"]

    async def talk(connection: Connection) -> None:
        await send(connection)
        await until(lambda: not connection.usable)
        with pytest.raises(Dropped):
            await send(connection, BOB)

    on(server, talk)
    assert server.recipients == {ALICE: 1}


def test_an_extra_reply_before_overlapping_answers_is_found_out_at_data(server: SmtpServer) -> None:
    server.script["final_dot"] = lambda session: ["250 2.0.0 Ok", "250 2.0.0 Ok"]

    async def talk(connection: Connection) -> Reply:
        await up_to_the_dot(connection)
        connection.write_dot((AUTHOR, BOB, 10))
        await connection.answered()
        return await fails(Dropped, connection.begun())

    assert on(server, talk, overlap=True).phase == "data"
    assert server.recipients == {ALICE: 1}


# Addresses and extensions


@pytest.mark.parametrize(
    "bad", ["a\r\nRCPT TO:<b@example.org", "a b@example.org", "a>b@example.org", "<", "\x00", "\ud800"]
)
def test_an_address_that_would_break_its_line_is_refused_unsaid(either: SmtpServer, bad: str) -> None:
    async def talk(connection: Connection) -> None:
        for sender, recipient in ((bad, ALICE), (AUTHOR, bad), (AUTHOR, "")):
            connection.begin(sender, recipient, 10)
            reply = await fails(Refused, connection.begun())
            assert (reply.code, reply.enhanced_code) == (553, "5.1.3")
        await send(connection, BOB)

    on(either, talk)
    assert lines(either)[1:3] == [f"MAIL FROM:<{AUTHOR}>", f"RCPT TO:<{BOB}>"]


def test_an_empty_sender_is_the_null_path(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> None:
        connection.begin("", ALICE, 10)
        await connection.begun()

    on(server, talk)
    assert "MAIL FROM:<>" in lines(server)


def test_an_address_beyond_ascii_wants_smtputf8(server: SmtpServer) -> None:
    async def talk(connection: Connection) -> Reply:
        connection.begin(AUTHOR, "jürgen@example.org", 10)
        reply = await fails(Refused, connection.begun())
        await send(connection, BOB)
        return reply

    reply = on(server, talk)
    assert (reply.code, reply.enhanced_code, server.recipients) == (553, "5.6.7", {BOB: 1})


def test_an_address_beyond_ascii_is_sent_as_utf8_where_offered(server: SmtpServer) -> None:
    server.extensions = ("PIPELINING", "8BITMIME", "SMTPUTF8")
    on(server, lambda connection: send(connection, "jürgen@example.org"))
    assert f"MAIL FROM:<{AUTHOR}> SMTPUTF8" in lines(server)
    assert server.recipients == {"jürgen@example.org": 1}


def test_the_size_is_told_where_offered(server: SmtpServer) -> None:
    server.extensions = ("PIPELINING", "SIZE 100")
    on(server, send)
    assert f"MAIL FROM:<{AUTHOR}> SIZE={len(CONTENT)}" in lines(server)


def test_what_is_too_big_for_the_relay_is_refused_unsaid(server: SmtpServer) -> None:
    server.extensions = ("PIPELINING", "SIZE 100")

    async def talk(connection: Connection) -> Reply:
        connection.begin(AUTHOR, ALICE, 101)
        return await fails(Refused, connection.begun())

    reply = on(server, talk)
    assert (reply.code, reply.enhanced_code, lines(server)) == (552, "5.3.4", ["EHLO client.example.org", "QUIT"])


@pytest.mark.parametrize("offer", ["SIZE", "SIZE 0"])
def test_a_relay_without_a_limit_takes_any_size(server: SmtpServer, offer: str) -> None:
    server.extensions = ("PIPELINING", offer)
    assert on(server, send).code == 250


# Opening


def test_nobody_listening_is_unreachable() -> None:
    with SmtpServer() as server:
        pass
    assert unreachable(server).phase == "connect"


@pytest.mark.parametrize("host", ["nowhere.test", "a..b", "x" * 70 + ".test"])
def test_a_host_that_is_not_there_is_unreachable(server: SmtpServer, host: str) -> None:
    with pytest.raises(Unreachable) as error:
        asyncio.run(Connection.open(replace(account(server), host=host)))
    assert error.value.reply.phase == "connect"


@pytest.mark.parametrize("phase", ["greeting", "ehlo"])
@pytest.mark.parametrize("said", [DROP, "421 4.3.2 Not now", "450 4.3.2 Not now", b"what?\r\n", b"x" * 1_000_000, 1.0])
def test_a_bad_start_is_unreachable(server: SmtpServer, phase: str, said: Answer) -> None:
    server.script[phase] = lambda session: said
    reply = unreachable(server, greeting_seconds=0.3, command_seconds=0.3)
    assert (reply.phase, reply.code) == (phase, int(said[:3]) if isinstance(said, str) and said != DROP else 0)


def test_a_greeting_of_554_is_unreachable(server: SmtpServer) -> None:
    server.script["greeting"] = lambda session: "554 5.3.2 Go away"
    assert unreachable(server) == Reply(554, "5.3.2 Go away", "greeting")


def test_a_relay_that_does_not_know_ehlo_is_told_helo(server: SmtpServer) -> None:
    server.script["ehlo"] = lambda session: "502 5.5.1 What?"
    assert on(server, send).code == 250
    assert lines(server)[:3] == ["EHLO client.example.org", "HELO client.example.org", f"MAIL FROM:<{AUTHOR}>"]


def test_a_client_without_a_name_gives_its_machines(server: SmtpServer) -> None:
    async def talk() -> None:
        await (await Connection.open(replace(account(server), helo=""))).quit()

    asyncio.run(talk())
    name = lines(server)[0].removeprefix("EHLO ")
    assert "." in name
    assert name.isascii()


def test_a_name_with_two_addresses_is_tried_at_both(server: SmtpServer) -> None:
    async def talk() -> None:
        await (await Connection.open(replace(account(server), host="localhost"))).quit()

    asyncio.run(talk())
    assert server.connections == 1


def test_security_that_is_not_known_is_not_taken_for_none(server: SmtpServer) -> None:
    with pytest.raises(ValueError, match="starttls"):
        account(server, security="ssl")


def test_passwords_are_not_shown(server: SmtpServer) -> None:
    assert "secret" not in repr(account(server, password="secret"))


# TLS


def test_starttls_is_said_before_anything_else(secured: SmtpServer, certificates: Certificates) -> None:
    on(secured, send, security="starttls", tls=certificates.client)
    clear = [heard.line for heard in secured.heard if not heard.encrypted]
    assert clear == ["EHLO client.example.org", "STARTTLS"]
    assert lines(secured)[2] == "EHLO client.example.org"
    assert secured.recipients == {ALICE: 1}


def test_tls_from_the_start(certificates: Certificates) -> None:
    with SmtpServer(extensions=PIPELINING, tls=certificates.server, implicit_tls=True) as server:
        on(server, send, security="tls", tls=certificates.client)
        assert server.recipients == {ALICE: 1}


def test_a_long_body_goes_through_tls_to_a_slow_reader(secured: SmtpServer, certificates: Certificates) -> None:
    secured.script["body"] = lambda session: 0.3

    async def talk(connection: Connection) -> None:
        await send(connection, ALICE, LONG)
        await send(connection, BOB)

    on(secured, talk, security="starttls", tls=certificates.client)
    assert [mail.content for mail in secured.mails] == [LONG, CONTENT]


@pytest.mark.parametrize("user", ["", "masthead"])
def test_where_starttls_is_stripped_nothing_is_said_in_clear(secured: SmtpServer, user: str) -> None:
    secured.extensions = ("PIPELINING", "AUTH PLAIN LOGIN")
    reply = unreachable(secured, security="starttls", user=user, password="secret ü")
    assert (reply.phase, lines(secured)) == ("starttls", ["EHLO client.example.org"])


def test_where_starttls_is_refused_nothing_is_said_in_clear(secured: SmtpServer) -> None:
    secured.script["starttls"] = lambda session: "454 4.7.0 Not now"
    assert unreachable(secured, security="starttls") == Reply(454, "4.7.0 Not now", "starttls")
    assert lines(secured) == ["EHLO client.example.org", "STARTTLS"]


def test_a_certificate_of_nobody_known_is_unreachable(secured: SmtpServer) -> None:
    reply = unreachable(secured, security="starttls", user="masthead", password="secret ü")
    assert (reply.phase, "verify failed" in reply.text) == ("tls", True)
    assert lines(secured) == ["EHLO client.example.org", "STARTTLS"]


def test_a_certificate_for_another_name_is_unreachable(secured: SmtpServer, certificates: Certificates) -> None:
    secured.tls = certificates.elsewhere
    reply = unreachable(secured, security="starttls", tls=certificates.client)
    assert (reply.phase, "IP address mismatch" in reply.text) == ("tls", True)
    assert lines(secured) == ["EHLO client.example.org", "STARTTLS"]


def test_a_server_that_speaks_no_tls_is_unreachable(server: SmtpServer, certificates: Certificates) -> None:
    assert unreachable(server, security="tls", tls=certificates.client).phase == "tls"
    assert not any(line.startswith(("EHLO", "AUTH", "MAIL")) for line in lines(server))


def test_a_handshake_that_hangs_is_unreachable(server: SmtpServer, certificates: Certificates) -> None:
    server.script["greeting"] = lambda session: 2.0
    assert unreachable(server, security="tls", tls=certificates.client, connect_seconds=0.3).text == "timed out"


@pytest.mark.parametrize("injected", [b"250 2.0.0 Ok\r\n", b"250-AUTH PL"])
def test_words_in_clear_behind_starttls_are_not_believed(
    secured: SmtpServer, certificates: Certificates, injected: bytes
) -> None:
    secured.script["starttls"] = lambda session: b"220 2.0.0 Go ahead\r\n" + injected
    reply = unreachable(secured, security="starttls", tls=certificates.client, user="masthead", password="secret ü")
    assert (reply.phase, lines(secured)) == ("starttls", ["EHLO client.example.org", "STARTTLS"])


def test_the_system_authorities_are_the_default(secured: SmtpServer) -> None:
    assert unreachable(secured, security="starttls", tls=ssl.create_default_context()).phase == "tls"
    assert unreachable(secured, security="starttls").phase == "tls"


# Logging in


@pytest.mark.parametrize("offer", ["AUTH PLAIN LOGIN", "AUTH LOGIN", "AUTH=LOGIN PLAIN", "auth plain"])
@pytest.mark.parametrize("security", ["none", "starttls"])
def test_the_user_logs_in(secured: SmtpServer, certificates: Certificates, offer: str, security: str) -> None:
    secured.extensions = ("PIPELINING", "STARTTLS", offer)
    on(secured, send, security=security, tls=certificates.client, user="masthead", password="secret ü")
    assert secured.recipients == {ALICE: 1}
    assert any(heard.line.startswith("AUTH") and heard.encrypted == (security != "none") for heard in secured.heard)


@pytest.mark.parametrize("offer", ["AUTH PLAIN", "AUTH LOGIN"])
def test_a_wrong_password_is_unreachable(secured: SmtpServer, offer: str) -> None:
    secured.extensions = (offer,)
    reply = unreachable(secured, user="masthead", password="guess")
    assert (reply.code, reply.phase, reply.enhanced_code) == (535, "auth", "5.7.8")
    assert not any(line.startswith("MAIL") for line in lines(secured))


@pytest.mark.parametrize("extensions", [(), ("AUTH CRAM-MD5",)])
def test_a_relay_without_a_known_way_to_log_in_is_unreachable(secured: SmtpServer, extensions: tuple[str, ...]) -> None:
    secured.extensions = extensions
    assert unreachable(secured, user="masthead", password="secret ü").phase == "auth"


# Many at once


def test_many_connections_deliver_each_message_once(server: SmtpServer, tmp_path: Path) -> None:
    async def drive(number: int) -> None:
        connection = await Connection.open(account(server, overlap=True))
        await up_to_the_dot(connection, f"reader{number}.0@example.org")
        for n in range(1, 50):
            assert connection.write_dot((AUTHOR, f"reader{number}.{n}@example.org", 10))
            await connection.answered()
            await connection.begun()
            await connection.send_body(CONTENT)
        connection.write_dot()
        await connection.answered()
        await connection.quit()

    async def all_at_once() -> None:
        await asyncio.gather(*(drive(number) for number in range(32)))

    asyncio.run(all_at_once())
    assert (len(server.recipients), set(server.recipients.values())) == (1600, {1})


def test_the_ledger_on_disk_names_each_message_taken(tmp_path: Path) -> None:
    log = tmp_path / "ledger"
    with SmtpServer(extensions=PIPELINING, keep_content=False, log=log, log_message_ids=True) as server:
        on(server, lambda connection: send(connection, content=b"message-id: <1@example.org>\r\n\r\nHello\r\n"))
        assert log.read_text() == f"{ALICE} <1@example.org>\n"
        assert not server.mails
