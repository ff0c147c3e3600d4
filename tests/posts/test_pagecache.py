"""Pages kept as bytes: the WSGI application itself is asked, as a server would, and what Django does is counted."""

from __future__ import annotations

import gzip
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import brotli
import psycopg
import pytest
import time_machine
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

from posts import pagecache, siteversion
from posts.models import FeaturedPost, Post, Publication, Redirect, Series, SiteVersion, Tag

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Site:
    """The application behind a server: `get` asks it, `made` counts how often Django was entered."""

    capacity: int = 8 * 2**20
    made: int = 0
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    cache: pagecache.PageCache = field(init=False)

    def __post_init__(self) -> None:
        self.django = get_wsgi_application()
        self.cache = pagecache.PageCache(self._count, capacity=self.capacity)

    def _count(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.made += 1
        self.before()
        response = self.django(environ, start_response)
        self.after()
        return response

    def get(self, address: str = "/", *, method: str = "GET", scheme: str = "http", **headers: str) -> Reply:
        path_info, _mark, query = address.partition("?")
        environ = {
            "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path_info, "QUERY_STRING": query,
            "SERVER_NAME": "testserver", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "testserver",
            "wsgi.url_scheme": scheme, "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
        } | {f"HTTP_{name.upper()}": value for name, value in headers.items()}  # fmt: skip
        started: list[Any] = []
        response = self.cache(environ, lambda status, headers, *_more: started.extend([status, headers]))
        body = b"".join(response)
        if hasattr(response, "close"):
            response.close()
        return Reply(int(started[0][:3]), {name.lower(): value for name, value in started[1]}, body)

    def look_again(self) -> None:
        """Let the half second go by after which the version is read anew."""
        self.cache.clock._read_after = float("-inf")


@pytest.fixture
def site(publication: Publication) -> Site:
    return Site()


@pytest.fixture
def post(publication: Publication) -> Post:
    post = Post(title="The queue that was a table", body="A queue.\n\n" + "It was a table. " * 50)
    post.publish()
    return post


def version() -> int:
    return SiteVersion.objects.values_list("number", flat=True).get()


def test_a_page_is_made_once_and_asks_the_database_nothing_afterwards(site: Site, post: Post) -> None:
    first = site.get(post.get_absolute_url())
    with no_queries():
        second = site.get(post.get_absolute_url())
    assert (first.status, second.status, second.body, second.headers) == (200, 200, first.body, first.headers)
    assert "It was a table." in second.text
    assert site.made == 1


class no_queries:
    """Fail on any query in the block."""

    def __enter__(self) -> None:
        def refuse(*_args: Any) -> Any:
            raise AssertionError("a query was asked")

        self.wrapper = connection.execute_wrapper(refuse)
        self.wrapper.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.wrapper.__exit__(*error)


@pytest.mark.parametrize(
    "address",
    ["/", "/posts/", "/about/", "/privacy/", "/feed.xml", "/rss.xml", "/feed.json", "/sitemap.xml", "/robots.txt",
     "/issues/"],
)  # fmt: skip
def test_the_public_pages_are_kept_with_their_headers(site: Site, post: Post, address: str) -> None:
    made = site.get(address)
    kept = site.get(address)
    assert site.made == 1
    assert kept.body == made.body
    for name in ("content-security-policy", "x-content-type-options", "referrer-policy", "content-type"):
        assert kept.headers[name]
    assert kept.headers["vary"] == "Accept-Encoding"
    assert kept.headers["content-length"] == str(len(kept.body))
    assert kept.headers["cache-control"].startswith("public, max-age=0")
    assert "set-cookie" not in kept.headers


def test_each_encoding_has_its_own_bytes_and_tag(site: Site, post: Post) -> None:
    plain = site.get(post.get_absolute_url())
    zipped = site.get(post.get_absolute_url(), accept_encoding="gzip, deflate")
    small = site.get(post.get_absolute_url(), accept_encoding="gzip, deflate, br, zstd")
    refused = site.get(post.get_absolute_url(), accept_encoding="br;q=0, gzip;q=0.5")
    assert gzip.decompress(zipped.body) == brotli.decompress(small.body) == plain.body
    assert [reply.headers.get("content-encoding") for reply in (plain, zipped, small, refused)] == [
        None, "gzip", "br", "gzip",
    ]  # fmt: skip
    assert len({reply.headers["etag"] for reply in (plain, zipped, small)}) == 3
    assert not any(reply.headers["etag"].startswith("W/") for reply in (plain, zipped, small))


def test_who_has_the_bytes_is_told_so(site: Site, post: Post) -> None:
    page = site.get(post.get_absolute_url(), accept_encoding="br")
    known = site.get(post.get_absolute_url(), accept_encoding="br", if_none_match=f'"other", {page.headers["etag"]}')
    weak = site.get(post.get_absolute_url(), accept_encoding="br", if_none_match=f"W/{page.headers['etag']}")
    other = site.get(post.get_absolute_url(), if_none_match=page.headers["etag"])
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", page.headers["etag"])
    assert known.headers["vary"] == "Accept-Encoding"
    assert "content-length" not in known.headers
    assert (weak.status, other.status) == (304, 200)


def test_a_head_request_gets_the_headers_alone(site: Site, post: Post) -> None:
    head = site.get(post.get_absolute_url(), method="HEAD")
    page = site.get(post.get_absolute_url())
    assert (head.status, head.body, head.headers) == (200, b"", page.headers)
    assert site.made == 1


def test_unknown_query_parameters_are_the_same_page(site: Site, post: Post) -> None:
    for address in ("/posts/", "/posts/?utm_source=mail", "/posts/?fbclid=x&y=%00", "/posts/?%ff"):
        assert site.get(address).status == 200
    assert site.made == 1


def test_known_query_parameters_are_pages_of_their_own_in_any_order(site: Site, post: Post) -> None:
    year = timezone.now().year
    every, of_year = site.get("/posts/"), site.get(f"/posts/?year={year}")
    Post.objects.bulk_create(
        Post(title=str(n), slug=f"p-{n}", status="published", published_at=timezone.now()) for n in range(60)
    )
    site.look_again()
    same = site.get(f"/posts/?x=1&page=1&year={year}"), site.get(f"/posts/?year={year}&page=2&page=1")
    assert every.body != of_year.body
    assert (same[0].status, same[0].body) == (200, same[1].body)
    assert site.made == 3


def test_what_is_no_plain_value_is_djangos_to_answer_and_never_kept(site: Site, post: Post) -> None:
    for value in ("", "01", "%C2%B2", "1%00", "x" * 200):
        site.get(f"/posts/?page={value}")
    assert site.made == 5
    assert len(site.cache._pages) == 0


def test_nothing_of_a_visitor_gets_into_a_page(site: Site, post: Post) -> None:
    seen: list[dict[str, Any]] = []
    inner = site.django
    site.django = lambda environ, start: (seen.append(environ), inner(environ, start))[1]  # type: ignore[assignment]
    visitor = {"cookie": "sessionid=x", "accept_language": "de", "user_agent": "X", "x_forwarded_host": "evil.test"}
    assert site.get("/posts/?evil=1", if_none_match='"x"', **visitor).status == 200
    assert {name for name in seen[0] if name.startswith("HTTP_")} == {"HTTP_HOST"}
    assert seen[0]["QUERY_STRING"] == ""


def test_what_is_not_found_is_not_kept(site: Site) -> None:
    assert [site.get("/posts/nothing/").status for _turn in range(2)] == [404, 404]
    assert site.made == 2


def test_sign_up_and_admin_are_never_kept(site: Site, post: Post) -> None:
    for address in ("/subscribe/", "/admin/account/login/", f"{post.get_absolute_url()}x"):
        for _turn in range(2):
            site.get(address)
    assert site.made == 6


def test_a_search_is_kept_under_its_words_however_they_are_spaced(site: Site, post: Post) -> None:
    for address in ("/search/?q=a+queue&x=1", "/search/?x=2&q=+a++queue", "/search/?q=a%20queue"):
        assert site.get(address).status == 200
    assert site.made == 1
    for address in ("/search/?q=another", "/search/?q=a+queue&tag=none", "/search/?q=%00", "/search/?q=%00"):
        assert site.get(address).status == 200
    assert site.made == 5


def test_raw_letters_in_a_search_mean_what_they_mean_to_django(site: Site, post: Post) -> None:
    raw = "/search/?q=" + "über".encode().decode("latin-1")  # PEP 3333
    assert 'value="über"' in site.get(raw).text
    assert site.get("/search/?q=%C3%BCber").text == site.get(raw).text


def test_searches_ask_for_the_years_and_topics_once_a_version(site: Site, post: Post) -> None:
    site.get("/search/?q=rows")
    with CaptureQueriesContext(connection) as asked:
        site.get("/search/?q=locks")
    assert len(asked) == 1
    post.tags.add(Tag.objects.create(name="Vacuum", slug="vacuum"))
    site.look_again()
    assert "vacuum" in site.get("/search/?q=tables").text


def test_a_foreign_host_is_refused_also_for_a_kept_page(site: Site, post: Post) -> None:
    assert site.get("/").status == 200
    assert [site.get("/", host=host).status for host in ("evil.test", "", "testserver:x")] == [400, 400, 400]
    assert site.get("/", host="TESTSERVER:8000").status == 200
    assert site.made == 4


def test_http_is_redirected_and_https_has_pages_of_its_own(site: Site, post: Post, settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT, settings.SECURE_HSTS_SECONDS = True, 60
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    site = Site()
    secure = site.get("/", x_forwarded_proto="https")
    assert site.get("/").status == site.get("/", x_forwarded_proto="http").status == 301
    assert site.get("/", x_forwarded_proto="https").body == secure.body
    assert secure.headers["strict-transport-security"]
    assert site.made == 3


def test_a_change_shows_as_soon_as_the_version_is_read_again(site: Site, post: Post) -> None:
    site.get("/")
    Publication.objects.update(name="Another Name")
    site.look_again()
    assert "Another Name" in site.get("/").text
    assert site.made == 2


def test_another_process_sees_a_change_within_a_second(site: Site, post: Post) -> None:
    site.get("/")
    Post.objects.filter(pk=post.pk).update(title="A new title")
    time.sleep(siteversion.READ_SECONDS + 0.05)
    assert "A new title" in site.get("/").text


def test_the_version_is_read_at_most_twice_a_second(site: Site, post: Post) -> None:
    site.get("/")
    queries = count_queries(lambda: [site.get("/") for _turn in range(50)])
    site.look_again()
    again = count_queries(lambda: [site.get("/") for _turn in range(50)])
    assert (queries, again) == (0, 1)


def count_queries(work: Callable[[], object]) -> int:
    seen = []
    with connection.execute_wrapper(lambda execute, *args: (seen.append(args[0]), execute(*args))[1]):
        work()
    return len(seen)


def test_a_change_between_version_and_page_is_not_kept_for_good(site: Site, post: Post) -> None:
    """Whichever comes first: the page was made before the change or after it, the next reading mends it."""
    for moment in ("before", "after"):
        site.get("/")
        site.look_again()
        Publication.objects.update(tagline=f"something to make anew for {moment}")
        setattr(site, moment, lambda moment=moment: Publication.objects.update(name=f"Changed {moment}"))
        site.get("/")
        setattr(site, moment, lambda: None)
        site.look_again()
        assert f"Changed {moment}" in site.get("/").text


def test_a_change_that_commits_late_counts_from_its_commit(site: Site, post: Post) -> None:
    """A page made while the change is under way shows the old text, and is made anew after the commit."""
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("UPDATE posts_publication SET name = 'Committed late'")
        assert "Committed late" not in site.get("/").text
        site.look_again()
        assert "Committed late" not in site.get("/").text
    site.look_again()
    assert "Committed late" in site.get("/").text


def test_a_scheduled_post_appears_at_its_instant_without_any_write(site: Site) -> None:
    soon = timezone.now() + timezone.timedelta(hours=1)
    Post.objects.create(title="Soon to come", status=Post.Status.SCHEDULED, published_at=soon)
    assert "Soon to come" not in site.get("/").text
    before = version()
    with time_machine.travel(soon, tick=True):
        site.look_again()
        assert "Soon to come" in site.get("/").text
    assert version() == before


def test_the_next_day_has_pages_with_its_own_form_token(site: Site) -> None:
    first = site.get("/").text
    with time_machine.travel(timezone.now() + timezone.timedelta(days=1), tick=True):
        site.look_again()
        assert site.get("/").text != first


def test_a_bulk_import_counts_once_and_drafts_not_at_all(publication: Publication) -> None:
    before = version()
    draft = Post.objects.create(title="Draft")
    draft.keep_typed({"body": "typed"})
    draft.tags.set([Tag.objects.create(name="new")])
    Redirect.objects.filter(path="/nothing/").delete()
    assert version() == before
    now = timezone.now()
    Post.objects.bulk_create(
        Post(title=str(n), slug=f"p-{n}", status="published", published_at=now) for n in range(500)
    )
    assert version() == before + 1


def changes() -> Iterator[tuple[str, Callable[[], object]]]:
    post = Post.objects.get(title="Shown")
    tag, series = Tag.objects.get(), Series.objects.get()
    yield "title", lambda: Post.objects.filter(pk=post.pk).update(title="Shown otherwise")
    yield "untag", post.tags.clear
    yield "tag", lambda: post.tags.add(tag)
    yield "rename a tag", lambda: Tag.objects.update(name="renamed")
    yield "rename a series", lambda: Series.objects.update(name="renamed")
    yield "remove a series", series.delete
    yield "feature", lambda: FeaturedPost.objects.create(post=post)
    yield "reorder", lambda: FeaturedPost.objects.update(position=3)
    yield "unpin", lambda: FeaturedPost.objects.all().delete()
    yield "redirect", lambda: Redirect.objects.create(path="/old/", post=post)
    yield "publication", lambda: Publication.objects.update(tagline="new")
    yield "withdraw", lambda: Post.objects.filter(pk=post.pk).update(status="withdrawn")
    yield "bring back", lambda: Post.objects.filter(pk=post.pk).update(status="published")
    yield "delete", post.delete


def test_each_change_of_something_shown_counts_the_version_up(publication: Publication) -> None:
    shown = Post(title="Shown", series=Series.objects.create(name="A series"))
    shown.publish()
    shown.tags.add(Tag.objects.create(name="tag"))
    for name, change in changes():
        before = version()
        change()
        assert version() == before + 1, name


def change_and_roll_back(name: str) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        Publication.objects.update(name=name)
        raise ZeroDivisionError


def test_what_is_rolled_back_counts_nothing_and_a_savepoint_does_no_harm(publication: Publication) -> None:
    before = version()
    change_and_roll_back("x")
    assert version() == before
    with transaction.atomic():
        change_and_roll_back("y")
        Publication.objects.update(name="z")
    assert version() == before + 1


def in_threads(work: Callable[[], object], number: int) -> None:
    def ended() -> None:
        try:
            work()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=ended) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_a_stampede_makes_a_page_once(site: Site, post: Post) -> None:
    site.before = lambda: time.sleep(0.3)
    replies: list[Reply] = []
    in_threads(lambda: replies.append(site.get(post.get_absolute_url())), 8)
    assert (len(replies), {reply.status for reply in replies}, len({reply.body for reply in replies})) == (8, {200}, 1)
    assert site.made == 1


def test_while_a_page_is_made_anew_the_others_get_the_one_of_before(site: Site, post: Post) -> None:
    site.get("/")
    Publication.objects.update(name="Another Name")
    site.look_again()
    begun, go_on = threading.Event(), threading.Event()
    site.before = lambda: (begun.set(), go_on.wait(10))
    maker = threading.Thread(target=lambda: (site.get("/"), connections.close_all()))
    maker.start()
    begun.wait(10)
    former = site.get("/")
    go_on.set()
    maker.join(10)
    assert "Query Notes" in former.text
    assert former.headers["cache-control"] == "public, max-age=0, s-maxage=1"
    assert "Another Name" in site.get("/").text
    assert site.made == 2


def test_memory_is_bounded_and_the_page_asked_for_longest_ago_goes_first(publication: Publication) -> None:
    site = Site(capacity=40_000)
    for address in ("/", "/about/", "/", "/privacy/", "/posts/", "/", "/issues/"):
        site.get(address)
        assert site.cache.size <= 40_000
    kept = [key.path for key in site.cache._pages]
    assert "/" in kept
    assert "/about/" not in kept
    assert site.cache.size == sum(page.size for page in site.cache._pages.values())


@pytest.mark.parametrize(
    ("header", "value"),
    [("Set-Cookie", "a=b"), ("Vary", "Cookie"), ("Cache-Control", "private"), ("Cache-Control", "no-store")],
)
def test_an_answer_for_one_visitor_is_neither_kept_nor_shared(site: Site, header: str, value: str) -> None:
    def personal(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html"), (header, value)])
        return [b"yours"]

    site.django = personal  # type: ignore[assignment]
    assert [site.get("/").body for _turn in range(2)] == [b"yours", b"yours"]
    assert (site.made, len(site.cache._pages)) == (2, 0)


@pytest.fixture
def database_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let nobody reach the database from now on, as if its server had been stopped."""

    def leave() -> None:
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "HOST", "/nonexistent")

    return leave


def test_kept_pages_are_served_while_the_database_is_away(
    site: Site, post: Post, database_away: Callable[[], None]
) -> None:
    page = site.get("/")
    database_away()
    site.look_again()
    still = site.get("/")
    site.cache.clock.read_at -= siteversion.AWAY_SECONDS
    later = site.get("/")
    assert (still.status, still.body, still.headers) == (200, page.body, page.headers)
    assert (later.status, later.body) == (200, page.body)
    assert later.headers["cache-control"] == "public, max-age=0, s-maxage=1"


def test_a_page_of_an_older_version_is_better_than_none(
    site: Site, post: Post, database_away: Callable[[], None]
) -> None:
    page = site.get("/")
    Publication.objects.update(name="Another Name")
    site.look_again()
    assert "Another Name" in site.get("/about/").text
    database_away()
    assert site.get("/").body == page.body


def test_what_is_not_kept_answers_503_in_the_sites_dress(
    site: Site, post: Post, database_away: Callable[[], None]
) -> None:
    site.get("/about/")
    database_away()
    for address in ("/", "/search/?q=queue", post.get_absolute_url()):
        reply = site.get(address)
        assert (reply.status, reply.headers["retry-after"]) == (503, "30")
        assert "no-store" in reply.headers["cache-control"]
        assert "site.css" in reply.text
        assert reply.headers["content-security-policy"]


def test_a_mistake_of_ours_still_answers_500(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publication, "current", classmethod(lambda cls: 1 / 0))
    assert site.get("/about/").status == 500


def test_with_no_memory_allowed_django_answers_alone(settings: Any) -> None:
    settings.PAGE_CACHE_MB = 0
    django = get_wsgi_application()
    assert pagecache.in_front_of(django) is django


def marked(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


urlpatterns = [path("", pagecache.kept("b", "a")(marked))]


@pytest.mark.urls(__name__)
def test_marking_a_view_names_its_parameters_and_leaves_the_view_itself_alone() -> None:
    pagecache.known_parameters.cache_clear()
    assert list(pagecache.known_parameters("/") or ()) == ["a", "b"]
    assert not hasattr(marked, "kept_parameters")
    pagecache.known_parameters.cache_clear()
