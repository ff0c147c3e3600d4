"""Importing readers: every row judged, nobody raised, nothing half-done."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from subscribers.importer import UnreadableFile, import_csv
from subscribers.models import Consent, Subscriber

pytestmark = pytest.mark.django_db


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "readers.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_rows_become_confirmed_readers_with_a_consent(file: Any) -> None:
    report = import_csv(file("Email,Name,confirmed_at\nada@example.org,Ada,2025-03-01\nbo@example.org,,\n"))
    ada = Subscriber.objects.get(key="ada@example.org")
    assert (report.rows, report.created, ada.name, ada.status) == (2, 2, "Ada", "active")
    assert ada.confirmed_at is not None
    assert str(ada.confirmed_at.date()) == "2025-03-01"
    assert ada.consents.get().kind == Consent.Kind.IMPORTED


def test_a_second_import_changes_nothing(file: Any) -> None:
    path = file("email\nada@example.org\nADA@example.org\n")
    first, second = import_csv(path), import_csv(path)
    assert (first.created, first.unchanged, second.created, second.unchanged) == (1, 1, 0, 2)
    assert Consent.objects.count() == 1


def test_nobody_who_left_is_brought_back(file: Any, carol: Subscriber, dave: Subscriber, bob: Subscriber) -> None:
    import_csv(file("email,status\ncarol@example.org,active\ndave@example.org,active\nbob@example.org,active\n"))
    assert not Subscriber.objects.mailable().exists()


def test_words_for_states_are_understood_and_unknown_ones_shown(file: Any) -> None:
    rows = "email,status\na@example.org,Active\nb@example.org,cancelled\nc@example.org,bounced\nd@example.org,vip\n"
    report = import_csv(file(rows))
    assert dict(Subscriber.objects.values_list("key", "status")) == {
        "a@example.org": "active",
        "b@example.org": "unsubscribed",
        "c@example.org": "unsubscribed",
        "d@example.org": "pending",
    }
    assert dict(report.unknown_states) == {"vip": 1}


def test_a_malformed_row_is_named_and_the_others_come_in(file: Any) -> None:
    report = import_csv(file("email\nada@example.org\nnot an address\n\nbo@example.org\n"))
    assert report.created == 2
    assert [(row["line"], row["address"]) for row in report.refused] == [(3, "not an address")]


def test_a_byte_order_mark_is_no_part_of_the_header(file: Any) -> None:
    assert import_csv(file(b"\xef\xbb\xbfemail\nada@example.org\n")).created == 1


def test_a_wrong_encoding_names_line_and_byte_and_imports_nothing(file: Any) -> None:
    with pytest.raises(UnreadableFile, match=r"line 3 has the byte 0xe9.*nothing was imported"):
        import_csv(file(b"email,name\na@example.org,A\nb@example.org,Ren\xe9\n"))
    assert not Subscriber.objects.exists()


def test_a_file_without_an_address_column_says_which_names_it_knows(file: Any) -> None:
    with pytest.raises(UnreadableFile, match="email"):
        import_csv(file("who,when\nada,now\n"))


def test_the_report_is_json_alone_on_stdout(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("import_subscribers", str(file("email\nada@example.org\nx\n")), "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["created"], len(report["refused"])) == (2, 1, 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no file"):
        call_command("import_subscribers", str(tmp_path / "none.csv"))
