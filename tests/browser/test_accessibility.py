"""What axe finds on the public pages, at the width of a phone and of a desk, light and dark: nothing. And the keyboard
alone goes everywhere."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.template import loader
from django.test import RequestFactory
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Publication
from subscribers import links, submissions, subscription
from subscribers.models import Submission, Subscriber
from subscribers.views.doors import SESSION_COOKIE
from tests import site
from tests.browser.conftest import WIDTHS
from tests.factories import make_post

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
SCHEMES = ("light", "dark")
# What the Tab key reaches next: where it is, how it is marked, and whether it can be seen.
FOCUSED = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const box = at.getBoundingClientRect(), style = getComputedStyle(at);
  return {
    name: at.getAttribute("href") || at.name || at.textContent.trim(),
    outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    place: [...document.querySelectorAll("*")].indexOf(at),
  };
}"""

# How many letters stand in each line of a paragraph.
LETTERS_A_LINE = """(paragraph) => {
  const range = document.createRange(), lines = {};
  const text = paragraph.firstChild;
  for (let at = 0; at < text.length; at++) {
    range.setStart(text, at);
    range.setEnd(text, at + 1);
    const top = Math.round(range.getBoundingClientRect().top);
    lines[top] = (lines[top] || 0) + 1;
  }
  return Object.values(lines);
}"""


@pytest.fixture
def addresses(publication: Publication, bob: Subscriber) -> list[str]:
    """The addresses of every public page, those that a mail leads to among them."""
    site.make_site(publication)
    return [*site.PAGES, *site.doors(bob)]


def violations(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page).response["violations"]
    return [(violation["id"], violation["nodes"][0]["html"]) for violation in found]


def looked_at(page: Page) -> dict[tuple[int, str], list[tuple[str, str]]]:
    """Return what axe finds on the page in each width and scheme, and whether it can be scrolled sideways."""
    found = {}
    for width in WIDTHS.values():
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # one of two words
            found[width, scheme] = violations(page)
        if not page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"):
            found[width, "sideways"] = [("scrolls sideways", "")]
    return {where: problems for where, problems in found.items() if problems}


def test_axe_finds_nothing_on_any_page_and_none_scrolls_sideways(
    addresses: list[str], live_server: LiveServer, page: Page
) -> None:
    found = {}
    for path in addresses:
        page.goto(live_server.url + path)
        found[path] = looked_at(page)
    assert {path: problems for path, problems in found.items() if problems} == {}


def test_axe_finds_nothing_on_what_answers_a_form(
    addresses: list[str], bob: Subscriber, live_server: LiveServer, page: Page, settings: Any
) -> None:
    page.goto(live_server.url + "/subscribe/")
    page.get_by_label("Your e-mail address").fill("ada@example")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert looked_at(page) == {}
    settings.CHALLENGE_FROM, settings.CHALLENGE_RATIO = 1, 0
    submissions.submit(Submission.Kind.JOIN, "victim@example.org", subscription.NOWHERE)
    page.get_by_label("Your e-mail address").fill("ada@example.org")
    page.wait_for_timeout(2000)  # sooner it would be taken for a machine
    page.get_by_role("button", name="Subscribe").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("One more press")
    assert looked_at(page) == {}
    session = links.begin_session(bob)
    page.context.add_cookies([{"name": SESSION_COOKIE, "value": session, "url": live_server.url + "/preferences/"}])
    page.goto(live_server.url + "/preferences/")
    expect(page.get_by_label("Your name")).to_be_visible()
    assert looked_at(page) == {}
    page.goto(live_server.url + f"/u/{bob.unsubscribe_id}/")
    page.get_by_role("button", name="Unsubscribe").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("You are unsubscribed")
    assert looked_at(page) == {}


@pytest.mark.parametrize("name", ["400.html", "403.html", "403_csrf.html", "500.html", "503.html"])
def test_axe_finds_nothing_where_something_failed(
    publication: Publication, live_server: LiveServer, page: Page, rf: RequestFactory, name: str
) -> None:
    text = loader.get_template(name).render(request=rf.get("/failed/"))
    page.route("**/failed/", lambda route: route.fulfill(status=200, content_type="text/html", body=text))
    page.goto(live_server.url + "/failed/")
    assert looked_at(page) == {}


@pytest.mark.parametrize(("path", "where"), [("/posts/long-lines/", ".prose > p"), ("/posts/", ".post-row-summary")])
def test_a_line_has_a_length_that_is_read_well(
    publication: Publication, live_server: LiveServer, page: Page, path: str, where: str
) -> None:
    words = "Dead rows wait until vacuum comes and takes them all away, one page after the other. " * 6
    make_post("Long lines", words, status="published", published_at=timezone.now())
    page.goto(live_server.url + path)
    lines = page.locator(where).first.evaluate(LETTERS_A_LINE)[:-1]
    # 65 to 80 in the faces that --serif names first; the one that this machine falls back to is narrower than they are.
    assert 65 <= sum(lines) / len(lines) <= 82


@pytest.mark.both_widths
def test_the_keyboard_reaches_the_text_at_once(addresses: list[str], live_server: LiveServer, page: Page) -> None:
    page.goto(live_server.url + "/posts/on-vacuum/")
    page.keyboard.press("Tab")
    expect(page.locator("a[href='#content']")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()


def tabbed(page: Page) -> list[dict[str, Any]]:
    """Press Tab until the page is left, and return all that was reached."""
    reached: list[dict[str, Any]] = []
    for _press in range(200):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at is None or (reached and at["place"] <= reached[-1]["place"]):
            return reached
        reached.append(at)
    pytest.fail("the keyboard does not leave the page")


@pytest.mark.both_widths
@pytest.mark.parametrize("path", ["/", "/posts/", "/posts/on-vacuum/", "/subscribe/", "/nowhere/"])
def test_the_keyboard_goes_through_a_page_in_order_seen_and_out_again(
    addresses: list[str], live_server: LiveServer, page: Page, path: str
) -> None:
    page.goto(live_server.url + path)
    reached = tabbed(page)
    assert [at["name"] for at in reached if not (at["outlined"] and at["seen"])] == []
    usable = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), summary, pre[tabindex]')]"
        ".filter((each) => each.tabIndex >= 0 && each.checkVisibility()).length"
    )
    assert len(reached) >= usable > 5


def test_a_reader_signs_up_and_leaves_by_the_keyboard_alone(
    addresses: list[str], bob: Subscriber, live_server: LiveServer, page: Page
) -> None:
    page.goto(live_server.url + "/")
    while page.evaluate("document.activeElement.name") != "address":
        page.keyboard.press("Tab")
    page.keyboard.type("ada@gmail.com")
    page.keyboard.press("Enter")
    page.wait_for_url("**/subscribe/check-your-inbox/?at=gmail")
    page.goto(live_server.url + f"/u/{bob.unsubscribe_id}/")
    while page.evaluate("document.activeElement.name") != "button":
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector("text=You are unsubscribed")
    bob.refresh_from_db()
    assert bob.status == Subscriber.Status.UNSUBSCRIBED
