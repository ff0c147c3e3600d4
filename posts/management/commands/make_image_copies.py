"""Make smaller copies of the images that posts show already, and let their pages name them."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from posts.copies import Report, make_all


class Command(BaseCommand):
    help = (
        "Make the missing WebP copies of every post's images and render the posts anew. New images get theirs when "
        "they are uploaded; run it once after an upgrade from a version without. Running it again changes nothing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        report = make_all(progress=self.progress if sys.stderr.isatty() else None)
        self.stdout.write(f"{report.posts} posts, {report.changed} rendered anew, {report.copies} copies made")
        for name, reason in report.failed.items():
            self.stdout.write(f"  {name}: {reason}")

    def progress(self, report: Report) -> None:
        self.stderr.write(f"\r{report.posts} posts, {report.copies} copies", ending="")
