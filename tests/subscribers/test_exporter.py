"""Taking readers out: everybody with his state, nothing a spreadsheet runs, and the same again after an import."""

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from posts.models import AuditEntry
from subscribers import exporter, layouts
from subscribers.importer import import_csv
from subscribers.models import Subscriber, Suppression

pytestmark = pytest.mark.django_db


@pytest.fixture
def readers(alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber) -> None:
    Subscriber.objects.filter(pk=alice.pk).update(
        name='=HYPERLINK("http://evil.test")', fields={"Town": "Köln", "tags": ["@sum", "a, b"]}
    )
    Subscriber.objects.create(address="", key="erased:9", address_hash=b"", status="erased")


def exported(kind: str) -> str:
    return "".join(exporter.FORMATS[kind]())


def test_an_export_holds_everybody_with_his_state(readers: None) -> None:
    found = json.loads(exported("json"))
    states = {reader["email"].partition("@")[0]: reader["state"] for reader in found}
    assert states == {"alice": "active", "bob": "pending", "carol": "unsubscribed", "dave": "bounced"}
    assert found[0]["tags"] == ["@sum", "a, b"]


def test_an_import_of_an_export_gives_the_same_export(readers: None, tmp_path: Path) -> None:
    Subscriber.objects.filter(status="unsubscribed").update(unsubscribed_at="2026-01-02T03:04:05Z")
    before = exported("csv")
    path = tmp_path / "export.csv"
    path.write_text(before, newline="")
    Subscriber.objects.all().forget()
    Suppression.objects.all().delete()
    import_csv(path)
    assert exported("csv") == before
    assert not Subscriber.objects.mailable().exclude(key="alice@example.org").exists()


def test_no_cell_is_a_formula(readers: None) -> None:
    lines = exported("csv").splitlines()
    assert "'=HYPERLINK" in lines[1]
    assert '"\'""@sum"",""a, b"""' in lines[1]


@given(st.text(st.sampled_from("'=+-@\t\r \"＝＋－＠a1"), max_size=6))
def test_what_an_export_adds_an_import_takes_away(cell: str) -> None:
    safe = layouts.formula_safe(cell)
    assert layouts.FORMULA.sub("", safe, count=1) if safe != cell else safe == cell
    assert safe.lstrip(" \"'")[:1] not in set("=+-@＝＋－＠") or safe.startswith("'")


def test_nobody_makes_an_empty_file() -> None:
    assert json.loads(exported("json")) == []
    assert exported("csv").startswith("email,name,state")


def test_the_command_writes_a_new_file_only_and_is_noted(
    readers: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.csv"
    call_command("export_subscribers", str(path))
    assert path.read_bytes().decode() == exported("csv")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CommandError, match="there already"):
        call_command("export_subscribers", str(path))
    call_command("export_subscribers", "--format", "json")
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert set(AuditEntry.objects.values_list("act", "actor")) == {("subscriber.export", "manage.py")}
