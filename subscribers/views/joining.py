"""Joining: the form, the answer that is the same for everybody, and the button that confirms."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from posts.models import Publication
from subscribers import mailboxes, subscription, tasks, tokens
from subscribers.forms import SubscribeForm
from subscribers.models import Subscriber
from subscribers.views.doors import circumstances, cookieless, private

MOST_BYTES = 8 * 1024


@require_safe
def subscribe(request: HttpRequest) -> HttpResponse:
    return render(request, "subscribers/subscribe.html")


@cookieless  # no cookie is read here: there is no authority to borrow, and the double opt-in is the protection
@require_POST
def subscribe_form(request: HttpRequest) -> HttpResponse:
    """Take a sign-up from our forms or from one embedded elsewhere; the answer is the same for every address."""
    data = _posted(request)
    if data is None:
        return _refuse(request, _("This request is too large or can't be read."), status=413)
    form = SubscribeForm(data)
    if form.is_robot:
        return _check_inbox(request, "")
    if not form.is_valid():
        return _invalid(request, form)
    wording = _("Send me each issue by e-mail. I can leave at any time.")
    mail = subscription.join(
        form.cleaned_data["address"], circumstances(request, wording=wording), source=form.cleaned_data["source"]
    )
    tasks.hint(mail)
    return _check_inbox(request, form.cleaned_data["address"])


def _posted(request: HttpRequest) -> dict[str, Any] | QueryDict | None:
    if int(request.META.get("CONTENT_LENGTH") or 0) > MOST_BYTES:
        return None
    if request.content_type != "application/json":
        return request.POST
    try:
        data = json.loads(request.body)
    except ValueError:
        return None
    return {str(k): str(v) for k, v in data.items()} if isinstance(data, dict) else None


def _wants_json(request: HttpRequest) -> bool:
    return request.content_type == "application/json" or request.headers.get("Accept") == "application/json"


def _check_inbox(request: HttpRequest, address: str) -> HttpResponse:
    if _wants_json(request):
        return JsonResponse({"status": "check_inbox"})
    return to_inbox(address)


def to_inbox(address: str) -> HttpResponse:
    """Lead to the page that says what comes next; it is told the provider and never the address."""
    mailbox = mailboxes.of(address)
    return redirect(reverse("subscribers:check") + (f"?at={mailbox.slug}" if mailbox else ""))


def _invalid(request: HttpRequest, form: SubscribeForm) -> HttpResponse:
    if _wants_json(request):
        return JsonResponse({"status": "invalid", "errors": form.errors}, status=422)
    # A form that has grown old gets a fresh token, and what was typed stays.
    context = {
        "address": form.data.get("address", ""),
        "source": form.data.get("source", ""),
        "error": " ".join(map(str, form.errors.get("address", ()))),
        "errors": [error for name, found in form.errors.items() if name != "address" for error in found],
    }
    return render(request, "subscribers/subscribe.html", context, status=422)


def _refuse(request: HttpRequest, message: str, *, status: int) -> HttpResponse:
    if _wants_json(request):
        return JsonResponse({"status": "invalid", "errors": {"__all__": [message]}}, status=status)
    return render(request, "subscribers/subscribe.html", {"errors": [message]}, status=status)


@require_safe
def check(request: HttpRequest) -> HttpResponse:
    """Say what comes next: the same for every address, but for the link to a mailbox whose provider is known."""
    publication = Publication.current()
    mailbox = mailboxes.MAILBOXES.get(request.GET.get("at", ""))
    opened = mailbox.opened(sender=publication.sender_address) if mailbox else ""
    context = {"publication": publication, "mailbox": mailbox, "opened": opened}
    return private(render(request, "subscribers/check.html", context))


@cookieless  # the token in the path is all the authority there is
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def confirm(request: HttpRequest, token: str) -> HttpResponse:
    """Show the button on GET, confirm on POST; pressing again says so and changes nothing."""
    subscriber = subscription.confirmable(token)
    if subscriber is None:
        return private(render(request, "subscribers/link_dead.html", {"form": SubscribeForm()}, status=410))
    if request.method != "POST":
        return private(render(request, "subscribers/confirm.html", {"address": subscriber.address}))
    confirmed = subscription.confirm(token, circumstances(request))
    if confirmed:
        tasks.hint(confirmed[1])
    return private(render(request, "subscribers/confirmed.html"))


@cookieless  # as above
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def never(request: HttpRequest, token: str) -> HttpResponse:
    """Never mail this address again: offered in the confirmation mail to someone who did not ask for it."""
    found = tokens.read(token, purpose=tokens.NEVER)
    subscriber = get_object_or_404(Subscriber, pk=found[0] if found else 0)
    if request.method == "POST" and subscriber.address:
        subscription.unsubscribe(subscriber.pk, circumstances(request))
        subscription.suppress(subscriber.address, reason="asked")
    context = {"done": request.method == "POST"}
    return private(render(request, "subscribers/never.html", context))
