"""What is held about a reader, shown to him alone, and forgotten when he asks: nothing of him is found anywhere."""

import io
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from newsletter import audit, delivery, erasure
from newsletter.celery import app
from newsletter.models import Delivery, Issue
from posts.models import AuditEntry
from subscribers import addresses, emails, links, submissions, subscription
from subscribers.exporter import as_csv, as_json
from subscribers.importer import import_csv
from subscribers.models import Import, ImportRow, Subscriber, Suppression, SystemMail
from subscribers.subscription import Circumstances
from subscribers.views.doors import SESSION_COOKIE
from tests.factories import make_issue
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")
CANARY = "canary.7f3a"
ADDRESS = f"{CANARY}@example.org"


@pytest.fixture
def reader(db: None) -> Subscriber:
    """A reader who left a trace everywhere: joined, was mailed, wished, asked for a link, is named in the admin."""
    where = Circumstances(page=f"/?{CANARY}", ip="192.0.2.77", user_agent=f"Browser {CANARY}", wording="Send me it.")
    mail = subscription.join(ADDRESS, where, source=CANARY)
    assert mail
    reader = Subscriber.objects.get()
    subscription.confirm(emails.confirm_url(reader).split("/")[-2], where)
    subscription.change(reader.pk, where, name=f"Ada {CANARY}")
    subscription.send_link(ADDRESS, where)
    emails.send_all_due(limit=10)
    submissions.submit("link", ADDRESS.upper(), where)
    links.begin_session(reader)
    content = ContentType.objects.get_for_model(Subscriber)
    LogEntry.objects.create(
        user=User.objects.create(username="author"),
        content_type=content,
        object_id=reader.pk,
        object_repr=ADDRESS,
        action_flag=2,
    )
    Subscriber.objects.update(fields={"City": CANARY})
    brought = Import.objects.create(name="old.csv", sha256="0", size=1)
    text = f"{ADDRESS},vip"
    ImportRow.objects.create(of=brought, line=2, outcome=ImportRow.Outcome.REFUSED, text=text)
    reader.refresh_from_db()
    return reader


@pytest.fixture
def desk(client: Client, reader: Subscriber) -> Client:
    client.cookies[SESSION_COOKIE] = links.begin_session(reader)
    return client


@pytest.fixture
def mailed(reader: Subscriber, alice: Subscriber, relay: SmtpServer) -> Issue:
    """An issue that both readers got, and one that waits."""
    issue = make_issue(subject="Of old")
    delivery.send_now(issue)
    delivery.send_due(issue.pk)
    Delivery.objects.filter(subscriber=reader).update(reply_text=f"250 queued for {ADDRESS}")
    delivery.send_now(make_issue(subject="Next"))
    return issue


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged, as the settings format it."""
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(handler)
    yield handler.stream
    logging.getLogger().removeHandler(handler)


def dump() -> str:
    """Return the database as a backup holds it."""
    program = settings.SERVERS._program("pg_dump")
    given = connection.settings_dict
    where = {"PGHOST": given["HOST"], "PGPORT": str(given["PORT"] or ""), "PGUSER": given["USER"] or ""}
    environ = (
        os.environ | {name: value for name, value in where.items() if value} | {"PGPASSWORD": given["PASSWORD"] or ""}
    )
    done = subprocess.run(
        [program, "--data-only", given["NAME"]], capture_output=True, text=True, env=environ, check=True
    )
    return done.stdout


def in_valkey() -> str:
    """Return all keys and values of the broker."""
    server = redis.Redis.from_url(app.conf.broker_url.replace("redis+socket://", "unix://").partition("?")[0])
    return repr([(key, server.dump(key)) for key in server.scan_iter()])


@pytest.mark.django_db(transaction=True)
def test_gdp_5_after_erasure_nothing_of_the_person_is_found_anywhere(
    reader: Subscriber, mailed: Issue, desk: Client, log: io.StringIO, alice: Subscriber, capsys: Any
) -> None:
    digest = addresses.keyed_hash(ADDRESS).hex()
    assert dump().lower().count(CANARY) > 10  # it is everywhere before
    assert "You are forgotten" in desk.post("/preferences/erase/", {"keep_out": "on"}).text
    found = dump()
    assert CANARY not in found.lower()
    assert "192.0.2.77" not in found
    assert found.count(digest) == 1  # the one suppression
    assert CANARY not in log.getvalue().lower()
    assert f"reader number {reader.pk} was erased" in log.getvalue()
    assert CANARY not in in_valkey().lower()
    assert not [path for path in Path(settings.MEDIA_ROOT).rglob("*") if CANARY.encode() in path.read_bytes().lower()]
    for exported in ("".join(as_csv()), "".join(as_json())):
        assert alice.address in exported
        assert CANARY not in exported.lower()
    assert AuditEntry.objects.get(act="subscriber.erase").subject == f"reader number {reader.pk}"
    assert Subscriber.objects.get(pk=alice.pk).address == alice.address
    assert alice.deliveries.get(issue=mailed).address == alice.address


@pytest.mark.django_db(transaction=True)
def test_gdp_5_old_equations_hold_and_what_waits_is_not_sent(
    reader: Subscriber, mailed: Issue, relay: SmtpServer
) -> None:
    waiting = Issue.objects.latest("pk")
    erasure.erase(reader.pk, keep_out=False)
    delivery.send_due(waiting.pk)
    assert relay.recipients[ADDRESS] == 1  # the first issue
    assert waiting.deliveries.get(subscriber=reader).reason == Delivery.Skipped.ERASED
    for issue in Issue.objects.all():
        assert audit.audit(issue).violations == []


def test_gdp_5_without_a_reason_not_even_a_hash_stays(reader: Subscriber) -> None:
    erasure.erase(reader.pk, keep_out=False)
    assert not Suppression.objects.exists()
    tomb = Subscriber.objects.get()
    assert (tomb.status, tomb.address, bytes(tomb.address_hash)) == (Subscriber.Status.ERASED, "", b"")
    assert not erasure.erase(reader.pk, keep_out=True)
    assert not Suppression.objects.exists()


@pytest.mark.parametrize("reason", ["bounced", "complained", "asked", "manual"])
def test_gdp_5_a_suppression_outlives_the_person(reader: Subscriber, reason: str) -> None:
    subscription.suppress(ADDRESS, reason=reason)
    erasure.erase(reader.pk, keep_out=True)
    assert Suppression.objects.get().reason == reason
    subscription.join(ADDRESS, Circumstances())
    assert not Subscriber.objects.exclude(pk=reader.pk).exists()


def test_gdp_5_an_import_brings_nobody_back_and_his_own_sign_up_does(reader: Subscriber, tmp_path: Path) -> None:
    erasure.erase(reader.pk, keep_out=True)
    file = tmp_path / "old.csv"
    file.write_text(f"email,status\n{ADDRESS},active\n")
    import_csv(file)
    assert not Subscriber.objects.mailable().exists()
    assert subscription.join(ADDRESS, Circumstances(page="/"))
    again = Subscriber.objects.exclude(pk=reader.pk).get()
    subscription.confirm(emails.confirm_url(again).split("/")[-2])
    assert Subscriber.objects.mailable().get() == again
    assert not Suppression.objects.exists()


def test_gdp_5_an_erased_reader_has_no_door_left(client: Client, reader: Subscriber) -> None:
    session, key = links.begin_session(reader), links.new_link(reader, "preferences")
    never, confirm = emails.never_url(reader), emails.confirm_url(reader)
    erasure.erase(reader.pk, keep_out=False)
    client.cookies[SESSION_COOKIE] = session
    assert ADDRESS not in client.get("/preferences/").text
    assert client.post(f"/preferences/open/{key}/").status_code == 410
    assert client.post(f"/u/{reader.unsubscribe_id}/").status_code == 404
    assert client.post("/" + confirm.partition("://")[2].partition("/")[2]).status_code == 410
    client.post("/" + never.partition("://")[2].partition("/")[2])
    assert Subscriber.objects.get(pk=reader.pk).status == Subscriber.Status.ERASED


@pytest.mark.django_db(transaction=True)
def test_gdp_6_the_file_holds_everything_of_this_reader_and_nothing_of_others(
    desk: Client, reader: Subscriber, mailed: Issue
) -> None:
    answer = desk.get("/preferences/data.json")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="my-data.json"'
    assert answer.headers["Cache-Control"] == "no-store"
    held = json.loads(answer.content)
    assert held["reader"]["address"] == ADDRESS
    assert [consent["kind"] for consent in held["consents"]] == ["requested", "confirmed", "changed"]
    assert held["reader"]["fields"] == {"City": CANARY}
    assert held["consents"][0]["ip"] == "192.0.2.77"
    assert held["consents"][0]["wording"] == "Send me it."
    assert [(copy["subject"], copy["state"]) for copy in held["issues"]] == [
        ("Next", "pending"),
        ("Of old", "accepted"),
    ]
    assert {mail["kind"] for mail in held["system_mail"]} == {"confirm", "reminder", "welcome", "magic_link"}
    assert "alice" not in answer.text


@pytest.mark.django_db(transaction=True)
def test_gdp_6_the_readable_page_and_the_issues_say_the_same(desk: Client, mailed: Issue) -> None:
    page = desk.get("/preferences/data/").text
    for word in (ADDRESS, "192.0.2.77", "Send me it.", "requested", "confirmed"):
        assert word in page
    issues = desk.get("/preferences/issues/")
    assert "Of old" in issues.text
    assert "on its way" in issues.text
    url = issues.context["copies"][1][1]
    assert desk.get("/" + url.partition("://")[2].partition("/")[2]).status_code == 200


@pytest.mark.parametrize("door", ["data/", "data.json", "issues/", "erase/"])
def test_abu_10_nothing_of_it_opens_without_a_session(client: Client, reader: Subscriber, door: str) -> None:
    client.cookies[SESSION_COOKIE] = str(reader.unsubscribe_id)
    answer = client.get(f"/preferences/{door}")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/preferences/")
    client.post(f"/preferences/{door}")
    assert Subscriber.objects.get().address == ADDRESS
    assert SystemMail.objects.filter(subscriber=reader).exists()


def test_erasing_is_asked_of_the_readers_own_page(desk: Client, reader: Subscriber) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.cookies[SESSION_COOKIE] = links.begin_session(reader)
    assert strict.post("/preferences/erase/").status_code == 403
    desk.get("/preferences/erase/")
    assert Subscriber.objects.get().address == ADDRESS


def test_gdp_7_after_a_backup_was_restored_the_log_says_whom_to_erase_anew(reader: Subscriber, capsys: Any) -> None:
    call_command("erase_subscriber", number=[reader.pk])
    assert capsys.readouterr().out == f"Reader number {reader.pk} was erased.\n"
    call_command("erase_subscriber", number=[reader.pk])
    assert "erased before" in capsys.readouterr().out


def test_the_author_erases_by_address_and_is_told_where_there_is_none(reader: Subscriber) -> None:
    with pytest.raises(CommandError, match="No reader has"):
        call_command("erase_subscriber", "nobody@example.org")
    call_command("erase_subscriber", ADDRESS.upper(), keep_out=True)
    assert Suppression.objects.get().reason == Suppression.Reason.ERASED
