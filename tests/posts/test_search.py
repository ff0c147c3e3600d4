"""Readers find posts by words, phrases and nearly right titles, and see where."""

import pytest

from posts import search
from posts.models import Post
from tests.factories import make_post

pytestmark = pytest.mark.django_db


def found(words: str) -> list[str]:
    return list(search.search(Post.objects.all(), words).values_list("title", flat=True))


def test_words_are_found_in_title_and_text_with_the_title_first() -> None:
    make_post("Locks", "About vacuuming.")
    make_post("Vacuum", "About locks, once.")
    assert found("vacuum") == ["Vacuum", "Locks"]


def test_phrases_alternatives_and_exclusions_are_understood() -> None:
    make_post("First", "The write ahead log grows.")
    make_post("Second", "Ahead of the log we write.")
    assert found('"write ahead log"') == ["First"]
    assert found("log -grows") == ["Second"]
    assert set(found("grows OR ahead")) == {"First", "Second"}


def test_accents_and_code_do_not_hide_a_post() -> None:
    make_post("Cafés", "```sql\nselect pg_sleep(1);\n```")
    assert found("cafe") == found("cafés") == found("pg_sleep") == ["Cafés"]


def test_a_title_spelled_nearly_so_is_found() -> None:
    make_post("Understanding replication", "Text.")
    assert found("replicaton") == ["Understanding replication"]


@pytest.mark.parametrize("words", ["", "the", "'", '"', "& | ! ( ) :*", "-", "\\", "a" * 5000, "%_", "OR OR"])
def test_any_words_are_answered(words: str) -> None:
    make_post()
    assert isinstance(found(words), list)


def test_the_headline_marks_what_was_found_and_shows_no_html() -> None:
    make_post("Tags", "Write `a < b` and `<script>alert(1)</script>` before <b>vacuum</b> & after.")
    post = search.search(Post.objects.all(), "vacuum").get()
    html = search.highlighted(post.headline)  # type: ignore[attr-defined]  # annotated by the query
    assert "<mark>vacuum</mark>" in html
    assert "a &lt; b" in html
    assert html.count("<") == 2 * html.count("<mark>")
