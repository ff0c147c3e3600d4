"""What is uploaded is decided by decoding it, and kept only re-encoded."""

import io
import struct
import zlib
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import NoReverseMatch, reverse
from PIL import Image

from posts import images, models


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    output = io.BytesIO()
    Image.new(mode, size, "teal" if mode != "P" else 3).save(output, kind, **options)
    return output.getvalue()


def cleaned(data: bytes) -> Image.Image:
    return Image.open(images.clean_image(io.BytesIO(data)))


def claimed_size(width: int, height: int) -> bytes:
    """Make a small PNG that claims to be large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return images.PNG + head + picture()[33:]


@pytest.mark.parametrize(("kind", "becomes"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("GIF", "PNG"), ("WEBP", "PNG")])
def test_the_four_formats_become_png_or_jpeg(kind: str, becomes: str) -> None:
    result = cleaned(picture(kind))
    assert (result.format, result.size) == (becomes, (40, 30))


def test_a_name_is_random_and_its_ending_is_the_format() -> None:
    names = {images.clean_image(io.BytesIO(picture("WEBP"))).name for _n in range(2)}
    assert len(names) == 2
    assert all(name and name.endswith(".png") and len(name) == 36 for name in names)


def test_metadata_is_gone_and_the_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "SECRET CAMERA"
    file = images.clean_image(io.BytesIO(picture("JPEG", exif=exif.tobytes(), comment=b"SECRET PLACE")))
    assert b"SECRET" not in file.read()
    file.seek(0)
    assert Image.open(file).size == (30, 40)


@pytest.mark.parametrize(
    ("size", "becomes"),
    [((3200, 100), (1600, 50)), ((100, 3200), (50, 1600)), ((2400, 1800), (1600, 1200)), ((1600, 1600), (1600, 1600))],
)
def test_a_picture_is_at_most_1600_pixels_on_its_longer_side(size: tuple[int, int], becomes: tuple[int, int]) -> None:
    assert cleaned(picture(size=size)).size == becomes


def test_what_is_see_through_stays_so() -> None:
    output = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 128, 128, 100)).save(output, "WEBP", lossless=True)
    assert cleaned(output.getvalue()).getpixel((0, 0)) == (0, 128, 128, 100)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<?xml version='1.0'?><!DOCTYPE svg><svg/>",
        b"<html><script>alert(1)</script></html>",
        b"GIF89a=1;alert(1)//",
        b"%PDF-1.4",
        picture()[:60],
        picture("JPEG")[:200],
        picture("BMP"),
        picture("TIFF"),
        picture("ICO"),
    ],
)
def test_what_is_no_picture_of_the_four_formats_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError, match="upload a JPEG, PNG, GIF or WebP"):
        images.clean_image(io.BytesIO(data))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(ValidationError, match="larger than 5 MB"):
        images.clean_image(io.BytesIO(picture() + bytes(images.MOST_BYTES)))


@pytest.mark.parametrize("size", [(6000, 5000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="more than 25 million pixels"):
        images.clean_image(io.BytesIO(claimed_size(*size)))


def test_an_endless_animation_is_refused() -> None:
    frames = [Image.new("L", (2, 2), n) for n in range(images.MOST_FRAMES + 1)]
    output = io.BytesIO()
    frames[0].save(output, "GIF", save_all=True, append_images=frames[1:], duration=list(range(10, 2020, 10)))
    with pytest.raises(ValidationError, match="too many frames"):
        images.clean_image(io.BytesIO(output.getvalue()))


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "PNG"])
def test_what_hides_behind_a_picture_does_not_come_along(kind: str) -> None:
    payload = b"<script>alert(1)</script><?php x ?>"
    assert b"script" not in images.clean_image(io.BytesIO(picture(kind) + payload)).read()


# The editor's views

VIEWS = ["markdown:preview", "markdown:upload", "post_mail"]


@pytest.fixture
def author(client: Client, db: None) -> Client:
    user = User.objects.create_user("author", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="change_post"))
    client.force_login(user)
    return client


def upload(client: Client, data: bytes, name: str = "a.png") -> Any:
    return client.post(reverse("markdown:upload"), {"image": SimpleUploadedFile(name, data)})


@pytest.mark.parametrize("name", ["a.png", "x.html", "../../a.svg", "a.png.php", "a" * 300 + ".png"])
def test_an_upload_is_kept_under_a_name_of_ours(author: Client, name: str) -> None:
    url = upload(author, picture(), name).json()["url"]
    assert url.startswith("/media/posts/")
    assert url.endswith(".png")
    assert default_storage.exists(url.removeprefix("/media/"))


def test_an_upload_that_is_no_picture_is_told_so(author: Client) -> None:
    answer = upload(author, b"<svg onload=alert(1)>", "a.png")
    assert answer.status_code == 422
    assert "upload a JPEG" in answer.json()["image"][0]
    assert author.post(reverse("markdown:upload")).status_code == 400


def test_a_preview_of_a_text_shows_sanitised_html(author: Client) -> None:
    answer = author.post(reverse("markdown:preview"), {"body": "*a* <script>alert(1)</script>"})
    assert "<em>a</em>" in answer.json()["html"]
    assert "<script" not in answer.json()["html"]


@pytest.mark.parametrize("name", VIEWS)
def test_strangers_and_readers_are_sent_away(client: Client, db: None, name: str) -> None:
    assert client.post(reverse(name)).status_code == 302
    client.force_login(User.objects.create_user("reader"))
    assert client.post(reverse(name)).status_code == 302
    client.force_login(User.objects.create_user("clerk", is_staff=True))
    assert client.post(reverse(name)).status_code == 403


@pytest.mark.parametrize("name", VIEWS)
def test_only_a_post_with_the_token_is_answered(author: Client, name: str) -> None:
    assert author.get(reverse(name)).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = author.cookies
    assert strict.post(reverse(name), {"body": "a"}).status_code == 403


def test_markdownx_own_views_are_nowhere(author: Client) -> None:
    for path in ("/markdownx/markdownify/", "/markdownx/upload/"):
        assert author.post(path, {"content": "a"}).status_code == 404
    for name in ("markdownx_markdownify", "markdownx_upload"):
        with pytest.raises(NoReverseMatch):
            reverse(name)


def test_a_post_nested_too_deeply_is_refused_by_its_form(db: None) -> None:
    with pytest.raises(ValidationError) as refused:
        models.Post(title="Deep", slug="deep", body="<div>" * 5000).full_clean()
    assert "nested too deeply" in refused.value.message_dict["body"][0]
