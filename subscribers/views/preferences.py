"""The reader's desk: a mailed key opens a short session, in which he changes what comes and how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_http_methods

from posts.models import Publication
from subscribers import links, moving, submissions, subscription, tasks
from subscribers.forms import AddressForm, NewAddressForm, PauseForm, PreferencesForm
from subscribers.models import AddressChange, MagicLink, Submission, Subscriber
from subscribers.subscription import Circumstances
from subscribers.views.doors import (
    SESSION_COOKIE,
    circumstances,
    cookieless,
    forget,
    in_session,
    private,
    remember,
    session_reader,
    speaking,
    with_forms,
)
from subscribers.views.joining import allows, to_inbox, too_many
from subscribers.views.leaving import leave

SAID = {
    "saved": _("Saved."),
    "paused": _("Nothing will be sent until then."),
    "gone_on": _("You get mail again."),
    "moving": _(
        "If the new address can be written to, a mail with a link is on its way there. Until you press its button the "
        "old one counts."
    ),
    "returned": _("Good to have you back: the next issue will come to you."),
}


@require_http_methods(["GET", "HEAD", "POST"])
def preferences(request: HttpRequest) -> HttpResponse:
    """The reader's desk while his session lasts; else the form that mails him a link."""
    subscriber = session_reader(request)
    if subscriber is None:
        return with_forms(private(_ask_for_link(request)))
    return in_session(request, subscriber, partial(_desk, request, subscriber))


def _desk(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    act = ACTS.get(request.POST.get("act", ""))
    return act(request, subscriber) if act else _show(request, subscriber)


def _show(request: HttpRequest, subscriber: Subscriber, **forms: Form) -> HttpResponse:
    """Show the desk; of the forms those that were sent and refused as they were, with what is wrong."""
    context = {
        "subscriber": subscriber,
        "zone": Publication.current().time_zone,
        "said": SAID.get(request.GET.get("said", "")),
        "form": PreferencesForm.of(subscriber),
        "pause": PauseForm(),
        "address": NewAddressForm(),
        **forms,
    }
    return render(request, "subscribers/preferences.html", context, status=422 if forms else 200)


def _say(said: str) -> HttpResponse:
    return redirect(f"{reverse('subscribers:preferences')}?said={said}")


def _save(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    form = PreferencesForm(request.POST)
    if not form.is_valid():
        return _show(request, subscriber, form=form)
    subscription.change(subscriber.pk, circumstances(request), **form.cleaned_data)
    return _say("saved")


def _pause(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    form = PauseForm(request.POST)
    if not form.is_valid():
        return _show(request, subscriber, pause=form)
    subscription.pause(subscriber.pk, form.end, circumstances(request))
    return _say("paused")


def _go_on(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    subscription.go_on(subscriber.pk, circumstances(request))
    return _say("gone_on")


def _return(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    subscription.resubscribe(subscriber.pk, circumstances(request))
    return _say("returned")


def _leave(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    return forget(request, leave(request, subscriber))


def _close(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    return forget(request, redirect("posts:profile"))


def _move(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    form = NewAddressForm(request.POST)
    if not form.is_valid():
        return _show(request, subscriber, address=form)
    owed = moving.ask(subscriber.pk, form.cleaned_data["new_address"], circumstances(request))
    if owed is None:
        form.add_error("new_address", _("You asked for this several times today: please try again tomorrow."))
        return _show(request, subscriber, address=form)
    for mail in owed:
        tasks.hint(mail)
    return _say("moving")


ACTS: dict[str, Callable[[HttpRequest, Subscriber], HttpResponse]] = {
    "save": _save,
    "pause": _pause,
    "go_on": _go_on,
    "return": _return,
    "address": _move,
    "leave": _leave,
    "close": _close,
}


def _ask_for_link(request: HttpRequest) -> HttpResponse:
    form = AddressForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return _ask(request, form)
    return _asked_again(request, form, status=422 if form.errors else 200)


def _ask(request: HttpRequest, form: AddressForm) -> HttpResponse:
    """Keep the question, by the same insert for every address; a worker finds out whose it is."""
    address = form.cleaned_data["address"]
    if not allows(request):
        form.add_error("address", too_many())
        return _asked_again(request, form, status=429)
    tasks.hint_submission(submissions.submit(Submission.Kind.LINK, address, circumstances(request)))
    return to_inbox(address)


def _asked_again(request: HttpRequest, form: AddressForm, *, status: int) -> HttpResponse:
    form.fields["address"].widget.attrs["autofocus"] = bool(form.errors)
    return render(request, "subscribers/ask_for_link.html", {"form": form}, status=status)


@cookieless  # the one-time key is all the authority there is
@require_http_methods(["GET", "HEAD", "POST"])
def preferences_open(request: HttpRequest, token: str) -> HttpResponse:
    """Show the button on GET; on POST use the key up and open a short session of its own."""
    if request.method != "POST":
        return private(render(request, "subscribers/open.html"))
    subscriber = links.redeem(token, MagicLink.Purpose.PREFERENCES)
    if subscriber is None:
        return private(render(request, "subscribers/link_dead.html", {"form": None}, status=410))
    response = redirect("subscribers:preferences")
    remember(response, links.begin_session(subscriber, instead_of=request.COOKIES.get(SESSION_COOKIE, "")))
    return private(response)


@cookieless  # the one-time key is all the authority there is
@require_http_methods(["GET", "HEAD", "POST"])
def new_address(request: HttpRequest, token: str) -> HttpResponse:
    """Show the button to the owner of a new address on GET; on POST write to it from now on."""
    return _by_key(request, token, moving.confirm, "subscribers/new_address.html")


@cookieless  # as above
@require_http_methods(["GET", "HEAD", "POST"])
def old_address(request: HttpRequest, token: str) -> HttpResponse:
    """Show the button to the owner of an old address on GET; on POST take the change back."""
    return _by_key(request, token, moving.revoke, "subscribers/old_address.html")


def _by_key(
    request: HttpRequest, token: str, act: Callable[[str, Circumstances], AddressChange | None], template: str
) -> HttpResponse:
    if request.method != "POST":
        return private(render(request, template))
    change = act(token, circumstances(request))
    if change is None:
        return private(render(request, "subscribers/link_dead.html", {"form": None}, status=410))
    with speaking(change.subscriber):
        return private(render(request, template, {"change": change}))
