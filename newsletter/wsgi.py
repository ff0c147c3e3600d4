"""The WSGI entry point that granian serves: Django, and before it the pages that are kept."""

import os

from django.core.wsgi import get_wsgi_application

from newsletter.charset import always_utf8
from posts import pagecache

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")
application = always_utf8(pagecache.in_front_of(get_wsgi_application()))
