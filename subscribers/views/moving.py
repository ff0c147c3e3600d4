"""Pages of the admin by which readers come along from another tool, and go."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from posts import auditlog
from subscribers import exporter, importer, layouts, tasks
from subscribers.csvfile import Table, UnreadableFile
from subscribers.models import Import, ImportRow, Subscriber

MOST_BYTES = 256 * 1024 * 1024
PREVIEW_ROWS = 20
LINK_SECONDS = 600
LOOK_SECONDS = 3  # after which the page of an import that is under way comes anew
LINK = "subscribers.export"


def may_import(request: HttpRequest) -> bool:
    """Tell whether somebody may bring readers along, as the menu asks."""
    return request.user.has_perms(["subscribers.add_subscriber", "subscribers.change_subscriber"])


def may_export(request: HttpRequest) -> bool:
    return request.user.has_perm("subscribers.view_subscriber")


def imports(request: HttpRequest) -> HttpResponse:
    """Show the imports there were, and take a file."""
    _check(may_import(request))
    if request.method == "POST":
        file = request.FILES.get("file")
        try:
            if file is None:
                raise UnreadableFile(_("Choose a file."))
            if (file.size or 0) > MOST_BYTES:
                raise UnreadableFile(_("The file is too large for a page: use manage.py import_subscribers."))
            found = importer.keep(file.chunks(), file.name or "", by=request.user.get_username())
        except UnreadableFile as error:
            messages.error(request, str(error))
            return redirect("subscribers_imports")
        tasks.hint_import(found)
        return redirect("subscribers_import", found.pk)
    return _page(request, "imports", {"title": _("Import readers"), "imports": Import.objects.all()[:50]})


def import_page(request: HttpRequest, pk: int) -> HttpResponse:
    """Show what a file would bring, what it is bringing or what it brought; a POST says what its columns are."""
    _check(may_import(request))
    found = get_object_or_404(Import, pk=pk)
    if request.method == "POST":
        if found.state == Import.State.WAITING:
            _change(request, found)
        return redirect("subscribers_import", pk)
    report = importer.Report.of(found)
    context = {
        "title": found.name,
        "found": found,
        "report": report,
        "states": [(layouts.STATE_LABELS[state], count) for state, count in report.states.items()],
        "needs_words": report.rows > importer.EXTRA_ATTESTATION,
        **(_preview(found, report) if found.state == Import.State.WAITING else {}),
    }
    response = _page(request, "import", context)
    if found.state == Import.State.RUNNING or (found.state == Import.State.WAITING and not found.is_judged):
        response["Refresh"] = str(LOOK_SECONDS)
    return response


@require_POST
def start(request: HttpRequest, pk: int) -> HttpResponse:
    """Begin the import, once somebody vouches for the consent where there are many addresses (ABU-15)."""
    _check(may_import(request))
    attestation = " ".join(request.POST.get("attestation", "").split())
    with transaction.atomic():
        found = get_object_or_404(Import.objects.select_for_update(), pk=pk)
        many = found.report.get("rows", 0) > importer.EXTRA_ATTESTATION
        if found.state == Import.State.WAITING and not found.is_judged:
            messages.error(request, _("The file is still being looked through: wait a moment."))
        elif found.state == Import.State.WAITING and many and len(attestation) < importer.SHORTEST_ATTESTATION:
            messages.error(request, _("Say where and how these readers agreed to get your mail."))
        elif found.state != Import.State.DONE:
            if found.state == Import.State.WAITING:
                auditlog.note("subscriber.import", found, actor=request.user, rows=found.report.get("rows"),
                              attestation=attestation, sha256=found.sha256)  # fmt: skip
                found.attestation, found.report = attestation[:300], {}
            found.state, found.error = Import.State.RUNNING, ""
            found.save()
            tasks.hint_import(found)
    return redirect("subscribers_import", pk)


@require_safe
def report(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """Give what became of each row as CSV."""
    _check(may_import(request))
    found = get_object_or_404(Import, pk=pk)
    return _attachment(_rows(found), f"import-{pk}.csv", "text/csv")


def export(request: HttpRequest) -> HttpResponse:
    """Offer the export, and answer a POST with a link that is worth something for ten minutes, to the same person."""
    _check(may_export(request))
    context: dict[str, Any] = {"title": _("Export readers"), "readers": Subscriber.objects.mailable().count()}
    if request.method == "POST" and request.POST.get("format") in exporter.FORMATS:
        kind = request.POST["format"]
        auditlog.note("subscriber.export", "readers", actor=request.user, format=kind)
        context |= {"token": signing.dumps([request.user.pk, kind], salt=LINK), "format": kind}
    return _page(request, "export", context)


@require_safe
def download(request: HttpRequest, token: str) -> StreamingHttpResponse:
    """Stream the file that a link names."""
    _check(may_export(request))
    try:
        user, kind = signing.loads(token, salt=LINK, max_age=LINK_SECONDS)
    except signing.BadSignature as error:
        raise Http404 from error
    _check(user == request.user.pk)
    types = {"csv": "text/csv", "json": "application/json"}
    name = f"readers-{timezone.now():%Y-%m-%d}.{kind}"
    return _attachment(exporter.FORMATS[kind](), name, types[kind])


def _check(allowed: bool) -> None:
    if not allowed:
        raise PermissionDenied


def _page(request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
    return render(request, f"admin/subscribers/{name}.html", {**admin.site.each_context(request), **context})


def _attachment(pieces: Iterator[str], name: str, kind: str) -> StreamingHttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingHttpResponse(pieces, content_type=f"{kind}; charset=utf-8", headers=headers)


def _preview(found: Import, report: importer.Report) -> dict[str, Any]:
    """Return the first rows as they are understood, and what can be said of columns and words."""
    mapping = layouts.Mapping.from_json(found.mapping)
    with importer.kept_file(found) as open_file:
        table = Table(open_file)
        sample = table.sample(PREVIEW_ROWS)
    interpreter = layouts.Interpreter(table.header, mapping, now=timezone.now())
    people = [(row, interpreter.person(row)) for row in sample]
    cells = [next((row.cells[n] for row in sample if not row.problem and row.cells[n].strip()), "")
             for n in range(len(table.header))]  # fmt: skip
    return {
        "mapping": mapping,
        "columns": [
            (f"column-{n}", *each) for n, each in enumerate(zip(table.header, mapping.targets, cells, strict=True))
        ],
        "targets": layouts.TARGET_LABELS.items(),
        "words": [(f"word-{n}", word, count) for n, (word, count) in enumerate(sorted(report.unknown_states.items()))],
        "meanings": layouts.STATE_LABELS.items(),
        "people": [(row.line, person, layouts.STATE_LABELS.get(person.state, "")) for row, person in people],
    }


def _change(request: HttpRequest, found: Import) -> None:
    """Take over what columns and words are said to be, and look through the file anew."""
    mapping = layouts.Mapping.from_json(found.mapping)
    targets = [request.POST.get(f"column-{n}", target) for n, target in enumerate(mapping.targets)]
    words = {word: request.POST.get(f"word-{n}", "") for n, word in enumerate(sorted(found.report["unknown_states"]))}
    if targets.count("address") != 1 or not set(targets) <= set(layouts.TARGET_LABELS):
        messages.error(request, _("Exactly one column is the e-mail address."))
        return
    said = {("" if word == "(empty)" else word): state for word, state in words.items() if state in layouts.SEVERITY}
    found.mapping = {**mapping.as_json(), "targets": targets, "words": {**mapping.words, **said}}
    found.is_judged = False
    found.save(update_fields=["mapping", "is_judged"])
    tasks.hint_import(found)


def _rows(found: Import) -> Iterator[str]:
    """Yield the rows' outcomes, a page at a time; the address is the reader's of today."""
    text, last = io.StringIO(), 0
    writer = csv.writer(text)
    writer.writerow(["line", "outcome", "reason", "address", "text"])
    rows = ImportRow.objects.filter(of=found).order_by("line")
    while page := list(rows.filter(line__gt=last).select_related("subscriber")[: exporter.PAGE]):
        for row in page:
            address = row.subscriber.address if row.subscriber else ""
            writer.writerow([row.line, row.outcome, *map(layouts.formula_safe, (row.note, address, row.text))])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        last = page[-1].line
    yield text.getvalue()
