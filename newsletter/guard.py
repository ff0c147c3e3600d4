"""Who comes into the admin: a second factor for staff, a fresh proof before what counts, a note of each entry."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import logging
import threading
import time
import unicodedata
from collections.abc import Callable
from email.utils import formataddr, make_msgid
from typing import Any
from urllib.parse import urlencode, urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records, record_authentication
from allauth.account.internal.flows.reauthentication import STATE_SESSION_KEY, is_reauthentication_required
from allauth.core import context
from allauth.core.internal.httpkit import get_client_ip, serialize_request
from allauth.mfa import app_settings as mfa_settings
from allauth.mfa import signals
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import generate_totp_secret
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.models import AbstractUser, Group, User
from django.contrib.auth.signals import user_logged_in
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.core.mail import EmailMessage
from django.db import connection
from django.db.models.signals import m2m_changed, pre_delete, pre_save
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.translation import gettext as _

from posts import auditlog
from posts.models import Publication
from subscribers import testmode

logger = logging.getLogger(__name__)

FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]
# What answers before a second factor is set up, and what before one that is set up was shown in this session.
ALWAYS = {"account_login", "account_logout", "admin:login", "admin:logout"}
SET_UP = ALWAYS | {"mfa_index", "mfa_activate_totp", "mfa_add_webauthn", "account_reauthenticate"}
SHOW = ALWAYS | {"mfa_reauthenticate", "mfa_reauthenticate_webauthn"}
# What asks again who is there. Stopping never does: nobody should look for his phone while a wrong mail goes out.
ACTS_THAT_SEND = {"schedule", "move", "now", "resume", "resend", "joined"}
BUTTONS = {"newsletter_issue_act", "newsletter_issue_change", "newsletter_issue_add"}
SETTINGS = {"posts_publication_change", "subscribers_subscriber_export"} | {
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
    elif not _is_fresh({"at": 0, **request.session.get(STATE_SESSION_KEY, {})}):
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


class AccountAdapter(DefaultAccountAdapter):
    """Sign-in as allauth has it: without sign-up, bound to our own address, noted in the audit log."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def is_reauthentication_required(self, *, app: str, **_kwargs: Any) -> bool:
        """A sign-in is a proof too, as long as it is fresh."""
        records = get_authentication_records(context.request, context.request.user)
        return not any(_is_fresh(record) for record in records)

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """Count failed attempts by account alone: allauth's own key holds the port that the visitor names."""
        return unicodedata.normalize("NFKC", credentials.get("username", "")).casefold()

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        """Note it for an account that exists; anything else typed there may be a password."""
        user = User.objects.filter(username__iexact=credentials.get("username", "")).first()
        if user:
            auditlog.note("account.refused", user, why="password", network=_network(request))

    def get_reset_password_from_key_url(self, key: str) -> str:
        """Link to our own address, never to the host that the visitor named."""
        return settings.SITE_URL + urlsplit(super().get_reset_password_from_key_url(key)).path

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return reverse("admin:index")

    def get_from_email(self) -> str:
        publication = Publication.current()
        return formataddr((publication.sender, publication.sender_address))

    def render_mail(
        self, template_prefix: str, email: str, context: dict[str, Any], headers: dict[str, str] | None = None
    ) -> EmailMessage:
        domain = Publication.current().sender_address.rpartition("@")[2]
        ours = {"Auto-Submitted": "auto-generated", "Message-ID": make_msgid(idstring="account", domain=domain)}
        context = {**context, "publication": Publication.current(), "site_url": settings.SITE_URL}
        return super().render_mail(template_prefix, email, context, {**ours, **(headers or {})})

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send beside the answer, which must not tell by its time or an error whether an account exists."""
        message = self.render_mail(template_prefix, email, context)
        threading.Thread(target=_send, args=[message], name="account-mail").start()

    def send_notification_mail(
        self, template_prefix: str, user: Any, context: dict[str, Any] | None = None, email: str | None = None
    ) -> None:
        if address := email or user.email:
            super().send_notification_mail(template_prefix, user, context, address)


def _is_fresh(record: dict[str, Any]) -> bool:
    return bool(time.time() - record["at"] < settings.CONFIRM_SECONDS)


def _send(message: EmailMessage) -> None:
    try:
        testmode.redirected(message).send()
    except Exception as error:  # whatever it is, nobody waits for it: the person asks again
        logger.warning("an account's mail could not be sent: %s", type(error).__name__)
    finally:
        connection.close()  # the thread's own, where a backend asked for one


class MFAAdapter(DefaultMFAAdapter):
    """Second factors named after the publication; their secrets are worth nothing without SECRET_KEY."""

    def get_totp_issuer(self) -> str:
        return Publication.current().name

    def get_totp_label(self, user: Any) -> str:
        return str(user.get_username())

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        entity: dict[str, str] = super().get_public_key_credential_rp_entity()
        return {**entity, "name": Publication.current().name}

    def generate_authenticator_name(self, user: Any, type: Authenticator.Type) -> str:
        count = Authenticator.objects.filter(user_id=user.pk, type=type).count()
        return _("Passkey %(number)s") % {"number": count + 1}

    def encrypt(self, text: str) -> str:
        return _vault().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Return the secret; where SECRET_KEY was lost a fresh one, which no code fits."""
        try:
            return _vault().decrypt(encrypted_text.encode()).decode()
        except InvalidToken:
            logger.error("a second factor can't be read with this SECRET_KEY: manage.py reset_second_factor")
            return generate_totp_secret()


def _vault() -> MultiFernet:
    keys = [hashlib.sha256(f"second factor:{key}".encode()).digest() for key in _secret_keys()]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])


def _secret_keys() -> list[str]:
    return [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]


class CodeForm(AuthenticateForm):
    """Take each code once, for as long as clocks that differ make it valid."""

    def clean_code(self) -> str:
        return _only_once(self.user, super().clean_code())


class CodeAgainForm(ReauthenticateForm):
    """As CodeForm, for one who is signed in."""

    def clean_code(self) -> str:
        return _only_once(self.user, super().clean_code())


def _only_once(user: Any, code: str) -> str:
    span = mfa_settings.TOTP_PERIOD * (2 * mfa_settings.TOTP_TOLERANCE + 1)
    if not cache.add(f"second-factor:{user.pk}:{''.join(code.split())}", True, timeout=span):
        raise MFAAdapter().validation_error("incorrect_code")
    return code


def _network(request: HttpRequest) -> str:
    """Return the network that a request came from (/24, or /48 of IPv6): enough to tell a stranger."""
    found = get_client_ip(request) if request.META.get("REMOTE_ADDR") else None
    if not found:
        return ""
    prefix = 24 if ipaddress.ip_address(found).version == 4 else 48
    return str(ipaddress.ip_network(f"{found}/{prefix}", strict=False))


def _actor() -> Any:
    """Return who is signed in to the request under way; where there is none a command is at work."""
    if context.request is None:
        return "manage.py"
    user = getattr(context.request, "user", None)
    return user if user is not None and user.is_authenticated else ""


@receiver(user_logged_in)
def note_sign_in(request: HttpRequest, user: AbstractUser, **_kwargs: Any) -> None:
    how = [record.get("type", record["method"]) for record in get_authentication_records(request, user)]
    auditlog.note("account.sign_in", user, actor=user, how=how, network=_network(request))


@receiver(signals.authenticator_added)
def note_factor(request: HttpRequest, user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    """Whoever sets a factor up has just shown it."""
    auditlog.note("account.factor_added", user, actor=user, factor=authenticator.type)
    if authenticator.type in FACTORS:
        record_authentication(request, user, "mfa", id=authenticator.pk, type=authenticator.type)


@receiver(signals.authenticator_removed)
def note_factor_removed(user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.factor_removed", user, actor=user, factor=authenticator.type)


@receiver(signals.authenticator_reset)
def note_new_codes(user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.factor_renewed", user, actor=user, factor=authenticator.type)


@receiver(signals.authentication_failed)
def note_refused(request: HttpRequest, user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.refused", user, why=authenticator.type, network=_network(request))


WATCHED = ("username", "email", "is_active", "is_staff", "is_superuser", "password")


@receiver(pre_save, sender=User)
def note_person(instance: User, update_fields: Any = None, raw: bool = False, **_kwargs: Any) -> None:
    """Note what changes of an account, the password's change without the password.

    A password alone is saved by itself only where Django hashes the same one better than before.
    """
    if raw or (update_fields and set(update_fields) <= {"last_login", "password"}):
        return
    before = User.objects.filter(pk=instance.pk).values(*WATCHED).first()
    if before is None:
        auditlog.note(
            "person.add", instance, actor=_actor(), **{name: getattr(instance, name) for name in WATCHED[1:5]}
        )
        return
    fields = {
        name: [before[name], getattr(instance, name)] for name in WATCHED if before[name] != getattr(instance, name)
    }
    if "password" in fields:
        fields["password"] = ["…", "…"]
    if fields:
        auditlog.note("person.change", instance, actor=_actor(), fields=fields)


@receiver(pre_delete, sender=User)
@receiver(pre_delete, sender=Group)
def note_removed(sender: type[User | Group], instance: User | Group, **_kwargs: Any) -> None:
    auditlog.note(f"{'person' if sender is User else 'group'}.delete", instance, actor=_actor())


@receiver(m2m_changed, sender=User.groups.through)
@receiver(m2m_changed, sender=User.user_permissions.through)
@receiver(m2m_changed, sender=Group.permissions.through)
def note_permissions(instance: Any, action: str, model: Any, pk_set: set[int] | None, **_kwargs: Any) -> None:
    if action not in ("post_add", "post_remove", "pre_clear"):
        return
    what = [str(row) for row in model.objects.filter(pk__in=pk_set or [])]
    auditlog.note(f"permissions.{action.partition('_')[2]}", instance, actor=_actor(), what=what)
