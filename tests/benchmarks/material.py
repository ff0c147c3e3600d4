"""What the benchmarks send, and to whom: invented readers and an issue of a given size with ten personal places."""

from __future__ import annotations

import random

from newsletter import delivery, rendering
from newsletter.models import Delivery, Issue
from posts.models import Post, Publication
from subscribers.models import Subscriber
from tests.benchmarks import database
from tests.factories import make_issue, make_post

HTML_SHARE = 0.68  # of the body; the rest is the text part, and what encoding adds

READERS = """
INSERT INTO subscribers_subscriber
       (address, key, address_hash, name, status, suppressed, unsubscribe_id, source, created_at, confirmed_at)
SELECT address, address, sha256(convert_to(address, 'UTF8')),
       CASE WHEN mod(n, 8) = 0 THEN 'Zoë Reader-' ELSE 'Ada Reader-' END || n, 'active', false, gen_random_uuid(),
       'benchmark', now(), now()
  FROM (SELECT n, 'reader' || n || '@example.org' AS address FROM generate_series(%s::int, %s::int) AS n) AS readers
"""

VOCABULARY = (
    "archive author autumn bridge candle carbon clear column copper cotton cursor garden harbour index kernel lantern "
    "ledger letter linen margin meadow message morning number orchard paper pencil quiet reader record river shelf "
    "signal silver slow stone summer table tidal travel valley vessel water weather window winter wooden"
)
WORDS = VOCABULARY.split()
CODE = """```python
def {0}(rows, limit={2}):
    found = {{"{1}": 0, "rows": len(rows)}}  # {0} and {1}
    for row in rows:
        if row % 7 == 0 and row < limit:
            found["{1}"] += row * {2}
    return found
```"""


def fill_readers(count: int) -> None:
    """Add active readers until there are `count`."""
    present = Subscriber.objects.count()
    database.execute(READERS, [present + 1, count])
    database.execute("VACUUM (ANALYZE) subscribers_subscriber")


def write_post(body_kb: int) -> Post:
    """Write a post with which the issue's HTML and text parts come to about `body_kb` KB together."""
    publication = Publication.current()
    publication.name, publication.postal_address = "The Paper Lantern", "1 Example Street, Exampletown"
    publication.sender_address = "author@example.org"
    publication.save()
    post, words = make_post("What the ledger keeps", body=""), random.Random(40)
    issue = draft(post)
    while rendering.size_bytes(issue) < HTML_SHARE * body_kb * 1024:
        post.body += section(words)
        post.save()
        issue = Issue.objects.get(pk=issue.pk)
    issue.delete()
    return post


def section(words: random.Random) -> str:
    """Return a heading, two paragraphs with a link each, and a piece of code, as Markdown."""
    paragraphs = [f"{prose(words, 40)} [{prose(words, 3)}](https://example.org/{words.choice(WORDS)})." for _ in "ab"]
    code = CODE.format(words.choice(WORDS), words.choice(WORDS), words.randrange(10, 99))
    return "\n\n".join([f"## {prose(words, 4)}", *paragraphs, code]) + "\n\n"


def prose(words: random.Random, count: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(count)).capitalize()


def draft(post: Post) -> Issue:
    """Return an issue with ten personal places: the subject, and in either part preheader, greeting and the footer."""
    return make_issue(
        post,
        subject="{{ name|Reader }}, this is what the ledger keeps",
        preheader="A letter for {{ name|you }}",
        introduction="Dear {{ name|reader }}, here is the new issue.",
    )


def planned(post: Post) -> Issue:
    """Return an issue on its way to all readers, alone in the ledger, the disk at rest."""
    database.execute("TRUNCATE newsletter_delivery CASCADE")
    issue = draft(post)
    delivery.send_now(issue)
    database.execute("ANALYZE newsletter_delivery")
    database.checkpoint()
    return issue


def intents(issue: Issue) -> int:
    """Count the copies whose intent to hand over was committed, whatever became of them."""
    handed_over = [Delivery.State.HANDING_OVER, Delivery.State.ACCEPTED, *Delivery.UNKNOWN]
    copies = issue.deliveries.all()
    return (copies.filter(state__in=handed_over) | copies.filter(phase="final_dot")).count()
