"""The Django project and the app of issues and deliveries."""

from newsletter.celery import app as celery_app

__all__ = ["celery_app"]
