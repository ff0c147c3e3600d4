"""Search finds tags and the names in code, too, in the publication's language.

The functions name every other one with its schema: a restored dump makes the columns anew with an empty search path.
"""

from typing import Any

import django.contrib.postgres.search
from django.contrib.postgres.indexes import GinIndex
from django.db import migrations, models

import posts.search

FUNCTIONS = """
CREATE FUNCTION post_configuration(language text) RETURNS regconfig LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE language WHEN 'de' THEN 'pg_catalog.german'::regconfig ELSE 'pg_catalog.english'::regconfig END
$$;

CREATE FUNCTION post_head(language text, title text, subtitle text, tags text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT setweight(to_tsvector(configuration, public.immutable_unaccent(title)), 'A')
        || setweight(to_tsvector(configuration, public.immutable_unaccent(subtitle || ' ' || tags)), 'B')
      FROM public.post_configuration(language) AS configuration
$$;

CREATE FUNCTION post_vector(language text, title text, subtitle text, tags text, body text, names text)
RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT public.post_head(language, title, subtitle, tags)
        || setweight(to_tsvector(public.post_configuration(language), public.immutable_unaccent(body)), 'C')
        || array_to_tsvector(string_to_array(names, ' '))
$$;

-- A word of the language or a name in code; nothing where the word is a stop word, since no text is searched by it.
CREATE FUNCTION post_query(configuration text, word text, names text) RETURNS tsquery
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN numnode(query) = 0 THEN query ELSE query || names::tsquery END
      FROM plainto_tsquery(configuration::regconfig, public.immutable_unaccent(word)) AS query
$$;

CREATE FUNCTION keep_tag_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.tag_words := coalesce((SELECT string_agg(tag.name, ' ' ORDER BY tag.name) FROM posts_post_tags AS tagged
        JOIN posts_tag AS tag ON tag.id = tagged.tag_id WHERE tagged.post_id = NEW.id), '');
    RETURN NEW;
END $$;

CREATE FUNCTION renew_tag_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'posts_tag' THEN
        UPDATE posts_post SET tag_words = '' WHERE id IN (SELECT post_id FROM posts_post_tags WHERE tag_id = NEW.id);
    ELSE
        UPDATE posts_post SET tag_words = '' WHERE id = CASE TG_OP WHEN 'DELETE' THEN OLD.post_id ELSE NEW.post_id END;
    END IF;
    RETURN NULL;
END $$;
"""
TRIGGERS = """
CREATE TRIGGER post_tag_words BEFORE INSERT OR UPDATE ON posts_post FOR EACH ROW EXECUTE FUNCTION keep_tag_words();
CREATE TRIGGER post_tagged AFTER INSERT OR UPDATE OR DELETE ON posts_post_tags
    FOR EACH ROW EXECUTE FUNCTION renew_tag_words();
CREATE TRIGGER tag_renamed AFTER UPDATE OF name ON posts_tag FOR EACH ROW EXECUTE FUNCTION renew_tag_words();
UPDATE posts_post SET language = coalesce((SELECT language FROM posts_publication WHERE id = 1), language);
"""
BACKWARD = """
DROP TRIGGER post_tag_words ON posts_post;
DROP TRIGGER post_tagged ON posts_post_tags;
DROP TRIGGER tag_renamed ON posts_tag;
"""
DROP = """
DROP FUNCTION keep_tag_words(), renew_tag_words(), post_query(text, text, text),
    post_vector(text, text, text, text, text, text), post_head(text, text, text, text), post_configuration(text);
"""


def note_names(apps: Any, _schema_editor: Any) -> None:
    """Note the names in each text; words that are no code come along until a post is saved the next time."""
    model = apps.get_model("posts", "Post")
    for post in model.objects.only("body").iterator(100):
        model.objects.filter(pk=post.pk).update(body_code=posts.search.names_in(post.body))


class Migration(migrations.Migration):
    dependencies = [("posts", "0007_related")]

    operations = [
        migrations.RunSQL(FUNCTIONS, DROP),
        migrations.AddField(
            model_name="post",
            name="language",
            field=models.CharField(
                choices=[("en", "English"), ("de", "Deutsch")], default="en", editable=False, max_length=10
            ),
        ),
        migrations.AddField(
            model_name="post", name="tag_words", field=models.TextField(default="", editable=False)
        ),
        migrations.RunSQL(TRIGGERS, BACKWARD),
        migrations.RunPython(note_names, migrations.RunPython.noop),
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),
        migrations.RemoveIndex(model_name="post", name="post_search"),
        migrations.RemoveField(model_name="post", name="search"),
        migrations.AddField(
            model_name="post",
            name="search",
            field=models.GeneratedField(
                db_persist=True,
                expression=posts.search.PostVector(
                    models.F("language"), models.F("title"), models.F("subtitle"), models.F("tag_words"),
                    models.F("body_text"), models.F("body_code"),
                ),
                output_field=django.contrib.postgres.search.SearchVectorField(),
            ),
        ),
        migrations.AddField(
            model_name="post",
            name="search_head",
            field=models.GeneratedField(
                db_persist=True,
                expression=posts.search.PostHead(
                    models.F("language"), models.F("title"), models.F("subtitle"), models.F("tag_words")
                ),
                output_field=django.contrib.postgres.search.SearchVectorField(),
            ),
        ),
        migrations.AddIndex(model_name="post", index=GinIndex(fields=["search"], name="post_search")),
        migrations.AddIndex(model_name="post", index=GinIndex(fields=["search_head"], name="post_search_head")),
    ]  # fmt: skip
