"""The readers' pages: what each shows, what none may show, and what it costs."""

import datetime as dt
import io
import re

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.template import loader
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pytest_django import DjangoAssertNumQueries

from posts import shelves
from posts.models import FeaturedPost, Post, Publication, Redirect, Tag
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.django_db

PUBLIC = [
    "/",
    "/posts/",
    "/search/",
    "/search/?q=vacuum",
    "/about/",
    "/privacy/",
    "/feed.xml",
    "/rss.xml",
    "/feed.json",
]


def publish(title: str = "On vacuum", *, days: int = 1, **values: object) -> Post:
    published_at = timezone.now() - dt.timedelta(days=days)
    return make_post(title, status=Post.Status.PUBLISHED, published_at=published_at, **values)


@pytest.fixture
def locks(publication: Publication) -> Tag:
    return Tag.objects.create(name="Locks")


@pytest.fixture
def hidden(locks: Tag) -> list[Post]:
    """Posts that no list may show, each about vacuum."""
    tomorrow = timezone.now() + dt.timedelta(days=1)
    published = {"status": Post.Status.PUBLISHED, "published_at": timezone.now() - dt.timedelta(hours=1)}
    posts = [
        make_post("Vacuum draft"),
        make_post("Vacuum scheduled", status=Post.Status.SCHEDULED, published_at=tomorrow),
        make_post("Vacuum tomorrow", status=Post.Status.PUBLISHED, published_at=tomorrow),
        make_post("Vacuum unlisted", visibility=Post.Visibility.UNLISTED, **published),
        make_post("Vacuum by mail", visibility=Post.Visibility.EMAIL_ONLY, **published),
        make_post("Vacuum withdrawn", status=Post.Status.WITHDRAWN, published_at=timezone.now()),
    ]
    for number, post in enumerate(posts):
        post.tags.add(locks)
        FeaturedPost.objects.create(post=post, position=number)
    return posts


@pytest.mark.parametrize("address", [*PUBLIC, "/sitemap.xml", "/robots.txt", "/nowhere/", "/posts/on-vacuum/"])
def test_no_anonymous_page_sets_a_cookie(client: Client, publication: Publication, address: str) -> None:
    publish("On vacuum")
    response = client.get(address)
    assert not response.cookies
    assert "Cookie" not in response.get("Vary", "")


@pytest.mark.parametrize("address", ["/", "/posts/", "/posts/on-vacuum/", "/tags/locks/", "/about/", "/nowhere/"])
def test_pages_carry_no_inline_style_or_script(client: Client, locks: Tag, address: str) -> None:
    publish("On vacuum").tags.add(locks)
    page = client.get(address).content.decode()
    assert "<style" not in page
    assert " style=" not in page
    scripts = [tag for tag in re.findall("<script[^>]*>", page) if tag != '<script type="application/ld+json">']
    assert all(' src="' in script for script in scripts)  # the other kind is data


@pytest.mark.parametrize(
    ("address", "most"),
    [
        ("/", 4),
        ("/posts/", 4),
        ("/posts/?year=2020", 4),
        ("/issues/", 3),
        ("/issues/1/", 3),
        ("/privacy/", 1),
        ("/tags/locks/?year=2020", 4),
        ("/posts/on-vacuum/", 4),
        ("/tags/locks/", 4),
        ("/search/?q=vacuum", 4),
        ("/about/", 1),
    ],
)
def test_a_page_takes_few_queries(
    client: Client, locks: Tag, address: str, most: int, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(12):
        publish("On vacuum" if number == 0 else f"On vacuum, {number}", days=number).tags.add(locks)
    make_post("Of old", status="published", published_at=dt.datetime(2020, 6, 1, tzinfo=dt.UTC)).tags.add(locks)
    make_issue(started_at=timezone.now(), number=1)
    FeaturedPost.objects.create(post=Post.objects.all()[3])
    with django_assert_max_num_queries(most):
        assert client.get(address).status_code == 200


def test_the_profile_shows_a_featured_post_once(client: Client, publication: Publication) -> None:
    FeaturedPost.objects.create(post=publish("On locks"))
    response = client.get("/")
    assert response.content.decode().count(">On locks</a>") == 1
    assert "Query Notes" in response.content.decode()


def titles(page: str) -> list[str]:
    """Return the titles of the posts that a list shows."""
    return re.findall(r'<h\d class="post-row-title"><a href="[^"]+">([^<]+)</a>', page)


def test_the_archive_has_pages(client: Client, publication: Publication) -> None:
    for number in range(61):
        publish(f"Number {number}", days=number + 1)
    newest = client.get("/posts/").content.decode()
    assert titles(newest) == [f"Number {number}" for number in range(31)]
    assert 'rel="next" href="/posts/?page=1"' in newest
    oldest = client.get("/posts/?page=1").content.decode()
    assert titles(oldest) == [f"Number {number}" for number in range(31, 61)]
    assert 'rel="prev" href="/posts/"' in oldest
    assert f'<link rel="canonical" href="{settings.SITE_URL}/posts/?page=1">' in oldest


@pytest.mark.parametrize("address", ["/posts/", "/tags/locks/"])
def test_a_new_post_moves_nothing_on_the_pages_before(client: Client, locks: Tag, address: str) -> None:
    for number in range(95):
        publish(f"Number {number}", days=200 - number).tags.add(locks)
    kept = {page: titles(client.get(f"{address}?page={page}").content.decode()) for page in (1, 2)}
    for number in range(95, 150):
        publish(f"Number {number}", days=200 - number).tags.add(locks)
        if number % 9 == 0:
            assert {page: titles(client.get(f"{address}?page={page}").content.decode()) for page in (1, 2)} == kept
            assert titles(client.get(address).content.decode())[0] == f"Number {number}"


@given(st.integers(0, 400))
def test_the_pages_hold_each_post_once(count: int) -> None:
    newest = shelves.leaf("", count=count, path="/posts/")
    leaves = [newest, *(shelves.leaf(str(n), count=count, path="/posts/") for n in range(newest.number - 1, 0, -1))]
    assert [place for leaf in leaves for place in range(count)[leaf.part]] == list(range(count))
    assert len(range(count)[newest.part]) < 2 * shelves.PAGE


def test_a_year_is_one_of_the_publications_clocks(client: Client, publication: Publication) -> None:
    publication.time_zone = "Pacific/Auckland"
    publication.save()
    make_post("Fireworks", status="published", published_at=dt.datetime(2019, 12, 31, 12, tzinfo=dt.UTC))
    publish("New")
    assert titles(client.get("/posts/?year=2020").content.decode()) == ["Fireworks"]
    assert client.get("/posts/?year=2019").status_code == 404


def test_the_archive_has_years(client: Client, publication: Publication) -> None:
    make_post("Old", status="published", published_at=dt.datetime(2019, 5, 1, tzinfo=dt.UTC))
    publish("New")
    page = client.get("/posts/?year=2019").content.decode()
    assert "Old" in page
    assert "New</a>" not in page


@pytest.mark.parametrize("query", ["page=0", "page=99", "page=x", "page=1", "year=1066", "year=x", "year=-1"])
def test_a_page_that_is_not_there_is_not_found(client: Client, publication: Publication, query: str) -> None:
    publish()
    assert client.get(f"/posts/?{query}").status_code == 404


def test_a_post_shows_its_parts(client: Client, locks: Tag) -> None:
    publish("Earlier", days=3)
    publish("Later", days=1)
    post = publish("On locks", days=2, subtitle="Who waits for whom", body="Some **text**.")
    post.tags.add(locks)
    page = client.get(post.get_absolute_url()).content.decode()
    for part in (
        "On locks</h1>",
        "Who waits for whom",
        "<strong>text</strong>",
        'href="/tags/locks/"',
        "1 minute to read",
    ):
        assert part in page
    assert page.index("Earlier</span></a>") < page.index("Later</span></a>")
    assert f'<link rel="canonical" href="{post.url}">' in page


def test_posts_of_one_instant_have_neighbours(client: Client, publication: Publication) -> None:
    at = timezone.now() - dt.timedelta(days=1)
    one, two, three = (make_post(title, status="published", published_at=at) for title in ("One", "Two", "Three"))
    page = client.get(two.get_absolute_url()).content.decode()
    assert f'rel="prev" href="{one.get_absolute_url()}"' in page
    assert f'href="{three.get_absolute_url()}"' in page


def test_a_withdrawn_post_is_gone_at_every_address_it_had(client: Client, publication: Publication) -> None:
    post = publish("On locks")
    Redirect.objects.create(path="/2019/locks.html", post=post)
    post.status = Post.Status.WITHDRAWN
    post.save()
    assert client.get(post.get_absolute_url()).status_code == 410
    assert client.get("/2019/locks.html").status_code == 410


@pytest.mark.parametrize("old", ["/2019/locks.html", "/2019/locks", "/2019/locks/", "/über/locks/"])
def test_an_old_address_leads_to_the_post(client: Client, publication: Publication, old: str) -> None:
    post = publish("On locks")
    Redirect.objects.create(path=old, post=post)
    response = client.get(old)
    assert response.status_code == 301
    assert set(response["Cache-Control"].split(", ")) == {"public", "max-age=300"}
    assert response["Location"] == post.get_absolute_url()


def test_a_renamed_post_leaves_its_old_address_behind(client: Client, publication: Publication) -> None:
    post = publish("On locks")
    old = post.get_absolute_url()
    post.slug = "on-latches"
    post.save()
    assert client.get(old)["Location"] == "/posts/on-latches/"


def test_an_old_address_of_a_draft_tells_nothing(client: Client, publication: Publication) -> None:
    Redirect.objects.create(path="/old/", post=make_post("Secret"))
    assert client.get("/old/").status_code == 404


def test_search_finds_words_and_survives_odd_ones(client: Client, publication: Publication) -> None:
    publish("On vacuum", body="Dead rows wait.")
    page = client.get("/search/?q=rows").content.decode()
    assert "On vacuum" in page
    assert "<mark>rows</mark>" in page
    for odd in ("'", "a & | !", "\x00", "<script>alert(1)</script>", "x" * 5000):
        response = client.get("/search/", {"q": odd})
        assert response.status_code == 200
        assert b"<script>alert" not in response.content


def test_about_shows_the_authors_markdown(client: Client, publication: Publication) -> None:
    publication.about = "I write **weekly**."
    publication.save()
    assert "<strong>weekly</strong>" in client.get("/about/").content.decode()


def test_privacy_names_what_is_stored_and_who_answers_for_it(client: Client, publication: Publication) -> None:
    page = client.get("/privacy/").content.decode()
    for words in ("IP address", "fingerprint of your address", "1 Example Street", "author@example.org"):
        assert words in page


def test_a_preview_link_shows_a_draft_to_its_holder(client: Client, publication: Publication) -> None:
    draft = make_post("Not yet")
    response = client.get(draft.preview_url.removeprefix(settings.SITE_URL))
    assert "Not yet" in response.content.decode()
    assert response["X-Robots-Tag"] == "noindex"
    assert "no-store" in response["Cache-Control"]
    assert not response.cookies


def test_a_preview_link_that_was_changed_or_is_old_shows_nothing(
    client: Client, publication: Publication, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_post("One"), make_post("Other")
    path = one.preview_url.removeprefix(settings.SITE_URL)
    assert client.get(path.replace(f"/{one.pk}.", f"/{other.pk}.")).status_code == 404
    monkeypatch.setattr("django.core.signing.time.time", lambda: timezone.now().timestamp() + 15 * 24 * 3600)
    assert client.get(path).status_code == 404


def test_the_theme_is_kept_as_long_as_its_address_lives(client: Client, publication: Publication) -> None:
    old = publication.theme_url
    assert "immutable" in client.get(old)["Cache-Control"]
    publication.accent_color = "#b00b1e"
    publication.save()
    assert publication.theme_url != old
    assert client.get(old)["Cache-Control"] == "no-cache"


def test_the_sitemap_names_exactly_the_pages_and_public_posts(client: Client, hidden: list[Post]) -> None:
    post = publish("On locks")
    page = client.get("/sitemap.xml", headers={"host": "[::1]"}).content.decode()
    found = {part.partition("</loc>")[0] for part in page.split("<loc>")[1:]}
    pages = {reverse(f"posts:{name}") for name in ("profile", "archive", "about", "privacy")}
    assert found == {settings.SITE_URL + path for path in pages | {post.get_absolute_url()}}


def test_a_browser_finds_the_icon_where_no_page_names_it(client: Client) -> None:
    assert client.get("/favicon.ico").headers["Location"] == "/static/posts/icon.svg"


def test_robots_names_the_sitemap_and_not_the_admin(client: Client, publication: Publication) -> None:
    page = client.get("/robots.txt").content.decode()
    assert f"Sitemap: {settings.SITE_URL}/sitemap.xml" in page
    assert "admin" not in page


def test_an_uploaded_image_is_served_and_nothing_beside_it(client: Client, publication: Publication) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    publication.avatar.save("me.png", ContentFile(picture.getvalue()))
    response = client.get(publication.avatar.url)
    assert b"".join(response.streaming_content) == picture.getvalue()  # type: ignore[attr-defined]  # a file's response
    assert "max-age" in response["Cache-Control"]
    assert client.get("/media/../settings.py").status_code == 400
    assert client.get("/media/").status_code == 404


def test_pages_name_the_canonical_origin_whatever_host_was_asked(client: Client, publication: Publication) -> None:
    post = publish("On locks")
    for address in ("/", "/feed.xml", "/rss.xml", "/feed.json", "/sitemap.xml", "/robots.txt", post.get_absolute_url()):
        assert "[::1]" not in client.get(address, headers={"host": "[::1]"}).content.decode()


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1:x", ""])
def test_a_foreign_host_is_refused_in_the_sites_dress_and_led_to_the_site(client: Client, host: str) -> None:
    for address in ("/", "/nowhere/"):
        response = client.get(address, headers={"host": host})
        assert response.status_code == 400
        assert f'href="{settings.SITE_URL}/"' in response.text
        assert "site.css" in response.text


def test_who_may_not_see_a_page_is_told_so_in_the_sites_dress(client: Client, publication: Publication) -> None:
    client.force_login(User.objects.create_user("guest", is_staff=True))
    response = client.get("/admin/posts/post/add/")
    assert response.status_code == 403
    assert "This page is not open to you" in response.text
    assert publication.name in response.text


@pytest.mark.parametrize("name", ["a" * 300, f"covers/{'a' * 300}/x.png", "%00", "..%2fsecret", "cards/", "a" * 5000])
def test_a_picture_that_cant_be_there_is_not_found(client: Client, publication: Publication, name: str) -> None:
    assert client.get(f"/media/{name}").status_code in (400, 404)


def test_an_error_page_needs_nothing_that_may_have_failed() -> None:
    page = loader.get_template("500.html").render()
    assert "Something went wrong here" in page
    assert "site.css" in page


def test_a_summary_has_no_gaps_where_marks_stood(client: Client, publication: Publication) -> None:
    publish("On vacuum", body="Rows *wait*, **all**[^1].\nThen `vacuum`\\\ncomes.\n\n[^1]: Not all.")
    assert "Rows wait, all. Then vacuum comes." in client.get("/posts/").content.decode()


def test_a_tag_of_hidden_posts_alone_is_not_there(client: Client, publication: Publication) -> None:
    post = make_post(status=Post.Status.PUBLISHED, published_at=timezone.now(), visibility=Post.Visibility.UNLISTED)
    post.tags.add(Tag.objects.create(name="Secret plans", slug="secret-plans"))
    for address in ("/tags/secret-plans/", "/tags/secret-plans/feed.xml", "/tags/secret-plans/feed.json"):
        assert client.get(address).status_code == 404
