"""Find the posts that are the most like one, by the words that both have and few others have.

Too slow for a request among thousands of posts, so the answer is kept in a table that `tasks` renew.
"""

from collections.abc import Iterable

from django.db import connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from posts.models import Post, RelatedPosts

KEPT = 8  # more than are shown: one of them may be withdrawn later
AT_ONCE = 50  # posts
NEIGHBOURS = 12

# The words of the post that stand in it most, a title's counting more; where else each stands; and what it tells: the
# rarer a word, the more. A tag in common tells as much as a word of the title. Long posts have more words of any kind.
# Among many posts, words of every twentieth tell nothing and cost the most; PostgreSQL's own statistics name them.
RANKED = """
WITH shown AS NOT MATERIALIZED (
    SELECT id, search, reading_minutes FROM posts_post
     WHERE status IN ('published', 'scheduled') AND visibility = 'public'),
words AS (
    SELECT lexeme, 1 + ln((SELECT sum(CASE weight WHEN 'A' THEN 5 WHEN 'B' THEN 3 ELSE 1 END)
                             FROM unnest(weights) AS weight)::float) AS strength
      FROM posts_post, unnest(search)
     WHERE id = %(post)s AND length(lexeme) BETWEEN 3 AND 40 AND lexeme ~ '[[:alpha:]]' AND weights IS NOT NULL
       AND lexeme NOT IN (
           SELECT word
             FROM pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) AS known (word, share)
            WHERE schemaname = current_schema() AND tablename = 'posts_post' AND attname = 'search'
              AND word IS NOT NULL AND share > 0.05 AND (SELECT count(*) FROM shown) > 1000)
     ORDER BY strength DESC, lexeme LIMIT 60),
hits AS MATERIALIZED (
    SELECT lexeme, strength, id, reading_minutes FROM words JOIN shown
        ON search @@ ('''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''')::tsquery
     UNION ALL
    SELECT 'tag ' || mine.tag_id, 2.6, shown.id, reading_minutes FROM posts_post_tags AS mine
      JOIN posts_post_tags AS other USING (tag_id) JOIN shown ON shown.id = other.post_id
     WHERE mine.post_id = %(post)s),
told AS (
    SELECT lexeme, ln(((SELECT count(*) FROM shown) + 1.0) / count(*)) AS rarity FROM hits GROUP BY lexeme)
SELECT id FROM hits JOIN told USING (lexeme)
 WHERE id <> %(post)s GROUP BY id, reading_minutes
HAVING sum(strength * rarity) > 0
 ORDER BY sum(strength * rarity) / ln(2.0 + reading_minutes) DESC, id DESC LIMIT %(most)s
"""


def renew() -> int:
    """Work out anew what is related to the posts that were published or changed since; return how many they were.

    Where many are due, such as after an import, each has its turn, so the others that are like it need none.
    """
    since = Q(related__isnull=True) | Q(related__at__lt=F("updated_at"))
    shown = Post.objects.filter(status__in=[Post.Status.PUBLISHED, Post.Status.SCHEDULED])
    due = list(shown.filter(since).order_by("-published_at").values_list("pk", flat=True)[:AT_ONCE])
    relate(due, others_too=len(due) < AT_ONCE)
    return len(due)


def relate(posts: Iterable[int], *, others_too: bool) -> None:
    """Keep what is related to each of `posts` and, where asked, to those like it, whose nearest it may be now."""
    wanted = dict.fromkeys(posts)
    for post in list(wanted) if others_too else ():
        wanted |= dict.fromkeys(ranked(post, most=NEIGHBOURS))
    for post in wanted:
        keep(post)


@transaction.atomic
def keep(post: int) -> None:
    now = timezone.now()
    if Post.objects.select_for_update(no_key=True).filter(pk=post).exists():
        RelatedPosts.objects.update_or_create(post_id=post, defaults={"others": ranked(post, most=KEPT), "at": now})


def ranked(post: int, *, most: int) -> list[int]:
    """Return the public posts that are the most like `post`, the most alike first."""
    with connection.cursor() as cursor:
        cursor.execute(RANKED, {"post": post, "most": most})
        return [row[0] for row in cursor.fetchall()]
