"""Leaving: one press, without a redirect, a cookie or a question; and the way back by the key in the answer."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from functools import partial
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from posts.models import Publication
from subscribers import links, spool, subscription, tokens
from subscribers.forms import PauseForm, SubscribeForm
from subscribers.models import MagicLink, Subscriber
from subscribers.subscription import Circumstances
from subscribers.views.doors import circumstances, cookieless, fields, private, speaking

logger = logging.getLogger(__name__)

UNDO_FOR = dt.timedelta(hours=24)


@cookieless  # RFC 8058, 3.1: the POST carries no cookie, and the address itself is the key
@require_http_methods(["GET", "HEAD", "OPTIONS", "POST"])
def unsubscribe(request: HttpRequest, unsubscribe_id: UUID) -> HttpResponse:
    """One-click unsubscribe (RFC 8058): POST leaves and answers 200 without a redirect; GET shows the button."""
    if request.method == "POST" and unsubscribe_id == tokens.probe_id():  # the doctor, who is no reader
        return private(_plain(_("This address works.")))
    try:
        subscriber = get_object_or_404(Subscriber, unsubscribe_id=unsubscribe_id)
        with speaking(subscriber):
            return private(_answer(request, subscriber))
    except (OperationalError, InterfaceError, InternalError):  # the database is away, or may only be read
        if request.method == "POST" and _is_noted(unsubscribe_id):
            return private(_plain(_("You are unsubscribed.")))
        raise


def _is_noted(unsubscribe_id: UUID) -> bool:
    """Write down for later who leaves; False where even that is not possible."""
    try:
        spool.keep(unsubscribe_id)
    except OSError as error:
        logger.critical("an unsubscribe could not be kept: %s", error)
        return False
    return True


def _plain(words: str) -> HttpResponse:
    return HttpResponse(words + "\n", content_type="text/plain; charset=utf-8")


def _answer(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Show the button, or do what was pressed; a POST that names nothing else is a mail program's, and leaves."""
    if request.method != "POST":
        return render(request, "subscribers/unsubscribe.html", {"subscriber": subscriber, "weeks": PauseForm.WEEKS})
    data = fields(request) or QueryDict()  # of a body that can't be read: the POST alone says enough
    if "button" in data:
        return leave(request, subscriber)
    if "weeks" in data:
        return _pause(request, subscriber, data)
    if "digest" in data:
        subscription.change(subscriber.pk, circumstances(request), frequency=Subscriber.Frequency.MONTHLY)
        return render(request, "subscribers/less.html", {"undo": _undo_key(request, subscriber)})
    if "because" in data:
        subscription.note_reason(subscriber.pk, data.get("because", ""))
        return render(request, "subscribers/unsubscribed.html", {"thanks": True, "undo": data.get("key", "")[:100]})
    subscription.unsubscribe(subscriber.pk, circumstances(request))
    return _plain(_("You are unsubscribed."))


def leave(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Unsubscribe the reader who pressed the button; the answer holds the key that takes it back."""
    left = subscription.unsubscribe(subscriber.pk, circumstances(request))
    undo = _undo_key(request, subscriber) if left and subscriber.confirmed_at else ""
    context = {"undo": undo, "subscriber": subscriber}
    return private(render(request, "subscribers/unsubscribed.html", context))


def _pause(request: HttpRequest, subscriber: Subscriber, data: QueryDict) -> HttpResponse:
    form = PauseForm(data)
    if not form.is_valid() or not subscription.pause(subscriber.pk, form.end, circumstances(request)):
        return render(request, "subscribers/unsubscribe.html", {"subscriber": subscriber, "weeks": PauseForm.WEEKS})
    subscriber.refresh_from_db()
    context = {"subscriber": subscriber, "zone": Publication.current().time_zone}
    return render(request, "subscribers/paused.html", {**context, "undo": _undo_key(request, subscriber)})


def _undo_key(request: HttpRequest, subscriber: Subscriber) -> str:
    return links.new_link(subscriber, MagicLink.Purpose.UNDO, UNDO_FOR, asked_from=circumstances(request).origin)


@cookieless  # the one-time key is all the authority there is
@require_POST
def undo(request: HttpRequest) -> HttpResponse:
    """Take back an unsubscribe, a pause or the wish for a digest by the key that its own answer carried."""
    data = fields(request) or QueryDict()
    subscriber = links.redeem(data.get("key", "")[:100], MagicLink.Purpose.UNDO)
    take_back = TAKE_BACK.get(data.get("of", "leave"), subscription.resubscribe)
    if subscriber is None or not take_back(subscriber.pk, circumstances(request)):
        return private(render(request, "subscribers/link_dead.html", {"form": SubscribeForm()}, status=410))
    with speaking(subscriber):
        return private(render(request, "subscribers/confirmed.html", {"back": True}))


TAKE_BACK: dict[str, Callable[[int, Circumstances], bool]] = {
    "leave": subscription.resubscribe,
    "pause": subscription.go_on,
    "digest": partial(subscription.change, frequency=Subscriber.Frequency.EVERY),
}
