"""The reader's desk: a mailed key opens a short session, in which he changes what comes and how."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from subscribers import addresses, emails, subscription, tasks, throttling, tokens
from subscribers.forms import AddressForm, NameForm
from subscribers.models import MagicLink, Subscriber, SystemMail
from subscribers.views.doors import circumstances, cookieless, private
from subscribers.views.joining import to_inbox

SESSION_COOKIE = "reader"


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def preferences(request: HttpRequest) -> HttpResponse:
    """The reader's desk while his session lasts; else the form that mails him a link."""
    subscriber = _session(request)
    response = private(_desk(request, subscriber) if subscriber else _ask_for_link(request))
    # No key stands in this address. Told to name no referrer, browsers send a form with the origin "null", which the
    # check against forged requests refuses.
    response["Referrer-Policy"] = "same-origin"
    return response


def _desk(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    if request.method == "POST":
        return _act(request, subscriber)
    context = {"subscriber": subscriber, "name_form": NameForm(initial={"name": subscriber.name})}
    return render(request, "subscribers/preferences.html", context)


def _ask_for_link(request: HttpRequest) -> HttpResponse:
    form = AddressForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        _owe_link(form.cleaned_data["address"])
        return to_inbox(form.cleaned_data["address"])
    form.fields["address"].widget.attrs["autofocus"] = bool(form.errors)
    return render(request, "subscribers/ask_for_link.html", {"form": form}, status=422 if form.errors else 200)


def _owe_link(address: str) -> None:
    subscriber = Subscriber.objects.with_address(address).exclude(status=Subscriber.Status.ERASED).first()
    kind = SystemMail.Kind.MAGIC_LINK
    if subscriber is None or subscriber.suppressed:
        return
    if throttling.mailbox_allows(addresses.mailbox(subscriber.key), kind):
        tasks.hint(emails.owe(kind, subscriber=subscriber))


def _act(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    act = request.POST.get("act", "")
    if act == "name":
        form = NameForm(request.POST)
        if not form.is_valid():
            context = {"subscriber": subscriber, "name_form": form}
            return render(request, "subscribers/preferences.html", context, status=422)
        subscription.rename(subscriber.pk, form.cleaned_data["name"], circumstances(request))
    elif act == "leave":
        subscription.unsubscribe(subscriber.pk, circumstances(request))
    elif act == "return":
        subscription.resubscribe(subscriber.pk, circumstances(request))
    response = redirect("subscribers:preferences")
    if act == "close":
        response.delete_cookie(SESSION_COOKIE, path=reverse("subscribers:preferences"))
    return response


@cookieless  # the one-time key is all the authority there is
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def preferences_open(request: HttpRequest, token: str) -> HttpResponse:
    """Show the button on GET; on POST use the key up and open a short session of its own."""
    if request.method != "POST":
        return private(render(request, "subscribers/open.html"))
    subscriber = subscription.redeem(token, MagicLink.Purpose.PREFERENCES)
    if subscriber is None:
        return private(render(request, "subscribers/link_dead.html", {"form": None}, status=410))
    response = redirect("subscribers:preferences")
    response.set_cookie(
        SESSION_COOKIE,
        tokens.sign(subscriber.pk, "", purpose=tokens.SESSION),
        max_age=tokens.SESSION_MINUTES * 60,
        path=reverse("subscribers:preferences"),
        secure=settings.SECURE,
        httponly=True,
        samesite="Lax",
    )
    return private(response)


def _session(request: HttpRequest) -> Subscriber | None:
    age = dt.timedelta(minutes=tokens.SESSION_MINUTES)
    found = tokens.read(request.COOKIES.get(SESSION_COOKIE, ""), purpose=tokens.SESSION, max_age=age)
    return Subscriber.objects.filter(pk=found[0]).exclude(status="erased").first() if found else None
