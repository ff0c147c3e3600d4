"""Fill an empty database with the demo's publication: quickly, and the same each time."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.files.base import File
from django.db import connection, transaction
from django.db.models import Count
from django.utils import timezone

from newsletter import message, rendering, schedule
from newsletter.models import Delivery, Issue, IssuePost, Slot
from posts import importer
from posts.models import FeaturedPost, Post, Publication, Series, Tag
from subscribers import addresses
from subscribers.models import Consent, Subscriber, Suppression

CONTENT = Path(__file__).resolve().parent / "content"
LOGIN, PASSWORD = "author", "masthead"
ZONE_WEEKS = 3
FIRST = (
    "Ada",
    "Bela",
    "Cleo",
    "Dov",
    "Esra",
    "Finn",
    "Gita",
    "Hugo",
    "Ines",
    "Jun",
    "Kofi",
    "Lena",
    "Milo",
    "Nora",
    "Omar",
)
LAST = (
    "Adler",
    "Birch",
    "Calder",
    "Dune",
    "Elm",
    "Fjord",
    "Grove",
    "Heath",
    "Isle",
    "Juniper",
    "Knoll",
    "Lake",
    "Moor",
)
# How many readers of each kind; 1,500 in all.
STATES = {"active": 1300, "paused": 20, "suppressed": 15, "pending": 70, "unsubscribed": 80, "erased": 15}

PAST = """
INSERT INTO newsletter_delivery
       (issue_id, subscriber_id, address, address_key, state, reason, at_freeze, fence, attempt, phase, smtp_code,
        enhanced_code, reply_text, accepted_at, updated_at)
SELECT %(issue)s, id, address, key, state,
       CASE WHEN state = 'skipped' THEN 'suppressed' ELSE '' END, state = 'skipped', 1, 1,
       CASE state WHEN 'accepted' THEN 'final_dot' WHEN 'rejected' THEN 'rcpt' ELSE '' END,
       CASE state WHEN 'accepted' THEN 250 WHEN 'rejected' THEN 550 END,
       CASE state WHEN 'accepted' THEN '2.0.0' WHEN 'rejected' THEN '5.1.1' ELSE '' END,
       CASE state WHEN 'accepted' THEN '2.0.0 Kept' WHEN 'rejected' THEN '5.1.1 No such user here' ELSE '' END,
       CASE WHEN state = 'accepted' THEN %(at)s + make_interval(secs => n * 0.02) END, %(at)s
  FROM (SELECT id, address, key, row_number() OVER (ORDER BY id) AS n,
               CASE WHEN suppressed THEN 'skipped' WHEN id %% 400 = %(issue)s %% 400 THEN 'rejected'
                    ELSE 'accepted' END AS state
          FROM subscribers_subscriber
         WHERE confirmed_at < %(at)s
           AND (status = 'active' OR (status = 'unsubscribed' AND unsubscribed_at > %(at)s))) AS readers
"""


def is_empty() -> bool:
    return not Post.objects.exists() and not Subscriber.objects.exists()


@transaction.atomic
def fill() -> None:
    """Make the publication, its posts, readers and past issues, and an issue that is ready to go."""
    make_author()
    make_publication()
    importer.import_folder(CONTENT)
    dress_posts()
    offer_topics()
    make_readers()
    make_past_issues()
    make_due_issue()


def offer_topics() -> None:
    """Let readers choose among the topics that most posts have."""
    most = Tag.objects.annotate(number=Count("posts")).order_by("-number", "name")[:5]
    Tag.objects.filter(pk__in=list(most.values_list("pk", flat=True))).update(offered=True)


def make_author() -> None:
    get_user_model().objects.create_superuser(LOGIN, "author@example.com", PASSWORD)


def make_publication() -> None:
    publication = Publication.current()
    publication.name = "Slow Query"
    publication.tagline = "One calm letter a week on databases, queues and everything that waits in between."
    publication.byline = "Robin Sample"
    publication.about = (CONTENT.parent / "about.md").read_text()
    publication.social_links = (
        "Code https://code.example.org/slowquery\nFediverse https://social.example.org/@slowquery"
    )
    publication.recommendations = (
        "Notes on Queues | https://queues.example.org/ | A letter a month about things that wait in line.\n"
        "The Index | https://index.example.org/ | How databases find what they look for, one patient essay at a time.\n"
        "Plain Text | https://plain.example.org/ | Tools that outlive their makers."
    )
    publication.accent_color = "#0f6b5c"
    publication.sender_name = "Robin at Slow Query"
    publication.sender_address = "robin@slowquery.example.com"
    publication.reply_to = "hello@slowquery.example.com"
    publication.welcome = (CONTENT.parent / "welcome.md").read_text()
    publication.set_up_at = timezone.now()
    publication.postal_address = "Slow Query\n12 Example Street\nExampleton EX1 2MP"
    with (CONTENT / "avatar.png").open("rb") as avatar:
        publication.avatar.save("avatar.png", File(avatar), save=False)
    publication.save()


def posts_in_order() -> list[Post]:
    return list(Post.objects.filter(source__endswith=".md").order_by("source"))


def dress_posts() -> None:
    """Date the posts by weeks back from now, so that the demo is never stale; feature two of them."""
    posts = posts_in_order()
    for weeks, post in enumerate(reversed(posts[:-1]), start=1):
        post.published_at = past_slot(weeks)
        post.status = Post.Status.PUBLISHED
        post.save()
    newest = posts[-1]
    newest.status, newest.published_at, newest.ready = Post.Status.DRAFT, None, True
    newest.save()
    for position, post in enumerate((posts[-2], posts[3])):
        FeaturedPost.objects.create(post=post, position=position)
    give_cover(posts[-2])
    make_series(posts[-4:])
    correct(posts[2])


def make_series(posts: list[Post]) -> None:
    series = Series.objects.create(
        name="Queues from scratch",
        description="What a table needs so that nothing in it waits for ever, in four parts.",
    )
    Post.objects.filter(pk__in=[post.pk for post in posts]).update(series=series)


def correct(post: Post) -> None:
    post.correction = (
        "The first version said that the planner multiplies the *costs* of two conditions. It multiplies their odds; "
        "thanks to the reader who wrote within the hour."
    )
    post.corrected_at = post.published_at + dt.timedelta(days=1, hours=3) if post.published_at else None
    post.save()


def give_cover(post: Post) -> None:
    with (CONTENT / "cover.png").open("rb") as cover:
        post.cover.save("cover.png", File(cover), save=False)
    post.cover_alt = "Horizontal bars of unequal length, one of them far longer than the rest"
    post.save()


def past_slot(weeks: int) -> dt.datetime:
    """Return the weekly slot `weeks` before the last one that has passed, counted from 1."""
    publication = Publication.current()
    after = timezone.now() - dt.timedelta(weeks=weeks)
    zone, local_time = publication.zone, publication.send_time
    date = schedule.next_dates(publication.send_weekday, after=after, zone=zone, local_time=local_time, count=1)[0]
    moment = schedule.instant(date, local_time, zone)
    return moment if moment < timezone.now() else moment - dt.timedelta(weeks=1)


def make_readers() -> None:
    rng = random.Random(7)  # noqa: S311  the same invented people each time
    kinds = [kind for kind, count in STATES.items() for _n in range(count)]
    readers = [make_reader(number, kind, rng) for number, kind in enumerate(kinds)]
    Subscriber.objects.bulk_create(readers, batch_size=1000)
    Suppression.objects.bulk_create(
        Suppression(address_hash=reader.address_hash, reason=Suppression.Reason.BOUNCED)
        for reader, kind in zip(readers, kinds, strict=True)
        if kind == "suppressed"
    )
    Consent.objects.bulk_create(consents(readers), batch_size=1000)


def make_reader(number: int, kind: str, rng: random.Random) -> Subscriber:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    address = f"{first}.{last}.{number}@mail{number % 9}.test".lower()
    now = timezone.now()
    joined = now - dt.timedelta(days=rng.uniform(0.5, 400))
    reader = Subscriber(
        address=address,
        key=address,
        address_hash=addresses.keyed_hash(address),
        name=f"{first} {last}" if number % 3 else "",
        status={"paused": "active", "suppressed": "active"}.get(kind, kind),
        confirmed_at=None if kind == "pending" else joined,
        unsubscribed_at=joined + (now - joined) * rng.uniform(0.05, 0.95) if kind == "unsubscribed" else None,
        paused_until=now + dt.timedelta(weeks=4) if kind == "paused" else None,
        source=rng.choice(["profile", "post", "subscribe"]),
    )
    if kind == "erased":
        reader.address, reader.name, reader.key = "", "", f"erased:{uuid.UUID(int=rng.getrandbits(128))}"
    return reader


def consents(readers: list[Subscriber]) -> list[Consent]:
    wording = "Send me each issue by e-mail. I can leave at any time."
    rows = []
    for reader in readers:
        if not reader.address:
            continue
        asked = reader.confirmed_at or timezone.now()
        rows.append(Consent(subscriber=reader, kind=Consent.Kind.REQUESTED, at=asked, wording=wording, page="/"))
        if reader.confirmed_at:
            rows.append(Consent(subscriber=reader, kind=Consent.Kind.CONFIRMED, at=reader.confirmed_at))
        if reader.unsubscribed_at:
            rows.append(Consent(subscriber=reader, kind=Consent.Kind.UNSUBSCRIBED, at=reader.unsubscribed_at))
    return rows


def make_past_issues() -> None:
    """Three issues of past weeks, each with its row a reader, as if they had been sent then."""
    published = [post for post in posts_in_order() if post.status == Post.Status.PUBLISHED]
    for weeks, post in zip((3, 2, 1), published[-3:], strict=True):
        make_past_issue(post, past_slot(weeks))


def make_past_issue(post: Post, at: dt.datetime) -> None:
    slot = Slot.objects.create(local_date=at.date(), due_at=at, state=Slot.State.TAKEN)
    issue = Issue.objects.create(subject=post.title, preheader=post.subtitle, slot=slot)
    IssuePost.objects.create(issue=issue, post=post)
    issue.number, issue.due_at, issue.prepared_at, issue.started_at = Issue.next_number(), at, at, at
    issue.source = rendering.render_issue(issue, date=at)
    issue.source_sha256 = message.source_sha256(issue.source)
    with connection.cursor() as cursor:
        cursor.execute(PAST, {"issue": issue.pk, "at": at})
    counts = issue.counts()
    issue.candidates, issue.excluded = counts.audience, counts.skipped
    issue.planned = counts.audience - counts.skipped
    issue.state = Issue.State.COMPLETED_WITH_FAILURES if counts.failed else Issue.State.COMPLETED
    last = issue.deliveries.filter(state=Delivery.State.ACCEPTED).order_by("-accepted_at").first()
    issue.completed_at = last.accepted_at if last else at
    issue.save()


def make_due_issue() -> None:
    """An issue that only waits for its instant: the newest post in full and an older one as a teaser."""
    posts = posts_in_order()
    issue = Issue.objects.create(
        subject="The queue that was a table all along",
        preheader="SKIP LOCKED, leases, and why the broker only carries hints.",
        introduction="Hello {{ name|there }},\n\nthis week: the most boring queue I know, and why I like it.",
    )
    IssuePost.objects.create(issue=issue, post=posts[-1], position=0)
    IssuePost.objects.create(issue=issue, post=posts[3], position=1, mode=IssuePost.Mode.TEASER)
