"""What all doors share: nothing of a key gets into caches or referrers, and who came from where."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.translation import get_language
from django.views.decorators.csrf import csrf_exempt

from subscribers import addresses
from subscribers.subscription import Circumstances


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
