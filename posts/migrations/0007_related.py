"""Which posts are the most like one; a page shows them, so a change counts the site's version up."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

TRIGGERS = """
CREATE CONSTRAINT TRIGGER version_related_added AFTER INSERT ON posts_relatedposts DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.others <> '{}') EXECUTE FUNCTION bump_site_version();
CREATE CONSTRAINT TRIGGER version_related_changed AFTER UPDATE ON posts_relatedposts DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.others <> NEW.others) EXECUTE FUNCTION bump_site_version();
"""
BACKWARD = """
DROP TRIGGER version_related_added ON posts_relatedposts;
DROP TRIGGER version_related_changed ON posts_relatedposts;
"""


class Migration(migrations.Migration):
    dependencies = [("posts", "0006_site_version")]

    operations = [
        migrations.CreateModel(
            name="RelatedPosts",
            fields=[
                (
                    "post",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="related",
                        serialize=False,
                        to="posts.post",
                    ),
                ),
                (
                    "others",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), default=list, size=None
                    ),
                ),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.RunSQL(TRIGGERS, BACKWARD),
    ]
