"""Extensions that search needs, and an immutable wrapper of unaccent() so that it may stand in a generated column."""

from django.contrib.postgres.operations import TrigramExtension, UnaccentExtension
from django.db import migrations

WRAPPER = """
CREATE FUNCTION immutable_unaccent(text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
AS $$ SELECT public.unaccent('public.unaccent'::regdictionary, $1) $$
"""


class Migration(migrations.Migration):
    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [
        TrigramExtension(),
        UnaccentExtension(),
        migrations.RunSQL(WRAPPER, "DROP FUNCTION immutable_unaccent(text)"),
    ]
