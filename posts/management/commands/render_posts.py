"""Make anew what is kept of each post's Markdown."""

from typing import Any

from django.core.management.base import BaseCommand

from posts.models import Post


class Command(BaseCommand):
    help = "Render all posts again, after an update that makes something else of Markdown. Texts and dates stay."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"{Post.objects.all().render_again()} posts rendered.")
