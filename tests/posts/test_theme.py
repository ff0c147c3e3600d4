"""The accent colour is moved only as far as readers need it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posts import theme

COLORS = st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06x}")


@given(COLORS)
def test_words_in_any_accent_reach_aa_on_both_papers(accent: str) -> None:
    light = theme.shade(accent, surface=theme.LIGHT_SURFACE, toward="#000000")
    dark = theme.shade(accent, surface=theme.DARK_SURFACE, toward="#ffffff")
    for surface in ("#fcfbf8", theme.LIGHT_SURFACE, "#ffffff"):
        assert theme.contrast(light, surface) >= 4.5
    for surface in ("#15181b", theme.DARK_SURFACE):
        assert theme.contrast(dark, surface) >= 4.5


def test_an_accent_that_is_readable_stays() -> None:
    assert theme.shade("#0f6b5c", surface=theme.LIGHT_SURFACE, toward="#000000") == "#0f6b5c"


@pytest.mark.parametrize(("one", "other", "ratio"), [("#000000", "#ffffff", 21), ("#777777", "#ffffff", 4.48)])
def test_contrast_is_what_wcag_says(one: str, other: str, ratio: float) -> None:
    assert theme.contrast(one, other) == pytest.approx(ratio, abs=0.01)


def test_the_address_changes_with_the_colour() -> None:
    assert theme.fingerprint("#0f6b5c") != theme.fingerprint("#b00b1e")
