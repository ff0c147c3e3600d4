"""The admin's Content Security Policies: what its framework needs, and nothing from elsewhere."""

from collections.abc import Callable

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.conf import settings
from django.http import HttpRequest, HttpResponse

# The pages of signing in are our own: nothing inline, nothing evaluated. The QR code is an image of the page's own.
ACCOUNT_POLICY = {
    "default-src": [NONE],
    "style-src": [SELF],
    "script-src": [SELF],
    "img-src": [SELF, "data:"],
    "font-src": [SELF],
    "connect-src": [SELF],
    "form-action": [SELF],
    "frame-ancestors": [NONE],
    "base-uri": [NONE],
}
# Alpine evaluates the attributes of Unfold's templates, and these carry styles; no page has a script of its own inline.
ADMIN_POLICY = {
    **ACCOUNT_POLICY,
    "style-src": [SELF, UNSAFE_INLINE],
    "script-src": [SELF, UNSAFE_EVAL],
    "img-src": [SELF, "data:", "blob:"],
    "frame-src": [SELF],
}


class AdminPolicyMiddleware:
    """Give the pages below the admin's address their own policy, unless a view has set one itself."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        inside = f"/{settings.ADMIN_PATH}/"
        if request.path.startswith(inside) and not hasattr(response, "_csp_config"):
            policy = ACCOUNT_POLICY if request.path.startswith(f"{inside}account/") else ADMIN_POLICY
            response._csp_config = policy  # type: ignore[attr-defined]  # where django-csp's own decorators put it
        return response
