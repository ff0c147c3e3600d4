"""Turn the author's accent colour into a stylesheet: a shade for light pages, one for dark, both readable (WCAG AA)."""

import hashlib

# The surfaces of site.css on which accent-coloured words stand: of paper and tint, the one nearer to the words.
LIGHT_SURFACE = "#f3f1eb"
DARK_SURFACE = "#20252a"
CONTRAST = 4.6  # WCAG 2.2, 1.4.3 asks for 4.5; rounding takes its part
STEPS = 50

Color = tuple[int, int, int]


def parse(color: str) -> Color:
    """Return the parts of a colour written as #rrggbb."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def luminance(color: str) -> float:
    """Return the relative luminance as WCAG 2.2 defines it: 0 for black, 1 for white."""
    parts = (value / 255 for value in parse(color))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours: 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mix(color: str, other: str, share: float) -> str:
    """Return `color` with `share` (0 to 1) of `other` in it."""
    parts = (round(a + (b - a) * share) for a, b in zip(parse(color), parse(other), strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def shade(color: str, *, surface: str, toward: str) -> str:
    """Return `color`, moved toward black or white only as far as words on `surface` need it."""
    shades = (mix(color, toward, step / STEPS) for step in range(STEPS + 1))
    return next(candidate for candidate in shades if contrast(candidate, surface) >= CONTRAST)


def stylesheet(accent: str) -> str:
    """Return the CSS that sets --accent for both colour schemes."""
    light = shade(accent, surface=LIGHT_SURFACE, toward="#000000")
    dark = shade(accent, surface=DARK_SURFACE, toward="#ffffff")
    return f":root{{--accent:{light}}}@media (prefers-color-scheme:dark){{:root{{--accent:{dark}}}}}\n"


def fingerprint(accent: str) -> str:
    """Return the part of the stylesheet's address that changes with its content."""
    return hashlib.sha256(stylesheet(accent).encode()).hexdigest()[:12]
