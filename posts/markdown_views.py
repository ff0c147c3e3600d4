"""The two views behind the Markdown editor: preview and image upload, for authors only.

django-markdownx brings views of its own that anybody may call and that store HTML; those are never mounted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps

from django.contrib.admin.views.decorators import staff_member_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from posts import images, post_page
from posts.models import Post, Publication

# What a preview may load, said by the document itself: it stands in a frame's srcdoc, where no header of ours counts.
WEB_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'"
# The answer to the script is data; should somebody lead a browser to it, it is a page that can do nothing.
ANSWER_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
MAYBE = ("posts.change_post", "posts.add_post")
MAY_SEE = ("posts.change_post", "posts.view_post")  # what others wrote


def author_only(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Let a view answer only POSTs of staff who may write posts; Django's CSRF check stays in force."""

    @staff_member_required
    @require_POST
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not any(map(request.user.has_perm, MAYBE)):
            raise PermissionDenied
        return view(request)

    return guarded


@author_only
def preview(request: HttpRequest) -> HttpResponse:
    """Answer the very page that the posted texts would make, for a sandboxed frame, with its words and minutes."""
    try:
        post = posted(request)
    except ValueError as error:
        return answer({"error": str(error)}, status=422)
    template = "posts/post.html" if request.POST.get("kind") == "post" else "admin/posts/look.html"
    with translation.override(Publication.current().language):
        context = post_page.dressed(post) | {"canonical": post.url if post.slug else ""}
        html = render_to_string(template, context, request=request)
    words = len(post.body_text.split())
    return answer({"html": framed(html, WEB_POLICY), "words": words, "minutes": post.reading_minutes})


@author_only
def upload(request: HttpRequest) -> HttpResponse:
    """Keep the posted image and answer its address; what it shows is asked by the editor."""
    file = request.FILES.get("image")
    if file is None:
        return answer({"image": [_("No image came along.")]}, status=400)
    try:
        image = images.clean_image(file)
    except ValidationError as error:
        return answer({"image": error.messages}, status=422)
    name = default_storage.save(f"posts/{timezone.now():%Y}/{image.name}", image)
    images.make_copies(name)
    return answer({"url": default_storage.url(name)})


def posted(request: HttpRequest) -> Post:
    """Return the post, saved or new, with the posted texts in it; nothing is saved. Raises ValueError on a bad text."""
    key = request.POST.get("pk", "") if any(map(request.user.has_perm, MAY_SEE)) else ""
    post = (
        Post.objects.defer("search", "search_head").filter(pk=key).first()
        if key.isdecimal() and len(key) < 19
        else None
    )
    post = post or Post(pk=0, slug="preview")
    for name in Post.TEXTS:
        setattr(post, name, request.POST.get(name, getattr(post, name)).replace("\x00", ""))
    post.derive()
    return post


def framed(html: str, policy: str) -> str:
    """Put a policy into a document that a frame's srcdoc will hold; its links lead nowhere, and it names no script."""
    html = re.sub(r"<script\b[^>]*></script>", "", html)  # the frame is sandboxed and runs none
    head = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}"><base target="_blank">'
    return html.replace("<head>", head, 1)


def answer(data: dict[str, object], *, status: int = 200) -> JsonResponse:
    response = JsonResponse(data, status=status)
    response["Content-Security-Policy"] = ANSWER_POLICY
    response["Cache-Control"] = "no-store"
    return response
