"""What a relay or a provider answered, which kind of answer that is, and the errors that say what may be done next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

ENHANCED = re.compile(r"^([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")


class Reply(NamedTuple):
    """An answer: SMTP code (0 where there was none), text, the phase it answered, a provider's id of the message."""

    code: int
    text: str
    phase: str
    provider_id: str = ""

    @property
    def enhanced_code(self) -> str:
        """Return the enhanced code at the front of the text (RFC 3463), or nothing."""
        found = ENHANCED.match(self.text)
        return found.group(1) if found else ""


class Class(StrEnum):
    """What an answer says something about; complaints and automatic replies come by mail, never as an answer."""

    HARD_ADDRESS = "hard_address"  # no such mailbox or domain
    SOFT_ADDRESS = "soft_address"  # full, disabled, greylisted, for now out of reach
    SENDER_FAULT = "sender_fault"  # who we are, how we are known, what we wrote
    CONTENT_SIZE = "content_size"
    RATE = "rate"  # slower, or over fewer connections
    QUOTA = "quota"  # what the account may send in a day or a month is used up
    UNKNOWN = "unknown"


class TransportError(Exception):
    """Something went wrong; `reply` tells what and in which phase.

    Where the transport knows more than the reply's words say: `kind` is the reply's class, `retry_after` the seconds
    that the other side asked to wait, `is_ours` that it is about the sender.
    """

    def __init__(
        self, reply: Reply, *, kind: Class | None = None, retry_after: float | None = None, is_ours: bool = False
    ) -> None:
        super().__init__(f"{reply.phase}: {reply.code} {reply.text}")
        self.reply, self.kind, self.retry_after, self.is_ours = reply, kind, retry_after, is_ours


class Refused(TransportError):
    """The relay refused this copy for good: do not retry."""


class Deferred(TransportError):
    """The relay did not take this copy now, for certain: try again later."""


class Dropped(Deferred):
    """The connection died, timed out or spoke garbage before the final dot: the copy was certainly not taken."""


class Unreachable(Dropped):
    """No connection could be made ready: nothing was said of any copy."""


class Uncertain(TransportError):
    """The final dot was written and no reply was read: the copy may or may not have been taken (RFC 1047)."""


ALL = range(400, 600)
TEMPORARY = range(400, 500)
PERMANENT = range(500, 600)
BEFORE_RECIPIENT = frozenset({"greeting", "ehlo", "starttls", "tls", "auth", "mail"})
AT_RECIPIENT = frozenset({"rcpt", "api"})
AFTER_RECIPIENT = frozenset({"data", "body", "final_dot"})
OF_RECIPIENT = AT_RECIPIENT | AFTER_RECIPIENT | {""}
TEXT_CHARACTERS = 300
CODE_CHARACTERS = 60
# Nowhere near an IP address: neither digit nor dot before it, no further number after it.
ANY_ENHANCED = re.compile(r"(?<![\d.])[245]\.(\d{1,3}\.\d{1,3})(?!\.?\d)")

NO_SUCH_USER = (
    *("user unknown", "unknown user", "user not found", "no such user", "not exist", "doesn't exist"),
    *("unknown recipient", "recipient unknown", "recipient not found", "recipnotfound", "recipientnotfound"),
    *("no such recipient", "invalid recipient", "unknown mailbox", "mailbox unknown", "mailbox not found"),
    *("no such mailbox", "no mailbox", "invalid mailbox", "mailbox unavailable", "unknown account"),
    *("no such account", "account not found", "unknown address", "address unknown", "no such address"),
    *("address not found", "invalid address", "bad address", "bad destination", "not our user", "not our customer"),
    *("not a valid recipient", "not a valid mailbox", "not a known user", "is not known", "not recogni"),
    *("no longer on server", "no longer valid", "no longer available", "no longer in use", "has moved"),
    *("no forwarding address", "undeliverable address", "unrouteable address", "unroutable address"),
    *("destinataire invalide", "utilisateur inconnu", "usuario desconocido", "usuario no existe"),
    *("inactive email address", "recipient address rejected. "),
)
NO_SUCH_ACCOUNT = ("this user doesn't have a", "nosuchuser")
NO_SUCH_HOST = (
    *("host unknown", "unknown host", "host not found", "host or domain name not found", "domain not found"),
    *("no such domain", "unknown domain", "domain is not reachable", "null mx", "nullmx"),
    *("not accept mail", "doesn't accept mail", "doesn't receive email", "not receive email"),
)
IDENTITY = (
    *("dmarc", "dkim", " spf ", " spf:", "(spf", "spf)", "spf-", "openspf", "authenticated", "must authenticate"),
    *("authentication required", "authentication is required", "authentication fail", "authentication check"),
    *("authentication unsuccessful", "authentication credential", "requires authentication", "smtp auth"),
    *("auth required", "authrequired", "purported responsible", "reverse dns", "rdns", " ptr "),
    *("cannot find your", "cannot resolve your", "mismatches client ip", "unverifyable", "unverifiable"),
    *("not verified", "unverified", "sender rejected", "sender denied", "sender verify", "sender domain"),
    *("domain of sender", "sending domain", "mail from domain", "sender address", "invalid sender"),
    *("sender is not allowed", "not allowed to send", "not permitted to send", "not authorized to send"),
    *("relay access denied", "relaying denied", "relaying not allowed", "no relaying", "not permitted to relay"),
    *("relay not permitted", "unable to relay", "to relay mail", "do not relay", "must issue a starttls"),
    *("sending paused", "sending is disabled", "your account"),
)
REPUTATION = (
    *("reputation", "blacklist", "black list", "blocklist", "block list", "denylist", "dnsbl", " rbl", "rbl ", "/rbl"),
    *("sorbs", "barracuda", "cloudmark", "proofpoint", "blocked", "banned", "bl?ip=", "(bl)", "open relay"),
    *("client host rejected", "not accepting connections", "service refused", "not be mail exchanger", "your isp"),
    *("abuse", "complaint", "unsolicited", "aup#", "bad helo", "helo command rejected", "invalid helo"),
    *("no smtp service", "messages from", "no access from"),
)
CONTENT = (
    *("spam", "suspicious", "phish", "virus", "malware", "infected", "policy", "prohibited", "forbidden", "junk"),
    *("content reject", "message rejected", "mail rejected", "message refused", "header error", "in from:"),
    *("message not allowed", "not accepted for", "duplicate header", "rfc 5322", "rfc5322", "rfc 2822", "rfc2822"),
    *("not compliant", "noncompliant", "8-bit data", "headers too large", "too many headers", "media error"),
    *("bad header", "malformed header", "malformed message", "protocol violation", "access denied"),
    *("not authorized", "permission denied", "potential security", "its content"),
)
QUOTA_USED_UP = (
    *("message quota exceeded", "sending quota", "daily user sending", "daily smtp relay", "daily quota"),
    *("daily limit", "daily sending", "monthly quota", "monthly limit", "monthly sending", "credits exceeded"),
    *("enough credits", "not_enough_credits", "sending credits", "messaging limits", "your plan", "plan limit"),
    *("limit for the day", "limit for the month", "limit for today", "reached your sending limit"),
)
SLOWER = (
    *("too many connections", "too many concurrent", "concurrent connection", "connection rate", "connection limit"),
    *("too many sessions", "too many messages", "too many mails", "too many emails", "too many recipients"),
    *("too many requests", "rate limit", "rate-limit", "ratelimit", "throttl", "too fast", "too quickly", "slow down"),
    *("frequency limit", "sending rate", "message rate", "mail rate", "unusual rate", "this hour", "hourly"),
    *("per hour", "per minute", "per second", "temporarily deferred"),
)
MAILBOX_FULL = (
    *("mailbox full", "mailbox is full", "mail box full", "inbox is full", "inbox full", "over quota", "overquota"),
    *("quota exceeded", "quotaexceeded", "exceeded quota", "exceeds quota", "exceeded the quota", "disk quota"),
    *("exceeded its quota", "exceeded their quota", "diskspace quota", "storage quota", "out of storage"),
    *("exceeded storage", "not enough space", "not enough storage", "mailbox size", "mailbox has exceed"),
    *("mailbox exceed", "mailbox limit", "boite pleine", "boîte pleine", "postfach voll"),
)
DISABLED = (
    *("disabled", "suspended", "deactivated", "inactive", "not active", "frozen", "locked", "discontinued"),
    *("on hold", "mailbox temporarily", "not accepting messages", "not accepting mail", "is not accepting"),
)
GREYLISTED = ("greylist", "graylist", "grey list", "gray list", "grey-list", "gray-list", "postgrey")
TOO_LARGE = (
    *("message too large", "message is too large", "message too big", "message is too big", "message size exceed"),
    *("message length exceed", "message exceed", "size limit", "maximum message size", "message file too big"),
    *("maximum inbound message", "size of the message", "size of this message", "recipsizelimit"),
)


@dataclass(frozen=True)
class Rule:
    """One line of the table: it holds where everything that it names is so.

    `enhanced` is matched against subject and detail, such as "1.1" of 5.1.1; one phrase of `text` must occur.
    """

    name: str
    kind: Class
    codes: range = ALL
    enhanced: re.Pattern[str] | None = None
    text: tuple[str, ...] = ()
    phases: frozenset[str] = frozenset()

    def holds(self, code: int, enhanced: str, text: str, phase: str) -> bool:
        if code not in self.codes or (self.phases and phase not in self.phases):
            return False
        if self.enhanced and not self.enhanced.fullmatch(enhanced):
            return False
        return not self.text or occurs(self.text, text)


def occurs(phrases: tuple[str, ...], text: str) -> bool:
    for phrase in phrases:  # noqa: SIM110  # any() takes a third longer, and there are hundreds
        if phrase in text:
            return True
    return False


def like(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


NO_MAILBOX = like(r"1\.(?:1|2|3|6|10)")
NO_RULE = Rule("none", Class.UNKNOWN)
# The first that holds counts. Text goes before enhanced code and that before the code, for many relays say 5.0.0, 5.5.0
# or 5.7.1 of whatever it is. Where an answer can be read as two things, that one comes first which costs no reader.
RULES = (
    Rule("relay-out-of-order", Class.UNKNOWN, TEMPORARY, text=("temporary authentication failure",)),
    Rule("receives-too-much", Class.SOFT_ADDRESS, text=("receiving mail", "receiving limit", "daily receiving")),
    Rule("quota-text", Class.QUOTA, text=QUOTA_USED_UP),
    Rule("quota-code", Class.QUOTA, enhanced=like(r"1\.90|7\.23[23]")),
    Rule("full-text", Class.SOFT_ADDRESS, text=MAILBOX_FULL, phases=OF_RECIPIENT),
    Rule("full-code", Class.SOFT_ADDRESS, enhanced=like(r"2\.2"), phases=OF_RECIPIENT),
    Rule("size-text", Class.CONTENT_SIZE, text=TOO_LARGE),
    Rule("size-code", Class.CONTENT_SIZE, enhanced=like(r"2\.3|3\.4")),
    Rule("greylisted", Class.SOFT_ADDRESS, text=GREYLISTED, phases=OF_RECIPIENT),
    Rule("identity-code", Class.SENDER_FAULT, enhanced=like(r"7\.(?:2\d|3[0-2]|509|515)|1\.[78]")),
    Rule("no-user-both", Class.HARD_ADDRESS, PERMANENT, NO_MAILBOX, NO_SUCH_USER + NO_SUCH_HOST, OF_RECIPIENT),
    Rule("identity-text", Class.SENDER_FAULT, text=IDENTITY),
    Rule("reputation-rate", Class.SENDER_FAULT, text=("ip reputation", "low reputation", "bad reputation")),
    Rule("rate-text", Class.RATE, text=SLOWER),
    Rule("rate-code", Class.RATE, enhanced=like(r"4\.5|5\.3")),
    Rule("busy", Class.RATE, TEMPORARY, like(r"7\.500")),
    Rule("sender-refused", Class.SENDER_FAULT, PERMANENT, phases=BEFORE_RECIPIENT),
    Rule("denied-by-microsoft", Class.HARD_ADDRESS, PERMANENT, like(r"4\.1"), ("recipient address rejected",)),
    Rule("denied-recipient", Class.HARD_ADDRESS, PERMANENT, text=("recipient address rejected: access denied",)),
    Rule("reputation", Class.SENDER_FAULT, text=REPUTATION),
    Rule("content", Class.SENDER_FAULT, text=CONTENT),
    Rule("relay-trouble", Class.UNKNOWN, TEMPORARY, phases=BEFORE_RECIPIENT),
    Rule("disabled", Class.SOFT_ADDRESS, text=DISABLED),
    Rule("no-account", Class.HARD_ADDRESS, PERMANENT, text=NO_SUCH_ACCOUNT),
    Rule("no-user-text", Class.HARD_ADDRESS, PERMANENT, text=NO_SUCH_USER, phases=AT_RECIPIENT),
    # Filters say so of a mailbox whose owner does not want this mail: after they took the recipient.
    Rule("no-user-late", Class.SOFT_ADDRESS, text=NO_SUCH_USER),
    Rule("no-host-text", Class.HARD_ADDRESS, PERMANENT, text=NO_SUCH_HOST),
    Rule("no-host-both", Class.HARD_ADDRESS, PERMANENT, like(r"4\.4"), ("invalid domain",)),
    Rule("no-user-code", Class.HARD_ADDRESS, PERMANENT, NO_MAILBOX),
    Rule("rejected-address", Class.HARD_ADDRESS, PERMANENT, like(r"1\.0"), (" address rejected",)),
    Rule("try-again", Class.SOFT_ADDRESS, TEMPORARY, like(r"7\.[01]"), ("try again", "try later")),
    Rule("sender-code", Class.SENDER_FAULT, enhanced=like(r"7\.\d+")),
    Rule("content-code", Class.SENDER_FAULT, PERMANENT, like(r"[56]\.\d+")),
    Rule("closing", Class.UNKNOWN, range(421, 422)),
    Rule("address-code", Class.SOFT_ADDRESS, enhanced=like(r"[124]\.\d+")),
    # Of its own disk and its own state: that is no reader's doing.
    Rule("system-code", Class.UNKNOWN, enhanced=like(r"3\.\d+")),
    Rule("login", Class.SENDER_FAULT, range(530, 540)),
    Rule("syntax", Class.SENDER_FAULT, range(500, 505)),
    Rule("no-mail-domain", Class.HARD_ADDRESS, range(556, 557)),
    Rule("large-for-all", Class.CONTENT_SIZE, range(552, 553), phases=AFTER_RECIPIENT),
    Rule("large-or-full", Class.SOFT_ADDRESS, range(552, 553)),
    Rule("mailbox-busy", Class.SOFT_ADDRESS, range(450, 453), phases=AT_RECIPIENT),
)
# Even a temporary answer by one of these will be the same for each copy until somebody mends something.
IDENTITY_RULES = ("identity-code", "identity-text")


def matching_rule(reply: Reply) -> Rule:
    """Return the rule that the answer falls under; its name is worth keeping beside the answer."""
    text = f" {' '.join(plain_words(reply.text))} "
    found = ANY_ENHANCED.search(text, 0, CODE_CHARACTERS)
    enhanced = found.group(1) if found else ""
    code, phase = reply.code, reply.phase
    return next((rule for rule in RULES if rule.holds(code, enhanced, text, phase)), NO_RULE)


def plain_words(text: str) -> Iterator[str]:
    """Yield the words in lower case, without addresses: what a mailbox is called says nothing of the answer."""
    words = text[:TEXT_CHARACTERS].lower().replace("’", "'").split()
    return (word for word in words if "@" not in word)


def classify(reply: Reply) -> Class:
    """Return what the answer is about; UNKNOWN also for 2xx and for a connection that broke (code 0)."""
    return matching_rule(reply).kind


def trips_breaker(reply: Reply) -> bool:
    """Tell whether to stop over this answer: a sender's fault, for good or one of identity."""
    rule = matching_rule(reply)
    return rule.kind is Class.SENDER_FAULT and (reply.code >= 500 or rule.name in IDENTITY_RULES)
