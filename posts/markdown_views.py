"""The two views behind the Markdown editor: preview and image upload, for authors only.

django-markdownx brings views of its own that anybody may call and that store HTML; those are never mounted.
"""

from collections.abc import Callable
from functools import wraps

from django.contrib.admin.views.decorators import staff_member_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from posts import images, markdown


def author_only(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Let a view answer only POSTs of staff who may change posts; Django's CSRF check stays in force."""

    @staff_member_required
    @require_POST
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not request.user.has_perm("posts.change_post"):
            raise PermissionDenied
        return view(request)

    return guarded


@author_only
def preview(request: HttpRequest) -> HttpResponse:
    """Answer the sanitised HTML of the posted Markdown, as the editor's script wants it."""
    try:
        html = markdown.render(request.POST.get("content", ""))
    except ValueError as error:
        return HttpResponse(str(error), status=413, content_type="text/plain; charset=utf-8")
    response = HttpResponse(html)
    response["Content-Security-Policy"] = "default-src 'none'; img-src 'self'; sandbox"
    return response


@author_only
def upload(request: HttpRequest) -> HttpResponse:
    """Keep the posted image and answer the Markdown that shows it; the description is left to the author."""
    file = request.FILES.get("image")
    if file is None:
        return JsonResponse({"image": [_("No image came along.")]}, status=400)
    try:
        image = images.clean_image(file)
    except ValidationError as error:
        return JsonResponse({"image": error.messages}, status=422)
    name = default_storage.save(f"posts/{timezone.now():%Y}/{image.name}", image)
    return JsonResponse({"image_code": f"![{_('what the picture shows')}]({default_storage.url(name)})"})
