"""How people sign in: allauth's pages with our words, mails, counters and secrets."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import logging
import threading
import time
import unicodedata
from email.utils import formataddr, make_msgid
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.core import context
from allauth.core.internal.httpkit import get_client_ip
from allauth.mfa import app_settings as mfa_settings
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import generate_totp_secret
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.mail import EmailMessage
from django.db import connection
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from posts import auditlog
from posts.models import Publication
from subscribers import testmode

logger = logging.getLogger(__name__)

FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]


class AccountAdapter(DefaultAccountAdapter):
    """Sign-in as allauth has it: without sign-up, bound to our own address, noted in the audit log."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def is_reauthentication_required(self, *, app: str, **_kwargs: Any) -> bool:
        """A sign-in is a proof too, as long as it is fresh."""
        records = get_authentication_records(context.request, context.request.user)
        return not any(is_fresh(record) for record in records)

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """Count failed attempts by account alone: allauth's own key holds the port that the visitor names."""
        return unicodedata.normalize("NFKC", credentials.get("username", "")).casefold()

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        """Note it for an account that exists; anything else typed there may be a password."""
        user = User.objects.filter(username__iexact=credentials.get("username", "")).first()
        if user:
            auditlog.note("account.refused", user, why="password", network=network(request))

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


def is_fresh(record: dict[str, Any]) -> bool:
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


def network(request: HttpRequest) -> str:
    """Return the network that a request came from (/24, or /48 of IPv6): enough to tell a stranger."""
    found = get_client_ip(request) if request.META.get("REMOTE_ADDR") else None
    if not found:
        return ""
    prefix = 24 if ipaddress.ip_address(found).version == 4 else 48
    return str(ipaddress.ip_network(f"{found}/{prefix}", strict=False))
