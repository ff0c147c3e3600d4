"""Two pages of the admin: the sign-up form to put into other sites, and the welcome mail as readers get it."""

from __future__ import annotations

from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from posts.models import Publication
from subscribers import emails, tokens
from subscribers.forms import EmbedForm, SubscribeForm


def may_see(request: HttpRequest) -> bool:
    """Tell whether somebody may see the pages here, as the menu asks."""
    return request.user.has_perm("subscribers.view_subscriber")


@require_safe
def embed(request: HttpRequest) -> HttpResponse:
    """Give the sign-up form as HTML to copy, with the source and the campaign that the author names."""
    if not may_see(request):
        raise PermissionDenied
    form = EmbedForm(request.GET or None)
    told = form.said if form.is_valid() else {}
    address = settings.SITE_URL + reverse("subscribers:subscribe")
    context = {
        **admin.site.each_context(request),
        "title": _("Sign-up form for other sites"),
        "form": form,
        "html": embedded_form(told),
        "link": f"{address}?{urlencode(told)}" if told else address,
        "endpoint": settings.SITE_URL + reverse("subscribers:subscribe_form"),
        "token": tokens.embedded_form_token(SubscribeForm.name),
    }
    return render(request, "admin/subscribers/embed.html", context)


def embedded_form(told: dict[str, str]) -> str:
    """Return the form for other sites, in the publication's language: no script, no style, no cookie."""
    publication = Publication.current()
    context = {
        "publication": publication,
        "site_url": settings.SITE_URL,
        "told": told,
        "wording": SubscribeForm.wording,
        "token": tokens.embedded_form_token(SubscribeForm.name),
    }
    with translation.override(publication.language):
        return render_to_string("subscribers/embedded_form.html", context).strip()


@require_safe
def welcome(request: HttpRequest) -> HttpResponse:
    """Show both parts of the welcome mail, as saved."""
    if not may_see(request):
        raise PermissionDenied
    mail = emails.welcome()
    context = {
        **admin.site.each_context(request),
        "title": _("Welcome mail"),
        "subject": mail.subject,
        "text": mail.body,
        "html": mail.alternatives[0][0],
    }
    return render(request, "admin/subscribers/welcome.html", context)
