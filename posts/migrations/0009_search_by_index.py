"""Search asks the index alone which posts match: the vectors of thousands of texts are never read for that."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION matching_posts(query tsquery) RETURNS bigint[] LANGUAGE sql STABLE PARALLEL SAFE
SET enable_seqscan = off SET enable_indexscan = off AS $$
    SELECT coalesce(array_agg(id), '{}') FROM posts_post WHERE search @@ query
$$;
"""


class Migration(migrations.Migration):
    dependencies = [("posts", "0008_search")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION matching_posts(tsquery)")]
