"""Joining: the form, the answer that is the same for everybody, and the button that confirms."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from posts.models import Publication
from subscribers import addresses, mailboxes, submissions, subscription, tasks, throttling, tokens
from subscribers.forms import Label, SubscribeForm
from subscribers.models import Submission
from subscribers.views.doors import circumstances, client_ip, cookieless, fields, from_anywhere, private

MOST_BYTES = 8 * 1024


@never_cache  # its form says when it was made
@require_safe
def subscribe(request: HttpRequest) -> HttpResponse:
    """Show the form; a link that leads here may name a source."""
    source = Label().clean(request.GET.get("source"))
    return render(request, "subscribers/subscribe.html", {"timed": True, "source": source})


@cookieless  # no cookie is read here: there is no authority to borrow, and the double opt-in is the protection
@from_anywhere
@require_POST
def subscribe_form(request: HttpRequest) -> HttpResponse:
    """Take a sign-up from our forms or from one embedded elsewhere; the answer is the same for every address.

    What is done here before the answer is the same for every address, too: what becomes of it a worker decides.
    """
    data = _posted(request)
    if data is None:
        return _refuse(request, _("This request is too large or can't be read."), status=413)
    form = SubscribeForm(data)
    if form.is_robot:
        return _check_inbox(request, "")
    if not form.is_valid():
        return _invalid(request, form)
    if not allows(request):
        return _refuse(request, too_many(), status=429, form=form)
    if throttling.is_flooded() and not _has_pressed_again(request, form):
        return _challenge(request, form)
    _submit(request, form)
    return _check_inbox(request, form.cleaned_data["address"])


def allows(request: HttpRequest) -> bool:
    """Tell whether the visitor's network, and everybody together, may send one more form."""
    return throttling.network_allows(client_ip(request)) and throttling.site_allows()


def too_many() -> str:
    return _("Too many requests have come from your network, or from everywhere. Please try again in an hour.")


def _submit(request: HttpRequest, form: SubscribeForm) -> None:
    tasks.hint_submission(
        submissions.submit(
            Submission.Kind.JOIN,
            form.cleaned_data["address"],
            circumstances(request, wording=str(form.wording)),
            source=form.cleaned_data["source"] or _other_site(request)[:100],
            campaign={**_campaign_of_page(request), **form.campaign},
        )
    )


def _posted(request: HttpRequest) -> dict[str, str] | QueryDict | None:
    """Return the fields of a form or of a JSON object; None for what is too large or neither."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or len(length) > 9 or int(length) > MOST_BYTES:
        return None
    if request.content_type != "application/json":
        return fields(request)
    try:
        data = json.loads(request.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    # A lone surrogate, which JSON may hold, has no form in UTF-8.
    return {name: text.encode(errors="replace").decode() for name, text in data.items() if isinstance(text, str)}


def _other_site(request: HttpRequest) -> str:
    """Return the origin of the page that a form stands in, if it is not ours."""
    origin = request.headers.get("Origin", "")
    return origin if origin.startswith(("https://", "http://")) and origin != settings.SITE_URL else ""


def _campaign_of_page(request: HttpRequest) -> dict[str, str]:
    """Return the utm_ parameters of our page that the form was sent from: kept pages don't know them."""
    address, _question, query = request.headers.get("Referer", "").partition("?")
    if not address.startswith(f"{settings.SITE_URL}/") or len(query) > MOST_BYTES:
        return {}
    return SubscribeForm(QueryDict(query.partition("#")[0])).campaign


def _wants_json(request: HttpRequest) -> bool:
    return request.content_type == "application/json" or "application/json" in request.headers.get("Accept", "")


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
    # Who has to mend his address takes long enough for any form.
    told = ("address", "token") if form.token_again and form.has_error("address") else ("address",)
    context = {
        **_kept(request, form),
        "token": form.token_again,
        "error": " ".join(map(str, form.errors.get("address", ()))),
        "errors": [error for name, found in form.errors.items() if name not in told for error in found],
    }
    return render(request, "subscribers/subscribe.html", context, status=422)


def _kept(request: HttpRequest, form: SubscribeForm) -> dict[str, Any]:
    """Return what a form that is shown again still knows."""
    return {
        "address": form.data.get("address", ""),
        "source": form.data.get("source", "") or _other_site(request),
        "campaign": {**_campaign_of_page(request), **form.campaign},
    }


def _refuse(request: HttpRequest, message: str, *, status: int, form: SubscribeForm | None = None) -> HttpResponse:
    if _wants_json(request):
        response: HttpResponse = JsonResponse({"status": "invalid", "errors": {"__all__": [message]}}, status=status)
    else:
        context = {"errors": [message], **(_kept(request, form) if form else {})}
        response = render(request, "subscribers/subscribe.html", context, status=status)
    if status == 429:
        response["Retry-After"] = "3600"
    return response


def _challenge(request: HttpRequest, form: SubscribeForm) -> HttpResponse:
    """Ask for one more press, which a machine that knows nothing but the form does not give."""
    challenge = form.cleaned_data["challenge"]
    if not tokens.is_form_token(challenge, _pressing(request, form)):
        challenge = tokens.timed_form_token(_pressing(request, form))
    if _wants_json(request):
        told = {"status": "challenge", "challenge": challenge, "wait_seconds": tokens.MIN_SECONDS}
        return JsonResponse(told, status=422)
    context = {**_kept(request, form), "token": form.cleaned_data["token"], "challenge": challenge}
    return render(request, "subscribers/challenge.html", context, status=422)


def _has_pressed_again(request: HttpRequest, form: SubscribeForm) -> bool:
    challenge = form.cleaned_data["challenge"]
    return tokens.is_form_token(challenge, _pressing(request, form)) and not tokens.is_too_quick(challenge)


def _pressing(request: HttpRequest, form: SubscribeForm) -> str:
    """Return what a challenge is bound to: it can't be carried to another address or network."""
    key = addresses.canonical(form.cleaned_data["address"])
    return f"challenge|{key}|{addresses.network(client_ip(request))}"


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
    welcome = confirmed[1] if confirmed else None
    tasks.hint(welcome)
    return private(render(request, "subscribers/confirmed.html", {"again": welcome is None}))


@cookieless  # as above
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def never(request: HttpRequest, token: str) -> HttpResponse:
    """Never mail this address again: offered in the confirmation mail to someone who did not ask for it.

    The link outlives the row of whoever never confirms.
    """
    found = tokens.read(token, purpose=tokens.NEVER)
    if found is None:
        raise Http404
    if request.method == "POST":
        subscription.never_again(*found, circumstances(request))
    return private(render(request, "subscribers/never.html", {"done": request.method == "POST"}))
