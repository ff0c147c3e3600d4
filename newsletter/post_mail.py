"""What a post would look like in the mail: the editor's preview, made by what renders the issues."""

from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from newsletter import rendering
from posts.markdown_views import answer, author_only, framed, posted

# A mail carries its styles in it, and may show images from elsewhere.
MAIL_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' https:"


@author_only
def preview(request: HttpRequest) -> HttpResponse:
    """Answer the HTML part of a mail that holds the posted texts alone, and what its size means."""
    try:
        html, size = rendering.preview_post(posted(request))
    except ValueError as error:
        return answer({"error": str(error)}, status=422)
    return answer({"html": framed(html, MAIL_POLICY), "kilobytes": round(size / 1024, 1), "warning": warning(size)})


def warning(size: int) -> str:
    if size >= rendering.SIZE_BLOCK:
        return _("Gmail will cut the end off, with the way to unsubscribe: shorten it, or send it as a teaser.")
    return _("Gmail cuts off what goes beyond 102 kB: little is left.") if size >= rendering.SIZE_WARN else ""
