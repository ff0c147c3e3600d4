"""The sitemap: every public post and the pages that stand, at the site's canonical addresses."""

import datetime as dt
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.sitemaps import Sitemap
from django.urls import reverse

from posts.models import Post, PostQuerySet


class SiteSitemap(Sitemap):
    """Addresses of SITE_URL, whatever Host the request named."""

    def get_domain(self, site: Any = None) -> str:
        return urlsplit(settings.SITE_URL).netloc

    def get_protocol(self, protocol: str | None = None) -> str:
        return urlsplit(settings.SITE_URL).scheme


class PageSitemap(SiteSitemap):
    def items(self) -> list[str]:
        return ["posts:profile", "posts:archive", "posts:about", "posts:privacy"]

    def location(self, item: str) -> str:
        return reverse(item)


class PostSitemap(SiteSitemap):
    def items(self) -> PostQuerySet:
        return Post.objects.listed().only("slug", "updated_at")

    def lastmod(self, item: Post) -> dt.datetime:
        return item.updated_at
