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
        NEW.give_up_at := NEW.give_up_at + (now() - OLD.state_since);
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


class Migration(migrations.Migration):
    dependencies = [("newsletter", "0002_engine")]

    operations = [
        migrations.AddField(
            model_name="issue",
            name="state_since",
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
        ),
        migrations.RunSQL(NOTE, FORGET),
    ]
