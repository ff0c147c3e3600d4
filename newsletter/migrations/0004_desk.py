"""What the author's desk keeps: waived findings, groups for test mails, links whose clicks are counted."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("newsletter", "0003_state_since"),
    ]

    operations = [
        migrations.CreateModel(
            name="PreviewGroup",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60, unique=True)),
                ("addresses", models.TextField(help_text="One address a line")),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.AddField(
            model_name="issue",
            name="count_clicks",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Links lead through this site, which counts clicks a link, never a reader.",
            ),
        ),
        migrations.CreateModel(
            name="Link",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("number", models.PositiveSmallIntegerField()),
                ("url", models.TextField()),
                ("clicks", models.PositiveIntegerField(db_default=0, default=0)),
                (
                    "issue",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="links", to="newsletter.issue"
                    ),
                ),
            ],
            options={
                "ordering": ["issue", "number"],
                "constraints": [models.UniqueConstraint(fields=("issue", "number"), name="one_link_a_number")],
            },
        ),
        migrations.CreateModel(
            name="Waiver",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("check_id", models.CharField(max_length=60)),
                (
                    "place",
                    models.CharField(blank=True, help_text="What exactly was waived, such as a link", max_length=250),
                ),
                ("reason", models.TextField()),
                ("by", models.CharField(max_length=150)),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                (
                    "issue",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="waivers", to="newsletter.issue"
                    ),
                ),
            ],
            options={
                "ordering": ["at"],
                "constraints": [
                    models.UniqueConstraint(fields=("issue", "check_id", "place"), name="one_waiver_a_finding"),
                    models.CheckConstraint(condition=models.Q(("reason", ""), _negated=True), name="waiver_has_reason"),
                ],
            },
        ),
    ]
