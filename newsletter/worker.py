"""One process that hands over many copies: the one place where rendering and transport meet.

A worker drives many connections. Each prepares a copy, waits until its intent is committed, and hands it over.
Connections share those commits (`Gate`), and a commit also writes down what each connection was answered last, so a
crash leaves at most one copy unknown a connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from django.conf import settings

from newsletter import ledger, message, testmode, transport
from newsletter.ledger import Away, Copy, Outcome
from newsletter.models import Delivery, Issue
from newsletter.replies import Refused, Reply, TransportError, Uncertain, Unreachable, classify
from newsletter.smtp import boot_time

logger = logging.getLogger(__name__)
State = Delivery.State

GROUP_MOST = 16  # connections that share a commit of intents, at the most
GROUP_SECONDS = 0.003  # and for so long the first of them waits for others
LOCKED_SECONDS = 5.0  # a copy whose reader's row was being changed is tried again after so long
POLL_SECONDS = 0.2
ACCEPTED = str(State.ACCEPTED)
REPEATABLE = (State.DEFERRED, State.UNCERTAIN)


@dataclass
class Gate:
    """Where connections wait for the commit of their intents, and share it: one transaction is under way at a time.

    It goes off when three in four of those that are open wait, or GROUP_MOST, or after GROUP_SECONDS.
    """

    ledger: ledger.Ledger
    open: int = 0  # connections that may come and wait
    sending: bool = True  # False once an intent was refused because the issue is paused or cancelled
    waiting: list[tuple[Copy | None, Outcome | None, asyncio.Future[float | None]]] = field(default_factory=list)
    busy: bool = False
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None

    def ask(self, copy: Copy | None, done: Outcome | None) -> asyncio.Future[float | None]:
        """Ask to commit the intent to hand `copy` over, and that `done` was taken.

        The answer is the boot-time instant at which the commit was begun, or None where the copy may not be handed
        over. It raises Away: then nothing is known of the intent, and `done` may not be written down.
        """
        answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self.join(copy, done, answer)
        return answer

    def join(self, copy: Copy | None, done: Outcome | None, answer: asyncio.Future[float | None]) -> None:
        """Ask the same, for somebody who waits already."""
        self.waiting.append((copy, done, answer))
        self.consider()

    def consider(self) -> None:
        """Commit what waits if it is enough, else in a moment; while a commit is under way, after it."""
        if self.busy or not self.waiting:
            return
        if len(self.waiting) >= GROUP_MOST or len(self.waiting) * 4 >= self.open * 3:
            self.go()
        elif self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(GROUP_SECONDS, self.go)

    def go(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None
        group = [entry for entry in self.waiting if not entry[2].done()]  # a process that must end waits no more
        self.waiting = []
        self.busy = True
        self.task = asyncio.get_running_loop().create_task(self._commit(group))
        self.task.add_done_callback(self._next)

    def _next(self, task: asyncio.Task[None]) -> None:
        self.busy = False
        self.consider()

    async def _commit(self, group: list[tuple[Copy | None, Outcome | None, asyncio.Future[float | None]]]) -> None:
        began = boot_time()
        copies = [copy for copy, _done, _answer in group if copy]
        done = [outcome for _copy, outcome, _answer in group if outcome]
        try:
            up, written = await self.ledger.intend(copies, done)
            if refused := [copy for copy in copies if copy.id not in up]:
                self.sending = await self.ledger.refuse(refused, delay=LOCKED_SECONDS)
        except Exception as error:
            for _copy, _done, answer in group:
                if not answer.done():
                    answer.set_exception(error)
            return
        for outcome in done:
            if outcome.copy.id not in written:
                logger.error("delivery %s was taken but is no longer ours; not written down", outcome.copy.id)
        for copy, _done, answer in group:
            if not answer.done():
                answer.set_result(began if copy is None or copy.id in up else None)


class Worker:
    """One process at work on one issue for a while."""

    def __init__(
        self,
        issue: Issue,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.issue, self.issue_id = issue, issue.pk
        self.template = message.Template(testmode.source(issue.source))
        self.is_test = bool(settings.TEST_MODE_ADDRESS)
        self.ledger = ledger.Ledger(issue.pk)
        self.gate = Gate(self.ledger)
        self.breaker = transport.Breaker()
        self.limiter = transport.Limiter()
        self.progress = progress or (lambda count: None)
        self.told_to_stop = stop or (lambda: False)
        self.overlaps, self.is_limited = settings.SMTP_OVERLAP, settings.SEND_RATE > 0
        self.refill_at, self.intent_ttl = settings.CLAIM_BATCH // 2, settings.INTENT_TTL_SECONDS
        self.until = 0.0
        self.stopped = False  # nothing more is begun: told to stop, paused, cancelled, the lease or the database lost
        self.dry = False  # nothing was due when last asked
        self.ready: deque[Copy] = deque()
        self.filling: asyncio.Task[None] | None = None
        self.owed: list[Outcome] = []  # answers that the database was away for
        self.cut: list[Copy] = []  # intents that may have been committed and were not carried out
        self.delay = 0.0  # for what is given back
        self.links = 0  # open ones
        self.taken = 0  # copies that the relay took
        self.trouble: Reply | None = None  # why a link could not be opened

    async def run(self, seconds: float) -> int:
        """Claim and hand over until nothing is due, `seconds` have passed or it is told to stop."""
        self.until = time.monotonic() + seconds
        keeper: asyncio.Task[None] | None = None
        try:
            self.breaker.recall(await self.ledger.open())
            keeper = asyncio.create_task(self.keep())
            await self.fill()
            await self.serve_all()
        except Away as error:
            logger.warning("the database is away: %s", error)
        finally:
            await self.finish(keeper)
        return self.ledger.settled

    async def serve_all(self) -> None:
        """Serve on all connections; a defect in one lets the others come to their end before it is raised."""
        count = min(settings.SMTP_CONNECTIONS, len(self.ready))
        for ended in await asyncio.gather(*(self.serve() for _n in range(count)), return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def finish(self, keeper: asyncio.Task[None] | None) -> None:
        """Write down what is owed, give back what is left and end the lease; wait for the database if it is away."""
        self.stopped = True
        for task in (keeper, self.filling):
            if task:
                await self.end(task)
        until = time.monotonic() + settings.DATABASE_GRACE_SECONDS
        while not await self.try_to_finish():
            if time.monotonic() > until:
                logger.error("the database stays away: %s answers can't be written down", len(self.owed))
                break
            await asyncio.sleep(min(1.0, settings.RECONNECT_SECONDS))
        await self.ledger.close()
        self.progress(self.ledger.settled)

    async def end(self, task: asyncio.Task[None]) -> None:
        """End a task at its next step; a defect in it is logged, since answers are still to be written down."""
        task.cancel()
        try:
            await task
        except (asyncio.CancelledError, Away):
            return
        except Exception:
            logger.exception("a task of issue %s failed", self.issue.pk)

    async def try_to_finish(self) -> bool:
        try:
            while self.owed:
                await self.ledger.settle(self.owed[-1])
                self.owed.pop()
            await self.ledger.release(self.cut, cut=True)
            await self.ledger.release(list(self.ready), delay=self.delay)
            self.cut, self.ready = [], deque()
            if self.ledger.lease:
                await self.ledger.let_go(self.breaker.window())
        except Away:
            return False
        return True

    async def keep(self) -> None:
        """Renew the lease, show progress, and look for the word to stop."""
        renewed = boot_time()
        while not self.stopped:
            await asyncio.sleep(POLL_SECONDS)
            self.stopped = self.stopped or self.told_to_stop()
            self.progress(self.ledger.settled)
            if boot_time() - renewed >= settings.RENEW_SECONDS:
                await self.renew()
                renewed = boot_time()
        while True:  # what is under way is finished under a lease
            await asyncio.sleep(settings.RENEW_SECONDS)
            await self.renew()

    async def renew(self) -> None:
        try:
            if not await self.ledger.renew(self.breaker.window()):
                logger.warning("the lease on issue %s has ended: this worker was too slow", self.issue.pk)
                self.stopped = True
        except Away:
            self.stopped = True

    # Claiming

    async def take(self) -> Copy | None:
        """Return a claimed copy, or None if nothing more is to be begun."""
        if self.may_begin():
            self.fill_ahead()
        if not self.ready and self.filling:
            await asyncio.shield(self.filling)
        return self.ready.popleft() if self.ready and self.may_begin() else None

    def may_begin(self) -> bool:
        return not self.stopped and self.gate.sending and time.monotonic() < self.until

    def fill_ahead(self) -> None:
        """Claim the next copies before the last are taken, so that no connection has to wait for them."""
        if len(self.ready) <= self.refill_at and not self.dry and (self.filling is None or self.filling.done()):
            self.filling = asyncio.create_task(self.fill())

    async def fill(self) -> None:
        try:
            copies = await self.ledger.claim(max(settings.CLAIM_BATCH, settings.SMTP_CONNECTIONS))
        except Away:
            self.stopped = True
            return
        self.dry = not copies
        self.ready.extend(copies)

    def follower(self) -> Piece | None:
        """Return the piece to follow if one can be had without waiting."""
        if self.is_limited or not self.may_begin() or not self.ready:
            return None
        self.fill_ahead()
        copy = self.ready.popleft()
        try:
            return self.compose(copy)
        except ValueError:
            self.ready.appendleft(copy)  # whoever takes it next writes down why it can't be made
            return None

    # One connection

    async def serve(self) -> None:
        """Hand over copy after copy on one link, opened anew when it is no longer usable."""
        link: transport.Link | None = None
        done: Outcome | None = None
        self.gate.open += 1
        try:
            piece = await self.next_piece()
            while piece:
                if link is None or not link.usable:
                    if done:
                        await self.write_down(done)
                        done = None
                    link = await self.relink(link, piece.copy)
                if link is None:
                    break
                passed, done = done, None  # it is the turn's until that returns
                piece, done = await self.hand_over(link, piece, passed)
        finally:
            self.gate.open -= 1
            await self.write_down(done)
            await self.unlink(link)

    async def relink(self, link: transport.Link | None, copy: Copy) -> transport.Link | None:
        """Open a link in place of one that has done its part; None if there is no way to the relay now."""
        await self.unlink(link)
        try:
            opened = await transport.open_link()
        except Unreachable as error:
            self.ready.appendleft(copy)
            self.see_unreachable(error)
            return None
        self.links += 1
        return opened

    async def unlink(self, link: transport.Link | None) -> None:
        if link:
            self.links -= 1
            await link.close()

    def see_unreachable(self, error: Unreachable) -> None:
        """Go on with the links there are; without any, give all copies back for a while."""
        logger.warning("the relay can't be reached: %s", error)
        self.trouble = error.reply
        if not self.links:
            self.stop_for(error.reply)

    def stop_for(self, trouble: Reply) -> None:
        """Begin nothing more; what is given back waits until the relay may be there again."""
        self.trouble, self.stopped, self.delay = trouble, True, settings.RECONNECT_SECONDS

    async def next_piece(self, following: Piece | None = None) -> Piece | None:
        """Return what is ready to follow, or claim a copy in turn and make it ready; None to begin nothing more."""
        if following and self.may_begin():
            return following
        if following:
            self.ready.appendleft(following.copy)
            return None
        await self.limiter.turn(self.ledger.workers, may_begin=self.may_begin)
        while copy := await self.take():
            try:
                return self.compose(copy)
            except ValueError as error:
                await self.settle(Outcome(copy, State.FAILED, Reply(0, str(error)[:1000], "render")))
        return None

    def has_to_wait(self) -> bool:
        """Tell whether the next piece can't be had at once: until then an acceptance must not lie unwritten."""
        return not self.ready or (self.is_limited and self.limiter.wait() > POLL_SECONDS)

    def compose(self, copy: Copy) -> Piece:
        """Fill a reader's few values in. Raises ValueError where they can't be."""
        if copy.unsubscribe_id is None:
            raise ValueError("the reader's row is gone: his links can't be made")
        message_id = self.template.message_id(self.issue_id, copy.subscriber_id)
        values = message.Values(copy.address, copy.name, copy.unsubscribe_id, message_id)
        if self.is_test:
            return Piece(copy, testmode.letter(self.template, values))
        sender = self.template.envelope_sender(self.issue_id, copy.subscriber_id)
        return Piece(copy, transport.Letter(sender, copy.address, self.template.pieces(values)))

    async def hand_over(
        self, link: transport.Link, piece: Piece, done: Outcome | None
    ) -> tuple[Piece | None, Outcome | None]:
        """Take one copy to its end; return the one that follows, and the acceptance that is not written down yet."""
        turn = Turn(self, piece, done)
        try:
            return await self.take_turn(link, turn)
        except BaseException:  # ended, or a defect: what was taken is written down, what was not begun given back
            self.ready.extendleft([turn.following.copy] if turn.following else [])
            await self.write_down(turn.done)
            raise

    async def take_turn(self, link: transport.Link, turn: Turn) -> tuple[Piece | None, Outcome | None]:
        """Go on from copy to copy as long as the answers are the usual ones."""
        piece, done = turn.piece, turn.done
        try:
            await link.prepare(piece.letter)
        except TransportError as error:
            await self.fail(piece, error)
            if done and self.has_to_wait():
                await self.write_down(done)
                done = None
            return await self.next_piece(), done
        asked = self.gate.ask(piece.copy, done)
        turn.following = self.follower()  # made while the commit is under way
        while True:
            try:
                began = await asked
            except Away:
                link.abort()
                self.lose_database(turn.piece.copy, turn.done)
                self.ready.extendleft([turn.following.copy] if turn.following else [])
                return None, None
            if turn.sent:
                return await self.end_turn(link, turn)
            turn.done = None  # it is written down
            if began is None or boot_time() - began > self.intent_ttl:
                link.abort()
                await self.give_up_intent(turn.piece.copy, refused=began is None)
                return await self.next_piece(turn.following), None
            then = turn.following.letter if turn.following and self.overlaps else None
            try:
                await link.send(turn.piece.letter, then, until=began + self.intent_ttl)
            except TransportError as error:
                await self.fail(turn.piece, error)
                return await self.next_piece(turn.following), None
            turn.sent = True
            asked = link.listen(turn.taken)

    async def end_turn(self, link: transport.Link, turn: Turn) -> tuple[Piece | None, Outcome | None]:
        """Take the answer to a copy behind which none is begun, or one that is not the usual."""
        try:
            reply = await link.answered()
        except TransportError as error:
            await self.fail(turn.piece, error)
            return await self.next_piece(turn.following), None
        turn.done = self.accept(turn.piece.copy, reply)
        if not turn.following and self.has_to_wait():
            await self.write_down(turn.done)
            turn.done = None
        following, turn.following = turn.following, None
        return await self.next_piece(following), turn.done

    def accept(self, copy: Copy, reply: Reply) -> Outcome:
        self.breaker.accepted()
        self.taken += 1
        return Outcome(copy, ACCEPTED, reply)

    # What is written down

    async def fail(self, piece: Piece, error: TransportError) -> None:
        """Write down what a copy was refused with, and pause the issue if it is about the sender."""
        kind = error.kind or classify(error.reply)
        state = _state_after(error)
        sha256 = hashlib.sha256(piece.letter.content).hexdigest() if state in REPEATABLE else ""
        if sha256 and piece.copy.render_sha256 not in ("", sha256):
            logger.error("delivery %s is no longer the same bytes as at its first try", piece.copy.id)
        if isinstance(error, Unreachable):  # by a provider's link, which connects with its request
            self.stop_for(error.reply)
        delay = transport.retry_delay(error, piece.copy.attempt)
        await self.settle(Outcome(piece.copy, state, error.reply, kind, delay, sha256))
        if stop := self.breaker.look(error, kind):
            await self.pause(stop)

    async def settle(self, outcome: Outcome) -> None:
        try:
            if not await self.ledger.settle(outcome):
                logger.warning("delivery %s is no longer ours; %s not written", outcome.copy.id, outcome.state)
        except Away:
            self.stopped = True
            self.owed.append(outcome)

    async def write_down(self, done: Outcome | None) -> None:
        """Write down an acceptance that no further intent will carry."""
        if done is None:
            self.gate.consider()
            return
        try:
            await self.gate.ask(None, done)
        except Away:
            self.lose_database(None, done)

    async def give_up_intent(self, copy: Copy, *, refused: bool) -> None:
        """Take back an intent that grew too old before its dot; one that was refused never came to be."""
        if refused:
            return
        logger.warning("the intent for delivery %s grew too old; not sent", copy.id)
        try:
            await self.ledger.release([copy], cut=True)
        except Away:
            self.lose_database(copy, None)

    async def pause(self, stop: transport.Stop) -> None:
        logger.warning("issue %s pauses: %s", self.issue.pk, stop.reason)
        self.stopped = True
        with suppress(Away):
            await self.ledger.pause(stop.reason, seconds=stop.seconds)

    def lose_database(self, copy: Copy | None, done: Outcome | None) -> None:
        """Keep in mind what could not be written down, and begin nothing more."""
        self.stopped = True
        self.owed += [done] if done else []
        self.cut += [copy] if copy else []


class Piece(NamedTuple):
    """A claimed copy and the letter made of it."""

    copy: Copy
    letter: transport.Letter


class Turn:
    """Where a connection is: the copy under way, the one to follow, the acceptance that goes with the next intent."""

    def __init__(self, worker: Worker, piece: Piece, done: Outcome | None) -> None:
        self.worker, self.piece, self.done = worker, piece, done
        self.following: Piece | None = None
        self.sent = False  # past the point of no return, and not yet answered

    def taken(self, reply: Reply, waiter: asyncio.Future[float | None]) -> bool:
        """Ask for the next copy's intent as soon as the last is taken, without waking the connection's task for it."""
        worker, piece = self.worker, self.following
        if piece is None or not worker.may_begin():
            return False
        following = worker.follower()  # a defect in this one leaves the turn as it is
        self.done = worker.accept(self.piece.copy, reply)
        self.piece, self.following, self.sent = piece, following, False
        worker.gate.join(piece.copy, self.done, waiter)
        return True


def _state_after(error: TransportError) -> str:
    if isinstance(error, Uncertain):
        return State.UNCERTAIN
    return State.REJECTED if isinstance(error, Refused) else State.DEFERRED
