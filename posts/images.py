"""Images from outside: decided by decoding, re-encoded without metadata, under a name of our own."""

from __future__ import annotations

import io
import uuid
import warnings
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from django.core.exceptions import SuspiciousFileOperation, ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils.translation import gettext_lazy as _
from PIL import Image, ImageOps, UnidentifiedImageError

# No SVG: it can carry scripts. Mail programs show JPEG and PNG everywhere, so these two are what comes out.
FORMATS = ["JPEG", "PNG", "GIF", "WEBP"]
PNG = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
MOST_BYTES = 5 * 1024 * 1024
MOST_PIXELS = 25_000_000
MOST_FRAMES = 200
LONGEST = 1600
AVATAR = 384  # shown at 128 CSS pixels, on screens of up to three pixels each
# Smaller copies for the web: WebP, each of at most so many bytes a pixel, where a lower quality reaches that.
COPY_WIDTHS = (480, 800, 1200)
COPIED = {".jpg", ".jpeg", ".png"}
QUALITIES = (80, 72, 64, 56, 48)
BYTES_A_PIXEL = 0.085
TOO_MANY_PIXELS = _("The image has more than 25 million pixels: make it smaller first.")


def clean_image(file: IO[bytes]) -> ContentFile[bytes]:
    """Return the picture in `file` re-encoded as JPEG or PNG, at most 1600 px long, named at random.

    Raises ValidationError, saying what is wrong and what to do.
    """
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValidationError(_("The image is larger than 5 MB: make it smaller first."))
    picture = _decode(data)
    output = io.BytesIO()
    see_through = picture.mode in ("RGBA", "LA", "P") or "transparency" in picture.info
    if picture.format == "JPEG" or not (see_through or _few_colours(picture)):
        picture.convert("RGB").save(output, "JPEG", quality=86, optimize=True, progressive=True)
        return ContentFile(output.getvalue(), name=f"{uuid.uuid4().hex}.jpg")
    picture.convert("RGBA" if see_through else "RGB").save(output, "PNG", optimize=True)
    return ContentFile(output.getvalue(), name=f"{uuid.uuid4().hex}.png")


def avatar(file: ContentFile[bytes]) -> ContentFile[bytes]:
    """Return a picture that `clean_image` made, cut to a square around its middle and small."""
    picture = Image.open(file)
    kind = picture.format
    edge = min(AVATAR, *picture.size)
    output = io.BytesIO()
    ImageOps.fit(picture, (edge, edge), Image.Resampling.LANCZOS).save(output, kind, quality=86, optimize=True)
    return ContentFile(output.getvalue(), name=file.name)


def _decode(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(_bare_png(data)), formats=FORMATS)
            _check_size(picture)
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValidationError(TOO_MANY_PIXELS) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Warning) as error:
        raise ValidationError(_("This is not an image that can be read: upload a JPEG, PNG, GIF or WebP.")) from error
    kind = picture.format
    upright = ImageOps.exif_transpose(picture)
    if max(upright.size) > LONGEST:
        upright = upright.convert("RGBA" if upright.mode in ("P", "LA", "RGBA") else "RGB")
        upright.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    upright.format = kind
    # Comments, places and camera names would be written again from here.
    upright.info = {key: value for key, value in upright.info.items() if key == "transparency"}
    return upright


def _bare_png(data: bytes) -> bytes:
    """Return a PNG with the chunks that make its pixels only: a broken profile or comment must not cost the picture."""
    if not data.startswith(PNG):
        return data
    kept, position = [PNG], len(PNG)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] in PIXEL_CHUNKS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _check_size(picture: Image.Image) -> None:
    if picture.width * picture.height > MOST_PIXELS:
        raise ValidationError(TOO_MANY_PIXELS)
    if getattr(picture, "n_frames", 1) > MOST_FRAMES:
        raise ValidationError(_("The animation has too many frames: at most 200."))


def _few_colours(picture: Image.Image) -> bool:
    """Tell a drawing or screenshot, which PNG keeps sharp, from a photograph."""
    return picture.convert("RGB").getcolors(4096) is not None


# Smaller copies


def make_copies(name: str) -> int:
    """Make the copies of a stored image that are missing, and return how many were made.

    The smallest comes last: where it is there, all are. Raises ValidationError on a file that is no image or claims to
    be an enormous one, and OSError where there is no file.
    """
    if PurePosixPath(name).suffix.lower() not in COPIED or default_storage.exists(_copy_name(name, COPY_WIDTHS[0])):
        return 0
    with default_storage.open(name) as file:
        data = file.read(8 * MOST_BYTES)
    picture = _decode(data)
    widths = sorted(_widths(picture.width), reverse=True)
    return sum(_make_copy(picture, name, width, most=len(data)) for width in widths)


def copies(name: str, width: int) -> list[tuple[int, str]]:
    """Return the copies that there are of a stored image so many pixels wide, as (width, name), the smallest first."""
    names = [(each, _copy_name(name, each)) for each in _widths(width)]
    return [(each, copy) for each, copy in names if default_storage.exists(copy)]


def describe(name: str) -> dict[str, object]:
    """Return size and copies of a stored image as a post keeps them of its cover; empty where it can't be read."""
    size = stored_size(name)
    if not size:
        return {}
    return {"name": name, "width": size[0], "height": size[1], "copies": [list(copy) for copy in copies(name, size[0])]}


def srcset(name: str, width: int, made: Iterable[Sequence[Any]]) -> str:
    """Return the addresses of an image's copies with their widths; the image itself where no copy is as wide."""
    found = [(each, copy) for each, copy in made]
    if not found:
        return ""
    whole = [] if found[-1][0] >= width else [(width, name)]
    return ", ".join(f"{default_storage.url(each)} {wide}w" for wide, each in found + whole)


def stored_size(name: str) -> tuple[int, int] | None:
    """Return the width and height in pixels of a stored image, None where there is none that can be read."""
    try:
        with default_storage.open(name) as file, Image.open(file) as image:
            return image.size
    except (OSError, UnidentifiedImageError, ValueError, SuspiciousFileOperation, Image.DecompressionBombError):
        return None


def _widths(width: int) -> list[int]:
    return [each for each in COPY_WIDTHS if each < width] + [width]


def _copy_name(name: str, width: int) -> str:
    return f"{name}.w{width}.webp"


def _make_copy(picture: Image.Image, name: str, width: int, *, most: int) -> bool:
    """Keep a copy where it is lighter than the `most` bytes of the original."""
    height = max(1, round(picture.height * width / picture.width))
    see_through = picture.mode in ("RGBA", "LA", "P") or "transparency" in picture.info
    shown = picture.convert("RGBA" if see_through else "RGB")
    data = _light(shown.resize((width, height), Image.Resampling.LANCZOS) if width != picture.width else shown)
    copy = _copy_name(name, width)
    if len(data) >= most or default_storage.exists(copy):
        return False
    default_storage.save(copy, ContentFile(data))
    return True


def _light(picture: Image.Image) -> bytes:
    """Encode as WebP, in the best quality that keeps to the bytes a copy may have."""
    data = b""
    for quality in QUALITIES:
        output = io.BytesIO()
        picture.save(output, "WEBP", quality=quality, method=4)
        data = output.getvalue()
        if len(data) <= picture.width * picture.height * BYTES_A_PIXEL:
            break
    return data
