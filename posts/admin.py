"""The author's desk for what we say: the publication, posts, tags, and what the front page features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import NON_FIELD_ERRORS, PermissionDenied, ValidationError
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import UploadedFile
from django.core.paginator import Paginator
from django.db import models, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST
from unfold.admin import ModelAdmin
from unfold.widgets import (
    UnfoldAdminColorInputWidget,
    UnfoldAdminImageFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
)

from posts import auditlog, images, revisions, tasks
from posts.models import FRONT_PARTS, AuditEntry, FeaturedPost, Post, Publication, Redirect, Series, Snippet, Tag

REVISIONS_A_PAGE = 50
REVISION_SHOWN = ["history_date", "history_change_reason", "history_user", "title"]


class MarkdownEditor(UnfoldAdminTextareaWidget):
    """A text area with a live preview beside it; without scripts it is a plain text area."""

    class Media:
        css = {"all": ["posts/editor.css"]}
        js = [forms.Script("posts/editor.js", type="module")]

    def __init__(self, kind: str = "text", attrs: dict[str, Any] | None = None) -> None:
        super().__init__(attrs={"rows": 22, "spellcheck": "true", **(attrs or {})})
        self.kind = kind

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        area_id = (attrs or {}).get("id", f"id_{name}")
        area = super().render(name, value, {**(attrs or {}), "aria-describedby": f"{area_id}_keys"}, renderer)
        context = {"area": area, "id": area_id, "kind": self.kind, "snippets": Snippet.objects.all()}
        return render_to_string("admin/posts/_editor.html", context)


class ImageField(forms.FileField):
    """An image that is decoded, stripped and re-encoded before it is kept."""

    widget = UnfoldAdminImageFieldWidget

    def clean(self, data: Any, initial: Any = None) -> Any:
        cleaned = super().clean(data, initial)
        return images.clean_image(cleaned) if isinstance(cleaned, UploadedFile) else cleaned


class URLField(forms.URLField):
    """A web address; where the scheme is left out, https is meant."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "assume_scheme": "https"})


class AvatarField(ImageField):
    """A picture that is cut to a square and kept small: every visitor of the front page loads it."""

    def clean(self, data: Any, initial: Any = None) -> Any:
        cleaned = super().clean(data, initial)
        return images.avatar(cleaned) if isinstance(cleaned, ContentFile) else cleaned


class PartsWidget(forms.MultiWidget):
    """A place for each part of the front page, chosen from a menu: works with keys, and without scripts."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__({name: UnfoldAdminSelectWidget(choices=places()) for name, _label in FRONT_PARTS}, attrs)

    def decompress(self, value: Any) -> list[str]:
        return places_of(value or [])

    def value_from_datadict(self, data: Any, files: Any, name: str) -> list[str]:
        return [data.get(f"{name}_{part}", "") for part, _label in FRONT_PARTS]

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        context = self.get_context(name, value, attrs)["widget"]
        rows = zip((label for _name, label in FRONT_PARTS), context["subwidgets"], strict=True)
        menus = [(label, menu["attrs"]["id"], self._menu(menu, renderer)) for label, menu in rows]
        return render_to_string("admin/posts/_parts.html", {"menus": menus, "label": _("Place on the front page")})

    def _menu(self, menu: dict[str, Any], renderer: Any) -> SafeString:
        widget = UnfoldAdminSelectWidget(choices=places())
        return widget.render(menu["name"], menu["value"], menu["attrs"], renderer)


def places() -> list[tuple[str, Any]]:
    """Return the places that a part of the front page may have."""
    return [("", _("Not shown")), *((str(place), str(place)) for place in range(1, len(FRONT_PARTS) + 1))]


def places_of(chosen: list[str]) -> list[str]:
    """Return the place of each part as the menus name it, in the order of FRONT_PARTS."""
    return [str(chosen.index(name) + 1) if name in chosen else "" for name, _label in FRONT_PARTS]


class PartsField(forms.Field):
    """The parts of the front page in the author's order; a part without a place is left out."""

    widget = PartsWidget

    def prepare_value(self, value: Any) -> list[str]:
        """Return the places; a form that is sent back holds them already."""
        sent_back = isinstance(value, list) and len(value) == len(FRONT_PARTS) and set(value) <= set(dict(places()))
        return value if sent_back else places_of(value or [])

    def clean(self, value: Any) -> list[str]:
        chosen = [(place, name) for place, (name, _label) in zip(value, FRONT_PARTS, strict=True) if place]
        if any(place not in dict(places()) for place, _name in chosen):
            raise ValidationError(_("Choose a place from the menu for each part."))
        if len({place for place, _name in chosen}) < len(chosen):
            raise ValidationError(_("Two parts have the same place on the front page: give each its own."))
        return [name for _place, name in sorted(chosen)]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return places_of(initial or []) != data


class PublicationForm(forms.ModelForm):
    avatar = AvatarField(required=False, help_text=_("Cut to a square around its middle."))
    front_parts = PartsField(
        label=_("Parts of the front page"),
        required=False,
        help_text=_("They stand below the name and the sign-up form, in the order of their numbers."),
    )

    class Meta:
        model = Publication
        exclude: tuple[str, ...] = ()
        widgets = {
            "accent_color": UnfoldAdminColorInputWidget(attrs={"type": "color"}),
            "about": MarkdownEditor(),
            "welcome": MarkdownEditor(attrs={"rows": 12}),
            "social_links": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
            "recommendations": UnfoldAdminTextareaWidget(attrs={"rows": 5}),
            "postal_address": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        }
        help_texts = {
            "welcome": _(
                "Goes to each new reader once he has confirmed. Empty: a short standard text. Once saved, “Welcome "
                "mail” in the menu shows both its parts as they will be sent."
            )
        }


@admin.register(Publication)
class PublicationAdmin(ModelAdmin):
    form = PublicationForm
    fieldsets = [
        (_("Who"), {"fields": ["name", "tagline", "byline", "avatar", "accent_color", "language"]}),
        (_("Sender"), {"fields": ["sender_name", "sender_address", "reply_to", "postal_address"]}),
        (_("When"), {"fields": ["send_weekday", "send_time", "time_zone", "catch_up_hours"]}),
        (_("New readers"), {"fields": ["welcome", "new_reader_note"]}),
        (_("About"), {"fields": ["about", "social_links"]}),
        (_("Front page"), {"fields": ["front_parts", "recommendations"]}),
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Publication, form: Any, change: bool) -> None:
        auditlog.note_changes("publication.change", form, actor=request.user)
        super().save_model(request, obj, form, change)
        if "language" in form.changed_data:
            tasks.hint_language()

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """There is only one: go to it straight away."""
        publication = Publication.current()
        return redirect("admin:posts_publication_change", publication.pk)


@dataclass(frozen=True)
class Conflict:
    """What was saved behind the editor's back, beside what the author has typed."""

    saved: Post
    differences: list[tuple[str, list[revisions.Line]]]

    @property
    def by(self) -> Any:
        last = self.saved.history.select_related("history_user").first()
        return last.history_user if last else None


class PostForm(forms.ModelForm):
    cover = ImageField(required=False)
    conflict: Conflict | None = None

    class Meta:
        model = Post
        exclude: tuple[str, ...] = ()
        widgets = {
            "body": MarkdownEditor("post"),
            "excerpt": UnfoldAdminTextareaWidget(attrs={"rows": 2}),
            "correction": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        }
        field_classes = {"canonical_url": URLField}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        status = self.fields.get("status")
        if isinstance(status, forms.TypedChoiceField):
            status.choices = self.moves()
        if "published_at" in self.fields:
            self.fields["published_at"].help_text = _(
                "By the clock of %(zone)s. With the status “scheduled”, it goes on the web at that instant by itself."
            ) % {"zone": Publication.current().time_zone}
        if "ready" in self.fields:
            self.fields["ready"].help_text = _("The next issue is put together from what is ready.")
        if "corrected_at" in self.fields:
            self.fields["corrected_at"].help_text = _("Left empty, it is now; without a correction there is no date.")
        if "body" in self.fields:
            self.fields["body"].help_text = ""  # the editor says it

    def moves(self) -> list[tuple[str, Any]]:
        """Return the states that the post may have next, its own first."""
        now = Post.Status(self.instance.status)
        return [(state.value, state.label) for state in Post.Status if state == now or self.instance.can_move(state)]

    @property
    def shown_version(self) -> str:
        """Return the version that the author saw when he began: a form with errors keeps it."""
        if self.is_bound:
            return str(self.data.get("version", ""))
        return self.instance.version if self.instance.pk else ""

    def clean(self) -> Any:
        cleaned = super().clean()
        if self.instance.pk:
            self._check_version()
        return cleaned

    def _check_version(self) -> None:
        """Refuse to write over what somebody else, or another window, saved meanwhile, unless that is asked for."""
        saved = Post.objects.defer("search", "search_head").select_for_update().filter(pk=self.instance.pk).first()
        if saved and saved.version not in (self.data.get("version"), self.data.get("overwrite")):
            self.conflict = Conflict(saved, self._differences(saved))
            raise ValidationError(_("The post was changed elsewhere while you wrote: nothing was saved."), "conflict")

    def _differences(self, saved: Post) -> list[tuple[str, list[revisions.Line]]]:
        """Return, for each text that differs, its label and how what is typed differs from what is saved."""
        typed = {name: str(self.data.get(name, "")) for name in (*Post.TEXTS, "status", "visibility", "slug")}
        compared = [(name, revisions.compare(getattr(saved, name), text)) for name, text in typed.items()]
        return [(label_of(name), lines) for name, lines in compared if lines]


def label_of(name: str) -> str:
    return capfirst(str(getattr(Post._meta.get_field(name), "verbose_name", name)))


@admin.register(Post)
class PostAdmin(ModelAdmin):
    form = PostForm
    list_display = ["title", "status", "visibility", "published_at", "ready"]
    list_filter = ["status", "visibility", "ready", "tags"]
    search_fields = ["title", "subtitle", "slug"]
    date_hierarchy = "published_at"
    autocomplete_fields = ["tags", "series"]
    change_form_outer_before_template = "admin/posts/post_panel.html"
    change_form_before_template = "admin/posts/_draft.html"
    fieldsets = [
        (None, {"fields": ["title", "subtitle", "body"]}),
        (_("Publishing"), {"fields": ["ready", "status", "published_at", "visibility"]}),
        (_("Around it"), {"fields": ["tags", "series", "excerpt", "cover", "cover_alt"], "classes": ["collapse"]}),
        (_("Correction"), {"fields": ["correction", "corrected_at"], "classes": ["collapse"]}),
        (_("Address"), {"fields": ["slug", "canonical_url", "meta_description"], "classes": ["collapse"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Post]:
        return super().get_queryset(request).defer("body_html", "body_text", "search", "search_head")

    def get_urls(self) -> list[URLPattern]:
        guard = self.admin_site.admin_view
        return [
            path("keep/", guard(self.keep), name="posts_post_keep_new"),
            path("<int:pk>/keep/", guard(self.keep), name="posts_post_keep"),
            path("<int:pk>/restore/", guard(self.restore), name="posts_post_restore"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return in_publications_time(super().changelist_view, request, extra_context)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        response = in_publications_time(super().changeform_view, request, object_id, form_url, extra_context)
        # The preview's frame inherits this page's policy, and a mail may show pictures from elsewhere.
        response._csp_update = {"img-src": ["https:"]}  # type: ignore[attr-defined]  # where django-csp looks
        return response

    def response_change(self, request: HttpRequest, obj: Post) -> HttpResponse:
        if "overwrite" not in request.POST:
            return super().response_change(request, obj)
        messages.success(request, _("Your text is saved. What it replaced stands in the revisions."))
        return redirect("admin:posts_post_change", obj.pk)

    @method_decorator(require_POST)
    def keep(self, request: HttpRequest, pk: int | None = None) -> HttpResponse:
        """Keep what is being typed: into the draft, or as a new one; a post that others may see is left as it is."""
        try:
            with transaction.atomic():
                post = (
                    get_object_or_404(Post.objects.defer("search", "search_head").select_for_update(), pk=pk)
                    if pk
                    else Post()
                )
                if not self._may_keep(request, post):
                    raise PermissionDenied
                if pk and post.version != request.POST.get("version"):
                    return JsonResponse({"conflict": True}, status=409)
                if not post.is_kept_as_typed:
                    return JsonResponse({"shown": True}, status=409)
                post.keep_typed({name: request.POST[name] for name in Post.TEXTS if name in request.POST})
        except ValidationError as error:
            return JsonResponse({"error": in_words(error)}, status=422)
        return JsonResponse({"version": post.version, "pk": post.pk, **self._addresses(post)})

    def _may_keep(self, request: HttpRequest, post: Post) -> bool:
        return self.has_change_permission(request, post) if post.pk else self.has_add_permission(request)

    def _addresses(self, post: Post) -> dict[str, str]:
        return {
            "page": reverse("admin:posts_post_change", args=[post.pk]),
            "keep": reverse("admin:posts_post_keep", args=[post.pk]),
        }

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Show the revisions of a post, and how a chosen one differs from what is saved now."""
        post = get_object_or_404(
            Post.objects.defer("search", "search_head"), pk=object_id if is_key(object_id) else None
        )
        if not self.has_view_or_change_permission(request, post):
            raise PermissionDenied
        found = post.history.select_related("history_user").only(*REVISION_SHOWN)
        page = Paginator(found, REVISIONS_A_PAGE).get_page(request.GET.get("page"))
        chosen = chosen_revision(post, request.GET.get("revision", ""))
        context = {
            **self.admin_site.each_context(request),
            "title": _("Revisions of “%(title)s”") % {"title": post.title},
            "post": post,
            "page": page,
            "chosen": chosen,
            "differences": differences(chosen, post) if chosen else [],
            "may_restore": self.has_change_permission(request, post),
            "opts": self.opts,
        }
        return render(request, "admin/posts/revisions.html", context)

    @method_decorator(require_POST)
    def restore(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Bring the texts of a revision back, as a new revision."""
        post = get_object_or_404(Post.objects.defer("search", "search_head"), pk=pk)
        if not self.has_change_permission(request, post):
            raise PermissionDenied
        revision = chosen_revision(post, request.POST.get("revision", ""))
        if revision is None:
            raise Http404
        when = date_format(revision.history_date.astimezone(Publication.current().zone), "j M Y, H:i")
        post.restore(revision, reason=_("brought back from %(when)s") % {"when": when})
        messages.success(
            request, _("The text of %(when)s is back; the one it replaced stands below it.") % {"when": when}
        )
        return redirect("admin:posts_post_history", pk)


def in_publications_time(view: Callable[..., HttpResponse], *args: Any) -> HttpResponse:
    """Let a page read and write dates in the publication's own time zone, to its last line."""
    with timezone.override(Publication.current().zone):
        response = view(*args)
        return response.render() if isinstance(response, TemplateResponse) else response


def in_words(error: ValidationError) -> str:
    """Return what is wrong, each with the field's name before it."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return " ".join(
        f"{label_of(name)}: {' '.join(found)}" if name != NON_FIELD_ERRORS else " ".join(found)
        for name, found in error.message_dict.items()
    )


def chosen_revision(post: Post, key: str) -> Any:
    """Return the revision of this post that `key` names, or None."""
    return post.history.filter(pk=key).first() if is_key(key) else None


def is_key(text: str) -> bool:
    """Tell whether a text from an address could be the key of a row."""
    return text.isdecimal() and len(text) < 19


def differences(revision: Any, post: Post) -> list[tuple[str, list[revisions.Line]]]:
    """Return, for each text that differs, its label and how the saved one differs from the revision's."""
    compared = [(name, revisions.compare(getattr(revision, name), getattr(post, name))) for name in Post.TEXTS]
    return [(label_of(name), lines) for name, lines in compared if lines]


@admin.register(Snippet)
class SnippetAdmin(ModelAdmin):
    """Named pieces of Markdown; the editor's menu puts one in at the cursor."""

    list_display = ["name"]
    search_fields = ["name", "body"]
    formfield_overrides = {models.TextField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 10})}}


@admin.register(Tag)
class TagAdmin(ModelAdmin):
    list_display = ["name", "slug", "offered"]
    list_filter = ["offered"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Series)
class SeriesAdmin(ModelAdmin):
    list_display = ["name", "slug"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(FeaturedPost)
class FeaturedPostAdmin(ModelAdmin):
    list_display = ["post", "position"]
    list_editable = ["position"]
    autocomplete_fields = ["post"]


@admin.register(Redirect)
class RedirectAdmin(ModelAdmin):
    list_display = ["path", "post"]
    search_fields = ["path"]
    autocomplete_fields = ["post"]


@admin.register(AuditEntry)
class AuditEntryAdmin(ModelAdmin):
    """Who did what: to read, never to write."""

    list_display = ["at", "who", "act", "subject"]
    list_filter = ["act", "actor"]
    search_fields = ["actor", "act", "subject"]
    date_hierarchy = "at"
    fields = ["at", "who", "act", "subject", "detail"]
    readonly_fields = fields
    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description=_("who"), ordering="actor")
    def who(self, entry: AuditEntry) -> Any:
        return entry.actor or (_("by itself") if entry.act.startswith("issue.") else "–")
