"""The archive of issues, the mail itself in a browser, and what a reader's desk shows and forgets of his copies."""

from csp.constants import NONE, SELF, UNSAFE_INLINE
from csp.decorators import csp
from django.conf import settings
from django.core import signing
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_http_methods, require_safe

from newsletter import clicks, erasure, holdings, rendering
from newsletter.models import Issue
from posts import pagecache, shelves
from posts.models import Post
from subscribers.models import Subscriber
from subscribers.views.doors import at_desk, client_ip, forget

ISSUES_A_PAGE = 50

# A mail brings its styles along; nothing else may load, and no script runs.
MAIL_POLICY = {
    "default-src": [NONE],
    "style-src": [UNSAFE_INLINE],
    "img-src": [SELF, "https:"],
    "frame-ancestors": [NONE],
    "base-uri": [NONE],
    "form-action": [NONE],
}


@pagecache.kept("page")
@require_safe
def issues(request: HttpRequest) -> HttpResponse:
    archived = Issue.objects.archived().order_by("-number")
    leaf = shelves.leaf(request.GET.get("page", ""), count=archived.count(), path=request.path)
    context = {"issues": archived[leaf.part], "leaf": leaf, "canonical": settings.SITE_URL + leaf.address}
    return render(request, "newsletter/issues.html", context)


@pagecache.kept()
@require_safe
def issue(request: HttpRequest, number: int) -> HttpResponse:
    """Show what an issue brought: only those of its posts that the web may show."""
    found = get_object_or_404(Issue.objects.archived(), number=number)
    posts = Post.objects.listed().brief().filter(issue_posts__issue=found).order_by("issue_posts__position")
    return render(request, "newsletter/issue.html", {"issue": found, "posts": posts})


@require_safe
@csp(MAIL_POLICY)  # type: ignore[arg-type]  # typed for views without arguments, right for all
def view_in_browser(request: HttpRequest, token: str) -> HttpResponse:
    """Show the issue as mailed, without any reader's values, to whoever has its signed address."""
    try:
        issue_id = signing.Signer(salt=rendering.VIEW_SALT).unsign(token)
    except signing.BadSignature as error:
        raise Http404 from error
    found = get_object_or_404(Issue, pk=issue_id, prepared_at__isnull=False)
    response = HttpResponse(clicks.lead_straight(found, rendering.web_html(found)))
    response["X-Robots-Tag"] = "noindex"
    response["Referrer-Policy"] = "no-referrer"
    return response


@require_safe
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Lead on to where a link of a mail leads, and count that it was followed; it says nothing of who did."""
    link = clicks.find(token)
    if link is None:
        raise Http404
    if request.method == "GET":
        clicks.count(link, request.headers, ip=client_ip(request))
    response = HttpResponseRedirect(link.url)
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"
    response["X-Robots-Tag"] = "noindex, nofollow"
    return response


@require_safe
@at_desk
def reader_data(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Show a reader what is held about him."""
    return render(request, "newsletter/reader_data.html", {"held": holdings.held(subscriber), "subscriber": subscriber})


@require_safe
@at_desk
def reader_data_file(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Give a reader what is held about him, to take along (GDPR, Art. 20)."""
    response = JsonResponse(holdings.held(subscriber), json_dumps_params={"indent": 2, "ensure_ascii": False})
    response["Content-Disposition"] = 'attachment; filename="my-data.json"'
    return response


@require_safe
@at_desk
def reader_issues(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Show a reader what was sent to him, and what was not and why."""
    page = Paginator(holdings.copies(subscriber), ISSUES_A_PAGE).get_page(request.GET.get("page"))
    copies = [(copy, rendering.view_url(copy.issue)) for copy in page]
    return render(request, "newsletter/reader_issues.html", {"page": page, "copies": copies})


@require_http_methods(["GET", "HEAD", "POST"])
@at_desk
def reader_erase(request: HttpRequest, subscriber: Subscriber) -> HttpResponse:
    """Say on GET what is forgotten and what can't be, and forget it on POST."""
    if request.method != "POST":
        return render(request, "newsletter/reader_erase.html", {"subscriber": subscriber})
    erasure.erase(subscriber.pk, keep_out="keep_out" in request.POST)
    return forget(request, render(request, "newsletter/reader_erase.html", {"done": True}))
