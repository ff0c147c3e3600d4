"""Maintenance: with MAINTENANCE set every page answers 503, but who unsubscribes is heard all the same (UNS-6)."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.cache import add_never_cache_headers

RETRY_SECONDS = 600
OPEN = ("/u/", "/healthz")


class MaintenanceMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not settings.MAINTENANCE or request.path_info.startswith(OPEN):
            return self.get_response(request)
        text = render_to_string("503.html", {"maintenance": True})
        response = HttpResponse(text, status=503, headers={"Retry-After": str(RETRY_SECONDS)})
        add_never_cache_headers(response)
        return response
