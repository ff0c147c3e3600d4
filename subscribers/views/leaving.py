"""Leaving: one press, without a redirect, a cookie or a question; and the way back by the key in the answer."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from subscribers import links, subscription, tokens
from subscribers.forms import SubscribeForm
from subscribers.models import MagicLink, Subscriber
from subscribers.views.doors import circumstances, cookieless, private

UNDO_FOR = dt.timedelta(hours=24)


@cookieless  # RFC 8058, 3.1: the POST carries no cookie, and the address itself is the key
@require_http_methods(["GET", "HEAD", "OPTIONS", "POST"])
def unsubscribe(request: HttpRequest, unsubscribe_id: UUID) -> HttpResponse:
    """One-click unsubscribe (RFC 8058): POST leaves and answers 200 without a redirect; GET shows the button."""
    if request.method == "POST" and unsubscribe_id == tokens.probe_id():  # the doctor, who is no reader
        return private(HttpResponse(_("This address works.") + "\n", content_type="text/plain; charset=utf-8"))
    subscriber = get_object_or_404(Subscriber, unsubscribe_id=unsubscribe_id)
    if request.method != "POST":
        return private(render(request, "subscribers/unsubscribe.html", {"subscriber": subscriber}))
    if "button" in request.POST:
        return leave(request, subscriber)
    subscription.unsubscribe(subscriber.pk, circumstances(request))
    return private(HttpResponse(_("You are unsubscribed.") + "\n", content_type="text/plain; charset=utf-8"))


def leave(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Unsubscribe the reader who pressed the button; the answer holds the key that takes it back."""
    left = subscription.unsubscribe(subscriber.pk, circumstances(request))
    undo = _undo_key(request, subscriber) if left and subscriber.confirmed_at else ""
    return private(render(request, "subscribers/unsubscribed.html", {"undo": undo}))


def _undo_key(request: HttpRequest, subscriber: Subscriber) -> str:
    return links.new_link(subscriber, MagicLink.Purpose.UNDO, UNDO_FOR, asked_from=circumstances(request).origin)


@cookieless  # the one-time key is all the authority there is
@require_POST
def undo(request: HttpRequest) -> HttpResponse:
    """Take back an unsubscribe by the key that its own answer carried."""
    subscriber = links.redeem(request.POST.get("key", "")[:100], MagicLink.Purpose.UNDO)
    if subscriber is None or not subscription.resubscribe(subscriber.pk, circumstances(request)):
        return private(render(request, "subscribers/link_dead.html", {"form": SubscribeForm()}, status=410))
    return private(render(request, "subscribers/confirmed.html", {"back": True}))
