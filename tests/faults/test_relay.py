"""A relay that refuses, puts off, hangs up, thinks for too long, talks nonsense or shows no certificate of its own."""

from __future__ import annotations

import base64
import os
import re
import smtplib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Value
from django.db.models.functions import Replace

from newsletter import delivery, reconciliation
from newsletter.models import DeliveryEvent, Issue
from subscribers.models import Subscriber, Suppression, SystemMail
from tests.factories import make_issue, make_readers
from tests.faults.conftest import State, assert_promise, logged
from tests.faults.harness import End, Passage, Proxy
from tests.faults.runs import HURRY, begin, number, run, run_until, sending, step
from tests.postfix import MISSING, Postfix, available
from tests.smtpd import DROP, Answer, Certificates, Session, SmtpServer, make_certificates
from tests.workers import wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "200"))
CONNECTIONS = 4
PIPELINING = ("PIPELINING", "8BITMIME")
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]
overlapping = pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])


@pytest.fixture(autouse=True)
def hurried(scaled: dict[str, str], settings: Any) -> None:
    """Four connections, and first retries after a second instead of five minutes."""
    settings.SMTP_CONNECTIONS = CONNECTIONS
    for name, seconds in HURRY.items():
        setattr(settings, name, seconds)


def is_paused_by_itself() -> bool:
    return SystemMail.objects.filter(context__event="paused").exists()


def readers() -> list[tuple[Any, ...]]:
    """Return all that a relay's answer could do to readers."""
    return [*Subscriber.objects.order_by("pk").values_list("pk", "status", "suppressed", "paused_until")]


class FirstTime:
    """Answers three readers in ten so the first time, and notes how long each then stayed away."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.at: dict[str, float] = {}
        self.waited: dict[str, float] = {}

    def __call__(self, session: Session) -> Answer:
        reader, now = session.recipient, time.monotonic()
        if number(reader) % 10 not in (2, 5, 8):
            return None
        if reader in self.at:
            self.waited.setdefault(reader, now - self.at[reader])
            return None
        self.at[reader] = now
        return self.answer


@pytest.mark.parametrize(
    ("phase", "answer", "may_pause"),
    [
        ("rcpt", "450 4.2.0 Greylisted, please try again later", False),
        ("final_dot", "451 4.3.0 Error: queue file write error", False),
        ("rcpt", "452 4.3.1 Insufficient system storage", False),
        ("final_dot", "454 4.7.0 Throttling failure: maximum sending rate exceeded", True),
    ],
    ids=["450", "451", "452", "454"],
)
def test_fi_27_what_a_relay_puts_off_is_tried_again_after_its_time_and_arrives_once(
    relay: SmtpServer, settings: Any, phase: str, answer: str, may_pause: bool
) -> None:
    told = relay.script[phase] = FirstTime(answer)
    issue = sending(RECIPIENTS)
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED, RECIPIENTS)
    assert len(told.at) == len(told.waited) == RECIPIENTS * 3 // 10
    assert min(told.waited.values()) >= settings.RETRY_FIRST_SECONDS - 0.05
    assert is_paused_by_itself() == may_pause


@pytest.mark.long
def test_fi_27_a_relay_that_closes_at_the_greeting_is_greeted_again(relay: SmtpServer) -> None:
    relay.script["greeting"] = lambda session: "421 4.3.2 Not now" if session.number % 10 in (1, 4, 7) else None
    relay.script["mail"] = lambda session: DROP if session.messages >= 10 else None  # so that there are many greetings
    issue = sending(RECIPIENTS)
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED, RECIPIENTS)
    assert not is_paused_by_itself()


def test_fi_28_an_unknown_address_is_tried_once(relay: SmtpServer) -> None:
    tries: Counter[str] = Counter()

    def rcpt(session: Session) -> Answer:
        tries[session.recipient] += 1
        return "550 5.1.1 User unknown" if number(session.recipient) % 50 == 0 else None

    relay.script["rcpt"] = rcpt
    issue = sending(RECIPIENTS)
    run(issue)
    step(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    rejected = issue.deliveries.filter(state=State.REJECTED, enhanced_code="5.1.1", reply_class="hard_address")
    assert {number(row.address) for row in rejected} == set(range(0, RECIPIENTS, 50))
    assert set(tries.values()) == {1}
    assert issue.state == Issue.State.COMPLETED_WITH_FAILURES


@pytest.mark.parametrize("answer", ["550 5.7.1 Message refused by policy", "550 5.7.26 Unauthenticated mail: no DKIM"])
def test_fi_29_a_domain_that_refuses_us_pauses_the_issue_and_touches_no_reader(
    relay: SmtpServer, settings: Any, answer: str
) -> None:
    at = make_readers(RECIPIENTS)[::2]
    domain = {name: Replace(name, Value("example.org"), Value("blocked.example.net")) for name in ("address", "key")}
    Subscriber.objects.filter(pk__in=[reader.pk for reader in at]).update(**domain)
    tries: list[str] = []

    def rcpt(session: Session) -> Answer:
        if not session.recipient.endswith("@blocked.example.net"):
            return None
        tries.append(session.recipient)
        return answer

    relay.script["rcpt"] = rcpt
    issue, before = begin(), readers()
    for pauses in (1, 2):  # the author goes on too soon, once
        run_until(issue, lambda: issue.state == Issue.State.PAUSED)
        assert issue.resume_at is None
        assert answer.partition(" ")[2] in issue.pause_reason
        assert pauses <= len(tries) <= pauses * (settings.BREAKER_FAULTS + CONNECTIONS)
        step(issue)
        assert issue.state == Issue.State.PAUSED
        assert SystemMail.objects.filter(context__event="paused", context__error=issue.pause_reason).exists()
        relay.script.update({} if pauses == 1 else {"rcpt": lambda session: None})
        issue.resume()
    assert (readers(), Suppression.objects.count()) == (before, 0)
    run(issue)
    assert issue.state == Issue.State.COMPLETED_WITH_FAILURES
    assert delivery.resend_failed(issue) == issue.counts().open == len(tries)
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED, RECIPIENTS)


@overlapping
def test_fi_30_a_connection_dropped_after_every_twentieth_message_loses_and_doubles_nothing(
    relay: SmtpServer, settings: Any, overlap: bool
) -> None:
    relay.extensions, settings.SMTP_OVERLAP = PIPELINING, overlap
    relay.script["mail"] = lambda session: DROP if session.messages == 20 else None
    issue = sending(RECIPIENTS)
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED, RECIPIENTS)
    assert relay.connections >= RECIPIENTS // 20


@overlapping
def test_fi_31_a_drop_after_the_dot_is_decided_by_what_is_heard_later(
    relay: SmtpServer, settings: Any, overlap: bool
) -> None:
    relay.extensions, settings.SMTP_OVERLAP = PIPELINING, overlap

    def final_dot(session: Session) -> Answer:
        relay.take_before_drop = number(session.recipient) % 20 == 3
        return DROP if number(session.recipient) % 20 in (3, 13) else None

    relay.script["final_dot"] = final_dot
    issue = sending(RECIPIENTS)
    run_until(issue, lambda: issue.counts().open == 0)
    relay.script.clear()
    assert issue.counts().unknown == RECIPIENTS // 10
    for row in issue.deliveries.unknown():
        if relay.recipients[row.address]:
            DeliveryEvent.objects.create(delivery=row, kind="delivered", provider_id=f"event:{row.pk}")
    run_until(issue, lambda: not issue.deliveries.filter(state=State.UNCERTAIN).exists())
    assert_promise(issue, relay, unknown_at_most=RECIPIENTS // 20)
    left = issue.deliveries.filter(state=State.UNCERTAIN_FINAL)
    assert {number(row.address) % 20 for row in left} == {13}
    assert issue.state == Issue.State.NEEDS_REVIEW
    reconciliation.decide(issue, [row.pk for row in left], "again", by="author")
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED, RECIPIENTS)


# A real Postfix, and what cuts its connections.

END_OF_CONTENT = b"\r\n.\r\n"


class DotPassage(Passage):
    """A connection to a relay that is cut around a final dot, before the relay has it or once it has answered it."""

    proxy: DotProxy

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self.tail = b""
        self.ends_with_the_answer = False

    def read(self, end: End, data: bytes) -> None:
        if end is self.client:
            self.said(data)
        elif self.ends_with_the_answer:
            self.cut()
        else:
            super().read(end, data)

    def said(self, data: bytes) -> None:
        found = (self.tail + data).find(END_OF_CONTENT)
        dot = found + 2 - len(self.tail)  # where it stands in these data
        self.tail = (self.tail + data)[-4:]
        fate = self.proxy.next_fate() if found >= 0 else ""
        if not fate:
            super().read(self.client, data)
        elif fate == "before":
            super().read(self.client, data[:dot])
            self.cut()
        else:
            super().read(self.client, data[: dot + 3])
            self.ends_with_the_answer = True


class DotProxy(Proxy):
    """Cuts one message in twenty before its final dot, and one after it, as long as `cuts` says so."""

    passage = DotPassage
    dots = 0
    cuts = True

    def next_fate(self) -> str:
        self.dots += 1
        return {3: "before", 13: "after"}.get(self.dots % 20, "") if self.cuts else ""


@pytest.fixture
def postfix(tmp_path: Path, settings: Any) -> Iterator[Postfix]:
    """A Postfix that the settings name as the relay, with its log to look into."""
    if not available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    with Postfix(tmp_path) as postfix:
        settings.SMTP_HOST, settings.SMTP_PORT, settings.RELAY_LOG = "127.0.0.1", postfix.port, str(postfix.log)
        settings.UNKNOWN_SETTLE_SECONDS = 1.0
        others_mail(postfix)
        time.sleep(1.1)  # its log's times are whole seconds
        yield postfix


def others_mail(postfix: Postfix) -> None:
    """Give the relay something else to log."""
    with smtplib.SMTP("127.0.0.1", postfix.port) as smtp:
        smtp.sendmail("b@news.example.com", "other@example.net", b"Message-ID: <other@example.com>\r\n\r\nHi\r\n")


def taken_by(postfix: Postfix) -> Counter[str]:
    taken = postfix.queued()
    del taken["other@example.net"]
    return taken


@pytest.mark.long
@overlapping
def test_fi_31_the_log_of_a_real_postfix_decides_both_ways_what_became_of_a_copy(
    postfix: Postfix, settings: Any, overlap: bool
) -> None:
    settings.SMTP_OVERLAP = overlap
    issue = sending(RECIPIENTS)
    with DotProxy(postfix.port) as proxy:
        settings.SMTP_PORT = proxy.port
        delivery.send_due(issue.pk, seconds=60)
        proxy.cuts = False
        unknown = set(issue.deliveries.unknown().values_list("address", flat=True))
        taken = set(taken_by(postfix))
        run_until(issue, lambda: others_mail(postfix) or issue.state == Issue.State.COMPLETED, seconds=90)
    found = DeliveryEvent.objects.filter(kind="reconciled").values_list("detail__to", flat=True)
    print(f"\n{len(unknown)} unknown, {len(unknown & taken)} of them taken; then {Counter(found)}")
    assert len(unknown) == RECIPIENTS // 10
    assert Counter(found) == {"accepted": len(unknown & taken), "pending": len(unknown - taken)}
    assert len(unknown & taken) == RECIPIENTS // 20
    assert (issue.state, issue.counts().sent) == (Issue.State.COMPLETED, RECIPIENTS)
    assert taken_by(postfix) == Counter(issue.deliveries.values_list("address", flat=True))


@overlapping
def test_an_issue_goes_through_a_real_postfix_once(postfix: Postfix, settings: Any, overlap: bool) -> None:
    settings.SMTP_OVERLAP = overlap
    issue = sending(RECIPIENTS)
    run(issue)
    assert issue.state == Issue.State.COMPLETED
    assert taken_by(postfix) == Counter(issue.deliveries.values_list("address", flat=True))


REFUSALS = {
    "mail": {11: "451 4.3.0 Later"},
    "rcpt": {3: "550 5.1.1 User unknown", 5: "450 4.2.1 Later"},
    "data": {9: "451 4.3.0 Later"},
    "final_dot": {6: "554 5.6.0 Not this", 15: "451 4.3.0 Later"},
}


@pytest.mark.parametrize("extensions", [("8BITMIME",), PIPELINING], ids=["plain", "pipelining"])
def test_refusals_between_overlapping_messages_hit_only_their_own(
    relay: SmtpServer, settings: Any, extensions: tuple[str, ...]
) -> None:
    settings.SMTP_OVERLAP, relay.extensions = True, extensions
    times: Counter[tuple[str, str]] = Counter()

    def refusing(phase: str) -> Callable[[Session], Answer]:
        def script(session: Session) -> Answer:
            told = REFUSALS[phase].get(number(session.recipient) % 20)
            times[phase, session.recipient] += 1
            return told if told and (told[0] == "5" or times[phase, session.recipient] == 1) else None

        return script

    # At MAIL the server has yet to hear whom it is for, so that one is refused by its number.
    relay.script = {phase: refusing(phase) for phase in ("rcpt", "data", "final_dot")}
    relay.script["mail"] = lambda session: REFUSALS["mail"][11] if session.messages % 20 == 11 else None
    issue = sending(RECIPIENTS)
    delivery.send_due(issue.pk, seconds=60)
    relay.script["mail"] = lambda session: None
    run(issue)
    assert_promise(issue, relay, unknown_at_most=0)
    rejected = {number(row.address) % 20 for row in issue.deliveries.filter(state=State.REJECTED)}
    assert (rejected, issue.counts().failed) == ({3, 6}, RECIPIENTS // 10)
    assert (issue.state, len(logged(relay))) == (Issue.State.COMPLETED_WITH_FAILURES, RECIPIENTS * 9 // 10)
    assert not relay.out_of_turn


@pytest.mark.long
@pytest.mark.parametrize(("part", "state"), [(0.9, State.ACCEPTED), (1.1, State.UNCERTAIN)], ids=["under", "over"])
def test_fi_32_an_answer_to_the_dot_just_before_the_end_of_patience_counts_and_one_after_it_is_unknown(
    relay: SmtpServer, settings: Any, part: float, state: str
) -> None:
    settings.SMTP_FINAL_TIMEOUT = 4.0
    settings.UNKNOWN_SETTLE_SECONDS = 2.0
    relay.script["final_dot"] = lambda session: part * settings.SMTP_FINAL_TIMEOUT
    issue = sending(CONNECTIONS)
    delivery.send_due(issue.pk, seconds=60)
    assert set(issue.deliveries.values_list("state", flat=True)) == {state}
    wait_until(lambda: len(logged(relay)) == CONNECTIONS)  # over: too late for us
    relay.script.clear()
    run_until(issue, lambda: not issue.deliveries.filter(state=State.UNCERTAIN).exists())
    assert_promise(issue, relay, unknown_at_most=CONNECTIONS)
    assert set(logged(relay).values()) == {1}


LONG_LINE = b"250 " + b"x" * 1_000_000 + b"\r\n"
MANY_LINES = b"250-" + b"y" * 400 + b"\r\n"
# What a relay says instead of each phase's usual answer; where the code is right it means yes.
MANNERS: dict[str, Callable[[str], Answer]] = {
    "multi-line": lambda code: f"{code}-First\r\n{code}-second\r\n{code} last",
    "non-ASCII": lambda code: f"{code} Grüße 你好".encode() + b"\xff\xfe\x00\r\n",
    "two codes": lambda code: b"250-First\r\n550 last\r\n",
    "garbage": lambda code: b"\x00\x01\xfe what?\r\n",
    "megabyte": lambda code: LONG_LINE,
    "many lines": lambda code: MANY_LINES * 2500,
    "slow drip": lambda code: [step for octet in code.encode() for step in (bytes([octet]), 0.3)] * 20,
}
UNDERSTOOD = ("multi-line", "non-ASCII")
PHASES = {"greeting": "220", "ehlo": "250", "mail": "250", "rcpt": "250", "data": "354", "final_dot": "250"}


@pytest.mark.parametrize(
    "manner", [pytest.param(manner, marks=pytest.mark.long if manner == "slow drip" else ()) for manner in MANNERS]
)
def test_fi_33_a_relay_that_talks_strangely_at_any_phase_is_left_in_time_and_nothing_is_believed(
    relay: SmtpServer, settings: Any, manner: str
) -> None:
    settings.SMTP_TIMEOUT = settings.SMTP_FINAL_TIMEOUT = 0.8
    settings.SMTP_CONNECTIONS = 1
    relay.take_before_drop = True
    make_readers(1)
    for phase, code in PHASES.items():
        relay.script = {phase: lambda session, code=code: MANNERS[manner](code)}
        issue, began = make_issue(), time.monotonic()
        delivery.send_now(issue)
        before = logged(relay).total()
        delivery.send_due(issue.pk, seconds=60)
        assert time.monotonic() - began < 5
        row = issue.deliveries.get()
        print(f"\n{manner} at {phase}: {row.state}, {row.smtp_code} {row.reply_text[:60]!r}")
        assert len(row.reply_text) <= 1000
        if manner in UNDERSTOOD:
            assert row.state == State.ACCEPTED
        elif phase == "final_dot":
            assert row.state == State.UNCERTAIN
        else:
            assert row.state in (State.PENDING, State.DEFERRED)
            assert logged(relay).total() == before
        relay.script.clear()
        run_until(issue, lambda issue=issue: issue.counts().open == 0)
        assert logged(relay).total() <= before + 1


def test_fi_33_an_answer_without_an_end_is_cut_off(settings: Any) -> None:
    said = 0

    def speak() -> None:
        nonlocal said
        client, _ = listener.accept()
        with client, suppress(ConnectionError):
            while said < 2**30:
                said += client.send(MANY_LINES * 100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings.SMTP_HOST, settings.SMTP_PORT = listener.getsockname()
        speaker = threading.Thread(target=speak)
        speaker.start()
        issue = sending(1)
        delivery.send_due(issue.pk, seconds=60)
        speaker.join(10)
    print(f"\nthe client hung up after at most {said // 1024} KiB")  # much of it in the kernel's buffers
    assert said < 64 * 2**20
    assert issue.deliveries.get().state == State.PENDING


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Path]:
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificates(folder), folder / "ca.pem"


@pytest.fixture
def secured(settings: Any, tmp_path: Path, certificates: tuple[Certificates, Path]) -> Iterator[SmtpServer]:
    """A relay with STARTTLS and a user, as the settings want it."""
    contexts, authority = certificates
    server = SmtpServer(log=tmp_path / "recipients.log", tls=contexts.server, users={"masthead": "secret"})
    server.extensions = ("PIPELINING", "STARTTLS", "AUTH PLAIN")
    with server:
        settings.SMTP_HOST, settings.SMTP_PORT, settings.SMTP_CA_FILE = "127.0.0.1", server.port, str(authority)
        settings.SMTP_USER, settings.SMTP_PASSWORD, settings.SMTP_SECURITY = "masthead", "secret", "starttls"
        yield server


Spoil = Callable[[SmtpServer, Certificates, Any], object]
NO_HANDSHAKE: Answer = [b"220 Go ahead\r\n", 0.05, b"220 and that is no handshake\r\n"]
# What is done to the relay or the settings, and in which phase that shows.
SPOILT: dict[str, tuple[str, Spoil]] = {
    "stripped": ("starttls", lambda relay, certificates, settings: setattr(relay, "extensions", ("AUTH PLAIN",))),
    "put off": ("starttls", lambda relay, *_: relay.script.update(starttls=lambda session: "454 4.7.0 Not now")),
    "injected": (
        "starttls",
        lambda relay, *_: relay.script.update(starttls=lambda session: b"220 Go ahead\r\n250 and on\r\n"),
    ),
    "no handshake": ("tls", lambda relay, *_: relay.script.update(starttls=lambda session: NO_HANDSHAKE)),
    "hung up": ("tls", lambda relay, *_: relay.script.update(starttls=lambda session: ["220 Go ahead", DROP])),
    "another name": ("tls", lambda relay, certificates, settings: setattr(relay, "tls", certificates.elsewhere)),
    "unknown authority": ("tls", lambda relay, certificates, settings: setattr(settings, "SMTP_CA_FILE", "")),
    "no TLS": ("tls", lambda relay, certificates, settings: setattr(settings, "SMTP_SECURITY", "tls")),
    "wrong password": ("auth", lambda relay, *_: relay.users.update(masthead="changed")),
}


@pytest.mark.parametrize("how", SPOILT)
def test_fi_34_without_a_proven_relay_nothing_goes_in_clear_and_the_author_is_told(
    secured: SmtpServer, settings: Any, certificates: tuple[Certificates, Path], how: str
) -> None:
    phase, spoil = SPOILT[how]
    good = {name: getattr(settings, name) for name in ("SMTP_CA_FILE", "SMTP_SECURITY")}
    spoil(secured, certificates[0], settings)
    issue = sending(20)
    delivery.send_due(issue.pk, seconds=60)
    issue.refresh_from_db()
    rows = issue.deliveries.all()
    assert {(row.state, row.attempt) for row in rows} == {(State.PENDING, 0)}
    assert all(row.next_attempt_at for row in rows)
    assert_nothing_in_clear(secured)
    told = SystemMail.objects.get(context__event="unreachable").context["error"]
    print(f"\n{how}: {told}")
    assert told.startswith(f"{phase}:")
    secured.script.clear()
    secured.extensions, secured.tls = ("PIPELINING", "STARTTLS", "AUTH PLAIN"), certificates[0].server
    secured.users["masthead"] = "secret"
    for name, value in good.items():
        setattr(settings, name, value)
    run(issue)
    assert_promise(issue, secured, unknown_at_most=0)
    assert (issue.state, len(logged(secured))) == (Issue.State.COMPLETED, 20)
    assert_nothing_in_clear(secured)


def assert_nothing_in_clear(relay: SmtpServer) -> None:
    clear = "\n".join(heard.line for heard in relay.heard if not heard.encrypted)
    assert "EHLO" in clear or not relay.recipients
    assert not re.search(r"AUTH|MAIL|RCPT|DATA|secret|@example\.org", clear)
    assert base64.b64encode(b"\0masthead\0secret").decode() not in clear


def test_fi_34_a_relay_that_is_not_there_is_told_once(settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    issue = sending(5)
    for _ in range(3):
        step(issue)
    assert SystemMail.objects.filter(context__event="unreachable").count() == 1
    assert issue.counts().open == 5
