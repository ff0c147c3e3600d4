"""What every template may show: the publication and the site's canonical addresses."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from posts.models import Publication


def publication(request: HttpRequest) -> dict[str, Any]:
    """Name the publication (read on first use) and this page's canonical address, never taken from the Host header."""
    return {
        "publication": SimpleLazyObject(Publication.current),
        "site_url": settings.SITE_URL,
        "canonical": settings.SITE_URL + request.path,
    }
