"""Keep the number of readers that the front page names, and count the site's version up when another one is shown."""

from django.db import migrations, models

TRIGGER = """
CREATE CONSTRAINT TRIGGER version_reader_count AFTER INSERT OR UPDATE OR DELETE ON subscribers_readercount
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bump_site_version();
"""


class Migration(migrations.Migration):
    dependencies = [("subscribers", "0004_consent_at"), ("posts", "0006_site_version")]

    operations = [
        migrations.CreateModel(
            name="ReaderCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("shown", models.CharField(blank=True, max_length=10)),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("pk", 1)), name="one_reader_count")],
            },
        ),
        migrations.RunSQL(TRIGGER, "DROP TRIGGER version_reader_count ON subscribers_readercount"),
    ]
