"""Which kind of answer is it: tried on invented answers, and on those that real bounces quote (CORPORA_DIR)."""

import csv
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.replies import NO_RULE, RULES, Class, Reply, classify, matching_rule, trips_breaker

CORPORA = os.environ.get("CORPORA_DIR", "")
needs_corpora = pytest.mark.skipif(not CORPORA, reason="CORPORA_DIR is not set: the corpora were not tried")
HARD, SOFT, OURS = Class.HARD_ADDRESS, Class.SOFT_ADDRESS, Class.SENDER_FAULT


@pytest.mark.parametrize(
    ("code", "text", "phase", "kind"),
    [
        (550, "5.1.1 <a@example.net>: Recipient address rejected: User unknown in local recipient table", "rcpt", HARD),
        (550, "5.1.1 No such person", "final_dot", HARD),
        (550, "5.7.1 user unknown", "rcpt", HARD),
        (550, "5.0.0 <a@example.net>... User unknown", "rcpt", HARD),
        (550, "No such user here", "rcpt", HARD),
        (550, "5.5.0 Requested action not taken: mailbox unavailable", "rcpt", HARD),
        (550, "5.4.1 Recipient address rejected: Access denied.", "rcpt", HARD),
        (550, "5.1.10 RESOLVER.ADR.RecipientNotFound; not found by address lookup", "final_dot", HARD),
        (551, "5.1.6 has moved", "rcpt", HARD),
        (556, "5.1.10 Recipient domain has a null MX", "rcpt", HARD),
        (556, "No mail here", "rcpt", HARD),
        (550, "5.1.2 Domain not found", "rcpt", HARD),
        (450, "4.1.1 User unknown in virtual alias table", "rcpt", SOFT),
        (450, "4.1.2 Domain not found", "rcpt", SOFT),
        (550, "Unknown user", "final_dot", SOFT),
        (550, "User unknown", "", SOFT),
        (552, "5.2.2 Mailbox full", "rcpt", SOFT),
        (550, "5.1.1 <a@example.net>... Mailbox full", "rcpt", SOFT),
        (452, "4.2.2 The account is over quota", "rcpt", SOFT),
        (552, "Over quota", "rcpt", SOFT),
        (550, "5.2.1 This mailbox is disabled", "rcpt", SOFT),
        (450, "4.2.1 The user you try to reach is receiving mail too quickly", "rcpt", SOFT),
        (450, "4.7.1 Greylisted, see http://example.org/greylist", "rcpt", SOFT),
        (451, "4.7.1 Please try again later", "rcpt", SOFT),
        (450, "Busy", "rcpt", SOFT),
        (
            550,
            "5.7.26 Unauthenticated mail from example.org is not accepted due to its DMARC policy",
            "final_dot",
            OURS,
        ),
        (550, "5.7.1 DKIM verification failed", "final_dot", OURS),
        (550, "SPF check: fail", "rcpt", OURS),
        (554, "5.7.1 Client host rejected: blocked by dnsbl.example.net", "rcpt", OURS),
        (554, "5.7.1 <a@example.net>: Relay access denied", "rcpt", OURS),
        (550, "5.1.8 Sender address rejected: Domain does not exist", "mail", OURS),
        (550, "5.1.1 no", "mail", OURS),
        (554, "Message rejected: Email address is not verified", "final_dot", OURS),
        (554, "5.6.0 looks like spam", "final_dot", OURS),
        (550, "5.7.1 policy", "rcpt", OURS),
        (535, "5.7.8 Authentication credentials invalid", "auth", OURS),
        (530, "Must log in", "mail", OURS),
        (421, "4.7.28 An unusual rate of unsolicited mail comes from your DKIM domain", "final_dot", OURS),
        (552, "5.3.4 Message size exceeds fixed limit", "mail", Class.CONTENT_SIZE),
        (552, "Message too large", "final_dot", Class.CONTENT_SIZE),
        (550, "5.2.3 Too long for this recipient", "rcpt", Class.CONTENT_SIZE),
        (421, "4.7.0 Too many connections from you", "greeting", Class.RATE),
        (454, "Throttling failure: Maximum sending rate exceeded.", "final_dot", Class.RATE),
        (450, "4.7.1 Error: too much mail, rate limit of 10 per minute", "mail", Class.RATE),
        (452, "4.5.3 Error: too many recipients", "rcpt", Class.RATE),
        (451, "4.7.500 Server busy", "mail", Class.RATE),
        (454, "Throttling failure: Daily message quota exceeded.", "final_dot", Class.QUOTA),
        (550, "5.4.5 Daily user sending limit exceeded", "mail", Class.QUOTA),
        (450, "You have used up your monthly limit", "api", Class.QUOTA),
        (550, "5.1.90 no more today", "rcpt", Class.QUOTA),
        (550, "Rejected", "rcpt", Class.UNKNOWN),
        (451, "4.3.0 Error: queue file write error", "final_dot", Class.UNKNOWN),
        (452, "4.3.1 Insufficient system storage", "mail", Class.UNKNOWN),
        (421, "4.4.2 Error: timeout exceeded", "rcpt", Class.UNKNOWN),
        (
            454,
            "4.7.0 Temporary authentication failure: Connection lost to authentication server",
            "auth",
            Class.UNKNOWN,
        ),
        (0, "gaierror: Host not found, user unknown", "connect", Class.UNKNOWN),
        (250, "2.0.0 Ok: queued as dkim", "final_dot", Class.UNKNOWN),
    ],
)
def test_an_answer_is_classified(code: int, text: str, phase: str, kind: Class) -> None:
    assert classify(Reply(code, text, phase)) is kind


@pytest.mark.parametrize("address", ["dkim@example.net", "<spam-blocked@policy.example>", "quota+full@example.org,"])
def test_what_a_mailbox_is_called_says_nothing(address: str) -> None:
    assert classify(Reply(550, f"5.1.1 {address}: User unknown", "rcpt")) is HARD
    assert matching_rule(Reply(550, f"{address}: Rejected", "rcpt")) is NO_RULE


def test_an_ip_address_is_no_enhanced_code() -> None:
    assert classify(Reply(550, "[5.1.1.4] 5.1.1.1 says no", "rcpt")) is Class.UNKNOWN
    assert classify(Reply(550, "#5.1.1. says no", "rcpt")) is HARD


@pytest.mark.parametrize(
    ("code", "text", "phase"),
    [
        (550, "5.7.26 DMARC", "final_dot"),
        (554, "5.7.1 Client host rejected: blocked", "rcpt"),
        (554, "5.6.0 spam", "final_dot"),
        (421, "4.7.26 This mail is not authenticated", "final_dot"),
        (451, "4.7.24 The SPF record is suspicious", "mail"),
        (450, "DKIM signature does not verify", "final_dot"),
        (454, "4.7.32 The domains do not align", "final_dot"),
        (550, "5.7.515 Access denied, the sending domain does not meet the level", "final_dot"),
        (535, "5.7.8 Authentication failed", "auth"),
    ],
)
def test_the_breaker_trips(code: int, text: str, phase: str) -> None:
    assert trips_breaker(Reply(code, text, phase))


@pytest.mark.parametrize(
    ("code", "text", "phase"),
    [
        (450, "4.7.1 Greylisted", "rcpt"),
        (450, "4.7.24 Greylisted", "rcpt"),
        (421, "4.7.0 Too many connections", "greeting"),
        (550, "5.7.1 Too many messages this hour", "rcpt"),
        (454, "Throttling failure: Daily message quota exceeded.", "final_dot"),
        (550, "5.4.5 Daily sending quota exceeded", "mail"),
        (550, "5.7.1 user unknown", "rcpt"),
        (550, "5.1.1 user unknown", "final_dot"),
        (552, "5.3.4 Message too large", "mail"),
        (451, "4.7.1 Blocked for now by reputation", "mail"),
        (550, "Rejected", "rcpt"),
        (454, "4.7.0 Temporary authentication failure", "auth"),
        (0, "DKIM", "final_dot"),
    ],
)
def test_the_breaker_does_not_trip(code: int, text: str, phase: str) -> None:
    assert not trips_breaker(Reply(code, text, phase))


def test_each_rule_has_a_name_of_its_own_and_phrases_that_can_occur() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    phrases = [phrase for rule in RULES for phrase in rule.text]
    assert all(phrase == phrase.lower() and "  " not in phrase and "@" not in phrase for phrase in phrases)


WORDS = [phrase for rule in RULES for phrase in rule.text] + ["5.1.1", "4.7.26", "5.7.1", "@", "<", "\0", "550-5.1.1"]


@given(
    code=st.integers(-1, 1000),
    text=st.one_of(st.text(max_size=2000), st.lists(st.sampled_from(WORDS), max_size=200).map(" ".join)),
    phase=st.sampled_from(["connect", "greeting", "auth", "mail", "rcpt", "data", "final_dot", "api", "", "odd"]),
)
def test_any_text_is_classified(code: int, text: str, phase: str) -> None:
    reply = Reply(code, text, phase)
    assert isinstance(classify(reply), Class)
    if trips_breaker(reply):
        assert classify(reply) is OURS
    if classify(reply) is HARD:
        assert 500 <= code < 600


@pytest.mark.parametrize("text", ["5." * 50_000, "a" * 100_000, "<" * 100_000, "quota exceede" * 10_000, " @" * 50_000])
def test_a_long_text_takes_no_longer_than_a_short_one(text: str) -> None:
    reply = Reply(550, text, "rcpt")
    assert min(seconds(reply) for _ in range(20)) < 0.001


def seconds(reply: Reply) -> float:
    began = time.perf_counter()
    classify(reply)
    return time.perf_counter() - began


# Real ones. The labels are of mails; what is tried is the answer that a mail quotes, where it quotes one.

REASONS = {
    "hard": "userunknown hostunknown hasmoved notaccept",
    "soft": "mailboxfull suspend expired filtered networkerror systemerror systemfull mailererror exceedlimit onhold "
    "undefined",
    "sender": "authfailure badreputation blocked requireptr policyviolation rejected spamdetected notcompliantrfc "
    "securityerror speeding toomanyconn mesgtoobig contenterror virusdetected norelaying failedstarttls syntaxerror",
}
LABELS = {reason: label for label, reasons in REASONS.items() for reason in reasons.split()}
ANSWER = re.compile(r"(?:^|[\s:\"])([45]\d\d)[ -](\S.*)", re.DOTALL)
# One address after another in the text, or one command after another.
PARTS = re.compile(r"\n\s*\n|\n>>>|\n(?=<?\S+@\S+:)")
COPY = re.compile(r"\n--")
ASKED = re.compile(
    r"(?:in reply to|did not like our|after|>>>) (?:pipelined |final )?(\w+(?: of data)?)", re.IGNORECASE
)
PHASES = {"initial": "greeting", "ehlo": "ehlo", "helo": "ehlo", "mail": "mail", "rcpt": "rcpt", "data": "data"}


def text_part(mail: Message) -> str:
    part = next((part for part in mail.walk() if part.get_content_maintype() == "text"), None)
    content = part.get_payload(decode=True) if part else b""
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else ""


def reports(mail: Message) -> list[Message]:
    """Return what the delivery reports say of each recipient whom the mail did not reach (RFC 3464)."""
    parts = [part.get_payload() for part in mail.walk() if part.get_content_type() == "message/delivery-status"]
    fields = [field for part in parts if isinstance(part, list) for field in part[1:]]
    return [field for field in fields if str(field.get("Action", "failed")).lower() != "delivered"]


def phase(text: str) -> str:
    """Return the phase that was last spoken of, or nothing."""
    asked = [word.lower() for word in ASKED.findall(" ".join(text.split()))]
    if not asked:
        return ""
    return "final_dot" if asked[-1] == "end of data" else PHASES.get(asked[-1].split()[0], "")


def quoted(mail: Message, index: int, status: str) -> Reply | None:
    """Return the answer that the mail quotes for its recipient number `index`."""
    fields = reports(mail)
    field = fields[index - 1] if index <= len(fields) else Message()
    diagnostic = re.sub(r"^[\w-]+;\s*", "", str(field.get("Diagnostic-Code", "")))
    text = text_part(mail)
    if not diagnostic:
        found = [] if len(fields) > 1 else [*filter(None, map(ANSWER.search, PARTS.split(COPY.split(text)[0])))]
        diagnostic = found[min(index, len(found)) - 1][0] if found else ""
    answer = ANSWER.search(diagnostic)
    code = int(answer[1]) if answer else {"4": 450, "5": 550}.get(str(field.get("Status", status))[:1], 0)
    words = " ".join((answer[2] if answer else diagnostic).split())
    return Reply(code, words, phase(diagnostic) or phase(text)) if diagnostic and code else None


@cache
def labelled() -> list[tuple[str, Reply]]:
    return list(labelled_replies(Path(CORPORA, "bounce/sisimai")))


def labelled_replies(folder: Path) -> Iterator[tuple[str, Reply]]:
    for row in csv.DictReader((folder / "labels.csv").read_text("utf-8").splitlines()):
        label = LABELS.get(row["reason"])
        mail = message_from_bytes((folder / row["file"]).read_bytes())
        reply = quoted(mail, int(row["index"]), row["status"]) if label else None
        if label and reply:
            yield label, reply


@needs_corpora
def test_real_answers_are_classified_as_they_are_labelled() -> None:
    counts = Counter((label, classify(reply)) for label, reply in labelled())
    of_label = Counter(label for label, _ in labelled())
    called_hard = sum(count for (_, kind), count in counts.items() if kind is HARD)
    assert of_label.total() >= 300
    assert counts["hard", HARD] / called_hard >= 0.97
    assert counts["hard", HARD] / of_label["hard"] >= 0.8
    assert counts["sender", HARD] == 0
    assert counts["soft", HARD] <= 2
    ours = sum(counts["sender", kind] for kind in (OURS, Class.RATE, Class.CONTENT_SIZE))
    assert ours / of_label["sender"] >= 0.97


@needs_corpora
def test_a_real_unknown_user_is_missed_only_where_neither_phase_nor_code_is_told() -> None:
    told = [reply for label, reply in labelled() if label == "hard" and is_told(reply)]
    assert len(told) >= 60
    assert sum(classify(reply) is HARD for reply in told) / len(told) >= 0.95


def is_told(reply: Reply) -> bool:
    return reply.phase == "rcpt" or reply.enhanced_code.startswith("5.1.")


@needs_corpora
def test_real_answers_about_an_address_hardly_ever_trip_the_breaker() -> None:
    tripped = Counter(label for label, reply in labelled() if trips_breaker(reply))
    assert tripped["hard"] == 0
    assert tripped["soft"] <= 2
    assert tripped["sender"] >= 100
