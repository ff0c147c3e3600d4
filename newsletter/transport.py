"""How a copy leaves: over SMTP or through a provider's API, one message a request, behind one interface.

A link takes a copy in two steps. What goes wrong in the first is certain: the copy was not taken and may be tried
again. The second is the one in which nobody can know if it breaks (RFC 1047), so its intent is committed before.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import re
import ssl
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from functools import cache
from math import inf
from typing import Any, NamedTuple, Protocol

import requests
from anymail.exceptions import AnymailAPIError, AnymailError, AnymailRecipientsRefused, AnymailRequestsAPIError
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMultiAlternatives, get_connection
from django.utils import timezone
from django.utils.translation import gettext as _

from newsletter import smtp
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
    trips_breaker,
)

# Replies that say that our identity is wrong: each further try does harm (Gmail's and Microsoft's lists of codes).
IDENTITY = re.compile(r"5\.7\.(2\d|3[0-2]|515)$")
# Headers that a provider's API is not given: it writes them itself or is told in words of its own.
WRITTEN_BY_PROVIDER = {"from", "to", "subject", "reply-to", "mime-version", "content-type", "date"}
FOLD = re.compile(r"\r?\n(?=[ \t])")
# What a provider's refusal says of a reader; all else it says of us, so that it may pause the issue.
OF_READER = (Class.HARD_ADDRESS, Class.SOFT_ADDRESS)
SLICE_SECONDS = 0.2  # a wait for a turn looks up so often
LONGEST_WAIT = 24 * 3600.0  # seconds; a provider that asks for more is asked again tomorrow


class Letter(NamedTuple):
    """One copy, ready to go: envelope and complete message, in pieces that many copies share."""

    sender: str
    recipient: str
    pieces: tuple[bytes, ...]

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


class Link(Protocol):
    """A way out that takes one letter at a time; many are open at once."""

    @property
    def usable(self) -> bool:
        """Whether another letter may be begun on it."""

    async def prepare(self, letter: Letter) -> None:
        """Do all that can be done before the point of no return. Raises Refused, Deferred or Dropped."""

    async def send(self, letter: Letter, then: Letter | None, *, until: float = inf) -> None:
        """Pass the point of no return, but not after the boot-time instant `until`; `then` is the letter to follow.

        Raises Dropped where it was not passed.
        """

    def listen(self, heard: smtp.Heard) -> asyncio.Future[Any]:
        """Return a future that ends when there is an answer.

        Where the letter is taken and the one to follow is prepared already, `heard` may take reply and future over.
        """

    async def answered(self) -> Reply:
        """Return the acceptance. Raises Refused, Deferred, Dropped or Uncertain."""

    def abort(self) -> None:
        """Cut it at once; what was prepared is not delivered."""

    async def close(self) -> None:
        """End it in good manners."""


async def hand_over(link: Link, letter: Letter, then: Letter | None = None) -> Reply:
    """Take a letter that is prepared to its end. Raises Refused, Deferred, Dropped or Uncertain."""
    await link.send(letter, then)
    return await link.answered()


async def open_link() -> Link:
    """Open a link to the relay, or to the provider that SEND_BACKEND names. Raises Unreachable."""
    if not settings.SEND_BACKEND:
        return SmtpLink(await smtp.Connection.open(_usable_account()))
    try:
        return ApiLink()
    except (ImproperlyConfigured, ImportError) as error:
        raise Unreachable(Reply(0, str(error), "auth")) from error


def _usable_account() -> smtp.Account:
    """Return the relay that the settings name. Raises Unreachable where they make no connection."""
    try:
        return account()
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        said = f"SMTP_SECURITY={settings.SMTP_SECURITY}, SMTP_CA_FILE={settings.SMTP_CA_FILE}: {error}"
        raise Unreachable(Reply(0, _shown(said), "tls")) from error


def account() -> smtp.Account:
    """Return the relay that the settings name, with the patience of RFC 5321, 4.5.3.2, or less."""
    patience = settings.SMTP_TIMEOUT
    return smtp.Account(
        host=settings.SMTP_HOST,
        port=settings.SMTP_PORT,
        user=settings.SMTP_USER,
        password=settings.SMTP_PASSWORD,
        security=settings.SMTP_SECURITY,
        tls=_tls(settings.SMTP_CA_FILE) if settings.SMTP_SECURITY != "none" else None,
        messages_per_connection=settings.SMTP_MESSAGES_PER_CONNECTION,
        overlap=settings.SMTP_OVERLAP,
        connect_seconds=min(patience, 30),
        greeting_seconds=patience,
        command_seconds=patience,
        data_seconds=min(patience, 120),
        body_seconds=min(patience, 180),
        final_seconds=settings.SMTP_FINAL_TIMEOUT,
    )


@cache
def _tls(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority or None)


class SmtpLink:
    """One SMTP connection. The point of no return is the final dot."""

    def __init__(self, connection: smtp.Connection) -> None:
        self.connection = connection
        self._begun: Letter | None = None

    @property
    def usable(self) -> bool:
        return self.connection.usable

    async def prepare(self, letter: Letter) -> None:
        if self._begun is not letter:
            self.connection.begin(*_envelope(letter))
        self._begun = None
        await self.connection.begun()
        if not self.connection.writes_whole:
            await self.connection.send_body(letter.content, dotless=True)  # message.py leaves no dot at a line's start

    async def send(self, letter: Letter, then: Letter | None, *, until: float = inf) -> None:
        connection, following = self.connection, _envelope(then) if then else None
        if connection.writes_whole:
            begun = await connection.send_whole(letter.pieces, following, until=until, dotless=True)
        else:
            begun = connection.write_dot(following)
        self._begun = then if begun else None

    def listen(self, heard: smtp.Heard) -> asyncio.Future[Any]:
        return self.connection.listen(heard if self.connection.writes_whole else None)

    async def answered(self) -> Reply:
        return await self.connection.answered()

    def abort(self) -> None:
        self.connection.abort()

    async def close(self) -> None:
        await self.connection.quit()


def _envelope(letter: Letter) -> tuple[str, str, int]:
    return letter.sender, letter.recipient, sum(map(len, letter.pieces))


class ApiLink:
    """A provider's API through one of anymail's backends. The point of no return is the request.

    No idempotency key is sent, since anymail has no common word for one: a request without an answer is uncertain.
    The provider has anymail's REQUESTS_TIMEOUT for each part of its answer, and SMTP_FINAL_TIMEOUT for the whole.
    """

    def __init__(self) -> None:
        self.usable = True
        self._backend: Any = get_connection(settings.SEND_BACKEND)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="provider")
        self._message: EmailMultiAlternatives | None = None
        self._asked: asyncio.Future[Reply] | None = None

    async def prepare(self, letter: Letter) -> None:
        self._message = as_django(letter)

    async def send(self, letter: Letter, then: Letter | None, *, until: float = inf) -> None:
        message, self._message = self._message, None
        self._asked = asyncio.get_running_loop().run_in_executor(self._thread, self._post, message)

    def listen(self, heard: smtp.Heard) -> asyncio.Future[Any]:
        """Return a future that has ended: answered() does all the waiting."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiter.set_result(None)
        return waiter

    async def answered(self) -> Reply:
        assert self._asked is not None
        asked, self._asked = self._asked, None
        try:
            return await asyncio.wait_for(asked, settings.SMTP_FINAL_TIMEOUT)
        except TimeoutError as error:
            self.usable = False  # its thread is still at that request
            raise Uncertain(Reply(0, "timed out", "api")) from error

    def abort(self) -> None:
        """Forget what was prepared: nothing of it has left."""
        self._message = None

    async def close(self) -> None:
        self._thread.shutdown(wait=False)
        self._backend.close()

    def _post(self, message: Any) -> Reply:
        try:
            self._backend.open()  # its connection is kept until close()
            sent = self._backend.send_messages([message])
        except Exception as error:
            raise provider_error(error) from error
        return _acceptance(message, sent or 0)


def as_django(letter: Letter) -> EmailMultiAlternatives:
    """Return the letter as Django's own message, which anymail translates into its provider's words.

    Header fields go as they are, in ASCII, so that no provider has to encode them. The envelope sender is its own.
    """
    parsed = email.message_from_bytes(letter.content, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    fields = ((name, FOLD.sub("", str(value))) for name, value in parsed.raw_items())
    message = EmailMultiAlternatives(
        str(parsed["Subject"]),
        _part(parsed, "plain"),
        str(parsed["From"]),
        [letter.recipient],
        headers={name: value for name, value in fields if name.lower() not in WRITTEN_BY_PROVIDER},
        reply_to=[str(parsed["Reply-To"])] if parsed["Reply-To"] else None,
    )
    message.attach_alternative(_part(parsed, "html"), "text/html")
    return message


def _part(parsed: EmailMessage, kind: str) -> str:
    body = parsed.get_body(preferencelist=(kind,))
    assert body is not None
    return str(body.get_content())


def _acceptance(message: Any, sent: int) -> Reply:
    """Return what the provider said of the one recipient; raises Refused where it took the request but not the copy."""
    status = getattr(message, "anymail_status", None)
    found = next(iter(status.recipients.values()), None) if status else None
    said = str(found.status if found else "")
    if said in ("rejected", "invalid"):
        raise Refused(Reply(550, f"the provider says: {said}", "api"), kind=Class.HARD_ADDRESS)
    if said == "failed" or not sent:  # not sent: a receiver of anymail's pre_send would not have it
        raise Refused(Reply(554, f"the provider says: {said or 'not sent'}", "api"), kind=Class.UNKNOWN, is_ours=True)
    response: Any = getattr(status, "esp_response", None)
    if getattr(response, "status_code", 200) >= 400:  # a refusal in words that anymail does not know
        refusal = Reply(550, _shown(response.text), "api")
        raise Refused(refusal, kind=classify(refusal), is_ours=classify(refusal) not in OF_READER)
    return Reply(250, f"taken by the provider: {said or 'yes'}", "api", _provider_id(found))


def _provider_id(found: Any) -> str:
    return _shown(found.message_id or "")[:200] if found is not None else ""


def _shown(said: object) -> str:
    """Return what a provider said in one line fit to be stored and shown."""
    return smtp.printable(" ".join(str(said).split()).encode("utf-8", "replace"))


def provider_error(error: Exception) -> TransportError:
    """Return what an exception of a provider's backend means for the copy; in doubt it means that nobody can know."""
    text = _shown(error)
    if isinstance(error, AnymailRecipientsRefused):
        return Refused(Reply(550, text, "api"), kind=Class.HARD_ADDRESS)
    if isinstance(error, AnymailError) and not isinstance(error, AnymailAPIError):  # made no request: it does not fit
        return Refused(Reply(554, text, "api"), kind=Class.SENDER_FAULT, is_ours=True)
    if isinstance(error, requests.ConnectionError) and _unsent(error):
        return Unreachable(Reply(0, text, "connect"))
    if isinstance(error, AnymailRequestsAPIError) and error.status_code:
        return _answered_with(error, text)
    return Uncertain(Reply(0, text, "api"))


def _answered_with(error: AnymailRequestsAPIError, text: str) -> TransportError:
    """Return what an HTTP status means (RFC 9110, 15): 4xx and 503 say “not taken”, all others leave it open."""
    status, wait = int(error.status_code), _retry_after(error.response)
    kind = classify(Reply(550, text, "api"))
    if not 400 <= status < 500 and status != 503:
        return Uncertain(Reply(0, text, "api"))
    if status == 420 or kind is Class.QUOTA:
        return Deferred(Reply(450, text, "api"), kind=Class.QUOTA, retry_after=wait)
    if status in (408, 429, 503) or kind is Class.RATE:
        return Deferred(Reply(451, text, "api"), kind=Class.RATE, retry_after=wait)
    if status in (401, 402, 403):
        return Deferred(Reply(454, text, "api"), kind=Class.SENDER_FAULT, is_ours=True)
    return Refused(Reply(550, text, "api"), kind=kind, is_ours=kind not in OF_READER)


UNSENT = (
    *("NewConnectionError", "NameResolutionError", "Failed to establish", "ConnectTimeoutError"),
    *("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "HANDSHAKE_FAILURE"),
)


def _unsent(error: requests.ConnectionError) -> bool:
    """Tell whether the connection was never made, so that nothing of the request can have left."""
    return any(word in str(error) for word in UNSENT)


def _retry_after(response: Any) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3); None without it."""
    value = str(response.headers.get("Retry-After", "")).strip() if response is not None else ""
    try:
        wait = float(value) if value.isdecimal() else (parsedate_to_datetime(value) - timezone.now()).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(0.0, wait), LONGEST_WAIT)


@dataclass(frozen=True)
class Stop:
    """Why sending pauses by itself, and after how many seconds it goes on by itself; None: the author decides."""

    reason: str
    seconds: float | None


class Window(NamedTuple):
    """How many of the last replies were looked at, blamed the sender, asked for a slower pace, or never came."""

    looked: int = 0
    faults: int = 0
    slow: int = 0
    doubts: int = 0  # in a row


@dataclass
class Breaker:
    """Watches the last replies of a worker: many that blame the sender pause the issue and no reader."""

    faults: deque[bool] = field(default_factory=lambda: deque(maxlen=settings.BREAKER_WINDOW))
    slow: deque[bool] = field(default_factory=lambda: deque(maxlen=settings.BREAKER_WINDOW))
    doubts: int = 0  # in a row

    def recall(self, window: Window) -> None:
        """Go on from what another worker saw; who was refused last among them is not known, and does not matter."""
        for kept, bad in ((self.faults, window.faults), (self.slow, window.slow)):
            kept.extend([True] * bad + [False] * (window.looked - bad))
        self.doubts = window.doubts

    def window(self) -> Window:
        """Return what there is to go on from."""
        return Window(len(self.faults), sum(self.faults), sum(self.slow), self.doubts)

    def accepted(self) -> None:
        self.faults.append(False)
        self.slow.append(False)
        self.doubts = 0

    def look(self, error: TransportError, kind: Class) -> Stop | None:
        """Count a refusal; return a Stop if sending has to pause."""
        ours = error.is_ours or trips_breaker(error.reply)
        self.faults.append(ours)
        self.slow.append(kind is Class.RATE)
        self.doubts = self.doubts + 1 if isinstance(error, Uncertain) else 0
        said = f"{error.reply.code} {error.reply.text}".strip()
        if kind is Class.QUOTA:
            wait = error.retry_after or settings.QUOTA_SECONDS
            return Stop(_("The relay says that today's allowance is used up: %(said)s") % {"said": said}, wait)
        if error.retry_after:
            return Stop(_("The relay asked to wait: %(said)s") % {"said": said}, error.retry_after)
        if ours and (IDENTITY.match(error.reply.enhanced_code) or sum(self.faults) >= settings.BREAKER_FAULTS):
            return Stop(_("The relay refuses because of the sender, not the readers: %(said)s") % {"said": said}, None)
        if sum(self.slow) >= settings.BREAKER_FAULTS:
            wait = settings.RETRY_FIRST_SECONDS
            return Stop(_("The relay keeps asking for a slower pace: %(said)s") % {"said": said}, wait)
        if self.doubts >= settings.BREAKER_FAULTS:
            return Stop(_("One copy after another is left without an answer: %(said)s") % {"said": said}, None)
        return None


@dataclass
class Limiter:
    """Holds a worker to its share of SEND_RATE, in copies a second for all workers together; 0: no limit."""

    next_at: float = 0.0

    def wait(self) -> float:
        """Return the seconds until the next turn."""
        return self.next_at - time.monotonic()

    async def turn(self, workers: int, *, may_begin: Callable[[], bool] = lambda: True) -> None:
        """Wait until this worker may begin one more copy, or `may_begin`, asked several times a second, says no."""
        if settings.SEND_RATE <= 0:
            return
        now = time.monotonic()
        at = max(now, self.next_at)
        self.next_at = at + max(1, workers) / settings.SEND_RATE
        while (left := at - time.monotonic()) > 0 and may_begin():
            await asyncio.sleep(min(left, SLICE_SECONDS))


def retry_delay(error: TransportError, attempt: int) -> float:
    """Return the seconds to wait after the `attempt`-th try (counted from 0): doubling, bounded (RFC 5321, 4.5.4.1).

    A connection that only died is tried again soon, the first time.
    """
    if isinstance(error, Dropped) and attempt == 0:
        return float(settings.RECONNECT_SECONDS)
    backoff = min(settings.RETRY_FIRST_SECONDS * 2 ** min(attempt, 20), settings.RETRY_MAX_SECONDS)
    return float(max(backoff, error.retry_after or 0.0))
