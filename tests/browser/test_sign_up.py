"""The sign-up form in a browser: each of its states, with JavaScript and without."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Publication
from subscribers import links, submissions
from subscribers.models import MagicLink, Subscriber
from subscribers.views import author

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]
FIELD = "Your e-mail address"


@pytest.fixture(params=[True, False], ids=["with scripts", "without scripts"])
def visitor(request: pytest.FixtureRequest, browser: Browser, width: int) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=request.param, viewport={"width": width, "height": 844})
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


def send(page: Page, address: str) -> None:
    page.get_by_label(FIELD).fill(address)
    page.get_by_role("main").get_by_role("button", name="Subscribe").click()


@pytest.mark.both_widths
def test_the_form_is_seen_without_scrolling_and_leads_to_the_inbox(
    visitor: Page, live_server: LiveServer, publication: Publication
) -> None:
    publication.tagline, publication.byline = "A letter a week about databases and what waits in them", "The author"
    publication.save()
    visitor.goto(live_server.url)
    button = visitor.get_by_role("main").get_by_role("button", name="Subscribe").bounding_box()
    assert button
    assert button["y"] + button["height"] < 844
    send(visitor, "ada@gmail.com")
    expect(visitor).to_have_url(f"{live_server.url}/subscribe/check-your-inbox/?at=gmail")
    opened = visitor.get_by_role("link", name="Open Gmail").get_attribute("href")
    assert str(opened).startswith("https://mail.google.com/")
    submissions.decide_waiting()
    assert Subscriber.objects.get().source == "profile"


def test_an_address_that_is_none_stays_in_its_field_beside_the_reason(visitor: Page, live_server: LiveServer) -> None:
    visitor.goto(live_server.url)
    send(visitor, "ada@example")
    field = visitor.get_by_label(FIELD)
    expect(field).to_have_value("ada@example")
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description(visitor.get_by_role("alert").inner_text())
    send(visitor, "ada@example.org")
    expect(visitor.get_by_role("heading", level=1)).to_have_text("Check your inbox")


def test_whoever_is_subscribed_already_sees_the_same(visitor: Page, live_server: LiveServer, alice: Subscriber) -> None:
    seen = []
    for address in (alice.address, "nobody@example.org"):
        visitor.goto(live_server.url)
        send(visitor, address)
        expect(visitor.get_by_role("heading", level=1)).to_have_text("Check your inbox")
        seen.append((visitor.url, visitor.content()))
    assert seen[0] == seen[1]


def test_the_button_says_that_the_form_is_under_way_and_sends_it_once(page: Page, live_server: LiveServer) -> None:
    page.goto(live_server.url)
    # The answer never comes, and what would be sent is counted.
    page.evaluate("""() => {
      window.sent = 0;
      document.addEventListener("submit", (event) => {
        window.sent += event.defaultPrevented ? 0 : 1;
        event.preventDefault();
      });
    }""")
    send(page, "ada@example.org")
    button = page.get_by_role("main").get_by_role("button")
    expect(button).to_have_text("Sending …")
    button.click()
    assert page.evaluate("window.sent") == 1
    page.evaluate("window.dispatchEvent(new Event('pageshow'))")  # as when the visitor comes back to the page
    expect(button).to_have_text("Subscribe")
    button.click()
    assert page.evaluate("window.sent") == 2


def test_a_reader_asks_for_the_link_and_changes_the_name_in_any_browser(
    visitor: Page, live_server: LiveServer, alice: Subscriber
) -> None:
    visitor.goto(f"{live_server.url}/preferences/")
    visitor.get_by_label(FIELD).fill("ada@example")
    visitor.get_by_role("button", name="Send me the link").click()
    expect(visitor.get_by_label(FIELD)).to_have_accessible_description(visitor.get_by_role("alert").inner_text())
    visitor.get_by_label(FIELD).fill(alice.address)
    visitor.get_by_role("button", name="Send me the link").click()
    expect(visitor.get_by_role("heading", level=1)).to_have_text("Check your inbox")
    key = links.new_link(alice, MagicLink.Purpose.PREFERENCES, dt.timedelta(hours=1))
    visitor.goto(f"{live_server.url}/preferences/open/{key}/")
    visitor.get_by_role("button", name="Open my preferences").click()
    visitor.get_by_label("Your name").fill("Alice Example")
    visitor.get_by_role("button", name="Save").click()
    expect(visitor.get_by_label("Your name")).to_have_value("Alice Example")


def test_a_form_on_another_site_signs_up_and_in_a_flood_is_pressed_for_twice(
    visitor: Page, live_server: LiveServer, settings: Any
) -> None:
    settings.SITE_URL = live_server.url
    visitor.set_content(author.embedded_form({"source": "blog"}))  # in an empty page, which is not of our origin
    visitor.get_by_label(FIELD).fill("ada@gmail.com")
    visitor.get_by_role("button", name="Subscribe").click()
    expect(visitor).to_have_url(f"{live_server.url}/subscribe/check-your-inbox/?at=gmail")
    settings.CHALLENGE_FROM = 1
    visitor.goto(f"{live_server.url}/about/?utm_source=letter")
    send(visitor, "bo@example.org")
    again = visitor.get_by_role("button", name="I am a person: subscribe me")
    expect(again).to_be_visible()
    visitor.wait_for_timeout(2100)
    again.click()
    expect(visitor.get_by_role("heading", level=1)).to_have_text("Check your inbox")
    submissions.decide_waiting()
    assert Subscriber.objects.get(key="ada@gmail.com").source == "blog"
    bo = Subscriber.objects.get(key="bo@example.org")
    assert bo.consents.get().detail == {"source": "", "utm_source": "letter"}
