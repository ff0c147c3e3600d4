"""The reader's doors: joining, confirming, leaving by one press, and the preferences behind a mailed link.

No GET changes anything: scanners follow every link in a mail.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from posts.models import Publication
from subscribers import addresses, emails, mailboxes, subscription, tasks, throttling, tokens
from subscribers.forms import AddressForm, NameForm, SubscribeForm
from subscribers.models import MagicLink, Subscriber, SystemMail
from subscribers.subscription import Circumstances

SESSION_COOKIE = "reader"
UNDO_HOURS = 24
MOST_BYTES = 8 * 1024
ONE_CLICK = "List-Unsubscribe"


def private(response: HttpResponse) -> HttpResponse:
    """Keep a page that a key opened out of caches, referrers and indexes."""
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "no-referrer"
    response["X-Robots-Tag"] = "noindex"
    return response


def cookieless(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Never answer with a cookie: Django would replace a malformed CSRF cookie, which nobody here reads."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        request.META.pop("CSRF_COOKIE_NEEDS_UPDATE", None)
        return view(request, *args, **kwargs)

    return csrf_exempt(wrapped)


def circumstances(request: HttpRequest, *, wording: str = "") -> Circumstances:
    return Circumstances(
        page=request.headers.get("Referer", "") or request.path,
        ip=client_ip(request),
        user_agent=request.headers.get("User-Agent", ""),
        wording=wording,
        language=get_language() or "",
    )


def client_ip(request: HttpRequest) -> str | None:
    """Return the address of the peer, or what our own proxy says of it; never what the client claims itself."""
    if settings.PROXY_COUNT:
        forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",")]
        if len(forwarded) >= settings.PROXY_COUNT and addresses.is_ip(forwarded[-settings.PROXY_COUNT]):
            return forwarded[-settings.PROXY_COUNT]
    peer = request.META.get("REMOTE_ADDR", "")
    return peer if addresses.is_ip(peer) else None


# Joining


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
    return _to_inbox(address)


def _to_inbox(address: str) -> HttpResponse:
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


# Leaving


@cookieless  # RFC 8058, 3.1: the POST carries no cookie, and the address itself is the key
@require_http_methods(["GET", "HEAD", "OPTIONS", "POST"])
def unsubscribe(request: HttpRequest, unsubscribe_id: UUID) -> HttpResponse:
    """One-click unsubscribe (RFC 8058): POST leaves and answers 200 without a redirect; GET shows the button."""
    if request.method == "POST" and unsubscribe_id == tokens.probe_id():  # the doctor, who is no reader
        return private(HttpResponse(_("This address works.") + "\n", content_type="text/plain; charset=utf-8"))
    subscriber = get_object_or_404(Subscriber, unsubscribe_id=unsubscribe_id)
    if request.method != "POST":
        return private(render(request, "subscribers/unsubscribe.html", {"subscriber": subscriber}))
    left = subscription.unsubscribe(subscriber.pk, circumstances(request))
    if "button" not in request.POST:
        return private(HttpResponse(_("You are unsubscribed.") + "\n", content_type="text/plain; charset=utf-8"))
    undo = _undo_key(subscriber) if left and subscriber.confirmed_at else ""
    return private(render(request, "subscribers/unsubscribed.html", {"undo": undo}))


def _undo_key(subscriber: Subscriber) -> str:
    return emails.new_link(subscriber, MagicLink.Purpose.UNDO, dt.timedelta(hours=UNDO_HOURS))


@cookieless  # the one-time key is all the authority there is
@require_POST
def undo(request: HttpRequest) -> HttpResponse:
    """Take back an unsubscribe by the key that its own answer carried."""
    subscriber = subscription.redeem(request.POST.get("key", "")[:100], MagicLink.Purpose.UNDO)
    if subscriber is None or not subscription.resubscribe(subscriber.pk, circumstances(request)):
        return private(render(request, "subscribers/link_dead.html", {"form": SubscribeForm()}, status=410))
    return private(render(request, "subscribers/confirmed.html", {"back": True}))


# Preferences


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
        return _to_inbox(form.cleaned_data["address"])
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
