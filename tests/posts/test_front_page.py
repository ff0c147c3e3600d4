"""The front page: its parts in the author's order, each post once, and the menus by which the order is chosen."""

import datetime as dt
import io
import re
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.forms.models import model_to_dict
from django.test import Client
from django.utils import timezone
from PIL import Image

from posts.models import FeaturedPost, Post, Publication, Tag
from subscribers.models import ReaderCount
from tests.factories import make_post, make_readers

pytestmark = pytest.mark.django_db
CHANGE = "/admin/posts/publication/1/change/"
NAMES = ["featured", "latest", "topics", "about", "recommended"]


@pytest.fixture
def full(publication: Publication) -> Publication:
    """A publication that has something to show in every part."""
    publication.about = "# Who\n\nI write **weekly**.\n\nSecond thought."
    publication.recommendations = (
        "Plain Text | https://plain.example.org/ | Tools that last.\nBare | http://bare.example.org"
    )
    publication.save()
    for days in range(15):
        at = timezone.now() - dt.timedelta(days=days + 1)
        make_post(f"Number {days}", status=Post.Status.PUBLISHED, published_at=at)
    Post.objects.get(title="Number 3").tags.add(Tag.objects.create(name="Locks"))
    FeaturedPost.objects.create(post=Post.objects.get(title="Number 14"))
    return publication


def parts_of(page: str) -> list[str]:
    return re.findall(r'<section class="[a-z]+" aria-labelledby="(\w+)"', page)[1:]  # the masthead is always first


def form_of(publication: Publication, **values: Any) -> dict[str, Any]:
    """Return what the admin's form sends: the publication as it is, with some values changed."""
    kept = {name: value for name, value in model_to_dict(publication).items() if value not in (None, "")}
    del kept["front_parts"]
    places = {f"front_parts_{name}": "" for name in NAMES}
    return {**kept, **places, **values}


def test_the_parts_stand_in_the_authors_order(client: Client, full: Publication) -> None:
    assert parts_of(client.get("/").text) == NAMES
    full.front_parts = ["about", "latest", "gone", "about"]
    full.save()
    assert parts_of(client.get("/").text) == ["about", "latest"]


def test_each_post_stands_on_it_once(client: Client, full: Publication) -> None:
    page = client.get("/").text
    assert [page.count(f">Number {n}</a>") for n in range(15)] == [1] * 10 + [0] * 4 + [1]
    full.front_parts = ["latest"]
    full.save()
    Post.objects.filter(title="Number 14").update(published_at=timezone.now())
    assert client.get("/").text.count(">Number 14</a>") == 1


def test_about_begins_with_its_first_paragraph(client: Client, full: Publication) -> None:
    page = client.get("/").text
    assert ">I write weekly.</p>" in page
    assert "Second thought" not in page


def test_recommended_newsletters_are_links_with_a_sentence(client: Client, full: Publication) -> None:
    page = client.get("/").text
    assert '<a href="https://plain.example.org/">Plain Text</a>' in page
    assert "Tools that last." in page
    assert '<a href="http://bare.example.org">Bare</a>' in page


def test_a_publication_without_a_picture_shows_its_letter(client: Client, publication: Publication) -> None:
    assert '<span class="avatar" aria-hidden="true">Q</span>' in client.get("/").text


def test_the_readers_are_named_in_round_figures(client: Client, publication: Publication) -> None:
    assert "Join" not in client.get("/").text
    make_readers(1999)
    ReaderCount.refresh()
    assert "Join 1K readers" in client.get("/").text


def test_the_menus_show_the_order_and_change_it(admin_client: Client, full: Publication) -> None:
    full.front_parts = ["latest", "topics"]
    full.save()
    page = admin_client.get(CHANGE).text
    for name, place in zip(NAMES, ["", "1", "2", "", ""], strict=True):
        menu = page[page.index(f'name="front_parts_{name}"') :].partition("</select>")[0]
        assert re.findall(r'<option value="(\d?)" selected', menu) == ([place] if place else [""])
    admin_client.post(CHANGE, form_of(full, front_parts_about="1", front_parts_latest="4"))
    full.refresh_from_db()
    assert full.front_parts == ["about", "latest"]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"front_parts_about": "1", "front_parts_latest": "1"}, "Two parts have the same place"),
        ({"front_parts_about": "9"}, "Choose a place from the menu"),
    ],
)
def test_an_order_that_is_none_is_refused_in_words(
    admin_client: Client, full: Publication, places: dict[str, str], words: str
) -> None:
    response = admin_client.post(CHANGE, form_of(full, **places))
    assert response.status_code == 200
    assert words in response.text
    full.refresh_from_db()
    assert full.front_parts == NAMES


def test_an_avatar_is_kept_small_and_square(admin_client: Client, full: Publication) -> None:
    picture = io.BytesIO()
    Image.effect_noise((1500, 900), 80).convert("RGB").save(picture, "JPEG")
    upload = SimpleUploadedFile("me.jpg", picture.getvalue(), "image/jpeg")
    assert admin_client.post(CHANGE, form_of(full, avatar=upload)).status_code == 302
    full.refresh_from_db()
    with full.avatar.open() as kept:
        assert Image.open(kept).size == (384, 384)
        assert full.avatar.size < 100_000
    assert 'width="128"' in admin_client.get("/").text
