"""Importing readers: every row judged, nobody raised, nothing half-done."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.utils import timezone

from subscribers import addresses, importer, subscription
from subscribers.csvfile import UnreadableFile
from subscribers.importer import import_csv
from subscribers.models import Consent, Import, ImportRow, MagicLink, Subscriber, Suppression
from tests import workers

pytestmark = pytest.mark.django_db
Write = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "readers.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def states() -> dict[str, str]:
    return dict(Subscriber.objects.values_list("key", "status"))


def table() -> list[dict[str, Any]]:
    """All that an import may change, but for what is drawn at random or comes from a sequence."""
    readers = Subscriber.objects.order_by("key").values(
        "address", "key", "name", "status", "suppressed", "source", "confirmed_at", "unsubscribed_at", "fields"
    )
    consents = Consent.objects.order_by("subscriber__key", "kind").values("subscriber__key", "kind")
    return [*readers, *consents, *Suppression.objects.order_by("address_hash").values("address_hash", "reason")]


def test_rows_become_confirmed_readers_with_a_consent(file: Write) -> None:
    report = import_csv(
        file("Email,Name,joined\nada@example.org,Ada,2025-03-01\nbo@example.org,,\n"), attestation="form"
    )
    ada = Subscriber.objects.get(key="ada@example.org")
    assert (report.rows, report.created, ada.name, ada.status, ada.source) == (2, 2, "Ada", "active", "import")
    assert ada.confirmed_at is not None
    assert str(ada.confirmed_at.date()) == str(ada.created_at.date()) == "2025-03-01"
    consent = ada.consents.get()
    assert (consent.kind, consent.detail["attestation"], consent.detail["file"]) == ("imported", "form", "readers.csv")


def test_a_second_import_changes_nothing(file: Write) -> None:
    path = file("email,tags\nada@example.org,b;a\nADA@example.org,c\nbo@example.org,\n")
    first = import_csv(path)
    before = table()
    second = import_csv(path)
    assert (first.created, first.updated, second.created, second.unchanged) == (2, 1, 0, 3)
    assert table() == before
    assert Subscriber.objects.get(key="ada@example.org").fields == {"tags": ["a", "b", "c"]}


def test_nobody_who_left_is_brought_back(file: Write, carol: Subscriber, dave: Subscriber, bob: Subscriber) -> None:
    report = import_csv(
        file("email,status\ncarol@example.org,active\ndave@example.org,active\nbob@example.org,active\n")
    )
    assert report.unchanged == 3
    assert not Subscriber.objects.mailable().exists()


@pytest.mark.parametrize(
    ("word", "status", "reason"),
    [
        ("cancelled", "unsubscribed", ""),
        ("unconfirmed", "pending", ""),
        ("vip", "active", ""),
        ("Bounced", "unsubscribed", "bounced"),
        ("complained", "unsubscribed", "complained"),
        ("blocklisted", "unsubscribed", "manual"),
    ],
)
def test_a_reader_is_lowered_and_never_raised(
    file: Write, alice: Subscriber, word: str, status: str, reason: str
) -> None:
    link = MagicLink.objects.create(
        subscriber=alice, purpose="preferences", token_hash=b"1" * 32, expires_at=timezone.now()
    )
    path = file(f"email,status\nalice@example.org,{word}\n")
    trial, report = import_csv(path, trial=True), import_csv(path)
    alice.refresh_from_db()
    link.refresh_from_db()
    assert (trial.lowered, report.lowered) == ((0, 0) if word == "vip" else (1, 1))
    assert alice.status == status
    assert (link.revoked_at is not None) == (status == "unsubscribed")
    assert list(Suppression.objects.values_list("reason", flat=True)) == [reason] * bool(reason)
    assert alice.suppressed == bool(reason)
    before = table()
    assert import_csv(file("email,status\nalice@example.org,active\n")).unchanged == 1
    assert table() == before


def test_who_confirmed_here_after_leaving_there_stays(file: Write, alice: Subscriber) -> None:
    alice.consents.create(kind=Consent.Kind.CONFIRMED)
    old = file("email,unsubscribed_at\nalice@example.org,2020-01-01\n")
    unconfirmed = file("email,status\nalice@example.org,unconfirmed\n", "state.csv")
    assert (import_csv(old).lowered, import_csv(unconfirmed).lowered) == (0, 0)
    assert import_csv(file("email,status\nalice@example.org,cancelled\n")).lowered == 1  # without a date: safe is safe


def test_a_person_twice_in_a_file_ends_at_the_lower_state_in_either_order(file: Write) -> None:
    import_csv(file("email,status\na@example.org,active\na@example.org,cancelled\n"))
    import_csv(file("email,status\nb@example.org,cancelled\nB@example.org,active\n"))
    assert states() == {"a@example.org": "unsubscribed", "b@example.org": "unsubscribed"}


def test_who_asked_to_be_forgotten_is_not_stored_again(file: Write, alice: Subscriber) -> None:
    subscription.suppress("Gone@example.org", reason=Suppression.Reason.ASKED)
    Subscriber.objects.filter(pk=alice.pk).update(
        status="erased", address="", name="", key="erased:1", address_hash=b""
    )
    Suppression.objects.create(address_hash=alice.address_hash, reason="erased")
    report = import_csv(file("email,name\ngone@example.org,Gone\nalice@example.org,Alice\n"))
    assert (report.created, report.refused_rows) == (0, 2)
    assert list(states()) == ["erased:1"]
    assert not ImportRow.objects.exclude(text="").exists()


def test_what_is_known_is_completed_and_not_replaced(file: Write, alice: Subscriber) -> None:
    Subscriber.objects.filter(pk=alice.pk).update(fields={"tags": ["own"], "Company": "Query Ltd"})
    path = file('email,first_name,Company,City,tags\nalice@example.org,Liz,Other,Berlin,"own, vip"\n')
    assert import_csv(path).updated == 1
    alice.refresh_from_db()
    assert alice.name == "Alice"
    assert alice.fields == {"tags": ["own", "vip"], "Company": "Query Ltd", "City": "Berlin"}
    assert import_csv(path).unchanged == 1


def test_unknown_states_are_no_mail_and_are_shown(file: Write) -> None:
    path = file("email,status\na@example.org,Active\nd@example.org,vip\ne@example.org,\n")
    report = import_csv(path)
    assert states() == {"a@example.org": "active", "d@example.org": "pending", "e@example.org": "pending"}
    assert dict(report.unknown_states) == {"vip": 1, "(empty)": 1}
    assert "vip" in ImportRow.objects.get(line=3).note


def test_the_author_may_say_what_a_column_and_a_word_are(file: Write) -> None:
    path = file("uuid,email,name,attributes,status\n1,a@example.org,A,{},enabled\n2,b@example.org,B,{},blocklisted\n")
    assert import_csv(path, trial=True).states == {"unknown": 1, "blocked": 1}  # listmonk's "enabled" says too little
    import_csv(path, words={"enabled": "active"}, columns={"uuid": "field"})
    assert states() == {"a@example.org": "active", "b@example.org": "unsubscribed"}
    assert Subscriber.objects.get(key="a@example.org").fields == {"uuid": "1"}


def test_kits_columns_are_known_by_name(file: Write) -> None:
    path = file(
        "First Name,EMAIL,created_at,status,Favourite DB,tags\n"
        'Ada,ada@example.org,2022-09-10T11:12:13Z,active,PostgreSQL,"sql, vacuum"\n'
        "Bo,bo@example.org,2022-09-10T11:12:13Z,inactive,,\n"
    )
    import_csv(path)
    ada = Subscriber.objects.get(key="ada@example.org")
    assert (ada.name, ada.fields) == ("Ada", {"Favourite DB": "PostgreSQL", "tags": ["sql", "vacuum"]})
    assert str(ada.confirmed_at) == "2022-09-10 11:12:13+00:00"
    assert states()["bo@example.org"] == "pending"  # Kit's word for "not confirmed"


def test_a_malformed_row_is_kept_with_line_and_reason_and_the_others_come_in(file: Write) -> None:
    report = import_csv(
        file('email,name\nada@example.org,A\nnot an address,B\n\n"c@example.org,C\nd@example.org,D,E\n')
    )
    assert (report.created, report.rows, report.refused_rows) == (1, 4, 3)
    kept = {row.line: (row.text, row.note) for row in ImportRow.objects.filter(outcome="refused")}
    assert list(kept) == [3, 5, 6]
    assert kept[3] == ("not an address,B", "An email address must have an @-sign.")
    assert "quote" in kept[5][1]
    assert "3 cells" in kept[6][1]
    assert [row["line"] for row in report.refused] == [3, 5, 6]


def test_cells_that_a_spreadsheet_kept_from_being_formulas_lose_their_quote(file: Write) -> None:
    import_csv(file("email,name,phone,quote\na@example.org,'=A,'+49 30 1,'tis\n"))
    ada = Subscriber.objects.get()
    assert (ada.name, ada.fields) == ("=A", {"phone": "+49 30 1", "quote": "'tis"})


def test_each_address_is_judged_by_the_one_rule_of_identity(file: Write) -> None:
    import_csv(file("email\n Ada@EXAMPLE.org \nbo@bücher.example\n"))
    bo = Subscriber.objects.get(key="bo@xn--bcher-kva.example")
    assert bo.address_hash == addresses.keyed_hash(bo.key)
    assert Subscriber.objects.with_address("ADA@example.org").get().address == "Ada@EXAMPLE.org"


def test_a_trial_tells_what_would_happen_and_writes_nothing(file: Write, alice: Subscriber, carol: Subscriber) -> None:
    path = file(
        "email,name,status\nalice@example.org,,cancelled\ncarol@example.org,,active\nx,,active\n"
        "a@example.org,A,active\na@example.org,,bounced\nb@example.org,,complained\n"
    )
    before = table()
    trial = import_csv(path, trial=True)
    assert table() == before
    assert Import.objects.count() == ImportRow.objects.count() == 0
    assert import_csv(path).as_json() == trial.as_json()
    assert (trial.created, trial.lowered, trial.unchanged, trial.refused_rows) == (2, 2, 1, 1)


def test_a_run_that_was_cut_off_is_taken_up_by_the_next(file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "CHUNK", 10)
    path = file("email\n" + "".join(f"r{n}@example.org\n" for n in range(25)) + "r3@example.org\n")
    read = importer.Table.rows

    def breaks(table: importer.Table) -> Any:
        for number, row in enumerate(read(table)):
            if number == 15:
                raise OSError("the disk is gone")
            yield row

    monkeypatch.setattr(importer.Table, "rows", breaks)
    with pytest.raises(OSError, match="the disk"):
        import_csv(path)
    assert Subscriber.objects.count() == Import.objects.get().read == 10
    monkeypatch.setattr(importer.Table, "rows", read)
    report = import_csv(path)
    assert (report.rows, report.created, report.unchanged) == (26, 25, 1)
    assert ImportRow.objects.count() == 26
    assert Import.objects.get().state == Import.State.DONE


def test_two_processes_never_do_the_same_rows(file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "CHUNK", 1)
    take = importer._Run.take

    def overtaken(run: Any, chunk: Any) -> None:
        take(run, chunk)
        Import.objects.update(read=2)

    monkeypatch.setattr(importer._Run, "take", overtaken)
    with pytest.raises(importer.Stopped, match="Another process"):
        import_csv(file("email\na@example.org\nb@example.org\nc@example.org\n"))
    assert set(states()) == {"a@example.org"}


def test_an_uploaded_file_is_kept_until_it_is_imported(file: Write) -> None:
    content = "email\n" + "".join(f"r{n}@example.org\n" for n in range(1000))
    found = importer.keep([content[:7000].encode(), content[7000:].encode()], "up.csv", by="ann")
    assert (found.size, found.parts.count()) == (len(content), 2)
    with importer.kept_file(found) as open_file:
        assert importer.run(found, open_file).created == 1000
    assert not found.parts.exists()


def test_the_report_is_json_alone_on_stdout(file: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(file("email\nada@example.org\nx\n"))
    call_command("import_subscribers", path, "--json", "--dry-run")
    trial = json.loads(capsys.readouterr().out)
    call_command("import_subscribers", path, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report == trial
    assert (report["rows"], report["created"], report["states"]) == (2, 1, {"active": 1})
    assert report["refused"] == [{"line": 3, "address": "x", "reason": "An email address must have an @-sign."}]


def test_the_report_in_words_names_what_is_to_be_done(file: Write, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("import_subscribers", str(file("email,status\nada@example.org,vip\nx,active\n")))
    said = capsys.readouterr().out
    assert "2 rows: 1 created, 0 completed, 0 unchanged, 0 lowered, 1 refused" in said
    assert "line 3: x: " in said
    assert "--word “vip=STATE”" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.csv"], "no file"),
        (["readers.csv", "--column", "x"], "NAME=VALUE"),
        (["readers.csv", "--column", "x=address"], "known are: email"),
        (["readers.csv", "--column", "email=wrong"], "known are: address"),
        (["readers.csv", "--word", "vip=king"], "known are: active"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(file: Write, words: list[str], message: str) -> None:
    folder = file("email\na@example.org\n").parent
    with pytest.raises(CommandError, match=message):
        call_command("import_subscribers", str(folder / words[0]), *words[1:])
    assert not Subscriber.objects.exists()


def test_a_file_without_an_address_column_says_which_names_it_knows(file: Write) -> None:
    with pytest.raises(UnreadableFile, match="email"):
        import_csv(file("who,when\nada,now\n"))
    assert not Import.objects.exists()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_killed_process_and_a_second_run_end_in_the_same_table(file: Write, tmp_path: Path) -> None:
    path = file("email,status\n" + "".join(f"r{n}@example.org,{('active', 'left')[n % 2]}\n" for n in range(100_000)))
    names = {"DATABASE_URL": workers.database_url(), "REDIS_URL": workers.redis_url(), "ALLOW_TEST_ADDRESSES": "true"}
    secrets = {"SECRET_KEY": settings.SECRET_KEY, "PEPPER": settings.PEPPER}
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "import_subscribers", str(path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **names, **secrets}, stdout=log, stderr=log)
    try:
        workers.wait_until(
            lambda: Import.objects.filter(read__gt=0).exists(), seconds=120, why=(tmp_path / "log").read_text
        )
    finally:
        process.kill()
        process.wait()
    assert 0 < Subscriber.objects.count() < 100_000
    report = import_csv(path)
    assert (report.rows, report.created) == (100_000, 100_000)
    assert Subscriber.objects.count() == Consent.objects.count() == ImportRow.objects.count() == 100_000
    assert Subscriber.objects.mailable().count() == 50_000
