"""An issue knows since when it has been in its state, whoever moved it: the database itself writes that down.

The time in which copies are tried again stands still while it is paused.
"""

import django.db.models.functions.datetime
from django.db import migrations, models

NOTE = """
CREATE FUNCTION note_state_since() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.state_since := now();
    IF OLD.state = 'paused' THEN
        NEW.paused_seconds := OLD.paused_seconds + extract(epoch FROM now() - OLD.state_since);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER issue_state_since BEFORE UPDATE OF state ON newsletter_issue
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION note_state_since();
"""
FORGET = """
DROP TRIGGER issue_state_since ON newsletter_issue;
DROP FUNCTION note_state_since();
"""
# For what was put off by the former rules, its time begins with the issue's.
PUT_OFF = """
UPDATE newsletter_delivery d SET first_try_at = i.started_at
  FROM newsletter_issue i WHERE i.id = d.issue_id AND d.state = 'deferred';
"""


class Migration(migrations.Migration):
    dependencies = [("newsletter", "0002_engine")]

    operations = [
        migrations.AddField(
            model_name="issue",
            name="state_since",
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
        ),
        migrations.AddField(
            model_name="issue",
            name="paused_seconds",
            field=models.FloatField(db_default=0.0, default=0.0, editable=False),
        ),
        migrations.AddField(
            model_name="delivery",
            name="first_try_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="lease",
            name="looked",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="lease",
            name="faults",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="lease",
            name="slow",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="lease",
            name="doubts",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.RunSQL(NOTE, FORGET),
        migrations.RunSQL(PUT_OFF, migrations.RunSQL.noop),
    ]
