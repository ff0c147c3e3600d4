"""The author's desk for what is sent: the calendar, the issues, and the ledger to look things up in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from csp.constants import NONE, SELF, UNSAFE_INLINE
from csp.decorators import csp
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_POST, require_safe
from unfold.admin import ModelAdmin, TabularInline

from newsletter import composing, delivery, history, preflight, reconciliation, rendering, schedule, sweeper, tasks
from newsletter.forms import IssueForm, IssuePostForm, IssuePosts
from newsletter.models import Delivery, DeliveryEvent, Issue, IssuePost, PreviewGroup, Slot, validate_recipient
from newsletter.progress import Progress
from newsletter.templatetags.instants import in_zone
from posts import auditlog
from posts.models import Publication
from subscribers import instance
from subscribers.admin import ReadOnly
from subscribers.models import Subscriber

UNKNOWN_A_PAGE = 100
# The preview is a mail: its styles are inline, and nothing in it may run.
PREVIEW_POLICY = {
    "default-src": [NONE],
    "style-src": [UNSAFE_INLINE],
    "img-src": [SELF, "https:"],
    "frame-ancestors": [SELF],
    "sandbox": True,
}

# allauth's own pages would show a second factor's secret, and take it away without being asked who is there or noted.
admin.site.unregister([Authenticator, EmailAddress])


@admin.register(Slot)
class SlotAdmin(ModelAdmin):
    """The calendar: each date can be held, opened again, or moved."""

    list_display = ["local_date", "local_time", "due_at", "state", "issue_there"]
    list_filter = ["state"]
    ordering = ["-due_at"]
    fields = ["local_date", "due_at", "state"]
    readonly_fields = ["local_date", "state"]
    actions = ["hold", "release"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever moves a date moves the issue in it."""
        return _may_send(request) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description=_("local time"))
    def local_time(self, slot: Slot) -> str:
        zone = Publication.current().zone
        return f"{slot.due_at.astimezone(zone):%a %d %b %Y, %H:%M} {zone}"

    @admin.display(description=_("issue"))
    def issue_there(self, slot: Slot) -> str:
        issue = Issue.objects.filter(slot=slot).first()
        return str(issue) if issue else ""

    def save_model(self, request: HttpRequest, obj: Slot, form: Any, change: bool) -> None:
        self.do(request, "move", obj, partial(obj.move, obj.due_at), was=form.initial.get("due_at"))

    @admin.action(description=_("Hold: nothing goes out on these dates"))
    def hold(self, request: HttpRequest, queryset: QuerySet[Slot]) -> None:
        for slot in queryset:
            self.do(request, "hold", slot, slot.hold)

    @admin.action(description=_("Open these dates again"))
    def release(self, request: HttpRequest, queryset: QuerySet[Slot]) -> None:
        for slot in queryset:
            self.do(request, "release", slot, slot.release)

    def do(self, request: HttpRequest, name: str, slot: Slot, act: Callable[[], None], **detail: Any) -> None:
        """Do something to a date and note who did; a refusal is shown in words."""
        try:
            with auditlog.acting(f"slot.{name}", slot, actor=request.user, **detail):
                act()
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))


class IssuePostInline(TabularInline):
    model = IssuePost
    form = IssuePostForm
    formset = IssuePosts
    fields = ["position", "post", "mode"]
    ordering_field = "position"
    hide_title = True
    extra = 1

    def get_queryset(self, request: HttpRequest) -> QuerySet[IssuePost]:
        return (
            super()
            .get_queryset(request)
            .select_related("post", "issue")
            .only("issue__subject", "issue__number", "post__title", "position", "mode")
        )

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(request, obj) and super().has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(request, obj) and super().has_delete_permission(request, obj)


def _open_to_change(request: HttpRequest, issue: Issue | None) -> bool:
    """Tell whether an issue may still be written; one that goes by itself only by those who may send it."""
    if issue is None or issue.state == Issue.State.DRAFT:
        return True
    return issue.is_editable and _may_send(request)


class Saved(HttpResponseRedirect):
    """What the form says is saved, and the pressed button is to be obeyed once that is committed."""


@admin.register(Issue)
class IssueAdmin(auditlog.Noted, ModelAdmin):
    """Compose, look at it, try it, and send it; every move is a button that says what happens."""

    noted = "issue"
    form = IssueForm
    list_display = ["number", "subject", "state", "due_at", "planned", "completed_at"]
    list_display_links = ["number", "subject"]
    list_filter = ["state"]
    search_fields = ["subject"]
    inlines = [IssuePostInline]
    warn_unsaved_form = True
    list_before_template = "admin/newsletter/_compose.html"
    change_form_outer_before_template = "admin/newsletter/issue_panel.html"
    change_form_before_template = "admin/newsletter/_issue_inbox.html"
    change_form_outer_after_template = "admin/newsletter/issue_after.html"

    class Media:
        js = [forms.Script(f"newsletter/{name}.js", type="module") for name in ("counts", "inbox")]
        css = {"all": ["newsletter/issue.css"]}

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What was numbered stays: the archive and the ledger speak of it."""
        return (obj is None or obj.number is None) and super().has_delete_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Issue, form: Any, change: bool) -> None:
        if change:
            obj.save(update_fields=["subject", "preheader", "introduction", "count_clicks"])
        else:
            obj.save()

    def get_urls(self) -> list[URLPattern]:
        guard = self.admin_site.admin_view
        return [
            path("compose/", guard(self.compose), name="newsletter_issue_compose"),
            path("<int:pk>/act/", guard(self.act), name="newsletter_issue_act"),
            path("<int:pk>/counts/", guard(self.counts), name="newsletter_issue_counts"),
            path("<int:pk>/preview/", guard(self.preview), name="newsletter_issue_preview"),
            path("<int:pk>/text/", guard(self.text), name="newsletter_issue_text"),
            path("<int:pk>/unknown/", guard(self.unknown), name="newsletter_issue_unknown"),
            path("<int:pk>/unknown/decide/", guard(self.decide), name="newsletter_issue_decide"),
            *super().get_urls(),
        ]

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        form.instance.renumber_posts()

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {**(extra_context or {}), "ready_posts": composing.ready_posts()}
        return super().changelist_view(request, context)

    @method_decorator(require_POST)
    def compose(self, request: HttpRequest) -> HttpResponse:
        """Make a draft of the posts that are ready."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        try:
            with transaction.atomic():
                issue = composing.propose()
                auditlog.note("issue.compose", issue, actor=request.user)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
            return redirect("admin:newsletter_issue_changelist")
        messages.success(request, _("Here is a draft of what is ready: change it as you like, then choose a date."))
        return redirect("admin:newsletter_issue_change", issue.pk)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show the form and what belongs to it; a pressed button is obeyed after what was typed is saved."""
        issue = Issue.objects.filter(pk=_number(object_id or "")).first()
        may_see = self.has_view_permission(request, issue)
        if request.method == "POST" and issue and not _open_to_change(request, issue) and may_see:
            names = (_("Subject"), "subject"), (_("Preheader"), "preheader"), (_("Introduction"), "introduction")
            typed = [(words, request.POST.get(name, "")) for words, name in names]
            return self.show(request, issue, "late", {"typed": typed})
        context = {**(extra_context or {}), **(_panel(issue) if issue else {}), "may_send": _may_send(request)}
        context["inbox"] = [composing.without_holes(text) for text in (issue.subject, issue.preheader)] if issue else []
        context["acts_form"] = "issue_form" if self.has_change_permission(request, issue) else "issue_acts"
        response = super().changeform_view(request, object_id, form_url, context)
        if isinstance(response, Saved) and issue:
            return self.obey(request, Issue.objects.get(pk=issue.pk))
        return response

    def response_add(self, request: HttpRequest, obj: Issue, post_url_continue: Any = None) -> HttpResponse:
        """A new draft is gone on with on its own page, where the dates and the preview are."""
        messages.success(request, _("The draft is saved."))
        return redirect("admin:newsletter_issue_change", obj.pk)

    def response_change(self, request: HttpRequest, obj: Issue) -> HttpResponse:
        if request.POST.get("act"):
            return Saved(request.path)
        if obj.state == Issue.State.SCHEDULED:
            _warn(request, obj)
        return super().response_change(request, obj)

    @method_decorator(require_POST)
    def act(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self.obey(request, get_object_or_404(Issue, pk=pk))

    def obey(self, request: HttpRequest, issue: Issue) -> HttpResponse:
        """Do what the pressed button says, such as “schedule:7”; a refusal is shown in words on the issue's page."""
        name, _colon, which = request.POST.get("act", "").partition(":")
        if not (_may_send(request) or (name == "mine" and self.has_change_permission(request, issue))):
            raise PermissionDenied
        if name in CONFIRMED and "sure" not in request.POST:
            return self.ask(request, issue, name)
        try:
            with _noted(request, issue, name, which):
                said = self.carry_out(issue, name, which, request)
            messages.success(request, said)
            if name == "schedule":  # once that is committed, for the network may take its time
                for dead in preflight.dead_links(issue):
                    messages.warning(request, dead)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        return redirect("admin:newsletter_issue_change", issue.pk)

    def ask(self, request: HttpRequest, issue: Issue, name: str) -> HttpResponse:
        """Say whom the act concerns, and ask whether it is meant."""
        concerned = CONFIRMED[name](issue)
        if name in MORE and not concerned:
            messages.info(request, _("There is nobody to send it to."))
            return redirect("admin:newsletter_issue_change", issue.pk)
        left_out = issue.counts().resendable - concerned if name == "resend" else 0
        return self.show(request, issue, "sure", {"act": name, "concerned": concerned, "left_out": left_out})

    def carry_out(self, issue: Issue, name: str, which: str, request: HttpRequest) -> str:
        """Carry out one act and return what to tell the author. Raises ValidationError."""
        if name == "schedule":
            delivery.schedule(issue, _slot(which or request.POST.get("slot", "")))
        elif name == "now":
            delivery.send_now(issue)
            tasks.hint([issue.pk])
        elif name in TESTS:
            return _send_tests(request, issue, TESTS[name](request, which))
        elif name in CALENDAR:
            return CALENDAR[name](request, _slot(which))
        elif name in CHECKS:
            return CHECKS[name](request, issue)
        elif name in MORE:
            return _send_more(issue, name)
        elif name in MOVES:
            getattr(issue, name)()
            tasks.hint([issue.pk] if name == "resume" else [])
        else:
            raise ValidationError(_("This button is not known here."))
        issue.refresh_from_db()
        return str(_("Done: the issue is now “%(state)s”.") % {"state": issue.get_state_display()})

    @method_decorator(require_safe)
    def counts(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Answer what is to be seen at this moment, for the page that shows it live."""
        issue = self.found(request, pk, defer=("source",))
        progress = Progress(issue)
        context = {"issue": issue, "progress": progress, "counts": progress.counts, "may_send": _may_send(request)}
        answer = {
            **progress.counts.as_dict(),
            "state": issue.state,
            "label": str(issue.get_state_display()),
            "percent": progress.counts.percent,
            "pace": progress.pace,
            "live": progress.is_live,
            "at": progress.clock,
            "summary": progress.summary,
            "parts": {part: render_to_string(f"{TEMPLATES}/_issue_{part}.html", context, request) for part in PARTS},
        }
        return JsonResponse(answer)

    @method_decorator(require_safe)
    def unknown(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show each copy of which nobody knows whether it was taken, with all that is known."""
        if not _may_look_up(request):
            raise PermissionDenied
        issue = self.found(request, pk)
        rows = issue.deliveries.unknown().order_by("pk").prefetch_related("events")
        page = Paginator(rows, UNKNOWN_A_PAGE).get_page(request.GET.get("page"))
        return self.show(request, issue, "unknown", {"page": page, "may_send": _may_send(request)})

    @method_decorator(require_POST)
    def decide(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Settle unknown copies as the author says: the ticked ones, or all there are."""
        if not (_may_send(request) and _may_look_up(request)):
            raise PermissionDenied
        issue = self.found(request, pk)
        decision, whom = request.POST.get("decision", ""), request.POST.get("whom", "")
        ids = _chosen(issue, whom, request.POST.getlist("id"))
        if decision not in reconciliation.DECISIONS or not ids:
            messages.error(request, _("Choose copies that are still unknown, and what to do with them."))
        elif request.POST.get("sure") != str(len(ids)):  # more or fewer than the author was told: ask again
            return self.show(request, issue, "decide", {"decision": decision, "whom": whom, "ids": ids})
        else:
            self.settle(request, issue, ids, decision)
        return redirect("admin:newsletter_issue_unknown", pk)

    def settle(self, request: HttpRequest, issue: Issue, ids: list[int], decision: str) -> None:
        try:
            with auditlog.acting("issue.decide", issue, actor=request.user, decision=decision) as detail:
                count = reconciliation.decide(issue, ids, decision, by=request.user.get_username())
                detail["copies"] = count
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
            return
        delivery.settle_issue(issue.pk)
        tasks.hint([issue.pk] if decision == "again" else [])
        messages.success(request, ngettext("%d copy decided.", "%d copies decided.", count) % count)

    def found(self, request: HttpRequest, pk: int, *, defer: tuple[str, ...] = ()) -> Issue:
        """Return the issue for somebody who may see it. Raises PermissionDenied or Http404."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return get_object_or_404(Issue.objects.defer(*defer), pk=pk)

    def show(self, request: HttpRequest, issue: Issue, page: str, context: dict[str, Any]) -> HttpResponse:
        context = {**self.admin_site.each_context(request), "title": str(issue), "issue": issue, **context}
        return render(request, f"{TEMPLATES}/issue_{page}.html", context)

    @method_decorator([require_safe, xframe_options_sameorigin, csp(PREVIEW_POLICY)])
    def preview(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self.look(request, pk, rendering.preview_html, "text/html")

    @method_decorator([require_safe, xframe_options_sameorigin, csp(PREVIEW_POLICY)])
    def text(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self.look(request, pk, rendering.preview_text, "text/plain")

    def look(self, request: HttpRequest, pk: int, part: Callable[..., str], kind: str) -> HttpResponse:
        """Answer a part of the mail, as a reader without a name or the one whose address was given gets it."""
        issue = self.found(request, pk)
        try:
            shown = part(issue, _reader(request))
        except (ValidationError, ValueError) as error:
            shown, kind = " ".join(getattr(error, "messages", [str(error)])), "text/plain"
        return HttpResponse(shown, content_type=f"{kind}; charset=utf-8")


def _warn(request: HttpRequest, issue: Issue) -> None:
    """Say at once what the change of an issue that goes by itself has brought in: it goes on time all the same."""
    for found in preflight.blocking(issue):
        messages.warning(request, _("It goes as it stands, but: %(found)s") % {"found": found.in_words})


def _may_send(request: HttpRequest) -> bool:
    return request.user.has_perm("newsletter.send_issue")


def _reader(request: HttpRequest) -> Subscriber | None:
    """Return the reader as whom to look at a mail, if one was asked for. Raises ValidationError where there is none."""
    words = request.GET.get("as", "").replace("\0", "").strip()
    if not words:
        return None
    if not request.user.has_perm("subscribers.view_subscriber"):
        raise PermissionDenied
    reader = Subscriber.objects.filter(key=history.key_of(words) or words).first()
    if reader is None:
        raise ValidationError(_("No reader has the address “%(address)s”."), params={"address": words})
    return reader


def _joined(issue: Issue) -> int:
    """Count the readers who may be mailed and have no copy of the issue under their name or address."""
    copies = Delivery.objects.filter(issue=issue)
    by_name, by_address = copies.filter(subscriber=OuterRef("pk")), copies.filter(address_key=OuterRef("key"))
    return issue.audience().filter(~Exists(by_name), ~Exists(by_address)).count()


TEMPLATES = "admin/newsletter"
PARTS = ("live", "acts")
MOVES = {"unschedule", "pause", "resume", "cancel"}
MORE = {"resend": delivery.resend_failed, "joined": delivery.send_to_joined}
# What asks first, and how many copies it concerns.
CONFIRMED = {
    "now": lambda issue: issue.audience().count(),
    "cancel": lambda issue: issue.counts().open,
    "resend": lambda issue: issue.deliveries.resendable().count(),
    "joined": _joined,
}


def _typed(request: HttpRequest, which: str) -> list[str]:
    return [request.POST.get("to", "").strip()]


def _own(request: HttpRequest, which: str) -> list[str]:
    address = getattr(request.user, "email", "")
    if not address:
        raise ValidationError(_("Your account has no e-mail address: add one on the page of people."))
    return [address]


def _of_group(request: HttpRequest, which: str) -> list[str]:
    return get_object_or_404(PreviewGroup, pk=_number(which)).recipients


# To whom a test goes: to the address that was typed, to who presses the button, to a group.
TESTS = {"test": _typed, "mine": _own, "group": _of_group}


def _send_tests(request: HttpRequest, issue: Issue, to: list[str]) -> str:
    """Send a test to each address and say of each that failed why. Raises ValidationError where none went."""
    for address in to:
        validate_recipient(address)
    failed = delivery.send_tests(issue, to)
    went = [address for address in to if address not in failed]
    why = [_("Not to %(to)s: %(error)s.") % {"to": address, "error": said} for address, said in failed.items()]
    if not went:
        raise ValidationError([_("The mail server did not take the test."), *why])
    for each in why:
        messages.error(request, each)
    return str(_("A test went to %(to)s.") % {"to": ", ".join(went)})


def _slot(which: str) -> Slot:
    return get_object_or_404(Slot, pk=_number(which))


def _hold(request: HttpRequest, slot: Slot) -> str:
    slot.hold()
    return str(_("Nothing goes out on %(date)s.") % {"date": slot})


def _release(request: HttpRequest, slot: Slot) -> str:
    slot.release()
    return str(_("%(date)s is open again.") % {"date": slot})


def _move(request: HttpRequest, slot: Slot) -> str:
    """Move a date to the local time that was typed. Raises ValidationError."""
    typed, zone = request.POST.get(f"move_{slot.pk}", ""), Publication.current().zone
    try:
        wall = dt.datetime.fromisoformat(typed).replace(tzinfo=None)
    except ValueError as error:
        raise ValidationError(_("Write the new date and time as 2030-01-07 09:00.")) from error
    slot.move(schedule.instant(wall.date(), wall.time(), zone))
    return str(_("Moved to %(at)s.") % {"at": in_zone(slot.due_at, zone)})


CALENDAR = {"hold": _hold, "release": _release, "move": _move}


def _waive(request: HttpRequest, issue: Issue) -> str:
    check_id, place, reason = (request.POST.get(name, "") for name in ("check", "place", "reason"))
    preflight.waive(issue, check_id, place, reason, by=request.user.get_username())
    return str(_("It may stand: your reason is kept with the issue."))


def _ask_links(request: HttpRequest, issue: Issue) -> str:
    """Ask the issue's links whether they answer. Raises ValidationError that names those that lead nowhere."""
    if dead := preflight.dead_links(issue):
        raise ValidationError(dead)
    return str(_("Every link that could be asked answers."))


CHECKS = {"waive": _waive, "links": _ask_links}


def _noted(request: HttpRequest, issue: Issue, name: str, which: str) -> AbstractContextManager[Any]:
    """Note who pressed what, in one transaction with what it does; asking links changes nothing."""
    if name == "links":
        return nullcontext()
    slot = Slot.objects.filter(pk=_number(which)).first() if name in CALENDAR else None
    detail = {key: request.POST[key] for key in ("to", "check", "place", "reason") if key in request.POST}
    act = f"{'slot' if slot else 'issue'}.{name}"[:60]
    return auditlog.acting(act, slot or issue, actor=request.user, **detail)


def _number(text: str) -> int:
    """Return the key that a form sent, or 0, which is nobody's."""
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _send_more(issue: Issue, name: str) -> str:
    count = MORE[name](issue)
    tasks.hint([issue.pk])
    return ngettext("%d copy is on its way.", "%d copies are on their way.", count) % count


def _chosen(issue: Issue, whom: str, ids: list[str]) -> list[int]:
    """Return which unknown copies are meant: the ticked ones, or all of the issue's."""
    rows = issue.deliveries.unknown()
    if whom != "all":
        rows = rows.filter(pk__in=[_number(text) for text in ids])
    return list(rows.order_by("pk").values_list("pk", flat=True))


def _panel(issue: Issue) -> dict[str, Any]:
    """Return what the panel above the form shows in the issue's present state."""
    if issue.is_editable:
        return {**_desk(issue), "why_not": instance.why_not()}
    progress = Progress(issue)
    return {
        "issue": issue,
        "progress": progress,
        "counts": progress.counts,
        "why_not": instance.why_not(),
        "waivers": issue.waivers.all(),
    }


def _desk(issue: Issue) -> dict[str, Any]:
    """Return what is to be decided while an issue can still be changed."""
    sweeper.ensure_slots()
    slots = composing.dates()
    return {
        "issue": issue,
        "readers": issue.audience().count(),
        "slots": slots,
        "next_slot": composing.next_open(slots),
        "queue": composing.queue(without=issue),
        "groups": PreviewGroup.objects.all(),
        **_fitness(issue),
    }


def _fitness(issue: Issue) -> dict[str, Any]:
    """Return what keeps the issue from going, in words, the size of its mail, and what preflight found."""
    problems = [str(problem) for problem in issue.missing().values()]
    try:
        return {"missing": problems, **preflight.panel(issue)}
    except ValueError as error:
        return {"missing": [*problems, str(error)]}


@admin.register(PreviewGroup)
class PreviewGroupAdmin(auditlog.Noted, ModelAdmin):
    """Who gets test mails together."""

    noted = "previewgroup"
    list_display = ["name", "who"]
    fields = ["name", "addresses"]

    @admin.display(description=_("addresses"))
    def who(self, group: PreviewGroup) -> str:
        return ", ".join(group.recipients)


class DeliveryEventInline(ReadOnly, TabularInline):
    model = DeliveryEvent
    fields = ["at", "kind", "provider_id", "detail"]
    readonly_fields = fields
    ordering = ["at"]
    extra = 0


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly, ModelAdmin):
    """The ledger, to look things up in: nobody writes here by hand."""

    list_display = [
        "address", "issue", "state", "reason", "reply_class", "smtp_code", "enhanced_code", "attempt", "updated_at",
    ]  # fmt: skip
    list_filter = ["state", "issue"]
    list_select_related = ["issue"]
    search_fields = ["address_key"]
    search_help_text = _("An address in any spelling, or how it begins")
    show_full_result_count = False
    list_per_page = 50
    ordering = ["-id"]
    inlines = [DeliveryEventInline]
    readonly_fields = ["message_id"]
    fieldsets = [
        (None, {"fields": ["issue", "subscriber", "address", "name", "message_id"]}),
        (
            _("What became of it"),
            {"fields": ["state", "reason", "at_freeze", "attempt", "next_attempt_at", "accepted_at", "updated_at"]},
        ),
        (
            _("What was answered"),
            {"fields": ["phase", "smtp_code", "enhanced_code", "reply_class", "reply_text", "provider_id"]},
        ),
        (_("Who had it"), {"fields": ["lease", "fence", "render_sha256"]}),
    ]

    class Media:
        css = {"all": ["newsletter/issue.css"]}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        words = search_term.strip().lower()
        if not words:
            return queryset, False
        readers = [reader.pk for reader in history.alike(words)]
        return queryset.filter(Q(address_key=history.key_of(words) or words) | Q(subscriber__in=readers)), False

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.history)
        return [path("history/", view, name="newsletter_delivery_history"), *super().get_urls()]

    @method_decorator(require_safe)
    def history(self, request: HttpRequest) -> HttpResponse:
        """Answer what happened to an address: the reader, and his copies of all issues."""
        if not _may_look_up(request):
            raise PermissionDenied
        words = request.GET.get("q", "").replace("\0", "").strip()
        found = history.look_up(words) if words else {}
        context = {**self.admin_site.each_context(request), "title": _("What happened to …"), "q": words, **found}
        return render(request, f"{TEMPLATES}/delivery_history.html", context)


@admin.register(DeliveryEvent)
class DeliveryEventAdmin(ReadOnly, ModelAdmin):
    list_display = ["kind", "delivery", "provider_id", "at"]
    list_filter = ["kind"]
    list_select_related = ["delivery"]
    show_full_result_count = False


def _may_look_up(request: HttpRequest) -> bool:
    return request.user.has_perms(["newsletter.view_delivery", "subscribers.view_subscriber"])
