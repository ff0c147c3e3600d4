"""The two ways out, what their answers mean, when sending pauses by itself, how fast it goes, when it tries again."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
from django.core.mail import get_connection
from django.utils import timezone

from newsletter import message, rendering, transport
from newsletter.replies import (
    Class,
    Deferred,
    Dropped,
    Refused,
    Reply,
    TransportError,
    Uncertain,
    Unreachable,
    classify,
)
from newsletter.transport import (
    ApiLink,
    Breaker,
    Letter,
    Limiter,
    Link,
    SmtpLink,
    Stop,
    hand_over,
    open_link,
    retry_delay,
)
from posts.models import Publication
from subscribers.models import Subscriber
from tests.factories import make_issue
from tests.provider import Answer, ProviderApi, refusal
from tests.smtpd import DROP, SmtpServer, make_certificates

POSTMARK, RESEND = (f"anymail.backends.{name}.EmailBackend" for name in ("postmark", "resend"))
CONTENT = b"""\
Date: Mon, 02 Nov 2026 09:00:00 +0000\r
From: Query Notes <author@example.org>\r
MIME-Version: 1.0\r
Content-Type: multipart/alternative; boundary="x"\r
Subject: Hello\r
\r
--x\r
Content-Type: text/plain; charset=utf-8\r
\r
Text\r
--x\r
Content-Type: text/html; charset=utf-8\r
\r
<p>HTML</p>\r
--x--\r
"""
Talk = Callable[[Link], Awaitable[Any]]


def letter(to: str = "alice@example.org") -> Letter:
    return Letter("author@example.org", to, (CONTENT,))


def on_a_link(talk: Talk) -> Any:
    """Open the link that the settings name, have the talk on it and close it."""

    async def session() -> Any:
        link = await open_link()
        try:
            return await talk(link)
        finally:
            await link.close()

    return asyncio.run(session())


async def send(link: Link, to: str = "alice@example.org") -> Reply:
    copy = letter(to)
    await link.prepare(copy)
    return await hand_over(link, copy)


def failing(talk: Talk = send) -> TransportError:
    """Have a talk that has to fail, and return how."""
    with pytest.raises(TransportError) as error:
        on_a_link(talk)
    return error.value


# The breaker


def refused(text: str, code: int = 550, **values: Any) -> TransportError:
    return (Refused if code >= 500 else Deferred)(Reply(code, text, "rcpt"), **values)


POLICY, UNKNOWN_USER = refused("5.7.1 Message refused by policy"), refused("5.1.1 User unknown")
GREYLISTED, SLOWER = refused("4.2.0 Greylisted", 450), refused("4.7.0 Throttling failure", 454)
NO_ANSWER = Uncertain(Reply(0, "timed out", "final_dot"))


def look(breaker: Breaker, error: TransportError, *, times: int = 1) -> Stop | None:
    """Let a breaker see an answer so many times; return the first stop."""
    stops = (breaker.look(error, error.kind or classify(error.reply)) for _ in range(times))
    return next(filter(None, stops), None)


def test_so_many_answers_about_the_sender_pause_until_the_author_decides(settings: Any) -> None:
    breaker = Breaker()
    assert look(breaker, POLICY, times=settings.BREAKER_FAULTS - 1) is None
    stop = look(breaker, POLICY)
    assert stop is not None
    assert (stop.seconds, "550 5.7.1 Message refused by policy" in stop.reason) == (None, True)


def test_good_answers_drive_faults_out_of_the_window(settings: Any) -> None:
    settings.BREAKER_WINDOW, settings.BREAKER_FAULTS = 10, 5
    breaker = Breaker()
    for _ in range(5):
        assert look(breaker, POLICY, times=4) is None
        for _ in range(10):
            breaker.accepted()
    assert look(breaker, POLICY, times=5) is not None


def test_faults_among_good_answers_are_counted(settings: Any) -> None:
    breaker = Breaker()
    for _ in range(settings.BREAKER_FAULTS - 1):
        assert look(breaker, POLICY) is None
        for _ in range(9):
            breaker.accepted()
    assert look(breaker, POLICY) is not None


@pytest.mark.parametrize("code", ["5.7.20", "5.7.26", "5.7.32", "5.7.515"])
def test_an_answer_about_our_identity_pauses_at_once(code: str) -> None:
    assert look(Breaker(), refused(f"{code} Unauthenticated")) is not None


@pytest.mark.parametrize("error", [UNKNOWN_USER, GREYLISTED, refused("4.3.0 Queue file write error", 451)])
def test_what_is_said_of_readers_or_of_the_relay_itself_never_pauses(error: TransportError) -> None:
    assert look(Breaker(), error, times=500) is None


@pytest.mark.parametrize(("asked", "waits"), [(None, 3600), (77.0, 77)])
def test_a_used_up_allowance_pauses_at_once_and_for_as_long_as_is_said(asked: float | None, waits: float) -> None:
    stop = look(Breaker(), refused("4.7.0 Daily quota exceeded", 454, kind=Class.QUOTA, retry_after=asked))
    assert stop is not None
    assert stop.seconds == waits


def test_a_wait_that_is_asked_for_pauses_for_so_long() -> None:
    stop = look(Breaker(), refused("slower", 451, kind=Class.RATE, retry_after=12.5))
    assert stop is not None
    assert stop.seconds == 12.5


def test_a_relay_that_keeps_asking_for_a_slower_pace_gets_a_rest(settings: Any) -> None:
    breaker = Breaker()
    assert look(breaker, SLOWER, times=settings.BREAKER_FAULTS - 1) is None
    stop = look(breaker, SLOWER)
    assert stop is not None
    assert stop.seconds == settings.RETRY_FIRST_SECONDS


def test_one_copy_after_another_without_an_answer_pauses_and_a_good_one_in_between_does_not(settings: Any) -> None:
    breaker = Breaker()
    for _ in range(3):
        assert look(breaker, NO_ANSWER, times=settings.BREAKER_FAULTS - 1) is None
        breaker.accepted()
    assert look(breaker, NO_ANSWER, times=settings.BREAKER_FAULTS) is not None


def test_what_the_transport_knows_to_be_ours_counts_whatever_the_words(settings: Any) -> None:
    stop = look(Breaker(), refused("no", is_ours=True), times=settings.BREAKER_FAULTS)
    assert stop is not None
    assert stop.seconds is None


# The pace


def seconds_for(turns: int, *, workers: int, limiter: Limiter | None = None) -> float:
    async def take() -> float:
        pacer, began = limiter or Limiter(), time.monotonic()
        for _ in range(turns):
            await pacer.turn(workers)
        return time.monotonic() - began

    return asyncio.run(take())


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_the_rate(settings: Any, workers: int) -> None:
    settings.SEND_RATE = 200
    assert 19 * workers / 200 <= seconds_for(20, workers=workers) < 19 * workers / 200 + 0.5


def test_without_a_rate_nobody_waits() -> None:
    assert seconds_for(10_000, workers=8) < 0.5


def test_connections_of_one_worker_share_its_turns(settings: Any) -> None:
    settings.SEND_RATE = 200

    async def together() -> float:
        limiter, began = Limiter(), time.monotonic()
        await asyncio.gather(*(limiter.turn(1) for _ in range(20)))
        return time.monotonic() - began

    assert asyncio.run(together()) >= 19 / 200


def test_time_that_passed_idly_is_not_made_up_for(settings: Any) -> None:
    settings.SEND_RATE = 100
    limiter = Limiter()
    seconds_for(1, workers=1, limiter=limiter)
    time.sleep(0.2)
    assert seconds_for(11, workers=1, limiter=limiter) >= 0.1


def test_a_wait_for_a_turn_ends_when_nothing_more_may_begin(settings: Any) -> None:
    settings.SEND_RATE = 0.01
    limiter, began = Limiter(next_at=time.monotonic() + 100), time.monotonic()
    asyncio.run(limiter.turn(7, may_begin=lambda: time.monotonic() < began + 0.3))
    assert time.monotonic() - began < 2


# Trying again


@pytest.mark.parametrize(
    ("error", "attempt", "seconds"),
    [
        (Dropped(Reply(0, "gone", "mail")), 0, 30),
        (Dropped(Reply(0, "gone", "mail")), 1, 600),
        (Unreachable(Reply(0, "gone", "connect")), 0, 30),
        (GREYLISTED, 0, 300),
        (GREYLISTED, 1, 600),
        (GREYLISTED, 5, 9600),
        (GREYLISTED, 6, 14400),
        (GREYLISTED, 32767, 14400),
        (refused("later", 451, retry_after=20_000), 0, 20_000),
        (refused("later", 451, retry_after=5), 0, 300),
    ],
)
def test_the_wait_doubles_from_five_minutes_to_four_hours(error: TransportError, attempt: int, seconds: int) -> None:
    assert retry_delay(error, attempt) == seconds


# SMTP


def test_one_link_carries_many_letters(relay: SmtpServer) -> None:
    async def talk(link: Link) -> list[int]:
        return [(await send(link, f"reader{n}@example.org")).code for n in range(3)]

    assert on_a_link(talk) == [250, 250, 250]
    assert (relay.connections, len(relay.mails), relay.mails[0].content) == (1, 3, CONTENT)


def test_a_link_is_of_no_more_use_after_its_share_of_letters(relay: SmtpServer, settings: Any) -> None:
    settings.SMTP_MESSAGES_PER_CONNECTION = 2

    async def talk(link: Link) -> list[bool]:
        usable = []
        for _ in range(2):
            await send(link)
            usable.append(link.usable)
        return usable

    assert on_a_link(talk) == [True, False]


def test_a_refusal_is_certain_and_the_link_goes_on(relay: SmtpServer) -> None:
    relay.script["rcpt"] = lambda session: "550 5.1.1 Who?" if "bob" in session.recipient else None

    async def talk(link: Link) -> None:
        with pytest.raises(Refused):
            await link.prepare(letter("bob@example.org"))
        await send(link)

    on_a_link(talk)
    assert (relay.connections, relay.recipients) == (1, {"alice@example.org": 1})


def test_a_link_that_is_aborted_delivers_nothing(relay: SmtpServer) -> None:
    async def talk(link: Link) -> None:
        await link.prepare(letter())
        link.abort()
        assert not link.usable

    on_a_link(talk)
    assert not relay.recipients


@pytest.mark.parametrize(("phase", "kind"), [("mail", Dropped), ("data", Dropped), ("final_dot", Uncertain)])
def test_only_a_drop_after_the_dot_leaves_a_doubt(relay: SmtpServer, phase: str, kind: type[TransportError]) -> None:
    relay.script[phase] = lambda session: DROP
    assert type(failing()) is kind


@pytest.fixture
def overlapping(relay: SmtpServer, settings: Any) -> SmtpServer:
    relay.extensions, settings.SMTP_OVERLAP = ("PIPELINING",), True
    return relay


def test_an_overlapped_envelope_is_said_once(overlapping: SmtpServer) -> None:
    first, second = letter(), letter("bob@example.org")

    async def talk(link: Link) -> None:
        await link.prepare(first)
        await hand_over(link, first, second)
        await link.prepare(second)
        await hand_over(link, second)

    on_a_link(talk)
    said = [heard.line.split()[0] for heard in overlapping.heard]
    assert said == ["EHLO", *["MAIL", "RCPT", "DATA"] * 2, "QUIT"]
    assert [mail.recipient for mail in overlapping.mails] == ["alice@example.org", "bob@example.org"]


def test_a_refusal_of_an_overlapped_envelope_is_that_letters_own(overlapping: SmtpServer) -> None:
    overlapping.script["rcpt"] = lambda session: "550 5.1.1 Who?" if "bob" in session.recipient else None
    first, second = letter(), letter("bob@example.org")

    async def talk(link: Link) -> None:
        await link.prepare(first)
        assert (await hand_over(link, first, second)).code == 250
        with pytest.raises(Refused):
            await link.prepare(second)
        await send(link, "carol@example.org")

    on_a_link(talk)
    assert (overlapping.connections, set(overlapping.recipients)) == (1, {"alice@example.org", "carol@example.org"})


def test_a_drop_leaves_the_overlapped_letter_certain(overlapping: SmtpServer) -> None:
    overlapping.script["final_dot"] = lambda session: DROP
    first, second = letter(), letter("bob@example.org")

    async def talk(link: Link) -> None:
        await link.prepare(first)
        with pytest.raises(Uncertain):
            await hand_over(link, first, second)
        assert not link.usable
        with pytest.raises(Dropped):
            await link.prepare(second)

    on_a_link(talk)
    assert set(overlapping.recipients) == {"alice@example.org"}


def test_a_relay_that_is_not_there_is_unreachable(settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    assert (type(error := failing()), error.reply.phase) == (Unreachable, "connect")


@pytest.mark.parametrize(("security", "authority"), [("starttls", "/nowhere.pem"), ("tls", __file__), ("ssl", "")])
def test_settings_that_make_no_connection_are_an_unreachable_relay(
    relay: SmtpServer, settings: Any, security: str, authority: str
) -> None:
    settings.SMTP_SECURITY, settings.SMTP_CA_FILE = security, authority
    assert (type(error := failing()), error.reply.phase) == (Unreachable, "tls")


# A provider's API


@pytest.fixture
def provider(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderApi]:
    """A provider's API, which the settings name through anymail's backend for Postmark."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ProviderApi(tmp_path / "recipients.log") as api:
        settings.SEND_BACKEND, settings.ANYMAIL = POSTMARK, api.postmark
        yield api


def test_a_provider_takes_a_letter_and_gives_its_id(provider: ProviderApi) -> None:
    reply = on_a_link(send)
    assert (reply.code, reply.phase) == (250, "api")
    assert reply.provider_id == provider.ids["alice@example.org"]


def test_open_link_goes_where_the_settings_say(provider: ProviderApi, relay: SmtpServer, settings: Any) -> None:
    async def kind(link: Link) -> type:
        return type(link)

    assert on_a_link(kind) is ApiLink
    settings.SEND_BACKEND = ""
    assert on_a_link(kind) is SmtpLink


@pytest.mark.parametrize(("backend", "words"), [(POSTMARK, "POSTMARK_SERVER_TOKEN"), ("no.such.Backend", "no")])
def test_a_backend_that_can_not_be_made_is_unreachable(settings: Any, backend: str, words: str) -> None:
    settings.SEND_BACKEND, settings.ANYMAIL = backend, {}
    error = failing()
    assert (type(error), error.reply.phase, words in error.reply.text) == (Unreachable, "auth", True)


@pytest.mark.parametrize("backend", [POSTMARK, RESEND])
def test_a_provider_is_given_every_part_of_the_letter(
    provider: ProviderApi, settings: Any, publication: Publication, alice: Subscriber, backend: str
) -> None:
    publication.name = "Ünïcode, “Notes” of a name that is so long that it has to be folded in a header"
    publication.reply_to = "answers@example.org"
    publication.save()
    settings.SEND_BACKEND, settings.ANYMAIL = backend, {**provider.postmark, **provider.resend}
    template = message.Template(rendering.render_issue(make_issue(subject="Grüße, {{ name|you }}")))
    identity = message.message_id(1, alice.pk, "example.org")
    values = message.Values(alice.address, alice.name, alice.unsubscribe_id, identity)
    copy = Letter("bounces@example.org", alice.address, template.pieces(values))

    async def talk(link: Link) -> None:
        await link.prepare(copy)
        await hand_over(link, copy)

    on_a_link(talk)
    (request,) = provider.requests
    given, fields = {name.lower(): value for name, value in request.payload.items()}, request.fields
    assert fields["list-unsubscribe"] == f"<{settings.SITE_URL}/u/{alice.unsubscribe_id}/>"
    assert fields["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    assert fields["message-id"] == identity
    assert fields["list-id"].endswith(f"<{template.source['list_id']}>")
    assert not {"from", "to", "subject", "date", "content-type", "mime-version", "reply-to"} & set(fields)
    assert all(value.isascii() and value.isprintable() for value in fields.values())
    assert request.recipient == alice.address
    assert given["subject"] == "Grüße, Alice"
    assert "author@example.org" in given["from"]
    assert "answers@example.org" in str(given.get("replyto", given.get("reply_to")))
    assert str(given.get("textbody", given.get("text"))).split() == template.text(values).split()
    assert str(given.get("htmlbody", given.get("html"))).split() == template.html(values).split()


def test_the_connection_to_a_provider_is_kept(provider: ProviderApi) -> None:
    async def talk(link: Link) -> None:
        for n in range(4):
            await send(link, f"reader{n}@example.org")

    on_a_link(talk)
    assert (provider.connections, provider.recipients.total()) == (1, 4)


def test_a_provider_may_close_its_connection_after_any_answer(provider: ProviderApi) -> None:
    provider.script = lambda request: Answer(headers={"Connection": "close"})

    async def talk(link: Link) -> None:
        for n in range(3):
            await send(link, f"reader{n}@example.org")

    on_a_link(talk)
    assert (provider.connections, provider.recipients.total()) == (3, 3)


@pytest.mark.parametrize(
    ("answer", "error", "kind"),
    [
        (Answer(429), Deferred, Class.RATE),
        (Answer(420), Deferred, Class.QUOTA),
        (Answer(429, {"Message": "You have reached your daily email sending quota."}), Deferred, Class.QUOTA),
        (Answer(402, {"Message": "not_enough_credits"}), Deferred, Class.QUOTA),
        (Answer(400, {"Message": "Throttling: maximum sending rate exceeded"}), Deferred, Class.RATE),
        (Answer(503), Deferred, Class.RATE),
        (Answer(408), Deferred, Class.RATE),
        (Answer(401), Deferred, Class.SENDER_FAULT),
        (Answer(403), Deferred, Class.SENDER_FAULT),
        (Answer(404, b"<h1>Not Found</h1>"), Refused, Class.UNKNOWN),
        (refusal(300, "Invalid 'To' address: 'alice@example.org'."), Refused, Class.HARD_ADDRESS),
        (refusal(406, "inactive addresses: alice@example.org. Inactive recipients are"), Refused, Class.HARD_ADDRESS),
        (refusal(406, "Not sent, for a reason in words as yet unheard of"), Refused, Class.UNKNOWN),
        (refusal(400, "The From address is not a Sender Signature on your account."), Refused, Class.SENDER_FAULT),
        (Answer(500), Uncertain, None),
        (Answer(502), Uncertain, None),
        (Answer(504), Uncertain, None),
        (Answer(200, b"<h1>Welcome</h1>"), Uncertain, None),
        (Answer(200, {"something": "else"}), Uncertain, None),
        (Answer(cut=True), Uncertain, None),
    ],
)  # fmt: skip
def test_what_a_providers_answer_means(
    provider: ProviderApi, answer: Answer, error: type[TransportError], kind: Class | None
) -> None:
    provider.script = lambda request: answer
    found = failing()
    assert (type(found), found.kind, found.reply.phase) == (error, kind, "api")
    assert len(found.reply.text) <= 1000


def test_a_connection_reset_before_the_request_was_read_leaves_a_doubt(provider: ProviderApi) -> None:
    provider.deaf = lambda number: True
    assert type(failing()) is Uncertain


@pytest.mark.parametrize(
    ("status", "is_ours"), [(400, True), (404, True), (405, True), (413, True), (401, True), (429, False)]
)
def test_a_refusal_that_names_no_reader_is_about_us(provider: ProviderApi, status: int, is_ours: bool) -> None:
    provider.script = lambda request: Answer(status, {"Message": "No"})
    assert failing().is_ours == is_ours


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("120", 120, 120), ("0", 0, 0), ("Mon, 02 Nov 2020 09:00:00 GMT", 0, 0),
        ("9" * 400, 86400, 86400),
    ],
)  # fmt: skip
def test_the_wait_that_a_provider_asks_for_is_read_and_bounded(
    provider: ProviderApi, said: str, least: float, most: float
) -> None:
    provider.script = lambda request: Answer(429, headers={"Retry-After": said})
    wait = failing().retry_after
    assert wait is not None
    assert least <= wait <= most


def test_the_wait_may_be_given_as_a_date(provider: ProviderApi) -> None:
    said = format_datetime(timezone.now() + dt.timedelta(hours=1), usegmt=True)
    provider.script = lambda request: Answer(429, headers={"Retry-After": said})
    wait = failing().retry_after
    assert wait is not None
    assert 3000 <= wait <= 3600


@pytest.mark.parametrize("said", ["", "soon", "-5", "1.5", "Mon, 99 Nov"])
def test_a_wait_that_can_not_be_read_is_none(provider: ProviderApi, said: str) -> None:
    provider.script = lambda request: Answer(429, headers={"Retry-After": said})
    assert failing().retry_after is None


def test_an_answer_after_the_requests_timeout_leaves_a_doubt(provider: ProviderApi, settings: Any) -> None:
    settings.ANYMAIL = {**provider.postmark, "REQUESTS_TIMEOUT": 0.2}
    provider.script = lambda request: Answer(seconds=1.0)
    assert type(failing()) is Uncertain
    assert provider.recipients.total() == 1


def test_an_answer_after_the_last_patience_leaves_a_doubt_and_the_link_is_not_used_again(
    provider: ProviderApi, settings: Any
) -> None:
    settings.SMTP_FINAL_TIMEOUT = 0.2
    provider.script = lambda request: Answer(seconds=1.0)

    async def talk(link: Link) -> None:
        with pytest.raises(Uncertain):
            await send(link)
        assert not link.usable

    on_a_link(talk)


def test_anymail_waits_no_longer_than_half_a_minute_by_itself(provider: ProviderApi, settings: Any) -> None:
    del settings.ANYMAIL["REQUESTS_TIMEOUT"]
    assert get_connection(settings.SEND_BACKEND).timeout == 30


def test_a_provider_that_is_not_there_has_not_got_the_letter(provider: ProviderApi, settings: Any) -> None:
    settings.ANYMAIL = {**provider.postmark, "POSTMARK_API_URL": "http://127.0.0.1:9/"}
    assert (type(error := failing()), error.reply.phase) == (Unreachable, "connect")


def test_a_provider_without_its_certificate_has_not_got_the_letter(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ProviderApi(tmp_path / "log", tls=make_certificates(tmp_path).server) as api:
        settings.SEND_BACKEND, settings.ANYMAIL = POSTMARK, api.postmark
        error = failing()
    assert (type(error), error.reply.phase, api.count) == (Unreachable, "connect", 0)


def test_a_letter_that_anymail_does_not_send_was_not_taken(provider: ProviderApi) -> None:
    def veto(sender: Any, **_kwargs: Any) -> None:
        raise AnymailCancelSend

    pre_send.connect(veto)
    try:
        error = failing()
    finally:
        pre_send.disconnect(veto)
    assert (type(error), error.is_ours, provider.count) == (Refused, True, 0)


def test_an_address_that_anymail_can_not_read_was_not_asked_about(provider: ProviderApi) -> None:
    error = failing(lambda link: send(link, "not an address"))
    assert (type(error), provider.count) == (Refused, 0)


def test_a_letter_that_is_aborted_never_leaves(provider: ProviderApi) -> None:
    async def talk(link: Link) -> None:
        await link.prepare(letter())
        link.abort()
        assert link.usable
        await send(link, "bob@example.org")

    on_a_link(talk)
    assert provider.recipients == {"bob@example.org": 1}


def test_an_answer_with_controls_is_fit_to_be_stored(provider: ProviderApi) -> None:
    provider.script = lambda request: Answer(500, b"\x00\x1b[31m\xff" + b"x" * 100_000)
    text = failing().reply.text
    assert text.isprintable()
    assert len(text) <= 1000


def test_the_account_is_as_the_settings_say(settings: Any) -> None:
    settings.SMTP_TIMEOUT, settings.SMTP_FINAL_TIMEOUT = 300, 600
    account = transport.account()
    assert (account.connect_seconds, account.greeting_seconds, account.command_seconds) == (30, 300, 300)
    assert (account.data_seconds, account.body_seconds, account.final_seconds) == (120, 180, 600)
    assert account.tls is None
    settings.SMTP_SECURITY = "starttls"
    assert transport.account().tls is not None
