"""The guide through the first hour: who speaks, from which address, when, and whether a mail arrives.

Each step is a plain form that saves at once; any may be skipped, and the whole be left and taken up again.
"""

from __future__ import annotations

import zoneinfo
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_http_methods

from newsletter import delivery, message, sweeper
from newsletter.models import Issue, Slot
from posts import auditlog
from posts.models import Post, Publication
from subscribers.models import Subscriber

REACHED = "guide_reached"  # in the session: the step that the author came to
CHANGE = "posts.change_publication"
SEND = "newsletter.send_issue"


class NameForm(forms.ModelForm):
    class Meta:
        model = Publication
        fields = ["name", "tagline", "byline"]
        help_texts: ClassVar = {
            "name": _("Stands at the head of the site and of every mail."),
            "tagline": _("What it is about and how often it comes, in one sentence."),
        }


class SenderForm(forms.ModelForm):
    class Meta:
        model = Publication
        fields = ["sender_name", "sender_address", "reply_to", "postal_address"]
        widgets: ClassVar = {"postal_address": forms.Textarea({"rows": 3, "autocomplete": "street-address"})}
        help_texts: ClassVar = {
            "sender_name": _("Whom the mail comes from. Left empty, it is the publication's name."),
            "sender_address": _("An address at a domain of yours, which your mail server may send for."),
            "reply_to": _("Where answers go, if elsewhere."),
        }

    def clean_sender_address(self) -> str:
        return _checked(self.cleaned_data["sender_address"])

    def clean_reply_to(self) -> str:
        address = self.cleaned_data["reply_to"]
        return _checked(address) if address else ""


class WhenForm(forms.ModelForm):
    time_zone = forms.ChoiceField(
        label=_("Time zone"),
        choices=lambda: [(name, name.replace("_", " ")) for name in sorted(zoneinfo.available_timezones())],
        help_text=_("The time of day stays the same there when the clocks change."),
    )

    class Meta:
        model = Publication
        fields = ["send_weekday", "send_time", "time_zone"]
        labels: ClassVar = {"send_weekday": _("Day"), "send_time": _("Time")}
        widgets: ClassVar = {"send_time": forms.TimeInput({"type": "time"}, format="%H:%M")}


class TryForm(forms.Form):
    to = forms.EmailField(label=_("Your address"), max_length=254)

    def clean_to(self) -> str:
        return _checked(self.cleaned_data["to"])


STEPS = {
    "name": _("Who speaks"),
    "sender": _("From whom"),
    "when": _("When"),
    "test": _("Does it arrive?"),
    "done": _("Ready"),
}
FORMS: dict[str, type[forms.ModelForm]] = {"name": NameForm, "sender": SenderForm, "when": WhenForm}
ORDER = list(STEPS)


def is_needed(request: HttpRequest) -> bool:
    """Tell whether the desk should lead this person through the guide: not where work has begun without it."""
    publication = Publication.current()
    if publication.set_up_at or not request.user.has_perm(CHANGE):
        return False
    return REACHED in request.session or not _is_in_use(publication)


def next_step(request: HttpRequest) -> str:
    """Return the step to go on with: the one that the author came to, else the first with something to fill in."""
    reached = request.session.get(REACHED)
    return reached if reached in STEPS else _first_open(Publication.current())


def _is_in_use(publication: Publication) -> bool:
    """Tell whether somebody set this installation up already: an issue is there, or it has its name and something."""
    named = publication.name != Publication._meta.get_field("name").default
    return Issue.objects.exists() or (named and (Post.objects.exists() or Subscriber.objects.exists()))


def _first_open(publication: Publication) -> str:
    fields = Publication._meta
    if publication.name == fields.get_field("name").default:
        return "name"
    if publication.sender_address == fields.get_field("sender_address").default or not publication.postal_address:
        return "sender"
    return "when"


@require_http_methods(["GET", "HEAD", "POST"])
@permission_required(CHANGE, raise_exception=True)
def guide(request: HttpRequest, step: str = "") -> HttpResponse:
    """Show a step, or do what it says."""
    if not step:
        return redirect("guide_step", next_step(request))
    if step not in STEPS:
        raise Http404
    if request.method == "POST":
        return ACTS.get(step, _save)(request, step)
    if not Publication.current().set_up_at:
        request.session[REACHED] = step
    return _show(request, step, _form(request, step))


def _save(request: HttpRequest, step: str) -> HttpResponse:
    form = FORMS[step](request.POST, instance=Publication.current(), label_suffix="")
    if not form.is_valid():
        return _show(request, step, form)
    with transaction.atomic():
        auditlog.note_changes("publication.change", form, actor=request.user)
        form.save()
    if step == "when":
        sweeper.ensure_slots()
    return redirect("guide_step", _after(step))


def _test(request: HttpRequest, step: str) -> HttpResponse:
    """Send a mail by the way that issues go; a refusal is told beside the address."""
    if not request.user.has_perm(SEND):
        raise PermissionDenied
    form = TryForm(request.POST, label_suffix="")
    if form.is_valid():
        try:
            delivery.send_test(_greeting(), to=form.cleaned_data["to"])
        except ValidationError as error:
            form.add_error("to", error)
        else:
            messages.success(request, _("A test went to %(to)s. Look for it, also among spam.") % form.cleaned_data)
            return redirect("guide_step", step)
    return _show(request, step, form)


def _finish(request: HttpRequest, step: str) -> HttpResponse:
    with transaction.atomic():
        if Publication.objects.filter(pk=Publication.current().pk, set_up_at=None).update(set_up_at=timezone.now()):
            auditlog.note("publication.set_up", Publication.current(), actor=request.user)
    request.session.pop(REACHED, None)
    return redirect("admin:index")


ACTS = {"test": _test, "done": _finish}


def _show(request: HttpRequest, step: str, form: forms.BaseForm | None) -> HttpResponse:
    number = ORDER.index(step)
    context = {
        **admin.site.each_context(request),
        "title": STEPS[step],
        "step": step,
        "steps": [(name, title, n + 1) for n, (name, title) in enumerate(STEPS.items())],
        "number": number + 1,
        "form": form,
        "before": ORDER[number - 1] if number else "",
        "after": _after(step),
        "may_send": request.user.has_perm(SEND),
        **(_summary() if step == "done" else {}),
    }
    return render(request, f"admin/desk/guide_{step if step in ACTS else 'form'}.html", context)


def _form(request: HttpRequest, step: str) -> forms.BaseForm | None:
    if step == "test":
        return TryForm(initial={"to": getattr(request.user, "email", "")}, label_suffix="")
    return FORMS[step](instance=Publication.current(), label_suffix="") if step in FORMS else None


def _summary() -> dict[str, Any]:
    publication = Publication.current()
    return {"first": Slot.objects.upcoming().open().first(), "no_address": not publication.postal_address.strip()}


def _after(step: str) -> str:
    return ORDER[min(ORDER.index(step) + 1, len(ORDER) - 1)]


def _greeting() -> Issue:
    """Return an issue that is nowhere written down, to try the way of the mail with."""
    return Issue(
        pk=0,
        subject=str(_("It arrives")),
        introduction=str(
            _("This is a test of your newsletter. It took the way that every issue takes, so that way is open.")
        ),
    )


def _checked(address: str) -> str:
    """Return `address`. Raises ValidationError where it can't stand in an envelope."""
    try:
        message.one_address(address)
    except ValueError as error:
        raise ValidationError(_("Mail can't go to or come from this address.")) from error
    return address
