"""After a sign-up: where the mail can be opened, known from the domain and from nothing else."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from subscribers import mailboxes, tokens
from subscribers.models import Subscriber

CHECK = "/subscribe/check-your-inbox/"


@pytest.mark.parametrize(
    ("address", "at"),
    [
        ("ada@gmail.com", "?at=gmail"), ("Ada@GoogleMail.com", "?at=gmail"), ("ada@hotmail.co.uk", "?at=outlook"),
        ("ada@me.com", "?at=icloud"), ("ada@gmx.de", "?at=gmx"), ("ada@gmx.com", "?at=gmx-com"),
        ("ada@example.org", ""),
        ("gmail.com@example.org", ""), ("ada@gmail.com.example.org", ""),
    ],
)  # fmt: skip
def test_a_sign_up_leads_to_the_mailbox_where_it_is_known(join: Callable[..., Any], address: str, at: str) -> None:
    assert join(address).headers["Location"] == CHECK + at


def test_a_known_mailbox_tells_nothing_of_who_reads(join: Callable[..., Any], client: Client) -> None:
    Subscriber.objects.create(address="ada@gmail.com", status="active", confirmed_at=timezone.now())
    known, unknown = join("ada@gmail.com"), join("bea@gmail.com")
    assert (known.status_code, known.headers, known.content) == (unknown.status_code, unknown.headers, unknown.content)
    page = client.get(known.headers["Location"])
    assert "ada" not in page.text
    assert (page.headers["Cache-Control"], page.headers["Referrer-Policy"]) == ("no-store", "no-referrer")


def test_the_page_names_sender_and_mailbox(client: Client, publication: object) -> None:
    page = client.get(CHECK, {"at": "gmail"}).text
    assert "Open Gmail" in page
    assert "#search/from%3Aauthor%40example.org+in%3Aanywhere" in page
    assert "author@example.org" in page


@pytest.mark.parametrize("at", ["", "nobody", "https://evil.example", "\x00", "<b>"])
def test_an_unknown_mailbox_is_not_named(client: Client, publication: object, at: str) -> None:
    page = client.get(CHECK, {"at": at})
    assert page.status_code == 200
    assert 'class="button" href' not in page.text
    assert "evil" not in page.text


def test_a_link_to_the_preferences_leads_to_the_mailbox_too(client: Client, publication: object) -> None:
    response = client.post("/preferences/", {"address": "ada@proton.me"})
    assert response.headers["Location"] == f"{CHECK}?at=proton"


def test_each_domain_has_one_mailbox_with_a_secure_address() -> None:
    domains = [domain for mailbox in mailboxes.MAILBOXES.values() for domain in mailbox.domains]
    assert len(domains) == len(set(domains))
    assert all(mailbox.opened(sender="a@b.example").startswith("https://") for mailbox in mailboxes.MAILBOXES.values())


def test_an_error_is_tied_to_the_field_and_the_field_keeps_what_was_typed(join: Callable[..., Any]) -> None:
    page = join("ada@example", source="profile").text
    field = page[page.index('<input id="subscribe-address"') :].partition(">")[0]
    for part in (
        'value="ada@example"',
        'aria-invalid="true"',
        'aria-describedby="subscribe-address-error"',
        "autofocus",
    ):
        assert part in field
    assert '<p class="error" id="subscribe-address-error" role="alert">' in page
    assert '<input type="hidden" name="source" value="profile">' in page


def test_a_form_that_grew_old_blames_no_field(join: Callable[..., Any]) -> None:
    page = join("ada@example.org", token="x" * 32).text
    assert "aria-invalid" not in page
    assert "grown too old" in page
    fresh = re.search(r'name="token" value="([^"]+)"', page)
    assert fresh
    assert tokens.is_form_token(fresh[1], "subscribe")


def test_a_mistyped_address_for_the_preferences_is_tied_to_its_field(client: Client, publication: object) -> None:
    page = client.post("/preferences/", {"address": "ada@"}).text
    field = page[page.index('<input type="email"') :].partition(">")[0]
    for part in ('value="ada@"', 'aria-invalid="true"', 'aria-describedby="id_address_error"', "autofocus"):
        assert part in field
    assert 'id="id_address_error"' in page
