"""A German publication on a phone: its words are long."""

import pytest
from django.utils import timezone
from playwright.sync_api import Page
from pytest_django.live_server_helper import LiveServer

from posts.models import FeaturedPost, Post, Publication, Series, Tag
from tests.factories import make_post

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LONG = "Donaudampfschifffahrtsgesellschaftskapitänswitwenrente"
BODY = f"{LONG}\n\n## {LONG}\n\n> [!NOTE]\n> {LONG}\n"
TOO_WIDE = """[...document.querySelectorAll("body *")]
    .filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture
def post(publication: Publication) -> Post:
    Publication.objects.update(language="de", name=LONG, tagline=LONG, byline=LONG, about=LONG)
    series = Series.objects.create(name=LONG)
    made = make_post(LONG, BODY, visibility="public", subtitle=LONG, series=series, correction=LONG)
    made.publish(at=timezone.now())
    made.tags.add(Tag.objects.create(name=LONG))
    FeaturedPost.objects.create(post=made)
    return made


@pytest.mark.parametrize("width", [390])
def test_a_long_word_widens_no_page(page: Page, live_server: LiveServer, post: Post) -> None:
    shown = [post, post.tags.get(), Series.objects.get()]
    doors = ["/", "/posts/", "/about/", "/privacy/", "/subscribe/", f"/search/?q={LONG}"]
    for door in [*doors, *(one.get_absolute_url() for one in shown)]:
        page.goto(live_server.url + door)
        assert page.evaluate(TOO_WIDE) == [], door
