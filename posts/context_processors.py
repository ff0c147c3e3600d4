"""What every template may show: the publication."""

from django.http import HttpRequest

from posts.models import Publication


def publication(request: HttpRequest) -> dict[str, Publication]:
    return {"publication": Publication.current()}
