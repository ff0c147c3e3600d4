from django.apps import AppConfig

from newsletter import checks


class NewsletterConfig(AppConfig):
    name = "newsletter"

    def ready(self) -> None:
        checks.register()
