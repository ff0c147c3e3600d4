"""The author's desk for what we say: the publication, posts, tags, and what the front page features."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.files.uploadedfile import UploadedFile
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from markdownx.widgets import MarkdownxWidget
from unfold.admin import ModelAdmin
from unfold.widgets import (
    TEXTAREA_CLASSES,
    UnfoldAdminColorInputWidget,
    UnfoldAdminImageFieldWidget,
    UnfoldAdminTextareaWidget,
)

from posts import images
from posts.models import FeaturedPost, Post, Publication, Redirect, Tag


class MarkdownEditor(MarkdownxWidget):
    """A text area with the live preview beside it; it calls our own preview and upload views."""

    def __init__(self) -> None:
        super().__init__(attrs={"class": " ".join(TEXTAREA_CLASSES), "rows": 22})

    class Media:
        css = {"all": ["posts/editor.css"]}


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


class PublicationForm(forms.ModelForm):
    avatar = ImageField(required=False)

    class Meta:
        model = Publication
        exclude: tuple[str, ...] = ()
        widgets = {
            "accent_color": UnfoldAdminColorInputWidget(attrs={"type": "color"}),
            "about": MarkdownEditor(),
            "social_links": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
            "postal_address": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        }


@admin.register(Publication)
class PublicationAdmin(ModelAdmin):
    form = PublicationForm
    fieldsets = [
        (_("Who"), {"fields": ["name", "tagline", "byline", "avatar", "accent_color", "language"]}),
        (_("Sender"), {"fields": ["sender_name", "sender_address", "reply_to", "postal_address"]}),
        (_("When"), {"fields": ["send_weekday", "send_time", "time_zone", "catch_up_hours"]}),
        (_("About"), {"fields": ["about", "social_links"]}),
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """There is only one: go to it straight away."""
        publication = Publication.current()
        return redirect("admin:posts_publication_change", publication.pk)


class PostForm(forms.ModelForm):
    cover = ImageField(required=False)

    class Meta:
        model = Post
        exclude: tuple[str, ...] = ()
        widgets = {
            "body": MarkdownEditor(),
            "excerpt": UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        }
        field_classes = {"canonical_url": URLField}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        status = self.fields.get("status")
        if isinstance(status, forms.TypedChoiceField):
            status.choices = self.moves()

    def moves(self) -> list[tuple[str, Any]]:
        """Return the states that the post may have next, its own first."""
        now = Post.Status(self.instance.status)
        return [(state.value, state.label) for state in Post.Status if state == now or self.instance.can_move(state)]


@admin.register(Post)
class PostAdmin(ModelAdmin):
    form = PostForm
    list_display = ["title", "status", "visibility", "published_at", "ready"]
    list_filter = ["status", "visibility", "ready", "tags"]
    search_fields = ["title", "subtitle", "slug"]
    date_hierarchy = "published_at"
    autocomplete_fields = ["tags"]
    readonly_fields = ["preview"]
    warn_unsaved_form = True
    change_form_outer_before_template = "admin/posts/post_links.html"
    fieldsets = [
        (None, {"fields": ["title", "subtitle", "body"]}),
        (_("Publishing"), {"fields": ["status", "published_at", "visibility", "ready"]}),
        (_("Around it"), {"fields": ["tags", "excerpt", "cover", "cover_alt"], "classes": ["collapse"]}),
        (_("Address"), {"fields": ["slug", "canonical_url", "meta_description"], "classes": ["collapse"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Post]:
        return super().get_queryset(request).defer("body_html", "body_text", "search")

    @admin.display(description=_("Preview"))
    def preview(self, post: Post) -> SafeString:
        return format_html('<a href="{}">{}</a>', post.preview_url, _("Open the preview"))


@admin.register(Tag)
class TagAdmin(ModelAdmin):
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
