"""What the readers' site shows besides: series, corrections, recommended newsletters, and the version of all pages."""

import django.db.models.deletion
import posts.models
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("posts", "0004_history"),
    ]

    operations = [
        migrations.CreateModel(
            name="Series",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("slug", models.SlugField(max_length=100, unique=True)),
                ("description", models.CharField(blank=True, max_length=300)),
            ],
            options={
                "verbose_name_plural": "series",
                "ordering": ["name"],
            },
        ),
        migrations.AddField(
            model_name="historicalpost",
            name="corrected_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="historicalpost",
            name="correction",
            field=models.TextField(
                blank=True, help_text="What was wrong and is right now; stands above the text, in Markdown."
            ),
        ),
        migrations.AddField(
            model_name="post",
            name="body_code",
            field=models.TextField(default="", editable=False),
        ),
        migrations.AddField(
            model_name="post",
            name="corrected_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="post",
            name="correction",
            field=models.TextField(
                blank=True, help_text="What was wrong and is right now; stands above the text, in Markdown."
            ),
        ),
        migrations.AddField(
            model_name="post",
            name="cover_copies",
            field=models.JSONField(default=dict, editable=False),
        ),
        migrations.AddField(
            model_name="post",
            name="headings",
            field=models.JSONField(default=list, editable=False),
        ),
        migrations.AddField(
            model_name="publication",
            name="front_parts",
            field=models.JSONField(
                blank=True, default=posts.models.front_parts, verbose_name="parts of the front page"
            ),
        ),
        migrations.AddField(
            model_name="publication",
            name="recommendations",
            field=models.TextField(
                blank=True,
                help_text="One a line: Name | https://address | one sentence about it",
                validators=[posts.models.validate_recommendations],
                verbose_name="recommended newsletters",
            ),
        ),
        migrations.AddField(
            model_name="historicalpost",
            name="series",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to="posts.series",
            ),
        ),
        migrations.AddField(
            model_name="post",
            name="series",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="posts",
                to="posts.series",
            ),
        ),
        migrations.CreateModel(
            name="SiteVersion",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("number", models.BigIntegerField(default=0)),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("pk", 1)), name="one_site_version")],
            },
        ),
    ]
