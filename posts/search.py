"""Full-text search inside PostgreSQL: the generated vector of a post and the query over it."""

from django.contrib.postgres.search import SearchVector
from django.db.models import F, Func, TextField
from django.db.models.expressions import CombinedExpression

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
