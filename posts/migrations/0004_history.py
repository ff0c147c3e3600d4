"""Keep the revisions of posts; the posts that are there begin with one each."""

import django.db.models.deletion
import simple_history.models
from django.conf import settings
from django.db import migrations, models

BEGIN_WITH_ONE = """
INSERT INTO posts_historicalpost
       (id, title, subtitle, slug, body, excerpt, cover, cover_alt, canonical_url, meta_description, status, visibility, published_at, ready, source, created_at, updated_at, history_date, history_type)
SELECT id, title, subtitle, slug, body, excerpt, cover, cover_alt, canonical_url, meta_description, status, visibility, published_at, ready, source, created_at, updated_at, updated_at, '+'
  FROM posts_post
"""


class Migration(migrations.Migration):
    dependencies = [
        ("posts", "0003_desk"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="HistoricalPost",
            fields=[
                ("id", models.BigIntegerField(auto_created=True, blank=True, db_index=True, verbose_name="ID")),
                ("title", models.CharField(max_length=200)),
                ("subtitle", models.CharField(blank=True, max_length=300)),
                (
                    "slug",
                    models.SlugField(
                        blank=True,
                        error_messages={"unique": "Another post has this address: choose a different slug."},
                        max_length=200,
                    ),
                ),
                ("body", models.TextField(blank=True, help_text="Markdown")),
                ("excerpt", models.TextField(blank=True, help_text="Left empty, it is taken from the text.")),
                ("cover", models.TextField(blank=True, max_length=100)),
                ("cover_alt", models.CharField(blank=True, max_length=300, verbose_name="cover's alt text")),
                (
                    "canonical_url",
                    models.URLField(blank=True, help_text="Where the text first appeared, if elsewhere."),
                ),
                ("meta_description", models.CharField(blank=True, max_length=300)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("draft", "Draft"),
                            ("scheduled", "Scheduled"),
                            ("published", "Published"),
                            ("withdrawn", "Withdrawn"),
                        ],
                        default="draft",
                        max_length=10,
                    ),
                ),
                (
                    "visibility",
                    models.CharField(
                        choices=[
                            ("public", "Public"),
                            ("unlisted", "Unlisted: only by its address"),
                            ("email_only", "E-mail only"),
                        ],
                        default="public",
                        max_length=10,
                    ),
                ),
                ("published_at", models.DateTimeField(blank=True, db_index=True, null=True)),
                ("ready", models.BooleanField(default=False, verbose_name="ready for the next issue")),
                ("source", models.CharField(blank=True, db_index=True, editable=False, max_length=300)),
                ("created_at", models.DateTimeField(blank=True, editable=False)),
                ("updated_at", models.DateTimeField(blank=True, editable=False)),
                ("history_id", models.AutoField(primary_key=True, serialize=False)),
                ("history_date", models.DateTimeField(db_index=True)),
                ("history_change_reason", models.CharField(max_length=100, null=True)),
                (
                    "history_type",
                    models.CharField(choices=[("+", "Created"), ("~", "Changed"), ("-", "Deleted")], max_length=1),
                ),
                (
                    "history_user",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "historical post",
                "verbose_name_plural": "historical posts",
                "ordering": ("-history_date", "-history_id"),
                "get_latest_by": ("history_date", "history_id"),
            },
            bases=(simple_history.models.HistoricalChanges, models.Model),
        ),
        migrations.RunSQL(BEGIN_WITH_ONE, migrations.RunSQL.noop),
    ]
