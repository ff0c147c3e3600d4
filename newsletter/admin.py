"""The author's desk for what is sent: the calendar, the issues, and the ledger to look things up in."""

from __future__ import annotations

from typing import Any

from csp.constants import NONE, SELF, UNSAFE_INLINE
from csp.decorators import csp
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.validators import validate_email
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_POST, require_safe
from unfold.admin import ModelAdmin, TabularInline

from newsletter import delivery, rendering, sweeper, tasks
from newsletter.models import Delivery, DeliveryEvent, Issue, IssuePost, Slot
from posts.admin import MarkdownEditor
from posts.models import Publication
from subscribers.admin import ReadOnly
from subscribers.models import Subscriber

SLOTS_SHOWN = 8
# The preview is a mail: its styles are inline, and nothing in it may run.
PREVIEW_POLICY = {
    "default-src": [NONE],
    "style-src": [UNSAFE_INLINE],
    "img-src": [SELF, "https:"],
    "frame-ancestors": [SELF],
    "sandbox": True,
}


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
        try:
            obj.move(obj.due_at)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))

    @admin.action(description=_("Hold: nothing goes out on these dates"))
    def hold(self, request: HttpRequest, queryset: QuerySet[Slot]) -> None:
        self.each(request, [slot.hold for slot in queryset])

    @admin.action(description=_("Open these dates again"))
    def release(self, request: HttpRequest, queryset: QuerySet[Slot]) -> None:
        self.each(request, [slot.release for slot in queryset])

    def each(self, request: HttpRequest, acts: list[Any]) -> None:
        for act in acts:
            try:
                act()
            except ValidationError as error:
                messages.error(request, " ".join(error.messages))


class IssuePostInline(TabularInline):
    model = IssuePost
    fields = ["position", "post", "mode"]
    autocomplete_fields = ["post"]
    extra = 1

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(obj) and super().has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(obj) and super().has_delete_permission(request, obj)


def _open_to_change(issue: Issue | None) -> bool:
    return issue is None or issue.is_editable


class IssueForm(forms.ModelForm):
    class Meta:
        model = Issue
        fields = ["subject", "preheader", "introduction"]
        widgets = {"introduction": MarkdownEditor()}


@admin.register(Issue)
class IssueAdmin(ModelAdmin):
    """Compose, look at it, try it, and send it; every move is a button that says what happens."""

    form = IssueForm
    list_display = ["number", "subject", "state", "due_at", "planned", "completed_at"]
    list_display_links = ["number", "subject"]
    list_filter = ["state"]
    search_fields = ["subject"]
    inlines = [IssuePostInline]
    warn_unsaved_form = True
    change_form_outer_before_template = "admin/newsletter/issue_panel.html"

    class Media:
        js = ["newsletter/counts.js"]
        css = {"all": ["newsletter/issue.css"]}

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _open_to_change(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What was numbered stays: the archive and the ledger speak of it."""
        return (obj is None or obj.number is None) and super().has_delete_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Issue, form: Any, change: bool) -> None:
        if change:
            obj.save(update_fields=["subject", "preheader", "introduction"])
        else:
            obj.save()

    def get_urls(self) -> list[URLPattern]:
        guard = self.admin_site.admin_view
        return [
            path("<int:pk>/act/", guard(self.act), name="newsletter_issue_act"),
            path("<int:pk>/counts/", guard(self.counts), name="newsletter_issue_counts"),
            path("<int:pk>/preview/", guard(self.preview), name="newsletter_issue_preview"),
            path("<int:pk>/text/", guard(self.text), name="newsletter_issue_text"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        issue = Issue.objects.filter(pk=object_id).first() if object_id.isdecimal() else None
        context = {**(extra_context or {}), **(_panel(issue) if issue else {})}
        context["may_send"] = _may_send(request)
        return super().change_view(request, object_id, form_url, context)

    @method_decorator(require_POST)
    def act(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Do what the pressed button says; a refusal is shown in words on the issue's page."""
        issue = get_object_or_404(Issue, pk=pk)
        name = request.POST.get("act", "")
        if not _may_send(request):
            raise PermissionDenied
        if name in CONFIRMED and "sure" not in request.POST:
            context = {**self.admin_site.each_context(request), "issue": issue, "act": name, "readers": _readers()}
            return render(request, "admin/newsletter/issue_sure.html", context)
        try:
            messages.success(request, self.carry_out(issue, name, request))
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        return redirect("admin:newsletter_issue_change", pk)

    def carry_out(self, issue: Issue, name: str, request: HttpRequest) -> str:
        """Carry out one act and return what to tell the author. Raises ValidationError."""
        if name == "schedule":
            issue.schedule(get_object_or_404(Slot, pk=int(request.POST.get("slot") or 0)))
        elif name == "now":
            delivery.send_now(issue)
            tasks.hint([issue.pk])
        elif name == "test":
            return _send_test(issue, request.POST.get("to", ""))
        elif name in MOVES:
            getattr(issue, name)()
            tasks.hint([issue.pk] if name == "resume" else [])
        else:
            raise ValidationError(_("This button is not known here."))
        issue.refresh_from_db()
        return str(_("Done: the issue is now “%(state)s”.") % {"state": issue.get_state_display()})

    @method_decorator(require_safe)
    def counts(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Answer the counts of this moment, for the page that shows them live."""
        issue = get_object_or_404(Issue, pk=pk)
        counts = issue.counts()
        names = ("audience", "sent", "skipped", "failed", "unknown", "open")
        answer: dict[str, Any] = {name: getattr(counts, name) for name in names}
        return JsonResponse({**answer, "state": issue.state, "label": str(issue.get_state_display())})

    @method_decorator([require_safe, xframe_options_sameorigin, csp(PREVIEW_POLICY)])
    def preview(self, request: HttpRequest, pk: int) -> HttpResponse:
        return HttpResponse(rendering.preview_html(get_object_or_404(Issue, pk=pk)))

    @method_decorator([require_safe, csp(PREVIEW_POLICY)])
    def text(self, request: HttpRequest, pk: int) -> HttpResponse:
        text = rendering.preview_text(get_object_or_404(Issue, pk=pk))
        return HttpResponse(text, content_type="text/plain; charset=utf-8")


MOVES = {"unschedule", "pause", "resume", "cancel"}
CONFIRMED = {"now", "cancel"}


def _may_send(request: HttpRequest) -> bool:
    return request.user.has_perm("newsletter.send_issue")


def _readers() -> int:
    return Subscriber.objects.mailable().count()


def _send_test(issue: Issue, to: str) -> str:
    validate_email(to)
    delivery.send_test(issue, to=to)
    return str(_("A test went to %(to)s.") % {"to": to})


def _panel(issue: Issue) -> dict[str, Any]:
    """Return what the panel above the form shows in the issue's present state."""
    if issue.is_editable:
        sweeper.ensure_slots()
    slots = Slot.objects.upcoming().open()[:SLOTS_SHOWN] if issue.is_editable else []
    zone = Publication.current().zone
    return {
        "issue": issue,
        "counts": issue.counts(),
        "readers": _readers(),
        "slots": [
            (slot.pk, f"{slot.due_at.astimezone(zone):%A %d %b %Y, %H:%M} {zone}", slot.due_at) for slot in slots
        ],
        "local_due": f"{issue.due_at.astimezone(zone):%A %d %b %Y, %H:%M} {zone}" if issue.due_at else "",
        "missing": issue.missing().values() if issue.is_editable else [],
        "size_kb": round(rendering.size_bytes(issue) / 1000),
    }


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly, ModelAdmin):
    """The ledger, to look things up in: nobody writes here by hand."""

    list_display = ["address", "issue", "state", "reason", "smtp_code", "enhanced_code", "attempt", "updated_at"]
    list_filter = ["state", "issue"]
    list_select_related = ["issue"]
    search_fields = ["address_key"]
    search_help_text = _("An address in any spelling, or how it begins")
    show_full_result_count = False
    list_per_page = 50
    ordering = ["-id"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        words = search_term.strip().lower()
        return (queryset.filter(Q(address_key__startswith=words)) if words else queryset), False


@admin.register(DeliveryEvent)
class DeliveryEventAdmin(ReadOnly, ModelAdmin):
    list_display = ["kind", "delivery", "provider_id", "at"]
    list_filter = ["kind"]
    show_full_result_count = False


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add to the admin's first page: the next date, and what is under way."""
    busy = Issue.objects.filter(state__in=["sending", "paused", "needs_review"])
    slot = Slot.objects.upcoming().exclude(state=Slot.State.HELD).first()
    return {
        **context,
        "busy_issues": [(issue, issue.counts(), _change_url(issue)) for issue in busy[:5]],
        "next_slot": slot,
        "next_issue": Issue.objects.filter(slot=slot).first() if slot else None,
        "now": timezone.now(),
    }


def _change_url(issue: Issue) -> str:
    return reverse("admin:newsletter_issue_change", args=[issue.pk])
