"""A folder of Markdown becomes posts, once, and what can't be taken says why."""

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from PIL import Image

from posts.importer import BadFile, Report, import_folder
from posts.models import Post, Redirect

pytestmark = pytest.mark.django_db

CORPORA = os.environ.get("CORPORA_DIR", "")
needs_corpora = pytest.mark.skipif(not CORPORA, reason="CORPORA_DIR is not set: the corpora were not tried")

YAML = """---
title: On vacuum
date: 2024-03-05 09:30
slug: vacuum
tags: [Postgres, storage]
aliases: [/old/vacuum/]
---

Text.
"""
TOML = '+++\ntitle = "On locks"\ndate = 2024-03-06T10:00:00Z\ntags = ["Postgres"]\ndraft = true\n+++\nText.\n'
PELICAN = "Title: On logs\nDate: 2024-03-07\nTags: Postgres, wal\nSlug: logs\n\nText.\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name.replace('__', '-')}.md").write_text(text, "utf-8")
    return folder


def counts(report: Report) -> tuple[int, int, int, int, int]:
    return report.files, report.created, report.updated, report.unchanged, len(report.failed)


def reason(tmp_path: Path, text: str) -> str:
    """Return why a file of `text` was not taken, after its good neighbour was."""
    report = import_folder(write(tmp_path, a_bad=text, good=PELICAN))
    assert counts(report) == (2, 1, 0, 0, 1)
    assert report.failed[0]["path"] == "a_bad.md"
    return report.failed[0]["reason"]


def test_the_three_kinds_of_header_are_read(tmp_path: Path) -> None:
    report = import_folder(write(tmp_path, a=YAML, locks=TOML, c=PELICAN))
    assert counts(report) == (3, 3, 0, 0, 0)
    vacuum, locks, logs = (Post.objects.get(slug=slug) for slug in ("vacuum", "locks", "logs"))
    assert str(vacuum.published_at) == "2024-03-05 09:30:00+00:00"
    assert [tag.name for tag in vacuum.tags.all()] == ["Postgres", "storage"]
    assert Redirect.objects.get(path="/old/vacuum/").post == vacuum
    assert (locks.title, locks.status) == ("On locks", Post.Status.DRAFT)
    assert (logs.status, logs.body) == (Post.Status.PUBLISHED, "Text.\n")
    assert not Post.objects.filter(ready=True).exists()


def test_date_and_slug_come_from_the_file_name_where_the_header_has_none(tmp_path: Path) -> None:
    (tmp_path / "2018-01-14-first-words.md").write_text("---\ntitle: First\n---\nText.")
    import_folder(tmp_path)
    post = Post.objects.get(slug="first-words")
    assert str(post.published_at) == "2018-01-14 00:00:00+00:00"


def test_a_slug_that_is_taken_gets_the_date_in_front(tmp_path: Path) -> None:
    for day in ("2018-01-14", "2018-01-21"):
        (tmp_path / f"{day}-update.md").write_text(f"---\ntitle: Week {day}\n---\nText.")
    assert counts(import_folder(tmp_path)) == (2, 2, 0, 0, 0)
    assert set(Post.objects.values_list("slug", flat=True)) == {"update", "2018-01-21-update"}
    assert counts(import_folder(tmp_path)) == (2, 0, 0, 2, 0)


def test_only_what_changed_is_changed(tmp_path: Path) -> None:
    import_folder(write(tmp_path, a=YAML, b=PELICAN))
    write(tmp_path, a=YAML.replace("Text.", "New text."))
    assert counts(import_folder(tmp_path)) == (2, 0, 1, 1, 0)
    assert Post.objects.get(slug="vacuum").body == "New text.\n"
    write(tmp_path, a=YAML.replace("Text.", "New text.").replace("/old/vacuum/", "/older/"))
    assert counts(import_folder(tmp_path)) == (2, 0, 1, 1, 0)
    assert Redirect.objects.filter(path="/older/").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntitle: a\ntags: [x\n---\n", "line 3: the header is no YAML"),
        ("---\ntitle: a\n", "line 1: the header begins with --- but has no end"),
        ("---\n- a\n---\n", "no “key: value” lines"),
        ("---\ntitle: a\ndate: someday\n---\n", "“someday” is no date"),
        ("---\ndate: 2024-01-01\n---\n", "no title"),
        ("---\ntitle: a\n---\n", "no date"),
        ('---\ntitle: "a\\0"\ndate: 2024-01-01\n---\n', "NUL"),
        ("---\ntitle: a\ndate: 2024-01-01\nslug: logs\n---\n<div>" + "<div>" * 500, "nested too deeply"),
        ("---\ntitle: " + "[" * 5000 + "\n---\n", "no YAML"),
        ("+++\ntitle = a\n+++\n", "the header is no TOML"),
        ("Only text.\n", "line 1: there is no header"),
    ],
)
def test_a_file_that_cannot_be_taken_says_why_and_the_next_one_goes_on(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in reason(tmp_path, text)
    assert Post.objects.count() == 1


def test_a_wrong_encoding_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("---\ntitle: é\n---\n".encode("latin-1"))
    assert "not UTF-8 at byte 11" in import_folder(tmp_path).failed[0]["reason"]


def test_local_images_come_along_through_the_gate(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "pics" / "a b.png")
    write(tmp_path, a=YAML.replace("Text.", "![one](/pics/a%20b.png) ![two](https://example.com/x.png)"))
    assert import_folder(tmp_path).images == 1
    post = Post.objects.get()
    assert post.body == "![one](/media/imported/picsa-b.png) ![two](https://example.com/x.png)\n"
    assert 'width="20" height="10"' in post.body_html
    assert default_storage.exists("imported/picsa-b.png")


def test_a_broken_image_fails_its_file_and_one_outside_the_folder_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (folder / "bad.png").write_bytes(b"<svg onload=alert(1)>")
    write(folder, a=YAML.replace("Text.", "![x](bad.png)"), b=PELICAN.replace("Text.", "![x](../secret.png)"))
    report = import_folder(folder)
    assert counts(report) == (2, 1, 0, 0, 1)
    assert "the image bad.png: This is not an image" in report.failed[0]["reason"]
    assert "no image ../secret.png" in report.warnings[0]["reason"]
    assert report.images == 0


def test_the_command_prints_json_alone_and_fails_where_a_file_did(tmp_path: Path) -> None:
    out = io.StringIO()
    call_command("import_posts", write(tmp_path, a=YAML), json=True, stdout=out)
    report = json.loads(out.getvalue())
    assert (report["files"], report["created"], report["failed"]) == (1, 1, [])
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 of 2 files"):
        call_command("import_posts", write(tmp_path, b="No header."), json=True, stdout=out)
    assert json.loads(out.getvalue())["failed"][0]["path"] == "b.md"


def test_a_folder_that_is_not_there_is_told() -> None:
    with pytest.raises(BadFile, match="no folder"):
        import_folder(Path("nowhere"))


@needs_corpora
def test_five_years_of_a_real_newsletter_are_taken_twice() -> None:
    folder = Path(CORPORA, "markdown/lwkd")
    start = time.monotonic()
    report = import_folder(folder)
    assert counts(report) == (262, 262, 0, 0, 0)
    assert time.monotonic() - start < 60
    for post in Post.objects.all():
        header = (folder / post.source).read_text("utf-8").split("---")[1]
        assert (post.slug, f"{post.published_at:%Y-%m-%d}") == expected(post.source, header)
    assert [warning["path"] for warning in report.warnings if "2022-02-29" in warning["reason"]] == [
        "_posts/2022-02-27-update.md"
    ]
    assert report.images == 19 - len(unshown(folder))
    stored = default_storage.listdir("imported")[1]
    assert len([name for name in stored if not re.search(r"\.w\d+\.webp$", name)]) == report.images
    assert counts(import_folder(folder)) == (262, 0, 0, 262, 0)


def expected(source: str, header: str) -> tuple[str, str]:
    """Return the slug and the day that a header gives, else the file's name."""
    name = Path(source).stem
    slug = re.search(r"^slug: *(\S+)", header, re.MULTILINE)
    day = re.search(r"^date: *(\d{4}-\d\d-\d\d)", header, re.MULTILINE)
    real = day and day[1] != "2022-02-29"  # a day that never was gives way to the file's name
    return slug[1].lower() if slug else name, day[1] if day and real else name[:10]


def unshown(folder: Path) -> set[str]:
    """Return the pictures in the folder that no text shows."""
    texts = "".join(path.read_text("utf-8") for path in folder.glob("_posts/*.md"))
    return {path.name for path in folder.glob("20*/images/*") if f"images/{path.name}" not in texts}
