"""Images from outside: decided by decoding, re-encoded without metadata, under a name of our own."""

from __future__ import annotations

import io
import uuid
import warnings
from typing import IO

from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
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
