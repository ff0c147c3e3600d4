"""The author comes in: first by password and a factor to set up, then by code, by recovery code, by passkey."""

import re
import time
from typing import Any

import pytest
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, generate_totp_secret, hotp_value
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.core.cache import cache
from playwright.sync_api import Page, expect

from posts.models import Publication

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]
PASSWORD = "a long password"


@pytest.fixture
def site(live_server: Any, settings: Any, publication: Publication) -> str:
    """The site under a name: a passkey belongs to one, and localhost needs no certificate."""
    settings.SECOND_FACTOR_REQUIRED = True
    cache.clear()
    address = str(live_server.url).replace("127.0.0.1", "localhost")
    settings.SITE_URL, settings.CSRF_TRUSTED_ORIGINS = address, [address]
    return address


@pytest.fixture
def author(site: str) -> User:
    return User.objects.create_superuser("author", "author@example.org", PASSWORD)


def code(secret: str, *, steps: int = 0) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def type_password(page: Page, site: str) -> None:
    page.goto(f"{site}/admin/")
    page.get_by_label("Username").fill("author")
    page.locator("input[name=password]").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def type_code(page: Page, value: str) -> None:
    page.get_by_label("Code").fill(value)
    page.get_by_role("button", name="Sign in", exact=True).click()


def sign_out(page: Page, site: str) -> None:
    page.goto(f"{site}/admin/account/factor/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def at_the_desk(page: Page, site: str) -> None:
    expect(page).to_have_url(re.compile(r"/admin/(guide/.*)?$"))
    page.goto(f"{site}/admin/posts/tag/")
    expect(page).to_have_url(f"{site}/admin/posts/tag/")


def axe_finds_nothing(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # one of its words
        found = Axe().run(page).response["violations"]
        assert [(problem["id"], problem["nodes"][0]["html"]) for problem in found] == [], page.url
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), page.url


@pytest.mark.both_widths
def test_from_the_first_sign_in_to_a_recovery_code(page: Page, site: str, author: User) -> None:
    page.goto(f"{site}/admin/")
    axe_finds_nothing(page)
    type_password(page, site)
    expect(page.get_by_role("heading", name="One more step")).to_be_visible()
    axe_finds_nothing(page)
    page.goto(f"{site}/admin/posts/post/")
    expect(page.get_by_role("heading", name="One more step")).to_be_visible()
    page.get_by_role("link", name="Set up an app").click()
    expect(page.get_by_alt_text("QR code")).not_to_have_js_property("naturalWidth", 0)
    axe_finds_nothing(page)
    secret = page.locator(".secret").inner_text()
    page.get_by_label("Authenticator code").fill(code(secret))
    page.get_by_role("button", name="Set it up").click()
    expect(page.get_by_role("heading", name="Keep these codes")).to_be_visible()
    axe_finds_nothing(page)
    kept = page.locator(".codes code").all_inner_texts()
    assert len(kept) == 10
    page.get_by_role("link", name="I have kept them").click()
    at_the_desk(page, site)

    sign_out(page, site)
    type_password(page, site)
    expect(page.get_by_role("heading", name="Your second factor")).to_be_visible()
    axe_finds_nothing(page)
    type_code(page, code(secret, steps=1))
    at_the_desk(page, site)

    for opens in (True, False):
        sign_out(page, site)
        type_password(page, site)
        type_code(page, kept[0])
        if opens:
            at_the_desk(page, site)
    expect(page.get_by_text("Incorrect code.")).to_be_visible()


def test_a_passkey_is_added_and_signs_in_alone(page: Page, site: str, author: User) -> None:
    browser = page.context.new_cdp_session(page)
    browser.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }  # fmt: skip
    browser.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    type_password(page, site)
    page.get_by_role("link", name="Add a passkey").click()
    axe_finds_nothing(page)
    page.get_by_label("Sign in with it alone").check()
    page.get_by_role("button", name="Add it").click()
    expect(page.get_by_role("heading", name="Keep these codes")).to_be_visible()
    sign_out(page, site)
    page.get_by_role("button", name="Sign in with a passkey").click()
    at_the_desk(page, site)
    sign_out(page, site)
    type_password(page, site)
    page.get_by_role("button", name="Use a passkey").click()
    at_the_desk(page, site)


def test_what_was_typed_is_kept_when_the_desk_asks_who_is_there(
    page: Page, site: str, author: User, settings: Any
) -> None:
    secret = generate_totp_secret()
    TOTP.activate(author, secret)
    type_password(page, site)
    type_code(page, code(secret))
    at_the_desk(page, site)
    page.goto(f"{site}/admin/posts/publication/1/change/")
    page.locator("input[name=tagline]").fill("Typed for an hour")
    settings.CONFIRM_SECONDS = settings.ACCOUNT_REAUTHENTICATION_TIMEOUT = 0
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("heading", name="Confirm that it is you")).to_be_visible()
    axe_finds_nothing(page)
    settings.CONFIRM_SECONDS = settings.ACCOUNT_REAUTHENTICATION_TIMEOUT = 900
    page.get_by_label("Code").fill(code(secret, steps=1))
    page.get_by_role("button", name="Confirm").click()
    expect(page).to_have_url(re.compile(r"/admin/(posts/publication/.*)?$"))
    assert Publication.current().tagline == "Typed for an hour"


def test_a_passkey_at_a_number_is_explained(page: Page, site: str, author: User) -> None:
    type_password(page, site.replace("localhost", "127.0.0.1"))
    page.get_by_role("link", name="Add a passkey").click()
    expect(page.get_by_text("Passkeys belong to a name")).to_be_visible()
