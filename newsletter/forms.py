"""The form of an issue: its words, and its posts to choose, to order, and to give in full or as teasers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django import forms
from django.forms.utils import flatatt
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _
from unfold.widgets import SELECT_CLASSES

from newsletter import composing
from newsletter.models import Issue, IssuePost
from posts.admin import MarkdownEditor
from posts.models import Post

LAST = 32767
SELECTED = mark_safe(" selected")


class IssueForm(forms.ModelForm):
    class Meta:
        model = Issue
        fields = ["subject", "preheader", "introduction", "count_clicks"]
        widgets = {"introduction": MarkdownEditor()}


class PostSelect(forms.Select):
    """All posts to choose from, by group; written at once, since a template for each of thousands takes a second."""

    groups: composing.Choices = []

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        empty = format_html('<option value="">{}</option>', _("Choose a post"))
        groups = format_html_join(
            "",
            '<optgroup label="{}">{}</optgroup>',
            ((label, _options(rows, str(value))) for label, rows in self.groups),
        )
        found = self.build_attrs(self.attrs, {**(attrs or {}), "name": name})
        return format_html("<select{}>{}{}</select>", flatatt(found), empty, groups)


def _options(rows: list[tuple[int, str]], chosen: str) -> SafeString:
    each = ((pk, SELECTED if str(pk) == chosen else "", title) for pk, title in rows)
    return format_html_join("", '<option value="{}"{}>{}</option>', each)


class IssuePostForm(forms.ModelForm):
    """A post's place in an issue; without a position it comes last."""

    post = forms.ModelChoiceField(
        Post.objects.only("title"), label=_("Post"), widget=PostSelect(attrs={"class": " ".join(SELECT_CLASSES)})
    )

    class Meta:
        model = IssuePost
        fields = ["position", "post", "mode"]

    def __init__(self, *args: Any, choices: composing.Choices, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        position, select = self.fields["position"], self.fields["post"].widget
        position.required = False
        assert isinstance(select, PostSelect)
        select.groups = choices
        for field in self.fields.values():
            field.widget.attrs["aria-label"] = field.label  # the table's head is no label to a screen reader
        if not self.instance.pk:
            position.initial = self.initial["position"] = None

    def clean_position(self) -> int:
        position: int | None = self.cleaned_data["position"]
        return LAST if position is None else position


class IssuePosts(forms.BaseInlineFormSet):
    """The posts of an issue; what there is to choose from is asked once for all rows."""

    @cached_property
    def choices(self) -> composing.Choices:
        return composing.choices(self.instance)

    def get_form_kwargs(self, index: int | None) -> dict[str, Any]:
        return {**super().get_form_kwargs(index), "choices": self.choices}
