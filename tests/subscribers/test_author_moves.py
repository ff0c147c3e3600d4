"""The author's pages to bring readers along and to take them out."""

import datetime as dt
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from posts.models import AuditEntry, Publication, Tag
from subscribers import tasks
from subscribers.models import Consent, Import, Subscriber

IMPORTS, EXPORT = "/admin/readers/import/", "/admin/readers/export/"
KIT = "email,first_name,created_at,status,tags\n" + "".join(
    f"r{n}@example.org,=R{n},2024-01-02T03:04:05Z,{'cancelled' if n == 7 else 'active'},vip\n" for n in range(60)
)


@pytest.fixture
def author(client: Client, publication: Publication) -> Client:
    client.force_login(User.objects.create_superuser("ann", "ann@example.org", "a long password"))
    return client


def upload(client: Client, content: str, name: str = "readers.csv") -> Any:
    return client.post(IMPORTS, {"file": SimpleUploadedFile(name, content.encode())}, follow=True)


def body(response: Any) -> str:
    pieces: Iterable[bytes] = response.streaming_content
    return b"".join(pieces).decode()


def test_abu_15_a_file_is_looked_through_vouched_for_and_imported(author: Client) -> None:
    page = upload(author, KIT + "nobody,x,,,\n")
    assert "being looked through" in page.content.decode()
    assert page.headers["Refresh"] == "3"
    found = Import.objects.get()
    tasks.import_readers(found.pk)
    page = author.get(f"{IMPORTS}{found.pk}/").content.decode()
    assert "It looks like a file from Kit" in page
    assert "r0@example.org" in page
    assert "<code>nobody</code> An email address must have an @-sign." in page
    assert not Subscriber.objects.exists()
    author.post(f"{IMPORTS}{found.pk}/start/", {"attestation": "yes"})
    found.refresh_from_db()
    assert found.state == Import.State.WAITING
    words = "They signed up at blog.example.com and confirmed."
    author.post(f"{IMPORTS}{found.pk}/start/", {"attestation": words})
    tasks.import_readers(found.pk)
    assert Subscriber.objects.mailable().count() == 59
    assert Consent.objects.filter(detail__attestation=words).count() == 60
    entry = AuditEntry.objects.get(act="subscriber.import")
    assert (entry.actor, entry.detail["rows"], entry.detail["attestation"]) == ("ann", 61, words)
    assert "What became of each row" in author.get(f"{IMPORTS}{found.pk}/").content.decode()
    lines = body(author.get(f"{IMPORTS}{found.pk}/report.csv")).splitlines()
    assert lines[1] == "2,created,,r0@example.org,"
    assert len(lines) == 62
    assert not found.parts.exists()


def test_a_few_addresses_need_no_words(author: Client) -> None:
    upload(author, "email\na@example.org\n")
    found = Import.objects.get()
    tasks.import_readers(found.pk)
    author.post(f"{IMPORTS}{found.pk}/start/")
    tasks.import_readers(found.pk)
    assert Subscriber.objects.mailable().count() == 1


def test_columns_and_words_can_be_said(author: Client) -> None:
    upload(author, "who,mail,status\nAda,ada@example.org,vip\n")
    found = Import.objects.get()
    tasks.import_readers(found.pk)
    page = author.get(f"{IMPORTS}{found.pk}/").content.decode()
    assert "States that are not known" in page
    author.post(f"{IMPORTS}{found.pk}/", {"column-0": "name", "word-0": "active"})
    found.refresh_from_db()
    assert not found.is_judged
    tasks.import_readers(found.pk)
    author.post(f"{IMPORTS}{found.pk}/start/")
    tasks.import_readers(found.pk)
    assert Subscriber.objects.mailable().get().name == "Ada"


@pytest.mark.parametrize("columns", [{"column-0": "name"}, {"column-1": "address"}, {"column-1": "king"}])
def test_what_makes_no_sense_changes_nothing(author: Client, columns: dict[str, str]) -> None:
    upload(author, "email,name\nada@example.org,Ada\n")
    found = Import.objects.get()
    tasks.import_readers(found.pk)
    author.post(f"{IMPORTS}{found.pk}/", columns)
    found.refresh_from_db()
    assert found.mapping["targets"] == ["address", "name"]
    assert found.is_judged


@pytest.mark.parametrize("content", ["", "PK\x03\x04", "who,when\nada,now\n"])
def test_what_is_no_list_of_readers_says_so(author: Client, content: str) -> None:
    assert (
        "The file is" in (page := upload(author, content).content.decode()) or "No column" in page or "Choose" in page
    )
    assert not Import.objects.exists()


def test_the_export_is_a_link_for_its_asker_and_for_ten_minutes(author: Client, alice: Subscriber) -> None:
    page = author.post(EXPORT, {"format": "json"})
    link = re.findall(f'"{EXPORT}([^"]+)"', page.content.decode())[-1]
    assert json.loads(body(author.get(EXPORT + link)))[0]["email"] == "alice@example.org"
    assert AuditEntry.objects.get(act="subscriber.export").actor == "ann"
    assert author.get(EXPORT + "x" + link).status_code == 404
    other = Client()
    other.force_login(User.objects.create_superuser("bea", "bea@example.org", "a long password"))
    assert other.get(EXPORT + link).status_code == 403
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=11)):
        author.force_login(User.objects.get(username="ann"))
        assert author.get(EXPORT + link).status_code == 404


def test_only_who_may_see_readers_comes_in(client: Client, publication: Publication) -> None:
    client.force_login(User.objects.create_user("ed", is_staff=True))
    found = Import.objects.create(name="a.csv", sha256="0", size=1)
    for address in (IMPORTS, f"{IMPORTS}{found.pk}/", f"{IMPORTS}{found.pk}/report.csv", EXPORT, f"{EXPORT}x/"):
        assert client.get(address).status_code == 403
    assert client.post(f"{IMPORTS}{found.pk}/start/").status_code == 403
    assert client.post(EXPORT, {"format": "csv"}).status_code == 403


def test_the_list_is_filtered_by_topic(author: Client, alice: Subscriber, bob: Subscriber) -> None:
    tag = Tag.objects.create(name="Locks", offered=True)
    Subscriber.objects.filter(pk=alice.pk).update(topics=[tag.pk])
    page = author.get(f"/admin/subscribers/subscriber/?topic={tag.pk}").content.decode()
    assert "alice@example.org" in page
    assert "bob@example.org" not in page
    assert author.get("/admin/subscribers/subscriber/?topic=x").status_code == 200
