"""Full-text search inside PostgreSQL: a post's vectors, made by functions of a migration, and the query over them."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.postgres.search import (
    SearchHeadline,
    SearchQuery,
    SearchQueryField,
    SearchRank,
    SearchVectorField,
    TrigramWordSimilarity,
)
from django.db.models import BooleanField, F, FloatField, Func, Q, QuerySet, TextField, Value
from django.db.models.functions import Greatest, Lower, StrIndex, Substr
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

LANGUAGES = [("en", "English"), ("de", "Deutsch")]
CONFIGURATIONS = {"en": "english", "de": "german"}  # as the migration's functions have them

# Private-use characters no text holds: the headline is escaped first, and only then do they become tags.
START, STOP = "\ue000", "\ue001"
BETWEEN_PARTS = re.compile(f"{STOP}([._:-]+){START}")
# Ranking reads whole vectors: of the posts found by text, by title or nearly so, the newest are ranked.
MOST_RANKED = 100
MOST_WORDS = 12
PREFIX_FROM = 3  # characters of the last word from which on its beginning is enough: it may still be typed
BEFORE, MOST_READ = 300, 1500  # characters of a text around the word, in which passages are looked for
HEAD_WEIGHT = 8  # how much more a title, subtitle or tag says than a text

IDENTIFIER = re.compile(r"\w+(?:(?:[.-]|::)\w+)*")
SEPARATOR = re.compile(r"[._-]+|::")
HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_A-Za-z]+|\d+")
LONGEST_LEXEME, MOST_LEXEMES = 100, 5000
OPERATOR = re.compile(r'"|(?:^|\s)-\w|(?:^|\s)OR(?:\s|$)')


class Unaccent(Func):
    """The immutable wrapper around unaccent() that a generated column may use (made by a migration)."""

    function = "immutable_unaccent"
    output_field = TextField()


class PostVector(Func):
    """All words of a post, the weightier places first: title, subtitle and tags, text, names in code."""

    function = "post_vector"
    output_field = SearchVectorField()


class PostHead(Func):
    """The words of a post's title, subtitle and tags alone: a small vector, which is quick to rank."""

    function = "post_head"
    output_field = SearchVectorField()


def post_vector() -> PostVector:
    """Return the expression of `Post.search`."""
    return PostVector(F("language"), F("title"), F("subtitle"), F("tag_words"), F("body_text"), F("body_code"))


def post_head() -> PostHead:
    """Return the expression of `Post.search_head`."""
    return PostHead(F("language"), F("title"), F("subtitle"), F("tag_words"))


def names_in(code: str) -> str:
    """Return the names in a piece of code for search: each whole and each of its parts, in small letters.

    `http.HTTPServer` gives http.httpserver, http, httpserver and server; `pool_max_size` gives itself and its parts.
    """
    found: dict[str, None] = {}
    for name in IDENTIFIER.findall(code):
        parts = SEPARATOR.split(name)
        for word in (name, *parts, *(hump for part in parts for hump in HUMP.findall(part))):
            if 2 <= len(word) <= LONGEST_LEXEME and not word.isdecimal():
                found[word.lower()] = None
        if len(found) >= MOST_LEXEMES:
            break
    return " ".join(list(found)[:MOST_LEXEMES])


class WordsQuery(Func):
    """The query for words that all have to be there, each as a word of the language or as a name in code."""

    arg_joiner = " && "
    template = "(%(expressions)s)"
    output_field = SearchQueryField()


class WordQuery(Func):
    """One word: what the language makes of it, or the names that it may be; nothing where it is a stop word."""

    function = "post_query"
    output_field = SearchQueryField()


class Matches(Func):
    """Whether a vector, which has an index, matches a query."""

    arg_joiner = " @@ "
    template = "%(expressions)s"
    output_field = BooleanField()


class IsMatching(Func):
    """Whether a post is one of those whose text, title or tags match a query, as the index alone tells it.

    Where a word stands in every other text PostgreSQL would read all vectors, which it takes for small (a migration
    makes the function).
    """

    arg_joiner = " = ANY((SELECT matching_posts("  # in a query of its own, it is asked once and not for each row
    template = "%(expressions)s))::bigint[])"
    output_field = BooleanField()

    def __init__(self, query: Any) -> None:
        super().__init__(F("pk"), query)


def query_of(words: str, configuration: str) -> Any:
    """Return the query for what a reader typed; quotes, OR and -word are understood."""
    if OPERATOR.search(words):
        return SearchQuery(Unaccent(Value(words)), config=configuration, search_type="websearch")
    typed = words.split()[:MOST_WORDS]
    names = [_names(word, is_last=place == len(typed)) for place, word in enumerate(typed, 1)]
    asked = list(zip(typed, names, strict=True)) or [("", "")]
    return WordsQuery(*(WordQuery(Value(configuration), Value(word), Value(name)) for word, name in asked))


def _names(word: str, *, is_last: bool) -> str:
    """Return the names in code that a typed word may mean, as a query in PostgreSQL's own notation."""
    name = "".join(IDENTIFIER.findall(word)[:1])[:LONGEST_LEXEME]
    if not name:
        return ""
    whole, parts = name.lower(), [hump.lower() for part in SEPARATOR.split(name) for hump in HUMP.findall(part)]
    prefix = ":*" if is_last and len(whole) >= PREFIX_FROM else ""
    together = " & ".join(f"'{part}'" for part in parts if len(part) > 1)
    return f"'{whole}'{prefix}" + (f" | ({together})" if " & " in together else "")


def search(posts: QuerySet[Any], words: str, *, language: str = "en") -> QuerySet[Any]:
    """Return the posts that match `words`, best first, each with `headline` (see `highlighted`).

    A title that is spelled nearly so is found too. Of very many matches the newest MOST_RANKED are ranked.
    """
    configuration = CONFIGURATIONS[language]
    query = query_of(words, configuration)
    alike = Matches(F("search_head"), query), IsMatching(query), Q(title__trigram_word_similar=words)
    first, *rest = [posts.filter(those).order_by("-published_at").values("pk")[:MOST_RANKED] for those in alike]
    rank = SearchRank(F("search_head"), query) * HEAD_WEIGHT + SearchRank(F("search"), query)
    similarity = TrigramWordSimilarity(words, "title", output_field=FloatField())
    found: QuerySet[Any] = (
        posts.filter(pk__in=first.union(*rest))
        .annotate(rank=rank + similarity / 10, headline=_headline(words, query, configuration))
        .order_by("-rank", "-published_at", "-pk")
    )
    return found


def _headline(words: str, query: Any, configuration: str) -> SearchHeadline:
    """Return the passages where the words stand: PostgreSQL reads slowly, so only around the first of the longest."""
    longest = max(re.findall(r"\w+", words), key=len, default="")
    stem = longest[: max(4, len(longest) - 3)].lower()  # it may stand there with another ending
    start = Greatest(StrIndex(Lower("body_text"), Value(stem)) - BEFORE, Value(1))
    return SearchHeadline(
        Substr("body_text", start, MOST_READ),
        query,
        config=configuration,
        start_sel=START,
        stop_sel=STOP,
        max_words=32,
        min_words=16,
        max_fragments=2,
    )


def highlighted(headline: str) -> SafeString:
    """Return a headline as HTML: escaped, with the words found in <mark>, and a name in code in one."""
    whole = BETWEEN_PARTS.sub(r"\1", headline)
    return mark_safe(escape(whole).replace(START, "<mark>").replace(STOP, "</mark>"))
