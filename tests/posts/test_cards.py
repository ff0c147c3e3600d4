"""Cards, which stand for posts elsewhere: which post has one, at which address, how they are drawn and kept."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.files.base import ContentFile
from django.test import Client
from django.utils import timezone
from PIL import Image
from pytest_django import DjangoAssertNumQueries

from posts import cards, theme
from posts.cards import Card
from posts.models import Post, Publication
from tests.factories import make_post
from tests.posts.test_head import metas

pytestmark = pytest.mark.usefixtures("publication")

AT = timezone.now() - dt.timedelta(hours=1)
TITLES = [
    "On locks",
    "W" * 200,
    "word " * 40,
    "i" * 200,
    "Привет, мир " * 16,
    "שלום עולם " * 20,
    "錠" * 200,
    "a\u0300" * 100,
    "🔒" * 200,
    "\x07",
    "Two\nlines\x1b[1m",
]


def published(title: str = "On locks", **values: object) -> Post:
    return make_post(title, status=Post.Status.PUBLISHED, published_at=AT, **values)


def address(shown: Post | Publication) -> str:
    return str(shown.image["url"]).removeprefix(settings.SITE_URL)


def files() -> list[Path]:
    return sorted(Path(settings.MEDIA_ROOT).glob("cards/*"))


def card(title: str = "On locks", accent: str = "#0f6b5c", **values: str) -> Card:
    return Card(title, values.pop("name", "Query Notes"), "Robin Sample", accent, **values)


def drawn(shown: Card) -> Image.Image:
    return Image.open(io.BytesIO(cards.draw(shown)))


def photograph(color: str = "#ff0000") -> ContentFile[bytes]:
    output = io.BytesIO()
    Image.new("RGB", (300, 200), color).save(output, "PNG")
    return ContentFile(output.getvalue(), "picture.png")


def test_a_page_names_the_card_of_its_post_and_it_is_there_for_long(client: Client) -> None:
    found = metas(client.get(published().get_absolute_url()).text)
    answer = client.get(found["og:image"].removeprefix(settings.SITE_URL))
    assert answer["Content-Type"] == "image/png"
    assert set(answer["Cache-Control"].split(", ")) == {"public", "immutable", "max-age=31536000", "s-maxage=60"}
    assert not answer.cookies
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (int(found["og:image:width"]), int(found["og:image:height"])) == (1200, 630)
    assert (found["og:image:alt"], found["twitter:card"]) == ("On locks", "summary_large_image")


@pytest.mark.parametrize("page", ["/", "/posts/", "/about/", "/issues/"])
def test_pages_without_a_post_name_the_sites_card(client: Client, page: str) -> None:
    found = metas(client.get(page).text)
    assert found["og:image"] == Publication.current().image["url"]
    assert client.get(address(Publication.current()))["Content-Type"] == "image/png"


def test_the_sites_card_says_once_what_it_is_called_and_where_it_is_found(publication: Publication) -> None:
    publication.tagline = "A letter a week"
    shown = (publication.card.title, publication.card.name, publication.card.byline)
    assert shown == (publication.name, urlsplit(settings.SITE_URL).netloc, "A letter a week")


@pytest.mark.django_db(transaction=True)
def test_a_deleted_posts_card_goes_with_it(client: Client) -> None:
    posts = [published(f"On locks {number}") for number in range(4)]
    for post in posts:
        client.get(address(post))
    posts[0].delete()
    Post.objects.filter(pk__in=[posts[1].pk, posts[2].pk]).delete()
    assert [file.name.partition("-")[0] for file in files()] == [str(posts[3].pk)]


def test_a_cover_is_shown_instead_and_no_card_is_drawn(client: Client) -> None:
    post = published()
    card_address = address(post)
    post.cover, post.cover_alt = photograph(), "A lock"
    post.save()
    found = metas(client.get(post.get_absolute_url()).text)
    assert found["og:image"] == settings.SITE_URL + post.cover.url
    assert (found["og:image:width"], found["og:image:height"]) == ("300", "200")
    assert client.get(card_address).status_code == 404
    assert files() == []


def test_a_card_is_drawn_once_and_then_comes_from_disk(
    client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    there = address(published())
    assert client.get(there).content.startswith(b"\x89PNG")
    (file,) = files()
    file.write_bytes(b"as kept")
    with django_assert_max_num_queries(2):
        assert client.get(there).content == b"as kept"


def test_another_title_makes_another_card_and_the_former_is_neither_answered_nor_kept(client: Client) -> None:
    post, other = published(), published("On locks, again")
    former = address(post)
    client.get(former)
    client.get(address(other))
    client.get(address(Publication.current()))
    post.title = "On latches"
    post.save()
    assert address(post) != former
    assert client.get(former).status_code == 404
    assert client.get(address(post)).status_code == 200
    owners = sorted(file.name.split("-")[0] for file in files())
    assert owners == sorted([str(post.pk), str(other.pk), "site"])


def test_what_a_card_does_not_show_leaves_its_address_and_what_it_shows_does_not(publication: Publication) -> None:
    post = published()
    found = [address(post)]
    post.body = "Another text."
    post.save()
    assert address(post) == found[0]
    for name, value in {
        "name": "Notes",
        "byline": "Robin",
        "accent_color": "#aa0000",
        "avatar": "avatar/a.png",
    }.items():
        setattr(publication, name, value)
        publication.save()
        found.append(address(post))
    assert len(set(found)) == 5


@pytest.mark.parametrize("path", ["/cards/on-locks-{}.png", "/cards/{}.png", "/cards/nothing-{}.png"])
def test_a_strangers_address_draws_nothing(client: Client, path: str) -> None:
    published()
    for fingerprint in ("0" * 12, "x", "f" * 500):
        assert client.get(path.format(fingerprint)).status_code == 404
    assert files() == []


def test_the_file_cant_be_told_from_the_address(client: Client) -> None:
    post = published()
    client.get(address(post))
    assert post.card
    assert post.card.fingerprint not in files()[0].name
    Post.objects.filter(pk=post.pk).update(status=Post.Status.WITHDRAWN)
    assert client.get(address(post)).status_code == 404
    assert client.get(f"/media/cards/{post.pk}-{post.card.fingerprint}.png").status_code == 404


def test_a_card_is_shown_even_where_it_cant_be_kept(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    (Path(settings.MEDIA_ROOT) / "cards").write_text("in the way")
    assert client.get(address(published())).content.startswith(b"\x89PNG")
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("title", TITLES)
def test_every_title_stays_within_the_margins(title: str) -> None:
    picture = drawn(card(title, name=title[:100]))
    width, height = picture.size
    half, top = cards.MARGIN // 2, cards.RULE + 1
    margins = [(0, top, half, height), (width - half, top, width, height), (0, height - half, width, height)]
    assert all(len(picture.crop(box).getcolors() or []) == 1 for box in margins)
    between = cards.MARGIN + cards.ROOM + 4
    assert len(picture.crop((0, between, width, between + 20)).getcolors() or []) == 1


def test_a_short_title_is_larger_than_a_long_one_and_what_has_no_room_is_cut() -> None:
    short, long = cards.fitted("On locks"), cards.fitted("W" * 200)
    assert (short[0].size, short[1]) == (cards.LARGEST, ["On locks"])
    assert long[0].size == cards.SMALLEST
    assert long[1][-1].endswith("…")
    words = "Why vacuum takes so long, and what to do about locks"
    assert " ".join(cards.fitted(words)[1]) == words


@pytest.mark.parametrize("accent", ["#0f6b5c", "#ffffff", "#ffdd00", "#000000", "#ff0000", "#00ff00"])
def test_the_words_can_be_read_on_every_colour(accent: str) -> None:
    pixel = drawn(card(accent=accent)).getpixel((5, 300))
    assert isinstance(pixel, tuple)
    assert theme.contrast("#" + "".join(f"{part:02x}" for part in pixel), "#ffffff") >= 4.5


def test_a_font_is_taken_that_has_the_letters() -> None:
    if not cards.face_for("б", cards.TITLE_FONTS):
        pytest.skip("This system has none of the fonts.")
    assert cards.draw(card("бббб")) != cards.draw(card("дддд"))  # else both were four empty boxes


def test_no_box_stands_for_what_no_font_has() -> None:
    assert cards.draw(card("🔒 On 👩‍💻 locks 🏳️‍🌈")) == cards.draw(card("On locks"))


@pytest.mark.parametrize(("title", "edge"), [("On locks", cards.MARGIN), ("שלום", cards.SPACE), ("مرحبا", cards.SPACE)])
def test_a_title_begins_where_its_letters_do(title: str, edge: int) -> None:
    ground = drawn(card("")).crop((edge, cards.MARGIN, edge + cards.MARGIN, cards.MARGIN + cards.ROOM))
    assert drawn(card(title)).crop((edge, cards.MARGIN, edge + cards.MARGIN, cards.MARGIN + cards.ROOM)) != ground


def test_pillows_own_font_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = cards.draw(card(""))
    for name in ("TITLE_FONTS", "WORD_FONTS", "OTHER_FONTS"):
        monkeypatch.setattr(cards, name, ())
    assert len({cards.draw(card("On locks")), cards.draw(card("")), empty}) == 3


def test_the_avatar_stands_beside_the_name_and_a_broken_one_costs_no_card() -> None:
    folder = Path(settings.MEDIA_ROOT)
    (folder / "a.png").write_bytes(photograph().read())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    middle = (cards.MARGIN + cards.FACE // 2, cards.HEIGHT - cards.MARGIN - cards.FACE // 2)
    assert drawn(card(avatar="a.png")).getpixel(middle) == (255, 0, 0)
    assert cards.draw(card(avatar="broken.png")) == cards.draw(card(avatar="away.png")) == cards.draw(card())
