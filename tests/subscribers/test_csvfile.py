"""Reading tables: any sane form of the file gives the same rows, and a broken row spoils no other."""

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscribers.csvfile import Table, UnreadableFile

ROWS = [["email", "name"], ["ada@example.org", 'Zoë "Z", Ölçer'], ["bo@example.org", "two\nlines"]]
QUOTED = 'email,name\nada@example.org,"Zoë ""Z"", Ölçer"\nbo@example.org,"two\nlines"\n'


def opened(content: str | bytes) -> Callable[[], IO[bytes]]:
    return lambda: io.BytesIO(content if isinstance(content, bytes) else content.encode())


def read(content: str | bytes) -> list[list[str]]:
    table = Table(opened(content))
    return [table.header, *[row.cells for row in table.rows()]]


@pytest.mark.parametrize(
    "content",
    [
        QUOTED,
        QUOTED.replace("\n", "\r\n"),
        QUOTED.replace("\n", "\r"),
        QUOTED.encode("utf-8-sig"),
        QUOTED.encode("utf-16"),
        QUOTED.encode("utf-16-le"),
        QUOTED.encode("utf-16-be"),
        QUOTED.encode("cp1252", "replace").replace(b"?", b"\xe7"),
        QUOTED.replace(",", ";").replace("; Ölçer", ", Ölçer"),
        QUOTED.replace(",", "\t").replace("\t Ölçer", ", Ölçer"),
        QUOTED.replace(",", "|").replace("| Ölçer", ", Ölçer"),
        "sep=;\n" + QUOTED.replace(",", ";").replace("; Ölçer", ", Ölçer"),
        QUOTED.replace('""', '\\"'),
        "'email','name'\n'ada@example.org','Zoë \"Z\", Ölçer'\n'bo@example.org','two\nlines'\n",
        QUOTED.replace("\nbo", "\n\n , \nbo"),
        QUOTED.rstrip("\n"),
    ],
)
def test_the_same_rows_in_any_form(content: str | bytes) -> None:
    assert read(content) == ROWS


def test_addresses_alone_need_no_header() -> None:
    assert read("ada@example.org\n\nbo@example.org\n") == [["email"], ["ada@example.org"], ["bo@example.org"]]


def test_a_quote_that_is_never_closed_costs_one_row() -> None:
    lines = "".join(f"r{n}@example.org,x\n" for n in range(500))
    table = Table(opened(f'email,name\na@example.org,"A\n{lines}b@example.org,"B"\n'))
    rows = list(table.rows())
    assert [row.line for row in rows if row.problem] == [2]
    assert len(rows) == 502
    assert rows[0].text == 'a@example.org,"A\n'


def test_two_stray_quotes_swallow_nothing() -> None:
    rows = list(Table(opened('email,name\na@example.org,5" disk\nb@example.org,3" disk\nc@example.org,C\n')).rows())
    assert [row.cells[:1] for row in rows if not row.problem][-1] == ["c@example.org"]
    assert {row.line for row in rows} == {2, 3, 4}


def test_a_few_bad_bytes_do_not_make_another_encoding() -> None:
    content = QUOTED.encode() + "ö@example.org,Ö\n".encode() * 50 + b"x@example.org,\xff\n"
    assert read(content)[1] == ROWS[1]
    assert read(content)[-1] == ["x@example.org", "\ufffd"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"\n \n", "empty"), (b"PK\x03\x04...", "ZIP"), (b"%PDF-1.7", "PDF")]
)
def test_what_is_no_table_says_what_to_do(content: bytes, said: str) -> None:
    with pytest.raises(UnreadableFile, match=said):
        Table(opened(content))


@given(st.binary(max_size=400))
def test_no_bytes_bring_it_down(content: bytes) -> None:
    with contextlib.suppress(UnreadableFile):
        rows = list(Table(opened(content)).rows())
        assert all(row.problem or row.cells for row in rows)


def corpus() -> list[Path]:
    folder = Path(os.environ.get("CORPORA_DIR", "none"), "csv", "csv-spectrum", "csvs")
    return sorted(folder.glob("*.csv"))


@pytest.mark.skipif(not corpus(), reason="CORPORA_DIR does not name the corpora")
@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_the_spectrum_of_csv_is_read_as_it_says(path: Path) -> None:
    table = Table(lambda: path.open("rb"))
    expected = json.loads(Path(str(path.parent).replace("csvs", "json"), f"{path.stem}.json").read_text())
    expected = expected if isinstance(expected, list) else [{**expected, "Contact Phone Number": "2095257564"}]  # sic
    rows = [dict(zip(table.header, row.cells, strict=True)) for row in table.rows()]
    assert [{name: cell.replace("\r\n", "\n") for name, cell in row.items()} for row in expected] == rows
