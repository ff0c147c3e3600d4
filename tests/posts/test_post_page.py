"""The page of a post: what it shows of the text, what it leads to, what it costs, and that it is well-formed."""

import datetime as dt
import io
import re
from urllib.parse import quote

import html5lib
import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client
from django.utils import timezone
from PIL import Image
from pytest_django import DjangoAssertNumQueries

from posts import related
from posts.models import Post, Publication, RelatedPosts, Series, Tag
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.django_db

LONG = "\n\n".join(f"## Part {number}\n\n{'word ' * 300}" for number in range(1, 5))
EVERYTHING = """First.[^1] Again.[^1] Second.[^2] See [below](#code).

## Code

```python
def claim(): return "a < b"
```

    plain code

| Left | Right |
|:-----|------:|
| a    | 1     |

> [!NOTE]
> An alert.

- [x] done
- [ ] open

![Bars](/media/bars.png) <img src="/media/bars.png" alt="Raw bars">

<details><summary>More</summary>

Inside.

</details>

[^1]: A note with `code`.

    And a second paragraph.
[^2]: Another.
"""


def publish(title: str = "On vacuum", body: str = "Tables *grow*.", *, days: float = 1, **values: object) -> Post:
    at = timezone.now() - dt.timedelta(days=days)
    return make_post(title, body, **{"status": Post.Status.PUBLISHED, "published_at": at, **values})


def picture(width: int = 1600, height: int = 900) -> ContentFile:
    """Make a picture of many colours."""
    output = io.BytesIO()
    Image.effect_noise((width // 8, height // 8), 60).resize((width, height)).convert("RGB").save(output, "PNG")
    return ContentFile(output.getvalue(), name="bars.png")


def page(client: Client, post: Post) -> str:
    response = client.get(post.get_absolute_url())
    assert response.status_code == 200
    return response.content.decode()


# Parts of the page


def test_a_long_post_shows_its_contents_with_links_that_lead_to_the_headings(
    client: Client, publication: Publication
) -> None:
    body = LONG + "\n\n### Below\n\nEnd."
    text = page(client, publish(body=body))
    contents = re.search(r'<nav class="contents".*?</nav>', text, re.DOTALL)
    assert contents
    targets = re.findall(r'href="#([^"]+)"', contents[0])
    assert targets == ["part-1", "part-2", "part-3", "part-4", "below"]
    assert all(f'id="{target}"' in text for target in targets)


@pytest.mark.parametrize("body", ["## One\n\n## Two\n\n## Three\n\nshort", "## One\n\n## Two\n\n" + "word " * 2000])
def test_a_short_post_and_one_with_few_headings_show_no_contents(
    client: Client, publication: Publication, body: str
) -> None:
    assert 'class="contents"' not in page(client, publish(body=body))


def test_a_correction_stands_above_the_text_with_its_date(client: Client, publication: Publication) -> None:
    post = publish(correction="The figure was *ten*.", corrected_at=dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.UTC))
    publication.time_zone = "Asia/Tokyo"
    publication.save()
    text = page(client, post)
    assert "The figure was <em>ten</em>." in text
    assert text.count("March 2, 2026") == 2
    assert text.index('id="correction"') < text.index("Tables <em>grow</em>")


def test_a_correction_without_a_date_is_of_now_and_a_date_goes_with_its_correction(publication: Publication) -> None:
    post = publish(correction="It was ten.")
    assert post.corrected_at
    assert timezone.now() - post.corrected_at < dt.timedelta(minutes=1)
    post.correction = ""
    post.save()
    assert post.corrected_at is None


def test_a_part_of_a_series_says_which_it_is_and_leads_to_the_others(client: Client, publication: Publication) -> None:
    series = Series.objects.create(name="Locks from below")
    first, second, _third = (publish(f"Lock {n}", days=9 - n, series=series) for n in (1, 2, 3))
    publish("Lock by address", days=2, series=series, visibility=Post.Visibility.UNLISTED)
    text = " ".join(page(client, second).split())
    assert "Part 2 of 3 of" in text
    assert first.get_absolute_url() in text
    assert "/series/locks-from-below/" in text
    assert "Lock by address" not in text


def test_a_series_has_a_page_with_its_listed_parts_in_order(client: Client, publication: Publication) -> None:
    series = Series.objects.create(name="Locks", description="From below.")
    for number in (1, 2, 3):
        publish(f"Lock {number}", days=9 - number, series=series)
    make_post("Lock draft", series=series)
    text = client.get("/series/locks/").content.decode()
    assert re.findall(r">(Lock [^<]*)</a>", text) == ["Lock 1", "Lock 2", "Lock 3"]
    assert "From below." in text


def test_a_series_of_which_nothing_is_shown_has_no_page(client: Client, publication: Publication) -> None:
    make_post("Lock draft", series=Series.objects.create(name="Locks"))
    assert client.get("/series/locks/").status_code == 404


def test_a_post_says_as_which_issue_it_was_mailed(client: Client, publication: Publication) -> None:
    post = publish()
    make_issue(post, number=41)
    assert "Mailed as" not in page(client, post)
    make_issue(post, subject="Sent", number=42, started_at=timezone.now())
    text = " ".join(page(client, post).split())
    assert '<a href="/issues/42/"> Mailed as issue 42 </a>' in text


def test_reply_and_share_need_no_script_and_no_one_else(
    client: Client, publication: Publication, settings: object
) -> None:
    post = publish("Locks & “keys”")
    text = page(client, post)
    assert f'href="mailto:author@example.org?subject=Re%3A%20{quote(post.title, safe="")}"' in text
    assert quote(post.url, safe="") in text
    publication.reply_to = "answers@example.org"
    publication.save()
    assert "mailto:answers@example.org?" in page(client, post)


# Related posts


def texts() -> list[Post]:
    locks = "lease lock deadlock waiting row transaction"
    tags = "vacuum bloat freeze tuple dead page"
    return [
        publish("Locks, one", f"{locks} first", days=5),
        publish("Locks, two", f"{locks} second", days=4),
        publish("Vacuum, one", f"{tags} third", days=3),
        publish("Vacuum, two", f"{tags} fourth", days=2),
        publish("Vacuum, three", f"{tags} fifth", days=1),
    ]


def test_related_are_the_posts_with_the_most_telling_words_in_common(publication: Publication) -> None:
    posts = texts()
    assert related.renew() == 5
    kept = RelatedPosts.objects.get(post=posts[0])
    assert kept.others[0] == posts[1].pk
    assert set(RelatedPosts.objects.get(post=posts[3]).others[:2]) == {posts[2].pk, posts[4].pk}
    assert related.renew() == 0


def test_a_post_published_later_becomes_related_to_the_earlier(publication: Publication) -> None:
    posts = texts()
    related.renew()
    new = publish("Locks, three", "lease lock deadlock waiting row transaction sixth", days=0)
    assert related.renew() == 1
    assert new.pk in RelatedPosts.objects.get(post=posts[0]).others


def test_a_related_post_that_is_listed_no_more_is_not_shown(client: Client, publication: Publication) -> None:
    posts = texts()
    for extra in range(4):
        publish(f"Between, {extra}", days=4.5 - extra / 10)  # so that no neighbour is among the related
    related.renew()
    shown = re.search(r'<section class="related".*?</section>', page(client, posts[0]), re.DOTALL)
    assert shown
    assert posts[1].title in shown[0]
    posts[1].status = Post.Status.WITHDRAWN
    posts[1].save()
    assert posts[1].title not in page(client, posts[0])


def test_no_hidden_post_is_related_part_or_neighbour(client: Client, publication: Publication) -> None:
    series = Series.objects.create(name="Locks")
    shown, other = publish("Locks", days=2, series=series), publish("Other", days=9, series=series)
    hidden = [
        publish("Hidden unlisted", visibility=Post.Visibility.UNLISTED, series=series),
        publish("Hidden by mail", visibility=Post.Visibility.EMAIL_ONLY, series=series),
        publish("Hidden tomorrow", days=-1, series=series),
        publish("Hidden, not yet", days=-1, status=Post.Status.SCHEDULED, series=series),
        publish("Hidden, withdrawn", status=Post.Status.WITHDRAWN, series=series),
        make_post("Hidden draft", series=series),
    ]
    others = [post.pk for post in [*hidden, other]]
    RelatedPosts.objects.create(post=shown, others=others, at=timezone.now())
    for address in (shown.get_absolute_url(), series.get_absolute_url()):
        text = client.get(address).content.decode()
        assert "Other" in text
        assert "Hidden" not in text


# The author's side


def test_a_correction_and_a_series_are_given_in_the_admin(client: Client, publication: Publication) -> None:
    client.force_login(User.objects.create_superuser("author"))
    client.post("/admin/posts/series/add/", {"name": "Locks", "slug": "locks", "description": "From below"})
    series, post = Series.objects.get(), publish(published_at=timezone.now().replace(microsecond=0))
    page = client.get(f"/admin/posts/post/{post.pk}/change/")
    assert 'href="/admin/posts/series/"' in page.content.decode()
    form = page.context["adminform"].form
    values = {name: form[name].value() for name in form.fields if form[name].value() not in (None, "", [])}
    at = timezone.localtime(post.published_at, publication.zone)
    values |= {"published_at_0": f"{at:%Y-%m-%d}", "published_at_1": f"{at:%H:%M:%S}", "version": post.version}
    client.post(page.request["PATH_INFO"], {**values, "series": series.pk, "correction": "It was *ten*."})
    post.refresh_from_db()
    assert (post.series, post.correction) == (series, "It was *ten*.")
    assert post.corrected_at
    assert timezone.now() - post.corrected_at < dt.timedelta(minutes=1)


# Markdown


def test_the_markdown_of_a_post_has_its_title_date_and_address(client: Client, publication: Publication) -> None:
    post = publish('Say "hello": now', "Tables *grow*.\r\n\r\nEnd.")
    response = client.get(f"/posts/{post.slug}.md")
    assert response["Content-Type"] == "text/markdown; charset=utf-8"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response.content.decode() == (
        f'---\ntitle: "Say \\"hello\\": now"\ndate: {post.published_at.isoformat()}\ncanonical: {post.url}\n---\n\n'
        "Tables *grow*.\n\nEnd.\n"
    )


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"visibility": Post.Visibility.UNLISTED}, 200),
        ({"visibility": Post.Visibility.EMAIL_ONLY}, 404),
        ({"status": Post.Status.DRAFT}, 404),
        ({"status": Post.Status.WITHDRAWN}, 410),
        ({"days": -1}, 404),
    ],
)
def test_the_markdown_is_there_where_the_page_is(
    client: Client, publication: Publication, values: dict[str, object], status: int
) -> None:
    post = publish(**values)  # type: ignore[arg-type]  # of each kind
    assert client.get(f"/posts/{post.slug}.md").status_code == status
    assert client.get(post.get_absolute_url()).status_code == status


# Cost and form


def dressed(publication: Publication) -> Post:
    """Return a post whose page shows everything that one can show."""
    default_storage.save("bars.png", picture(700, 300))
    series, tag = Series.objects.create(name="Locks"), Tag.objects.create(name="PostgreSQL")
    publish("Before", days=3, series=series)
    publish("After", days=1)
    for number in range(4):
        publish(f"Alike {number}", EVERYTHING, days=10 + number)
    post = publish(
        "On locks",
        EVERYTHING + "\n\n" + LONG,
        days=2,
        series=series,
        subtitle="And <what> they cost",
        correction="It was [ten](https://example.org/).",
        canonical_url="https://elsewhere.example.org/locks",
        cover_alt='Bars & "lines"',
    )
    post.cover.save("cover.png", picture())
    post.tags.add(tag)
    make_issue(post, number=42, started_at=timezone.now())
    related.renew()
    return post


def test_a_page_with_everything_on_it_takes_four_queries(
    client: Client, publication: Publication, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    post = dressed(publication)
    with django_assert_num_queries(4):
        text = page(client, post)
    for part in ("contents", "correction", "series", "related", "neighbours", "post-cover", "hand-on", "footnotes"):
        assert f'class="{part}"' in text, part


@pytest.mark.parametrize("variant", ["whole", "bare", "unlisted", "preview", "series"])
def test_every_variant_of_the_page_parses_without_error(client: Client, publication: Publication, variant: str) -> None:
    post = dressed(publication)
    address = {
        "whole": post.get_absolute_url(),
        "bare": publish("Bare", "", days=20).get_absolute_url(),
        "unlisted": publish("Hidden", EVERYTHING, visibility=Post.Visibility.UNLISTED).get_absolute_url(),
        "preview": make_post("Draft", EVERYTHING).preview_url.removeprefix("http://testserver"),
        "series": "/series/locks/",
    }[variant]
    response = client.get(address[address.index("/preview") :] if variant == "preview" else address)
    assert response.status_code == 200
    html5lib.HTMLParser(strict=True).parse(response.content.decode())
