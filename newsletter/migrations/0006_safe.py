"""Note each move of an issue that nobody made, and keep in the database what all processes count together."""

from django.db import migrations

# Whoever acts says so in the transaction and is noted by name (posts.auditlog.acting); what time, the relay or a
# command did is noted here, whichever way it came.
NOTE = """
CREATE FUNCTION newsletter_note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('masthead.actor', true), '') = '' THEN
        INSERT INTO posts_auditentry (actor, act, subject, detail)
        VALUES ('', 'issue.' || NEW.state, left('#' || coalesce(NEW.number::text, '?') || ' ' || NEW.subject, 250),
                jsonb_strip_nulls(jsonb_build_object('issue', NEW.id, 'was', OLD.state, 'due_at', NEW.due_at,
                                                     'reason', nullif(NEW.pause_reason, ''))));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER newsletter_note_move AFTER UPDATE OF state ON newsletter_issue
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION newsletter_note_move();
"""
FORGET = """
DROP TRIGGER newsletter_note_move ON newsletter_issue;
DROP FUNCTION newsletter_note_move();
"""
# As Django's own createcachetable has it.
CACHE = """
CREATE TABLE newsletter_cache (
    cache_key varchar(255) NOT NULL PRIMARY KEY, value text NOT NULL, expires timestamp with time zone NOT NULL
);
CREATE INDEX newsletter_cache_expires ON newsletter_cache (expires);
"""


class Migration(migrations.Migration):
    dependencies = [("newsletter", "0004_desk"), ("posts", "0003_desk")]

    operations = [
        migrations.RunSQL(NOTE, FORGET),
        migrations.RunSQL(CACHE, "DROP TABLE newsletter_cache"),
    ]
