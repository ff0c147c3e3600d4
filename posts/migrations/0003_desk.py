"""What the author's desk keeps: an audit log that only grows, snippets, a logo, whether the publication is set up."""

import django.db.models.functions.datetime
from django.db import migrations, models

# Truncating stays possible: only the database's owner may, and tests do.
GUARD = """
CREATE FUNCTION posts_auditentry_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit log only grows: no entry is changed or removed.';
END $$;
CREATE TRIGGER posts_auditentry_only_grows BEFORE UPDATE OR DELETE ON posts_auditentry
    FOR EACH ROW EXECUTE FUNCTION posts_auditentry_only_grows();
"""
UNGUARD = """
DROP TRIGGER posts_auditentry_only_grows ON posts_auditentry;
DROP FUNCTION posts_auditentry_only_grows();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("posts", "0002_posts"),
    ]

    operations = [
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), db_index=True, editable=False
                    ),
                ),
                ("actor", models.CharField(blank=True, max_length=150)),
                ("act", models.CharField(help_text="Such as issue.schedule", max_length=60)),
                ("subject", models.CharField(blank=True, max_length=250)),
                ("detail", models.JSONField(blank=True, default=dict)),
            ],
            options={
                "verbose_name_plural": "audit log",
                "ordering": ["-at", "-id"],
            },
        ),
        migrations.CreateModel(
            name="Snippet",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60, unique=True)),
                ("body", models.TextField(help_text="Markdown")),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.AddField(
            model_name="publication",
            name="logo",
            field=models.ImageField(blank=True, help_text="Stands at the head of every mail.", upload_to="logo"),
        ),
        migrations.AddField(
            model_name="publication",
            name="set_up_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.RunSQL(GUARD, UNGUARD),
    ]
