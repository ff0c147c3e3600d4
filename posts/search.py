"""Full-text search inside PostgreSQL: the generated vector of a post and the query over it."""

from typing import TypeVar

from django.contrib.postgres.search import SearchHeadline, SearchQuery, SearchRank, SearchVector, TrigramWordSimilarity
from django.db.models import F, Func, Model, Q, QuerySet, TextField, Value
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Greatest
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

Found = TypeVar("Found", bound=Model)

LANGUAGES = [("en", "English"), ("de", "Deutsch")]


class Unaccent(Func):
    """The immutable wrapper around unaccent() that a generated column may use (made by a migration)."""

    function = "immutable_unaccent"
    output_field = TextField()


def post_vector() -> CombinedExpression:
    """Return the expression of `Post.search`: title before subtitle before text."""
    return (
        SearchVector(Unaccent(F("title")), config="english", weight="A")
        + SearchVector(Unaccent(F("subtitle")), config="english", weight="B")
        + SearchVector(Unaccent(F("body_text")), config="english", weight="C")
    )


# Private-use characters no text holds: the headline is escaped first, and only then do they become tags.
START, STOP = "\ue000", "\ue001"
SIMILAR = 0.5


def search(queryset: QuerySet[Found], words: str) -> QuerySet[Found]:
    """Return the posts that match `words`, best first, each with `headline` (see `highlighted`).

    Understands quotes, OR and -word; a title that is spelled nearly so is found too.
    """
    folded = Unaccent(Value(words))
    query = SearchQuery(folded, config="english", search_type="websearch")
    similarity = TrigramWordSimilarity(words, "title")
    headline = SearchHeadline(
        "body_text",
        query,
        config="english",
        start_sel=START,
        stop_sel=STOP,
        max_words=32,
        min_words=16,
        max_fragments=2,
    )
    found: QuerySet[Found] = (
        queryset.annotate(similarity=similarity)
        .filter(Q(search=query) | Q(similarity__gte=SIMILAR))
        .annotate(rank=Greatest(SearchRank("search", query), F("similarity") / 10), headline=headline)
        .order_by("-rank", "-published_at")
    )
    return found


def highlighted(headline: str) -> SafeString:
    """Return a headline as HTML: escaped, with the words found in <mark>."""
    return mark_safe(escape(headline).replace(START, "<mark>").replace(STOP, "</mark>"))
