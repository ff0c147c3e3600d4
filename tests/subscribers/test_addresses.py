"""One rule says who somebody is, and its quick way says the same as the long one."""

from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from subscribers import addresses

ODD = st.text("aZ0.-_+@ü'", max_size=20)
ADDRESSES = st.builds("{}@{}.{}".format, ODD, ODD, st.sampled_from(["org", "co.uk", "test", "COM", "c", "1a"]))
LIKELY = st.from_regex(r"[a-zA-Z0-9_+-]{1,70}(\.[a-z]{1,3})?@[a-z0-9-]{1,66}\.[a-zA-Z]{1,4}", fullmatch=True)


def judged(address: str) -> str | None:
    try:
        return addresses.canonical(address)
    except addresses.InvalidAddress:
        return None


@pytest.mark.parametrize("is_test", [True, False])
def test_the_quick_way_says_what_the_long_one_says(settings: object, is_test: bool) -> None:
    settings.ALLOW_TEST_ADDRESSES = is_test  # type: ignore[attr-defined]  # pytest-django's has no fixed attributes

    @given(ADDRESSES | LIKELY)
    @example("Ada.Lovelace+news@Mail.Example.co.uk")
    @example("a@xn--.org")
    def compare(address: str) -> None:
        quick = judged(address)
        with patch.object(addresses, "PLAIN", addresses.re.compile("(?!)")):
            assert judged(address) == quick

    compare()
