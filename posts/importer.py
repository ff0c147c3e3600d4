"""Bring posts along from a folder of Markdown files with YAML, TOML or Pelican headers.

Each file is a post and a transaction of its own; running it again changes only what has changed.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from django.core.exceptions import ValidationError
from django.core.files.storage import default_storage
from django.db import DatabaseError, transaction
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.text import slugify

from posts import images
from posts.models import Post, Redirect, Tag

SUFFIXES = {".md", ".markdown", ".mdown"}
FILE_NAME = re.compile(r"^(?:(?P<date>\d{4}-\d{1,2}-\d{1,2})[-_])?(?P<slug>.+)$")
PELICAN = re.compile(r"^([A-Za-z][\w-]*):[ \t]*(.*)$")
DATED = re.compile(r"^(\d{4}-\d{1,2}-\d{1,2})(?:[ T](\d{1,2}:\d{2}(?::\d{2})?)\s*(Z|[+-]\d{2}:?\d{2})?)?$")
IMAGE = re.compile(r"(!\[[^\]]*\]\(\s*<?)([^)\s>]+)|(<img\b[^>]*?\bsrc=[\"'])([^\"']+)", re.IGNORECASE)


class BadFile(ValueError):
    """A file that can't be taken; the message says where and what to do."""


@dataclass
class Report:
    """What an import did."""

    files: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    images: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)

    def warn(self, path: str, reason: str) -> None:
        self.warnings.append({"path": path, "reason": reason})


@dataclass
class Source:
    """One file, read: its header's values and its text."""

    path: Path
    header: dict[str, Any]
    body: str


def import_folder(root: Path, *, progress: Callable[[Report], None] | None = None) -> Report:
    """Import every Markdown file below `root` that has a header; raises BadFile if there is no such folder."""
    if not root.is_dir():
        raise BadFile(f"{root} is no folder: name the one that holds the Markdown files.")
    report = Report()
    for path in sorted(found for found in root.rglob("*") if _is_post(found, root)):
        _import(path, root, report)
        if progress:
            progress(report)
    return report


def read(path: Path) -> Source:
    """Read one file; raises BadFile on a wrong encoding or a header that can't be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadFile(f"not UTF-8 at byte {error.start}: save the file as UTF-8") from error
    if text.startswith("---\n"):
        return _fenced(path, text, "---", _yaml)
    if text.startswith("+++\n"):
        return _fenced(path, text, "+++", _toml)
    return _pelican(path, text)


def _is_post(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    bare = path.name.upper() in ("README.MD", "LICENSE.MD", "CHANGELOG.MD", "CONTRIBUTING.MD")
    return path.is_file() and path.suffix.lower() in SUFFIXES and not hidden and not bare


def _import(path: Path, root: Path, report: Report) -> None:
    report.files += 1
    name = str(path.relative_to(root))
    try:
        with transaction.atomic():
            outcome = _store(read(path), root, report)
    except (ValueError, DatabaseError) as error:
        report.failed.append({"path": name, "reason": str(error)})
    except ValidationError as error:
        report.failed.append({"path": name, "reason": " ".join(error.messages)})
    else:
        setattr(report, outcome, getattr(report, outcome) + 1)


def _store(source: Source, root: Path, report: Report) -> str:
    name = str(source.path.relative_to(root))
    post = Post.objects.filter(source=name).first() or Post(source=name)
    values = _values(source, post, root, report)
    tags, aliases = _tags(source.header), _aliases(source.header)
    if post.pk and _same(post, values, tags) and _redirected(post, aliases):
        return "unchanged"
    outcome = "updated" if post.pk else "created"
    for key, value in values.items():
        setattr(post, key, value)
    post.clean_fields(exclude=["cover"])
    post.save()
    post.tags.set(_tag(tag) for tag in tags)
    for alias in aliases:
        Redirect.objects.update_or_create(path=alias, defaults={"post": post})
    return outcome


def _same(post: Post, values: dict[str, Any], tags: list[str]) -> bool:
    kept = {tag.slug for tag in post.tags.all()}
    return all(getattr(post, key) == value for key, value in values.items()) and kept == {slugify(t) for t in tags}


def _redirected(post: Post, aliases: list[str]) -> bool:
    return set(aliases) <= set(post.redirects.values_list("path", flat=True))


def _values(source: Source, post: Post, root: Path, report: Report) -> dict[str, Any]:
    header = source.header
    title = str(header.get("title") or "").strip()
    if not title:
        raise BadFile("the header has no title: add a line “title: …”")
    named = FILE_NAME.match(source.path.stem)
    assert named is not None
    published_at = _published_at(source, named["date"], str(source.path.relative_to(root)), report)
    draft = _true(header.get("draft")) or str(header.get("status", "")).lower() == "draft"
    draft = draft or header.get("published") is False
    if published_at is None and not draft:
        raise BadFile("no date in the header or the file name: add a line “date: 2026-01-31”")
    return {
        "title": title[:200],
        "subtitle": str(header.get("subtitle") or "")[:300],
        "slug": post.slug if post.pk and "slug" not in header else _slug(source, named, post),
        "body": _with_images(source, root, report),
        "excerpt": str(header.get("excerpt") or header.get("summary") or header.get("description") or ""),
        "status": Post.Status.DRAFT if draft else Post.Status.PUBLISHED,
        "published_at": published_at,
    }


def _published_at(source: Source, in_name: str | None, path: str, report: Report) -> dt.datetime | None:
    """Take the date of the header, else the file name's; an impossible one gives way to that, and is told."""
    try:
        return _date(source.header.get("date") or in_name)
    except BadFile as error:
        if in_name is None:
            raise
        report.warn(path, f"{error}; the file name's date {in_name} was taken")
        return _date(in_name)


def _slug(source: Source, named: re.Match[str], post: Post) -> str:
    """Take the slug of the header, else that of the file name; if another post has it, the date goes in front."""
    slug = slugify(str(source.header.get("slug") or named["slug"]))[:190] or "post"
    if not Post.objects.filter(slug=slug).exclude(pk=post.pk).exists():
        return slug
    dated = f"{named['date']}-{slug}"
    if named["date"] and not Post.objects.filter(slug=dated).exclude(pk=post.pk).exists():
        return dated
    raise BadFile(f"another post has the slug “{slug}”: give this one a slug of its own in its header")


def _date(value: Any) -> dt.datetime | None:
    """Return a header's date as an instant; without a zone it is taken as UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, dt.datetime):
        return value if timezone.is_aware(value) else value.replace(tzinfo=dt.UTC)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    return _spelled(str(value).strip())


def _spelled(text: str) -> dt.datetime:
    found = DATED.match(text)
    try:
        if found:
            day = "-".join(part.zfill(2) for part in found[1].split("-"))
            zone = {"Z": "+00:00"}.get(found[3] or "Z", found[3] or "+00:00")
            moment = parse_datetime(f"{day}T{(found[2] or '00:00').zfill(5)}{zone}")
        else:
            moment = parse_datetime(text) or _date(parse_date(text))
    except ValueError:
        moment = None
    if moment is None:
        raise BadFile(f"“{text}” is no date: write it as 2026-01-31 or 2026-01-31 09:00")
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=dt.UTC)


def _true(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "yes", "1")


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.strip("[]").split(",")
    return [str(word).strip().strip("'\"") for word in value or [] if str(word).strip()]


def _tags(header: dict[str, Any]) -> list[str]:
    tags = _words(header.get("tags")) or _words(header.get("tag"))
    return [tag[:60] for tag in dict.fromkeys(tags) if slugify(tag)]


def _tag(name: str) -> Tag:
    return Tag.objects.get_or_create(slug=slugify(name)[:60], defaults={"name": name})[0]


def _aliases(header: dict[str, Any]) -> list[str]:
    aliases = _words(header.get("aliases")) or _words(header.get("redirect_from"))
    return [("/" + alias.lstrip("/"))[:500] for alias in aliases]


# Images


def _with_images(source: Source, root: Path, report: Report) -> str:
    """Copy the local images that a text shows into the media, and point the text at the copies."""

    def replace(found: re.Match[str]) -> str:
        before, address = (found[1], found[2]) if found[1] else (found[3], found[4])
        return before + _kept(address, source, root, report)

    return IMAGE.sub(replace, source.body)


def _kept(address: str, source: Source, root: Path, report: Report) -> str:
    if re.match(r"[a-z][a-z0-9+.-]*:|//|#", address, re.IGNORECASE):
        return address
    path = _local(unquote(address.partition("?")[0]), source.path, root)
    if path is None:
        report.warn(str(source.path.relative_to(root)), f"there is no image {address} in the folder")
        return address
    stem = slugify(str(path.relative_to(root).with_suffix("")))[-150:]
    stored = next(
        (name for name in (f"imported/{stem}.png", f"imported/{stem}.jpg") if default_storage.exists(name)), None
    )
    return default_storage.url(stored or _copy(path, stem, report))


def _local(address: str, post: Path, root: Path) -> Path | None:
    """Find the file that an address means, below `root` only: no link may lead out of the folder."""
    candidates = [root / address.lstrip("/"), post.parent / address]
    inside = (path.resolve() for path in candidates if path.resolve().is_relative_to(root.resolve()))
    return next((root / path.relative_to(root.resolve()) for path in inside if path.is_file()), None)


def _copy(path: Path, stem: str, report: Report) -> str:
    with path.open("rb") as file:
        try:
            image = images.clean_image(file)
        except ValidationError as error:
            raise BadFile(f"the image {path.name}: {' '.join(error.messages)}") from error
    report.images += 1
    assert image.name is not None
    name = default_storage.save(f"imported/{stem}{Path(image.name).suffix}", image)
    images.make_copies(name)
    return name


# Headers


def _fenced(path: Path, text: str, fence: str, parse: Callable[[str], Any]) -> Source:
    header, found, body = text[4:].partition(f"\n{fence}\n")
    if not found and not text.endswith(f"\n{fence}"):
        raise BadFile(f"line 1: the header begins with {fence} but has no end: close it with a line {fence}")
    values = parse(header.removesuffix(f"\n{fence}"))
    if not isinstance(values, dict):
        raise BadFile("line 2: the header holds no “key: value” lines")
    return Source(path, {str(key).lower(): value for key, value in values.items()}, body.lstrip("\n"))


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark else 2
        raise BadFile(f"line {line}: the header is no YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFile(f"the header is no YAML: {error}") from error


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadFile(f"the header is no TOML: {error} (counted from the line after +++)") from error


def _pelican(path: Path, text: str) -> Source:
    lines = text.split("\n")
    header = dict(_pelican_lines(lines))
    if not header:
        raise BadFile("line 1: there is no header: begin with --- (YAML), +++ (TOML) or “Title: …” (Pelican)")
    return Source(path, header, "\n".join(lines[len(header) :]).lstrip("\n"))


def _pelican_lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        found = PELICAN.match(line)
        if not found:
            return
        yield found[1].lower(), found[2].strip()
