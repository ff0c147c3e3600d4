"""Which issue brought a post by mail, for the post's page: it stands where it may not know of issues."""

from django import template

from newsletter.models import Issue, IssuePost
from posts.models import Post

register = template.Library()


@register.simple_tag
def mailed_as(post: Post) -> Issue | None:
    """Return the first issue that went out with the whole of `post`, else with a teaser; None where none did."""
    sent = Issue.objects.archived().filter(number__isnull=False)
    brought = IssuePost.objects.filter(post=post, issue__in=sent).select_related("issue").only("mode", "issue__number")
    places = sorted(brought, key=lambda place: (place.mode != IssuePost.Mode.FULL, place.issue.number))
    return places[0].issue if places else None
