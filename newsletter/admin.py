"""The author's desk for what is sent: the calendar, the issues, and the ledger to look things up in."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from csp.constants import NONE, SELF, UNSAFE_INLINE
from csp.decorators import csp
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.core.validators import validate_email
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.timesince import timeuntil
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_POST, require_safe
from unfold.admin import ModelAdmin, TabularInline

from newsletter import delivery, message, reconciliation, rendering, sweeper, tasks
from newsletter.models import Counts, Delivery, DeliveryEvent, Group, Issue, IssuePost, Lease, Slot
from newsletter.replies import Class
from posts.admin import MarkdownEditor
from posts.models import Publication
from subscribers import addresses, instance
from subscribers.admin import ReadOnly
from subscribers.models import Subscriber, Suppression

SLOTS_SHOWN = 8
UNKNOWN_A_PAGE = 100
ALIKE_SHOWN = 20
COPIES_SHOWN = 200
State = Delivery.State
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
        js = [forms.Script("newsletter/counts.js", type="module")]
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
            path("<int:pk>/unknown/", guard(self.unknown), name="newsletter_issue_unknown"),
            path("<int:pk>/unknown/decide/", guard(self.decide), name="newsletter_issue_decide"),
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
            return self.ask(request, issue, name)
        try:
            messages.success(request, self.carry_out(issue, name, request))
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        return redirect("admin:newsletter_issue_change", pk)

    def ask(self, request: HttpRequest, issue: Issue, name: str) -> HttpResponse:
        """Say whom the act concerns, and ask whether it is meant."""
        concerned = CONFIRMED[name](issue)
        if name in MORE and not concerned:
            messages.info(request, _("There is nobody to send it to."))
            return redirect("admin:newsletter_issue_change", issue.pk)
        left_out = issue.counts().resendable - concerned if name == "resend" else 0
        return self.show(request, issue, "sure", {"act": name, "concerned": concerned, "left_out": left_out})

    def carry_out(self, issue: Issue, name: str, request: HttpRequest) -> str:
        """Carry out one act and return what to tell the author. Raises ValidationError."""
        if name == "schedule":
            delivery.schedule(issue, get_object_or_404(Slot, pk=_number(request.POST.get("slot", ""))))
        elif name == "now":
            delivery.send_now(issue)
            tasks.hint([issue.pk])
        elif name == "test":
            return _send_test(issue, request.POST.get("to", ""))
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
            count = reconciliation.decide(issue, ids, decision, by=request.user.get_username())
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
        return HttpResponse(rendering.preview_html(self.found(request, pk)))

    @method_decorator([require_safe, csp(PREVIEW_POLICY)])
    def text(self, request: HttpRequest, pk: int) -> HttpResponse:
        text = rendering.preview_text(self.found(request, pk))
        return HttpResponse(text, content_type="text/plain; charset=utf-8")


def _may_send(request: HttpRequest) -> bool:
    return request.user.has_perm("newsletter.send_issue")


def _readers() -> int:
    return Subscriber.objects.mailable().count()


def _joined(issue: Issue) -> int:
    """Count the readers who may be mailed and have no copy of the issue under their name or address."""
    copies = Delivery.objects.filter(issue=issue)
    by_name, by_address = copies.filter(subscriber=OuterRef("pk")), copies.filter(address_key=OuterRef("key"))
    return Subscriber.objects.mailable().filter(~Exists(by_name), ~Exists(by_address)).count()


TEMPLATES = "admin/newsletter"
PARTS = ("live", "acts")
MOVES = {"unschedule", "pause", "resume", "cancel"}
MORE = {"resend": delivery.resend_failed, "joined": delivery.send_to_joined}
# What asks first, and how many copies it concerns.
CONFIRMED = {
    "now": lambda issue: _readers(),
    "cancel": lambda issue: issue.counts().open,
    "resend": lambda issue: issue.deliveries.resendable().count(),
    "joined": _joined,
}


def _send_test(issue: Issue, to: str) -> str:
    validate_email(to)
    try:
        message.one_address(to)
    except ValueError as error:
        raise ValidationError(_("Mail can't go to this address: %(to)s") % {"to": to}) from error
    delivery.send_test(issue, to=to)
    return str(_("A test went to %(to)s.") % {"to": to})


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
    return {"issue": issue, "progress": progress, "counts": progress.counts, "why_not": instance.why_not()}


def _desk(issue: Issue) -> dict[str, Any]:
    """Return what is to be decided while an issue can still be changed."""
    sweeper.ensure_slots()
    return {
        "issue": issue,
        "readers": _readers(),
        "slots": Slot.objects.upcoming().open()[:SLOTS_SHOWN],
        "missing": issue.missing().values(),
        "size_kb": round(rendering.size_bytes(issue) / 1000),
    }


# What became of copies that were answered, and which answers the page lists.
BECAME = {
    State.DEFERRED: _("put off"),
    State.REJECTED: _("rejected"),
    State.EXPIRED: _("given up"),
    State.FAILED: _("could not be made"),
    State.UNCERTAIN: _("unknown, looked into"),
    State.UNCERTAIN_FINAL: _("unknown"),
}
# What an answer is about, in the words of one who has never read an RFC.
ABOUT = {
    Class.HARD_ADDRESS: _("there is no such mailbox"),
    Class.SOFT_ADDRESS: _("the mailbox is full or out of reach for now"),
    Class.SENDER_FAULT: _("about the sender or what was written, not the reader"),
    Class.CONTENT_SIZE: _("the mail is too large"),
    Class.RATE: _("asked for a slower pace"),
    Class.QUOTA: _("the account's allowance is used up"),
    Class.UNKNOWN: _("no reason that is known here"),
}
UNDER_WAY = {Issue.State.FROZEN, Issue.State.SENDING, Issue.State.PAUSED}
SETTLED = {State.ACCEPTED, *Delivery.FAILURES, *Delivery.UNKNOWN}
MINUTE = dt.timedelta(minutes=1)


@dataclass(frozen=True)
class Answered:
    """So many copies got this kind of answer; `example` is one of the answers, word for word."""

    count: int
    became: Any
    about: Any
    example: str


class Progress:
    """What is to be seen of an issue at one moment; counted in one scan of its copies."""

    def __init__(self, issue: Issue) -> None:
        self.issue = issue
        self.now = timezone.now()
        self.groups = issue.deliveries.groups()
        self.counts = Counts.of_groups(self.groups)

    @property
    def is_live(self) -> bool:
        """Whether anything may still change by itself."""
        return self.issue.state in UNDER_WAY or bool(self.counts.open or self.counts.of([State.UNCERTAIN]))

    @property
    def clock(self) -> str:
        return f"{self.now.astimezone(Publication.current().zone):%H:%M:%S}"

    @property
    def summary(self) -> str:
        """Return what a screen reader says when it changes: seldom, so in steps of ten per cent."""
        steps = self.counts.percent // 10 * 10
        return str(_("%(state)s, %(percent)s %% done") % {"state": self.issue.get_state_display(), "percent": steps})

    @property
    def pace(self) -> int:
        """Return how many copies were settled within the last minute; while it is younger, as if it went on so."""
        lately = sum(group.lately for group in self.groups if group.state in SETTLED)
        age = self.now - (self.issue.started_at or self.now)
        return round(lately * MINUTE / max(min(age, MINUTE), dt.timedelta(seconds=1)))

    @property
    def average(self) -> int:
        """Return how many copies were settled a minute since it began."""
        age = (self.issue.completed_at or self.now) - (self.issue.started_at or self.now)
        return round(self.counts.of(SETTLED) * MINUTE / max(age, dt.timedelta(seconds=1)))

    @property
    def left(self) -> str:
        """Return about how long it takes at the present pace, rounded up; empty where nothing goes."""
        pace = self.pace if self.issue.state == Issue.State.SENDING else 0
        minutes = -(-self.counts.open // pace) if pace else 0
        return timeuntil(self.now + minutes * MINUTE, self.now) if minutes else ""

    @property
    def retries(self) -> int:
        return sum(group.waiting for group in self._waiting)

    @property
    def next_try(self) -> dt.datetime | None:
        """Return when the first of those that wait is tried again; None where it is due now."""
        first = min((group.next_at for group in self._waiting if group.next_at), default=None)
        return first if first and first > self.now else None

    @property
    def _waiting(self) -> list[Group]:
        return [group for group in self.groups if group.state in (State.DEFERRED, State.PENDING)]

    @cached_property
    def answered(self) -> list[Answered]:
        """Return the answers by kind, the most frequent first."""
        told = sorted((group for group in self.groups if group.state in BECAME), key=lambda group: -group.count)
        examples = Delivery.objects.in_bulk([group.example for group in told])
        return [
            Answered(
                group.count, BECAME[State(group.state)], _about(group.reply_class), _words(examples.get(group.example))
            )
            for group in told
        ]

    @cached_property
    def workers(self) -> list[Lease]:
        """Return who is at work on the issue now, by the database's clock."""
        return list(self.issue.leases.filter(ended_at=None, expires_at__gt=Now()).order_by("started_at"))


def _about(reply_class: str) -> Any:
    return ABOUT.get(Class(reply_class), "") if reply_class in set(Class) else ""


def _words(row: Delivery | None) -> str:
    """Return what the relay said last of a copy, with its code."""
    return f"{row.smtp_code or ''} {row.reply_text}".strip() if row else ""


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
        readers = [reader.pk for reader in _alike(words)]
        return queryset.filter(Q(address_key=_key(words) or words) | Q(subscriber__in=readers)), False

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.history)
        return [path("history/", view, name="newsletter_delivery_history"), *super().get_urls()]

    @method_decorator(require_safe)
    def history(self, request: HttpRequest) -> HttpResponse:
        """Answer what happened to an address: the reader, and his copies of all issues."""
        if not _may_look_up(request):
            raise PermissionDenied
        words = request.GET.get("q", "").strip()
        found = _look_up(words) if words else {}
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


def _key(words: str) -> str:
    """Return the canonical form of an address, or nothing where it is none."""
    try:
        return addresses.canonical(words)
    except addresses.InvalidAddress:
        return ""


def _alike(words: str) -> list[Subscriber]:
    return list(Subscriber.objects.filter(key__startswith=words.lower()).order_by("key")[: ALIKE_SHOWN + 1])


@dataclass(frozen=True)
class Copy:
    """A row of the ledger, and what became of it in words."""

    row: Delivery
    words: str

    def is_of(self, reader: Subscriber) -> bool:
        return self.row.subscriber_id == reader.pk


@dataclass(frozen=True)
class History:
    """One reader's copies, newest issue first; the reader is None where only an address is known."""

    reader: Subscriber | None
    suppression: Suppression | None
    copies: list[Copy]


TERMS = {
    State.SKIPPED: _("Skipped"),
    **dict.fromkeys(Delivery.FAILURES, _("Failed")),
    **dict.fromkeys(Delivery.OPEN, _("Open")),
}


def _look_up(words: str) -> dict[str, Any]:
    """Return the histories of those who have the address or had it, or the readers among whom to choose."""
    key = _key(words)
    mailed = set(Delivery.objects.filter(address_key=key).values_list("subscriber_id", flat=True)) if key else set()
    readers = list(Subscriber.objects.filter(Q(key=key) | Q(pk__in=mailed)).order_by("pk")) if key else []
    alike = [] if readers or mailed else _alike(words)
    if len(alike) > 1:
        return {"alike": alike[:ALIKE_SHOWN], "more_alike": len(alike) > ALIKE_SHOWN}
    return {"histories": _histories(readers or alike, key)}


def _histories(readers: list[Subscriber], key: str) -> list[History]:
    """Put together what is known of these readers, and of the address where it is nobody's."""
    hashes = {reader.pk: bytes(reader.address_hash) for reader in readers}
    stray = addresses.keyed_hash(key) if key else b""
    known = Suppression.objects.filter(address_hash__in=[*hashes.values(), stray])
    suppressions = {bytes(suppression.address_hash): suppression for suppression in known}
    copies = _copies(list(hashes), key)
    found = [
        History(reader, suppressions.get(hashes[reader.pk]), [copy for copy in copies if copy.is_of(reader)])
        for reader in readers
    ]
    rest = [copy for copy in copies if copy.row.subscriber_id not in hashes]
    nobodys = None if stray in hashes.values() else suppressions.get(stray)
    return found + ([History(None, nobodys, rest)] if rest or nobodys else [])


def _copies(readers: list[int], key: str) -> list[Copy]:
    """Return the copies that went to these readers or to the address, newest issue first."""
    whose = Q(subscriber__in=readers) | (Q(address_key=key) if key else Q(subscriber__in=[]))
    rows = Delivery.objects.filter(whose).select_related("issue").defer("issue__source").prefetch_related("events")
    return [Copy(row, _in_words(row)) for row in rows.order_by("-issue_id", "-pk")[:COPIES_SHOWN]]


def _in_words(row: Delivery) -> str:
    """Say what became of a copy in the words of the equation, and how."""
    state = State(row.state)
    if state in Delivery.UNKNOWN or state == State.ACCEPTED:
        return str(state.label)
    detail = row.get_reason_display() if state == State.SKIPPED else state.label
    return f"{TERMS[state]}: {detail}"
