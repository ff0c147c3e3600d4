"""The author's view of his readers: who they are, what they agreed to, and whom never to mail."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import UnfoldAdminEmailInputWidget

from posts import auditlog
from posts.models import Tag
from subscribers import addresses, subscription
from subscribers.models import Consent, Subscriber, Suppression, SystemMail


class ReadOnly:
    """Mixed into an admin that only shows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ConsentInline(ReadOnly, TabularInline):
    model = Consent
    fields = ["at", "kind", "page", "ip", "wording", "detail"]
    readonly_fields = fields
    extra = 0


class TopicFilter(admin.SimpleListFilter):
    """By what readers chose on their desk."""

    title = _("topic")
    parameter_name = "topic"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(tag.pk), tag.name) for tag in Tag.objects.filter(offered=True)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Subscriber]) -> QuerySet[Subscriber]:
        chosen = self.value() or ""
        return queryset.filter(topics__contains=[int(chosen)]) if chosen.isdecimal() else queryset


@admin.register(Subscriber)
class SubscriberAdmin(ReadOnly, ModelAdmin):
    """Nobody's state is edited by hand: the actions go the way that the reader's own buttons go."""

    list_display = ["address", "name", "status", "suppressed", "source", "created_at", "confirmed_at"]
    list_filter = ["status", "suppressed", TopicFilter, "source"]
    sortable_by = ["created_at"]  # what an index serves, with a million readers
    search_fields = ["key"]
    search_help_text = _("An address in any spelling, or how it begins")
    fields = [
        "address", "name", "status", "suppressed", "paused_until", "source", "created_at", "confirmed_at",
        "unsubscribed_at", "left_because", "frequency", "language",
    ]  # fmt: skip
    inlines = [ConsentInline]
    actions = ["unsubscribe", "suppress"]
    show_full_result_count = False
    list_per_page = 50

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Subscriber], search_term: str
    ) -> tuple[QuerySet[Subscriber], bool]:
        words = search_term.strip().lower()
        try:
            exact = addresses.canonical(words)
        except addresses.InvalidAddress:
            exact = words
        return (queryset.filter(Q(key=exact) | Q(key__startswith=words)) if words else queryset), False

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("subscribers.change_subscriber")

    @admin.action(description=_("Unsubscribe the chosen readers"), permissions=["act"])
    def unsubscribe(self, request: HttpRequest, queryset: QuerySet[Subscriber]) -> None:
        left = sum(subscription.unsubscribe(pk) for pk in queryset.values_list("pk", flat=True))
        messages.success(request, ngettext("%d reader unsubscribed.", "%d readers unsubscribed.", left) % left)

    @admin.action(description=_("Never mail the chosen readers again"), permissions=["act"])
    def suppress(self, request: HttpRequest, queryset: QuerySet[Subscriber]) -> None:
        readers = [reader.address for reader in queryset if reader.address]
        for address in readers:
            subscription.suppress(address, reason=Suppression.Reason.MANUAL, note=f"by {request.user}")
        count = len(readers)
        messages.success(request, ngettext("%d address suppressed.", "%d addresses suppressed.", count) % count)


class SuppressionForm(forms.ModelForm):
    """Suppress by address; only its keyed hash is kept."""

    address = forms.EmailField(widget=UnfoldAdminEmailInputWidget)

    class Meta:
        model = Suppression
        fields = ["reason", "note"]

    def clean_address(self) -> str:
        try:
            key = addresses.canonical(self.cleaned_data["address"])
        except addresses.InvalidAddress as error:
            raise forms.ValidationError(str(error)) from error
        self.instance.address_hash = addresses.keyed_hash(key)
        if Suppression.objects.filter(address_hash=self.instance.address_hash).exists():
            raise forms.ValidationError(_("This address is suppressed already."))
        return key


@admin.register(Suppression)
class SuppressionAdmin(auditlog.Noted, ModelAdmin):
    noted = "suppression"
    form = SuppressionForm
    fields = ["address", "reason", "note"]
    list_display = ["__str__", "reason", "note", "created_at"]
    list_filter = ["reason"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ["reason", "note", "created_at"] if obj else self.fields


@admin.register(SystemMail)
class SystemMailAdmin(ReadOnly, ModelAdmin):
    list_display = ["kind", "subscriber", "created_at", "due_at", "sent_at", "failed_at", "attempts"]
    list_filter = ["kind"]
    list_select_related = ["subscriber"]
    fields = ["kind", "subscriber", "address", "created_at", "due_at", "attempts", "sent_at", "failed_at", "error"]
    show_full_result_count = False
