"""Make what tests need, in one line each."""

import datetime as dt
import io
import random
from typing import Any

from django.core.files.base import ContentFile
from django.utils import timezone
from PIL import Image, ImageDraw, ImageFilter

from newsletter.models import Issue, IssuePost, Slot
from posts.models import Post
from subscribers import addresses
from subscribers.models import Subscriber


def make_post(title: str = "On vacuum", body: str = "Tables *grow*.", **values: Any) -> Post:
    return Post.objects.create(title=title, body=body, **values)


def make_issue(*posts: Post, subject: str = "This week", **values: Any) -> Issue:
    values.setdefault("introduction", "" if posts else "Hello.")
    issue = Issue.objects.create(subject=subject, **values)
    for position, post in enumerate(posts):
        IssuePost.objects.create(issue=issue, post=post, position=position)
    return issue


def make_slot(*, days: int = 7, state: str = Slot.State.OPEN) -> Slot:
    due_at = timezone.now() + dt.timedelta(days=days)
    return Slot.objects.create(local_date=due_at.date(), due_at=due_at, state=state, moved=True)


def make_readers(count: int) -> list[Subscriber]:
    """Make `count` confirmed readers quickly: reader0@example.org, reader1@example.org ..."""
    now = timezone.now()
    readers = [
        Subscriber(
            address=f"reader{n}@example.org",
            key=f"reader{n}@example.org",
            address_hash=addresses.keyed_hash(f"reader{n}@example.org"),
            status=Subscriber.Status.ACTIVE,
            confirmed_at=now,
        )
        for n in range(count)
    ]
    return Subscriber.objects.bulk_create(readers, batch_size=5000)


def photograph(width: int = 1600, height: int = 900) -> ContentFile:
    """Make a picture with the soft grounds, edges and grain of a photograph, the same each time."""
    chance = random.Random(5)
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for _n in range(60):
        x, y, size = chance.randrange(width), chance.randrange(height), chance.randrange(40, 260)
        color = tuple(chance.randrange(256) for _part in range(3))
        draw.ellipse((x, y, x + size, y + size * 2 // 3), fill=color)
    picture = picture.filter(ImageFilter.GaussianBlur(1))
    grain = Image.effect_noise((width, height), 14).convert("RGB")
    output = io.BytesIO()
    Image.blend(picture, grain, 0.5).save(output, "JPEG", quality=88)
    return ContentFile(output.getvalue(), name="cover.jpg")
