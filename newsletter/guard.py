"""Who gets into the admin: a second factor for staff, a fresh proof before what counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from allauth.account.internal.flows.login import get_authentication_records
from allauth.account.internal.flows.reauthentication import STATE_SESSION_KEY, is_reauthentication_required
from allauth.core.internal.httpkit import serialize_request
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.translation import gettext as _

from newsletter import accountlog  # noqa: F401  # it listens from then on
from newsletter.accounts import FACTORS, AccountAdapter, is_fresh

# What answers before a second factor is set up, and what before one that is set up was shown in this session.
ALWAYS = {"account_login", "account_logout", "admin:login", "admin:logout"}
SET_UP = ALWAYS | {"mfa_index", "mfa_activate_totp", "mfa_add_webauthn", "account_reauthenticate"}
SHOW = ALWAYS | {"mfa_reauthenticate", "mfa_reauthenticate_webauthn"}
# What asks again who is there. Stopping never does: nobody should look for his phone while a wrong mail goes out.
ACTS_THAT_SEND = {"schedule", "move", "now", "resume", "resend", "joined"}
BUTTONS = {"newsletter_issue_act", "newsletter_issue_change", "newsletter_issue_add"}
SETTINGS = {"posts_publication_change", "subscribers_subscriber_export", "subscribers_import_start"} | {
    f"auth_{model}_{page}" for model in ("user", "group") for page in ("add", "change", "delete", "changelist")
}
SETTINGS |= {"auth_user_password_change"}


class GuardMiddleware:
    """Let staff into the admin only with a second factor, and to what counts only with a fresh proof."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.path_info.startswith(f"/{settings.ADMIN_PATH}/account/"):
            add_never_cache_headers(response)
        return response

    def process_view(self, request: HttpRequest, *_view: Any) -> HttpResponse | None:
        if not _is_guarded(request):
            return None
        match = request.resolver_match
        name = match.view_name if match else ""
        if not has_factor(request.user):
            return None if name in SET_UP else _lead(request, reverse("mfa_index"))
        if not _showed_factor(request):
            return None if name in SHOW else _lead(request, _proofs(request, "mfa")[0])
        if _counts(request, name) and is_reauthentication_required(request, app="newsletter"):
            return _ask_again(request)
        return None


def _is_guarded(request: HttpRequest) -> bool:
    inside = request.path_info.startswith(f"/{settings.ADMIN_PATH}/")
    return bool(inside and settings.SECOND_FACTOR_REQUIRED and request.user.is_authenticated and request.user.is_staff)


def has_factor(user: Any) -> bool:
    """Tell whether a second factor is set up; recovery codes alone are none."""
    return bool(Authenticator.objects.filter(user_id=user.pk, type__in=FACTORS).exists())


def _showed_factor(request: HttpRequest) -> bool:
    """Tell whether this session showed one: another may have begun by password before the factor was set up."""
    return any(record["method"] == "mfa" for record in get_authentication_records(request, request.user))


def _counts(request: HttpRequest, name: str) -> bool:
    """Tell whether a request is for what can't be taken back, or hands out or changes who and what we are."""
    page = name.removeprefix("admin:")
    if page in BUTTONS:
        return request.POST.get("act", "").partition(":")[0] in ACTS_THAT_SEND
    if page == "newsletter_issue_decide":
        return request.POST.get("decision") == "again"
    if page in ("guide_step", "newsletter_slot_change"):  # whoever moves a date moves the issue in it
        return request.method == "POST"
    return page in SETTINGS


def _lead(request: HttpRequest, url: str) -> HttpResponse:
    """Lead a person to `url`; a script is told in words."""
    if request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
        return HttpResponseForbidden(_("Please confirm in the browser that it is you, then try again."))
    return redirect(url)


def _proofs(request: HttpRequest, kind: str = "") -> list[str]:
    """Return the addresses where the person can show who he is."""
    methods = AccountAdapter(request).get_reauthentication_methods(request.user)
    return [method["url"] for method in methods if method["id"].startswith(kind)]


def _ask_again(request: HttpRequest) -> HttpResponse:
    """Ask who is there; what was sent waits in the session and is carried out afterwards, so nothing typed is lost."""
    if request.method == "POST":
        request.session[STATE_SESSION_KEY] = {"request": serialize_request(request), "at": time.time()}
        if request.FILES:
            messages.warning(request, _("The image could not be kept meanwhile: please choose it once more."))
    elif not is_fresh({"at": 0, **request.session.get(STATE_SESSION_KEY, {})}):
        request.session.pop(STATE_SESSION_KEY, None)  # given up long ago: opening the page must not carry it out
    back = request.path if request.method == "POST" else request.get_full_path()
    proofs = _proofs(request, "mfa") or _proofs(request)
    return _lead(request, f"{proofs[0]}?{urlencode({'next': back})}")


def sign_in(request: HttpRequest) -> HttpResponse:
    """Stand in for the admin's own login page, which knows no second factor and counts no attempts."""
    if request.user.is_authenticated and not request.user.is_staff:
        raise PermissionDenied
    return redirect(
        f"{reverse('account_login')}?{urlencode({'next': request.GET.get('next', reverse('admin:index'))})}"
    )


def change_password(request: HttpRequest) -> HttpResponse:
    """Stand in for the admin's own page, which counts no attempts."""
    return redirect("account_change_password")


def badge(request: HttpRequest) -> list[Any] | None:
    """Say at the head of the admin that the second factor is turned off."""
    return None if settings.SECOND_FACTOR_REQUIRED else [_("Demo: no second factor"), "warning"]
