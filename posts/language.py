"""The language in which readers are spoken to: the publication's own, whoever asks."""

from collections.abc import Callable

from django.conf import settings
from django.db import Error
from django.http import HttpRequest, HttpResponse
from django.utils import translation

from posts import pagecache
from posts.models import KNOWN, Publication

publication = pagecache.once_a_version(Publication.current)


class LanguageMiddleware:
    """Answer everything outside the admin in the publication's language, and read the publication once for that.

    A page is the same for every visitor, so neither a cookie nor Accept-Language has a say.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.language = settings.LANGUAGE_CODE  # what was read last: to say that the database is away needs none
        self.apart = (f"/{settings.ADMIN_PATH}/", "/healthz")

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith(self.apart):
            return self.get_response(request)
        is_file = request.path_info.startswith(settings.MEDIA_URL)
        known = KNOWN.set(None if is_file else self._read())
        try:
            with translation.override(self.language):
                return self.get_response(request)
        finally:
            KNOWN.reset(known)

    def _read(self) -> Publication | None:
        try:
            known = publication()
        except Error:  # a view that needs the database finds out by itself
            return None
        self.language = known.language
        return known
