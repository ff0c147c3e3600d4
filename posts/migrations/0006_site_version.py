"""Count the site's version up with whatever changes something that pages show.

The triggers are deferred: they fire at the commit, once a transaction, so the one row is locked for that instant only and
is always the last lock that a transaction takes. Drafts are nobody's to see, so typing into one counts nothing up.
"""

from django.db import migrations, models

FUNCTIONS = """
CREATE FUNCTION count_site_version_up() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('masthead.bumped', true), '') <> 'yes' THEN
        INSERT INTO posts_siteversion (id, number) VALUES (1, 1)
            ON CONFLICT (id) DO UPDATE SET number = posts_siteversion.number + 1;
        PERFORM set_config('masthead.bumped', 'yes', true);
    END IF;
END $$;

CREATE FUNCTION bump_site_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM count_site_version_up();
    RETURN NULL;
END $$;

CREATE FUNCTION bump_site_version_by_tag() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM posts_post WHERE status IN ('published', 'scheduled') AND id IN (
        CASE WHEN TG_OP <> 'INSERT' THEN OLD.post_id END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.post_id END)) THEN
        PERFORM count_site_version_up();
    END IF;
    RETURN NULL;
END $$;

INSERT INTO posts_siteversion (id, number) VALUES (1, 1) ON CONFLICT (id) DO NOTHING;
"""

TRIGGER = """
CREATE CONSTRAINT TRIGGER {name} AFTER {event} ON {table} DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW {when} EXECUTE FUNCTION {function}();
"""
SHOWN = "{row}.status IN ('published', 'scheduled')"
OLD, NEW = SHOWN.format(row="OLD"), SHOWN.format(row="NEW")

# Name, event, table, condition. New tags and series are seen only through a post; of these, what changes counts.
TRIGGERS = [
    ("post_added", "INSERT", "posts_post", f"WHEN ({NEW})"),
    ("post_changed", "UPDATE", "posts_post", f"WHEN ({OLD} OR {NEW})"),
    ("post_removed", "DELETE", "posts_post", f"WHEN ({OLD})"),
    ("tag_changed", "UPDATE OR DELETE", "posts_tag", ""),
    ("series_changed", "UPDATE OR DELETE", "posts_series", ""),
    ("publication_changed", "INSERT OR UPDATE OR DELETE", "posts_publication", ""),
    ("featured_changed", "INSERT OR UPDATE OR DELETE", "posts_featuredpost", ""),
    ("redirect_changed", "INSERT OR UPDATE OR DELETE", "posts_redirect", ""),
]
TAGGED = ("tags_changed", "INSERT OR UPDATE OR DELETE", "posts_post_tags", "")


def forward() -> str:
    made = [trigger(*one, "bump_site_version") for one in TRIGGERS] + [trigger(*TAGGED, "bump_site_version_by_tag")]
    return FUNCTIONS + "".join(made)


def trigger(name: str, event: str, table: str, when: str, function: str) -> str:
    return TRIGGER.format(name=f"version_{name}", event=event, table=table, when=when, function=function)


def backward() -> str:
    dropped = [f"DROP TRIGGER version_{name} ON {table};" for name, _event, table, _when in [*TRIGGERS, TAGGED]]
    return "".join(dropped) + "DROP FUNCTION bump_site_version(), bump_site_version_by_tag(), count_site_version_up();"


class Migration(migrations.Migration):
    dependencies = [("posts", "0005_site")]

    operations = [
        migrations.AddIndex(
            model_name="post",
            index=models.Index(
                condition=models.Q(("status", "scheduled")), fields=["published_at"], name="post_scheduled"
            ),
        ),
        migrations.RunSQL(forward(), backward()),
    ]
