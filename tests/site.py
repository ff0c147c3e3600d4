"""A publication that has everything a page may show, and the addresses of all its pages."""

from __future__ import annotations

import datetime as dt
import io

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from PIL import Image

from posts.models import FeaturedPost, Post, Publication, Series, Tag
from subscribers import emails, links
from subscribers.models import MagicLink, ReaderCount, Subscriber
from tests.factories import make_issue, make_post, make_readers

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
OF_POSTS = ["/posts/", "/posts/?year=2020", "/tags/locks/", "/series/from-scratch/", "/issues/", "/issues/7/"]
READ = ["/", *OF_POSTS, "/posts/on-vacuum/", "/search/", "/search/?q=rows", "/about/", "/privacy/"]
FORMS = ["/subscribe/", "/subscribe/check-your-inbox/?at=gmail", "/preferences/"]
MISSING = ["/nowhere/", "/posts/taken-back/"]
PAGES = [*READ, *FORMS, *MISSING]


def picture() -> ContentFile[bytes]:
    file = io.BytesIO()
    Image.new("RGB", (64, 36), "#0f6b5c").save(file, "PNG")
    return ContentFile(file.getvalue(), name="bars.png")


def make_site(publication: Publication) -> None:
    publication.tagline, publication.byline = "A letter a week about databases", "The author"
    publication.about, publication.accent_color = BODY, "#ffb000"
    publication.social_links = "Code https://code.example.org/author"
    publication.recommendations = "Plain Text | https://plain.example.org/ | Tools that last."
    publication.avatar.save("me.png", picture())
    default_storage.save("bars.png", picture())
    make_posts()
    make_readers(150)
    ReaderCount.refresh()


def make_posts() -> None:
    tag, series = Tag.objects.create(name="Locks"), Series.objects.create(name="From scratch", description="In parts")
    for days, title in enumerate(["On vacuum", "On locks", "On plans", "On nulls"]):
        at = timezone.now() - dt.timedelta(days=days * 200, hours=1)
        post = make_post(title, BODY, status=Post.Status.PUBLISHED, published_at=at, subtitle="And what it forgives")
        post.cover_alt, post.series = "Bars", series
        post.cover.save("cover.png", picture())
        post.tags.add(tag)
    make_post("Of old", status=Post.Status.PUBLISHED, published_at=dt.datetime(2020, 5, 1, tzinfo=dt.UTC))
    make_post("Taken back", status=Post.Status.WITHDRAWN, published_at=timezone.now())
    FeaturedPost.objects.create(post=Post.objects.get(slug="on-locks"))
    mailed = Post.objects.get(slug="on-vacuum")
    make_issue(mailed, number=7, preheader="What it forgives", started_at=timezone.now())


def doors(reader: Subscriber) -> list[str]:
    """Return the addresses that a reader gets by mail, and one that is used up."""
    urls = [emails.confirm_url(reader), emails.never_url(reader)]
    key = links.new_link(reader, MagicLink.Purpose.PREFERENCES)
    paths = ["/" + link.partition("://")[2].partition("/")[2] for link in urls]
    return [*paths, f"/u/{reader.unsubscribe_id}/", f"/preferences/open/{key}/", "/subscribe/confirm/used-up/"]
