"""What all doors share: nothing of a key gets into caches or referrers, who came from where, and a reader's session."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.http import HttpRequest, HttpResponse, QueryDict, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import translation
from django.utils.translation import get_language
from django.views.decorators.csrf import csrf_exempt

from subscribers import addresses, links, redaction
from subscribers.models import ReaderSession, Subscriber
from subscribers.subscription import Circumstances

SESSION_COOKIE = "reader"


def private(response: HttpResponse) -> HttpResponse:
    """Keep a page that a key opened out of caches, referrers and indexes."""
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "no-referrer"
    response["X-Robots-Tag"] = "noindex"
    return response


def cookieless(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Never answer with a cookie: Django would replace a malformed CSRF cookie, and take back a session that ended."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        request.META.pop("CSRF_COOKIE_NEEDS_UPDATE", None)
        request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return view(request, *args, **kwargs)

    return csrf_exempt(wrapped)


def from_anywhere(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let scripts of any site call a view that reads no cookie, and read its answer (Fetch standard, CORS protocol)."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = HttpResponse(status=204) if request.method == "OPTIONS" else view(request, *args, **kwargs)
        if request.method == "OPTIONS":
            response["Access-Control-Allow-Methods"] = "POST"
            response["Access-Control-Allow-Headers"] = "Content-Type"
            response["Access-Control-Max-Age"] = "86400"
        response["Access-Control-Allow-Origin"] = "*"
        return response

    return wrapped


def fields(request: HttpRequest) -> QueryDict | None:
    """Return the fields of a form that was posted; None where its body can't be read."""
    try:
        return request.POST
    except (BadRequest, MultiPartParserError, SuspiciousOperation, UnreadablePostError, ValueError):
        return None


def circumstances(request: HttpRequest, *, wording: str = "") -> Circumstances:
    return Circumstances(
        page=redaction.redacted(request.headers.get("Referer", "") or request.path),
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


def speaking(subscriber: Subscriber) -> AbstractContextManager[None]:
    """Speak the language that the reader chose, else that of the publication."""
    return translation.override(subscriber.language or get_language())


# A reader's session


def session_reader(request: HttpRequest) -> Subscriber | None:
    return links.session_reader(request.COOKIES.get(SESSION_COOKIE, ""))


def at_desk(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Give the view the reader whose session this is; who has none is led to where one begins."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        subscriber = session_reader(request)
        if subscriber is None:
            return private(redirect("subscribers:preferences"))
        return in_session(request, subscriber, lambda: view(request, subscriber, *args, **kwargs))

    return wrapped


def in_session(request: HttpRequest, subscriber: Subscriber, view: Callable[[], HttpResponse]) -> HttpResponse:
    """Make a private page in the reader's language, and let his session live on where it did not end that."""
    with speaking(subscriber):
        response = view()
    if SESSION_COOKIE not in response.cookies:
        remember(response, request.COOKIES[SESSION_COOKIE])
    return with_forms(private(response))


def with_forms(response: HttpResponse) -> HttpResponse:
    """Let a private page whose address holds no key send its forms.

    Told to name no referrer, browsers send a form with the origin "null", which the check against forged requests
    refuses.
    """
    response["Referrer-Policy"] = "same-origin"
    return response


def remember(response: HttpResponse, key: str) -> None:
    """Keep the key of a session in the browser, for these pages alone and for half an hour."""
    response.set_cookie(
        SESSION_COOKIE,
        key,
        max_age=ReaderSession.IDLE,
        path=reverse("subscribers:preferences"),
        secure=settings.SECURE,
        httponly=True,
        samesite="Lax",
    )


def forget(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """End the session, here and in the browser."""
    links.end_session(request.COOKIES.get(SESSION_COOKIE, ""))
    response.delete_cookie(SESSION_COOKIE, path=reverse("subscribers:preferences"), samesite="Lax")
    return response
