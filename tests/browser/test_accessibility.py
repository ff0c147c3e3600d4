"""What axe finds on the public pages, at the width of a phone and of a desk, light and dark: nothing."""

import datetime as dt
import io

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from PIL import Image
from playwright.sync_api import Page
from pytest_django.live_server_helper import LiveServer

from posts.models import FeaturedPost, Post, Publication, Tag
from tests.factories import make_post

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

BODY = """Dead rows wait.[^1] See [the archive](/posts/).

## A claim

```sql
SELECT id FROM delivery WHERE state = 'pending' -- a comment that is longer than any phone is wide, on purpose
ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED;
```

> [!WARNING]
> A lease that nobody renews ends.

> [!TIP]
> Count what was sent.

| Workers | Claims a second | Median of all claims | Slowest of all claims |
|--------:|:---------------:|:---------------------|----------------------:|
| 1       | 4,100           | 0.2 ms               | 0.9 ms                |

![Bars that grow](/media/bars.png)

- [x] done
- [ ] open

> Somebody said so.

Press <kbd>Ctrl</kbd> and write `code`.

[^1]: Until vacuum comes.
"""
PAGES = ["/", "/posts/", "/posts/on-vacuum/", "/tags/locks/", "/search/", "/search/?q=rows", "/about/", "/privacy/"]
FORMS = ["/subscribe/", "/subscribe/check-your-inbox/", "/preferences/", "/issues/"]
MISSING = ["/nowhere/", "/posts/taken-back/"]


def picture() -> ContentFile:
    file = io.BytesIO()
    Image.new("RGB", (64, 36), "#0f6b5c").save(file, "PNG")
    return ContentFile(file.getvalue(), name="bars.png")


@pytest.fixture
def site(publication: Publication) -> None:
    """A publication that has everything a page may show."""
    publication.tagline, publication.byline = "A letter a week about databases", "The author"
    publication.about, publication.accent_color = BODY, "#ffb000"
    publication.social_links = "Code https://code.example.org/author"
    publication.avatar.save("me.png", picture())
    default_storage.save("bars.png", picture())
    tag = Tag.objects.create(name="Locks")
    for days, title in enumerate(["On vacuum", "On locks", "On plans", "On nulls"]):
        at = timezone.now() - dt.timedelta(days=days * 200, hours=1)
        post = make_post(title, BODY, status=Post.Status.PUBLISHED, published_at=at, subtitle="And what it forgives")
        post.cover_alt = "Bars"
        post.cover.save("cover.png", picture())
        post.tags.add(tag)
    FeaturedPost.objects.create(post=Post.objects.get(slug="on-locks"))
    make_post("Taken back", status=Post.Status.WITHDRAWN, published_at=timezone.now())


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(site: None, live_server: LiveServer, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found = {}
    for path in PAGES + FORMS + MISSING:
        page.goto(live_server.url + path)
        results = Axe().run(page)
        found[path] = [(violation["id"], violation["nodes"][0]["html"]) for violation in results.response["violations"]]
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.both_widths
def test_no_page_scrolls_sideways(site: None, live_server: LiveServer, page: Page) -> None:
    for path in PAGES + FORMS + MISSING:
        page.goto(live_server.url + path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


@pytest.mark.both_widths
def test_the_keyboard_reaches_the_text_at_once(site: None, live_server: LiveServer, page: Page) -> None:
    page.goto(live_server.url + "/posts/on-vacuum/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
