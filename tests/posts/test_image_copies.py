"""Smaller copies of images: made once, named by the page alone, and never more than the image itself."""

import io
import re
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from PIL import Image

from posts import images, markdown
from posts.models import Post, Publication
from tests.factories import make_post
from tests.posts.test_images import claimed_size


def photograph(width: int = 1600, height: int = 900, kind: str = "JPEG") -> bytes:
    output = io.BytesIO()
    Image.effect_noise((width // 10, height // 10), 50).resize((width, height)).convert("RGB").save(output, kind)
    return output.getvalue()


def stored(data: bytes, name: str = "posts/bars.jpg") -> str:
    return default_storage.save(name, ContentFile(data))


def files() -> set[str]:
    return set(default_storage.listdir("posts")[1])


def test_copies_are_webp_of_each_width_below_the_image_and_lighter_than_it() -> None:
    name = stored(photograph())
    assert images.make_copies(name) == 4
    made = images.copies(name, 1600)
    assert [width for width, _name in made] == [480, 800, 1200, 1600]
    for width, copy in made:
        with default_storage.open(copy) as file:
            picture = Image.open(file)
            assert (picture.format, picture.size) == ("WEBP", (width, width * 9 // 16))
            assert default_storage.size(copy) < default_storage.size(name)
    assert default_storage.size(made[1][1]) < 40_000


def test_making_copies_again_makes_none() -> None:
    name = stored(photograph())
    images.make_copies(name)
    before = files()
    assert images.make_copies(name) == 0
    assert files() == before


def test_what_was_left_half_done_is_finished() -> None:
    name = stored(photograph())
    images.make_copies(name)
    default_storage.delete("posts/bars.jpg.w480.webp")  # the last one that is made
    assert images.make_copies(name) == 1
    assert len(images.copies(name, 1600)) == 4


def test_a_copy_that_would_be_heavier_than_the_image_is_not_kept() -> None:
    output = io.BytesIO()
    Image.new("1", (600, 400)).save(output, "PNG", optimize=True)
    name = stored(output.getvalue(), "posts/plain.png")
    images.make_copies(name)
    assert all(default_storage.size(copy) < len(output.getvalue()) for _width, copy in images.copies(name, 600))


def test_an_image_that_claims_to_be_enormous_is_refused_unread() -> None:
    with pytest.raises(ValidationError):
        images.make_copies(stored(claimed_size(50_000, 50_000), "posts/bomb.png"))
    assert files() == {"bomb.png"}


def test_a_see_through_image_stays_see_through() -> None:
    output = io.BytesIO()
    noise = Image.effect_noise((900, 600), 90)
    Image.merge("RGBA", (noise, noise, noise, Image.new("L", (900, 600), 0))).save(output, "PNG")
    name = stored(output.getvalue(), "posts/glass.png")
    images.make_copies(name)
    with default_storage.open("posts/glass.png.w480.webp") as file:
        assert Image.open(file).convert("RGBA").getpixel((5, 5))[3] == 0


# In the text


@pytest.mark.parametrize("text", ["![Bars](/media/posts/bars.jpg)", '<img src="/media/posts/bars.jpg" alt="Bars">'])
def test_a_page_names_size_and_copies_and_a_mail_does_not(text: str) -> None:
    images.make_copies(stored(photograph()))
    page = markdown.render(text)
    assert 'width="1600"' in page
    assert 'height="900"' in page
    assert 'loading="lazy"' in page
    assert 'alt="Bars"' in page
    assert re.findall(r"(\S+) (\d+)w", page) == [
        ('srcset="/media/posts/bars.jpg.w480.webp', "480"),
        ("/media/posts/bars.jpg.w800.webp", "800"),
        ("/media/posts/bars.jpg.w1200.webp", "1200"),
        ("/media/posts/bars.jpg.w1600.webp", "1600"),
    ]
    mail = markdown.render(text, "email")
    assert "srcset" not in mail
    assert "webp" not in mail


@pytest.mark.parametrize(
    "srcset",
    [
        "https://tracker.example/p.png 1x",
        "//tracker.example/p.png 100w",
        "/media/a.png 100w, https://tracker.example/p.png 200w",
        "/media/../u/leave/ 100w",
        "javascript:alert(1) 1w",
        "/media/a.png 100w, data:image/png;base64,AAAA 200w",
    ],
)
def test_an_authors_own_srcset_leads_nowhere_else(srcset: str) -> None:
    page = markdown.render(f'<img src="/media/nothing.png" srcset="{srcset}" sizes="100vw" alt="">')
    assert "srcset" not in page
    assert "sizes" not in page


@pytest.mark.django_db
def test_a_feed_has_the_plain_image(client: Client, publication: Publication) -> None:
    images.make_copies(stored(photograph()))
    make_post("Bars", "![Bars](/media/posts/bars.jpg)", status=Post.Status.PUBLISHED, published_at=timezone.now())
    for address in ("/feed.xml", "/rss.xml", "/feed.json"):
        feed = client.get(address).content.decode()
        assert "/media/posts/bars.jpg" in feed
        assert "srcset" not in feed
        assert "webp" not in feed


# Where they are made


@pytest.mark.django_db
def test_a_cover_gets_its_copies_when_it_is_saved_and_loses_them_when_it_goes() -> None:
    post = make_post("Bars", cover_alt="Bars")
    post.cover.save("bars.jpg", ContentFile(photograph()))
    assert post.cover_size == (1600, 900)
    assert post.cover_srcset.count(".webp ") == 4
    post.refresh_from_db()
    assert post.cover_size == (1600, 900)
    post.cover = ""
    post.save()
    assert (post.cover_size, post.cover_srcset) == (None, "")


@pytest.mark.django_db
def test_a_cover_that_is_no_image_is_shown_without_size(client: Client) -> None:
    post = make_post("Bars", cover_alt="Bars")
    post.cover.save("bars.jpg", ContentFile(b"nothing"))
    assert (post.cover_size, post.cover_srcset) == (None, "")


@pytest.mark.django_db
def test_an_uploaded_image_gets_its_copies(client: Client, publication: Publication) -> None:
    client.force_login(User.objects.create_superuser("author"))
    file = SimpleUploadedFile("bars.jpg", photograph(), "image/jpeg")
    url = client.post("/admin/markdown/upload/", {"image": file}).json()["url"]
    assert markdown.render(f"![Bars]({url})").count(".webp ") == 4


@pytest.mark.django_db
def test_the_command_gives_older_posts_their_copies_and_headings_once() -> None:
    post = make_post("Bars", "## Head\n\n![Bars](/media/posts/bars.jpg)")
    Post.objects.update(headings=[])
    stored(photograph())
    stored(claimed_size(50_000, 50_000), "posts/bomb.png")
    make_post("Bomb", "![Bomb](/media/posts/bomb.png) ![Gone](/media/posts/gone.png) ![Out](/media/../../etc/x.png)")
    history, changed_at = post.history.count(), Post.objects.get(pk=post.pk).updated_at
    said = StringIO()
    call_command("make_image_copies", stdout=said)
    assert "2 posts, 1 rendered anew, 4 copies made" in said.getvalue()
    assert "bomb.png" in said.getvalue()
    post.refresh_from_db()
    assert post.headings == [[2, "head", "Head"]]
    assert "srcset" in post.body_html
    assert (post.history.count(), post.updated_at) == (history, changed_at)
    again = StringIO()
    call_command("make_image_copies", stdout=again)
    assert "2 posts, 0 rendered anew, 0 copies made" in again.getvalue()
