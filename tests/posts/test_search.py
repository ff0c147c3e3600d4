"""Readers find posts by words, phrases, topics, names in code and nearly right titles, and see where."""

import datetime as dt
import os
from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from posts import importer, search, search_page
from posts.models import Post, Publication, Tag
from tests.factories import make_post

pytestmark = pytest.mark.django_db


def found(words: str, language: str = "en") -> list[str]:
    return list(search.search(Post.objects.all(), words, language=language).values_list("title", flat=True))


def publish(title: str, body: str = "Tables *grow*.", *, days: int = 1, tags: tuple[str, ...] = ()) -> Post:
    at = timezone.now() - dt.timedelta(days=days)
    post = make_post(title, body, status=Post.Status.PUBLISHED, published_at=at)
    post.tags.set([Tag.objects.get_or_create(name=name)[0] for name in tags])
    return post


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


# Names in code


CODE = """
```python
server = http.server.ThreadingHTTPServer(("", 0), make_handler)
pool_max_size = parseMaxConnections(env["KUBE-APISERVER_URL"])
```
"""


@pytest.mark.parametrize(
    "words",
    [
        "ThreadingHTTPServer", "threadinghttpserver", "http.server.ThreadingHTTPServer", "http.server", "HTTPServer",
        "threading", "pool_max_size", "max_size", "parseMaxConnections", "parseMaxConnections()", "connections",
        "kube-apiserver", "make_hand", "parseMaxConn",
    ],
)  # fmt: skip
def test_a_name_in_code_is_found_whole_by_a_part_and_by_its_beginning(words: str) -> None:
    make_post("With code", CODE)
    make_post("Without", "Nothing of the kind.")
    assert found(words) == ["With code"]


def test_a_name_in_a_line_of_code_is_found_beside_words_of_the_text() -> None:
    make_post("Both", "Run `pg_stat_statements` before you guess at the indexes.")
    make_post("One", "Guess at the indexes.")
    assert found("index pg_stat_statements") == ["Both"]


def test_names_are_taken_apart_at_dots_underscores_dashes_and_humps() -> None:
    assert search.names_in("asyncio.TaskGroup std::vec::Vec x getHTTPBody2 42").split() == [
        *("asyncio.taskgroup", "asyncio", "taskgroup", "task", "group"),
        *("std::vec::vec", "std", "vec"),
        *("gethttpbody2", "get", "http", "body"),
    ]


def test_code_of_any_size_is_kept_in_bounds() -> None:
    names = search.names_in(" ".join(f"name_{number}" for number in range(10_000)) + " " + "x" * 3000)
    assert len(names.split()) == search.MOST_LEXEMES
    make_post("Long", "```\n" + "ä" * 3000 + " " + "\n".join(f"key{n} = {n}" for n in range(6000)) + "\n```")
    assert found("key17") == ["Long"]


# Topics, languages, places


def test_a_topic_is_found_and_follows_its_name() -> None:
    post = publish("Plain", tags=("Observability",))
    assert found("observability") == ["Plain"]
    Tag.objects.get(name="Observability").delete()
    assert found("observability") == []
    tag = Tag.objects.create(name="Tracing")
    post.tags.add(tag)
    tag.name = "Profiling"
    tag.save()
    post.save()
    assert (found("tracing"), found("profiling")) == ([], ["Plain"])


def test_the_language_of_search_is_the_publications() -> None:
    publication = Publication.current()
    publication.language = "de"
    publication.save()
    make_post("Häuser", "Wir bauten viele Häuser an den Flüssen.")
    assert found("haus", "de") == found("fluss", "de") == found("flüsse", "de") == ["Häuser"]


def test_titles_count_more_than_texts_and_topics_more_than_mentions() -> None:
    publish("A mention", "Once, replication was mentioned, and replication again.", days=1)
    publish("A topic", tags=("Replication",), days=2)
    publish("Replication", days=3)
    assert found("replication") == ["Replication", "A topic", "A mention"]


# The page


def titles(client: Client, **asked: object) -> list[str]:
    page = client.get("/search/", asked)
    assert page.status_code == 200
    return [post.title for post, _passage in page.context["results"]]


@pytest.fixture
def posts(publication: Publication) -> list[Post]:
    return [
        publish("Locks this year", "About locks.", days=0, tags=("Locks",)),
        publish("Queues", "Locks in queues.", days=400, tags=("Queues",)),
        publish("Old locks", "About locks.", days=800, tags=("Locks",)),
    ]


def test_what_is_found_is_narrowed_by_topic_and_year(client: Client, posts: list[Post]) -> None:
    assert posts[1].published_at
    year = posts[1].published_at.year
    assert set(titles(client, q="locks")) == {"Locks this year", "Queues", "Old locks"}
    assert set(titles(client, q="locks", tag="locks")) == {"Locks this year", "Old locks"}
    assert titles(client, q="locks", year=year) == ["Queues"]
    assert titles(client, q="locks", year=year, tag="locks") == []
    assert len(titles(client, q="locks", year="nothing", tag="nothing")) == 3


def test_pages_of_what_was_found_keep_what_was_asked(client: Client, publication: Publication) -> None:
    for number in range(25):
        publish(f"Locks {number}", days=number, tags=("Locks",))
    page = client.get("/search/", {"q": "locks", "tag": "locks"})
    assert "25 posts found" in page.text
    assert 'href="?q=locks&amp;tag=locks&amp;page=2"' in page.text
    assert [len(titles(client, q="locks", page=n)) for n in (1, 2, 3)] == [10, 10, 5]
    for wrong in ("0", "4", "x", "9" * 30):
        assert client.get("/search/", {"q": "locks", "page": wrong}).status_code == 404


@pytest.mark.parametrize("words", ["locks", '"about locks" OR queues', ""])
def test_a_search_asks_four_questions(
    client: Client, posts: list[Post], words: str, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(4):
        client.get("/search/", {"q": words})


@pytest.mark.parametrize(
    "words",
    ["a " * 1000, "(" * 1000, "' '' \\' :* & | !", "😀 ﷽ \u202e", "%00\x00", "x:*A 'y':B", "-- -a", "-", "_ . ::"],
)
def test_hostile_words_are_answered(client: Client, posts: list[Post], words: str) -> None:
    titles(client, q=words)


@pytest.mark.skipif("CORPORA_DIR" not in os.environ, reason="CORPORA_DIR is not set: the corpora were not tried")
def test_a_real_archive_is_searched_by_product_misspelt_title_and_name_in_code(
    client: Client, publication: Publication
) -> None:
    importer.import_folder(Path(os.environ["CORPORA_DIR"]) / "markdown" / "lwkd")
    assert Post.objects.listed().count() > 250
    assert len(titles(client, q="kubeadm")) == search_page.RESULTS
    assert any("Week Ending November" in title for title in titles(client, q="Week Endng November"))
    named = [(post.title, name) for post in Post.objects.listed() for name in post.body_code.split() if "_" in name]
    title, name = named[0]
    assert title in titles(client, q=name)
