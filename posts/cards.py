"""The picture that stands for a post elsewhere, where it has no cover: its title on the author's colour, as a PNG."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.utils.crypto import salted_hmac
from PIL import Image, ImageDraw, ImageFont, ImageOps

from posts import theme

logger = logging.getLogger(__name__)

SIZE = WIDTH, HEIGHT = 1200, 630  # what Open Graph's readers show whole
LOOK = 2  # another number gives every card a new address: raise it with a change of how they look
MARGIN, RULE, FACE = 84, 14, 96
SPACE = WIDTH - 2 * MARGIN  # for a line
ROOM = 330  # for the title's lines
LARGEST, SMALLEST, STEP = 84, 40, 4
LEADING = 1.24
SMALL = 34
WHITE, BLACK = "#ffffff", "#000000"
# The system's, which cover more than Latin; the first that has all letters of a text is taken.
TITLE_FONTS = ("NotoSerif-Bold.ttf", "DejaVuSerif-Bold.ttf")
WORD_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf")
OTHER_FONTS = ("DejaVuSans-Bold.ttf", "NotoSansCJK-Bold.ttc", "NotoSansArabic-Bold.ttf", "NotoSansDevanagari-Bold.ttf")
NO_LETTER = "\uffff"  # in no font: what is drawn for it stands for every letter that a font lacks

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Card:
    """What a card shows; whatever changes here changes its address."""

    title: str
    name: str
    byline: str
    accent: str
    avatar: str = ""  # its name in the storage

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([LOOK, *astuple(self)]).encode()).hexdigest()[:12]

    def described(self, url: str) -> dict[str, object]:
        """Return what a page says of the card that stands at `url`."""
        return {"url": settings.SITE_URL + url, "alt": self.title, "width": WIDTH, "height": HEIGHT}


def kept(card: Card, *, owner: str) -> bytes:
    """Return the card as a PNG: drawn once, kept on disk, one for each `owner`."""
    path = _folder() / f"{owner}-{_secret(card)}.png"
    with suppress(OSError):  # not there yet, or not to be read
        return path.read_bytes()
    data = draw(card)
    try:
        _keep(path, data, owner)
    except OSError:  # shown all the same, and drawn again the next time
        logger.exception("The card %s could not be kept.", path)
    return data


def _folder() -> Path:
    return Path(settings.MEDIA_ROOT) / "cards"


def _secret(card: Card) -> str:
    """Return a name that nobody can tell from the address: a proxy serves the folder and knows no withdrawn posts."""
    return salted_hmac("posts.cards", card.fingerprint, algorithm="sha256").hexdigest()[:32]


def _keep(path: Path, data: bytes, owner: str) -> None:
    """Write the file at once and whole, and drop the owner's older ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{owner}-", suffix=".tmp", delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    for other in path.parent.glob(f"{owner}-*.png"):
        if other != path:
            other.unlink(missing_ok=True)


def drop(owners: Collection[str]) -> None:
    """Remove what is kept for `owners`, such as deleted posts."""
    for file in _folder().glob("*-*.png"):
        if file.name.partition("-")[0] in owners:
            file.unlink(missing_ok=True)


# Drawing


def draw(card: Card) -> bytes:
    """Draw the card: white words on the author's colour, as dark as they need it."""
    ground = theme.mix(theme.shade(card.accent, surface=WHITE, toward=BLACK), BLACK, 0.12)
    picture = Image.new("RGB", SIZE, ground)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, WIDTH, RULE), fill=theme.mix(ground, WHITE, 0.3))
    _draw_title(pen, one_line(card.title))
    _draw_foot(picture, pen, card, ground)
    output = io.BytesIO()
    picture.save(output, "PNG", optimize=True)
    return output.getvalue()


def _draw_title(pen: ImageDraw.ImageDraw, title: str) -> None:
    font, lines = fitted(title)
    edge, anchor = (WIDTH - MARGIN, "ra") if from_the_right(title) else (MARGIN, "la")
    for number, line in enumerate(lines):
        pen.text((edge, MARGIN + number * font.size * LEADING), line, font=font, fill=WHITE, anchor=anchor)


def _draw_foot(picture: Image.Image, pen: ImageDraw.ImageDraw, card: Card, ground: str) -> None:
    """Say whose it is: the avatar, the publication's name, and who writes it."""
    middle, left = HEIGHT - MARGIN - FACE // 2, MARGIN
    if card.avatar and (face := _face(card.avatar)):
        picture.paste(face, (left, middle - FACE // 2), _circle())
        left += FACE + 28
    said = [(card.name, WHITE, 1.15), (card.byline, theme.mix(ground, WHITE, 0.78), 1.0)]
    shown = [(one_line(text), fill, round(SMALL * scale)) for text, fill, scale in said if text.strip()]
    for number, (text, fill, size) in enumerate(shown):
        font = font_of(face_for(text, WORD_FONTS), size)
        place = middle + (number - (len(shown) - 1) / 2) * SMALL * 1.5
        words = cut(in_font(text, font), font, WIDTH - MARGIN - left)
        pen.text((left, place), words, font=font, fill=fill, anchor="lm")


def _face(name: str) -> Image.Image | None:
    """Return the avatar, small and square; None where it is away or broken."""
    try:
        with Image.open(Path(settings.MEDIA_ROOT) / name) as picture:
            return ImageOps.fit(picture.convert("RGB"), (FACE, FACE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _circle() -> Image.Image:
    """Return the mask of a round picture, drawn large first: its edge is smooth then."""
    mask = Image.new("L", (FACE * 4, FACE * 4), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, FACE * 4 - 1, FACE * 4 - 1), fill=255)
    return mask.resize((FACE, FACE), Image.Resampling.LANCZOS)


# Words


def one_line(text: str) -> str:
    """Return `text` without line breaks and other control characters."""
    return "".join(letter for letter in " ".join(text.split()) if unicodedata.category(letter) != "Cc")


def from_the_right(text: str) -> bool:
    """Tell whether `text` is written from right to left, as its first letter is."""
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    return next((kind != "L" for kind in kinds if kind in ("L", "R", "AL")), False)


def fitted(title: str) -> tuple[Font, list[str]]:
    """Return the largest font in which the title has room, and its lines; what is too long even so is cut."""
    face = face_for(title, TITLE_FONTS)
    title = in_font(title, font_of(face, SMALLEST))
    for size in range(LARGEST, SMALLEST - 1, -STEP):
        font, most = font_of(face, size), int(ROOM / (size * LEADING))
        lines = wrapped(title, font, SPACE)
        if len(lines) <= most:
            return font, lines
    return font, [*lines[: most - 1], cut(" ".join(lines[most - 1 :]), font, SPACE)]


def wrapped(text: str, font: Font, width: float) -> list[str]:
    """Return the text in lines of at most `width` pixels, broken between words, and within one that is wider alone."""
    lines = [""]
    for word in text.split():
        for part in _pieces(word, font, width):
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    return lines


def _pieces(word: str, font: Font, width: float) -> Iterator[str]:
    piece = ""
    for letter in word if font.getlength(word) > width else [word]:
        if piece and not unicodedata.combining(letter[0]) and font.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece


def cut(text: str, font: Font, width: float) -> str:
    """Return the text, shortened to `width` pixels where it is longer."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1].rstrip()
    return f"{text}…"


# Fonts


def face_for(text: str, names: tuple[str, ...]) -> str | None:
    """Return the file of the first font that has all letters of `text`, or else most of them; None without any."""
    faces = [face for name in (*names, *OTHER_FONTS) if (face := _file(name))]
    return max(faces, key=lambda face: _covered(text, font_of(face, SMALLEST)), default=None)


def font_of(face: str | None, size: int) -> Font:
    """Return the font in a file, or Pillow's own."""
    font = ImageFont.truetype(face, size) if face else ImageFont.load_default(size)
    assert isinstance(font, Font), "Pillow's wheels have FreeType"
    return font


@lru_cache
def _file(name: str) -> str | None:
    """Return where the system has a font; None where it has not."""
    try:
        return str(ImageFont.truetype(name).path)
    except OSError:
        return None


def _covered(text: str, font: Font) -> int:
    return len(set(in_font(text, font)))


def in_font(text: str, font: Font) -> str:
    """Return `text` without what the font lacks, such as emoji: a box in its place says nothing."""
    missing = bytes(font.getmask(NO_LETTER))
    known = {letter for letter in set(text) if letter.isspace() or bytes(font.getmask(letter)) != missing}
    words = "".join(filter(known.__contains__, text)).split()
    return " ".join(word for word in words if any(unicodedata.category(letter)[0] in "LNPS" for letter in word))
