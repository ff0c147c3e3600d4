"""The doctor's page in the admin: his last answer, and the button that asks anew."""

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from newsletter import doctor


def may_ask(request: HttpRequest) -> bool:
    """Tell whether somebody may see the page; who may send has to know whether it would arrive."""
    return request.user.has_perm("newsletter.send_issue")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def page(request: HttpRequest) -> HttpResponse:
    """Show the last ten minutes' answer; POST asks anew and shows that, whatever the cache keeps."""
    if not may_ask(request):
        raise PermissionDenied
    report = doctor.examine() if request.method == "POST" else doctor.last()
    context = {**admin.site.each_context(request), "title": _("Doctor"), "report": report}
    return render(request, "admin/newsletter/doctor.html", context)
