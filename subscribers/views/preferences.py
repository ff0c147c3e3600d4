"""The reader's desk: a mailed key opens a short session, in which he changes what comes and how."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from subscribers import addresses, emails, links, subscription, tasks, throttling
from subscribers.forms import AddressForm, NameForm
from subscribers.models import MagicLink, Subscriber, SystemMail
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
    with_forms,
)
from subscribers.views.joining import to_inbox
from subscribers.views.leaving import leave


@require_http_methods(["GET", "HEAD", "POST"])
def preferences(request: HttpRequest) -> HttpResponse:
    """The reader's desk while his session lasts; else the form that mails him a link."""
    subscriber = session_reader(request)
    if subscriber is None:
        return with_forms(private(_ask_for_link(request)))
    return in_session(request, _desk(request, subscriber))


def _desk(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    if request.method == "POST":
        return _act(request, subscriber)
    context = {"subscriber": subscriber, "name_form": NameForm(initial={"name": subscriber.name})}
    return render(request, "subscribers/preferences.html", context)


def _ask_for_link(request: HttpRequest) -> HttpResponse:
    form = AddressForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        _owe_link(form.cleaned_data["address"], circumstances(request))
        return to_inbox(form.cleaned_data["address"])
    form.fields["address"].widget.attrs["autofocus"] = bool(form.errors)
    return render(request, "subscribers/ask_for_link.html", {"form": form}, status=422 if form.errors else 200)


def _owe_link(address: str, circumstances: Circumstances) -> None:
    subscriber = Subscriber.objects.with_address(address).exclude(status=Subscriber.Status.ERASED).first()
    kind = SystemMail.Kind.MAGIC_LINK
    if subscriber is None or subscriber.suppressed:
        return
    if throttling.mailbox_allows(addresses.mailbox(subscriber.key), kind):
        tasks.hint(emails.owe(kind, subscriber=subscriber, context={"asked_from": circumstances.origin}))


def _act(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    act = request.POST.get("act", "")
    if act == "leave":
        return forget(request, leave(request, subscriber))
    if act == "name":
        form = NameForm(request.POST)
        if not form.is_valid():
            context = {"subscriber": subscriber, "name_form": form}
            return render(request, "subscribers/preferences.html", context, status=422)
        subscription.rename(subscriber.pk, form.cleaned_data["name"], circumstances(request))
    elif act == "return":
        subscription.resubscribe(subscriber.pk, circumstances(request))
    response = redirect("subscribers:preferences")
    return forget(request, response) if act == "close" else response


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
