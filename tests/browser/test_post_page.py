"""A post's page in a browser: what it weighs, that nothing on it moves, and what it does with scripts and without."""

import random
import re
from collections.abc import Iterator
from typing import Any

import brotli
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, CDPSession, Page, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Post, Publication
from tests.factories import photograph
from tests.posts.test_post_page import dressed

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

MOST_BYTES, MOST_REQUESTS = 60_000, 6
QUALITY = 5  # of brotli, as posts.pagecache has it
WORDS = ["lease", "row", "vacuum", "planner", "worker", "claim", "then", "what", "until", "once", "every", "waits"]
SHIFTS = """() => {
  window.moved = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.moved += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
}"""


@pytest.fixture
def post(publication: Publication) -> Post:
    """A long post with everything that one may have, its text of many words."""
    publication.byline, publication.tagline = "The author", "A letter a week"
    publication.save()
    post = dressed(publication)
    chance = random.Random(3)
    words = " ".join(chance.choice(WORDS) + chance.choice("aeiou") for _n in range(300))
    post.body = re.sub(r"!\[Bars\].*|<img.*", "", post.body).replace("word " * 300, words)
    post.cover.save("cover.jpg", photograph())
    return post


@pytest.fixture
def network(page: Page) -> CDPSession:
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    return network


def test_a_page_with_cover_weighs_little_asks_nobody_else_and_nothing_on_it_moves(
    post: Post, live_server: LiveServer, page: Page, network: CDPSession
) -> None:
    """Chromium without a window asks for no icon: it is fetched here and counted.

    The test's server compresses nothing, so texts are counted as the page cache and whitenoise send them, by brotli;
    headers as they came.
    """
    heads: dict[str, int] = {}
    network.on("Network.responseReceived", lambda event: heads.update(head_of(event)))
    answers: list[Any] = []
    page.on("requestfinished", lambda request: answers.extend([request.response()]))
    page.add_init_script(f"({SHIFTS})()")
    page.goto(live_server.url + post.get_absolute_url(), wait_until="networkidle")
    icon = page.request.get(live_server.url + page.get_attribute('link[rel="icon"]', "href"))  # type: ignore[operator]
    sizes = {answer.url: weight(answer.headers.get("content-type", ""), answer.body()) for answer in [*answers, icon]}
    assert all(url.startswith(live_server.url) for url in sizes), sizes
    assert len(sizes) <= MOST_REQUESTS, sizes
    assert any("/covers/" in url and ".w800.webp" in url for url in sizes), sizes
    assert sum(sizes.values()) + sum(heads.values()) < MOST_BYTES, sizes
    for part in (400, 2000, 100_000):
        page.mouse.wheel(0, part)
        page.wait_for_timeout(100)
    assert page.evaluate("window.moved") == 0


def head_of(event: dict[str, Any]) -> dict[str, int]:
    return {event["requestId"]: int(event["response"]["encodedDataLength"])}


def weight(kind: str, body: bytes) -> int:
    is_text = kind.startswith(("text/", "image/svg")) or "javascript" in kind
    return len(brotli.compress(body, quality=QUALITY)) if is_text else len(body)


@pytest.fixture
def scriptless(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 844}, java_script_enabled=False)
    yield context.new_page()
    context.close()


def test_without_scripts_everything_is_there_but_the_buttons(
    post: Post, live_server: LiveServer, scriptless: Page
) -> None:
    scriptless.goto(live_server.url + post.get_absolute_url())
    for name in ("Reply by mail", "Mail it to a friend", "Markdown", "Mailed as issue 42", "Before"):
        expect(scriptless.get_by_role("link", name=name).first).to_be_visible()
    expect(scriptless.get_by_role("button")).to_have_text(["Subscribe"])
    expect(scriptless.get_by_role("region", name="Code in python")).to_be_visible()


def test_code_and_link_are_copied_and_that_is_said(
    post: Post, live_server: LiveServer, page: Page, network: CDPSession
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(live_server.url + post.get_absolute_url())
    page.get_by_role("button", name="Copy: Code in python").press("Enter")
    expect(page.locator("#copied[role=status]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == 'def claim(): return "a < b"\n'
    page.get_by_role("button", name="Copy the link").click()
    expect(page.locator("[data-copy-link]:focus")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == post.url
    expect(page.locator("#copied")).to_be_empty()
    expect(page.get_by_role("button", name="Copy the link")).to_be_visible()


def test_the_systems_sheet_is_offered_where_there_is_one(post: Post, live_server: LiveServer, page: Page) -> None:
    page.add_init_script("navigator.share = async (data) => { window.shared = data; };")
    page.goto(live_server.url + post.get_absolute_url())
    page.get_by_role("button", name="Share …").click()
    assert page.evaluate("window.shared") == {"title": post.title, "url": post.url}


def test_footnotes_stand_beside_their_lines_where_there_is_room_and_below_the_text_where_not(
    post: Post, live_server: LiveServer, page: Page
) -> None:
    page.goto(live_server.url + post.get_absolute_url())
    prose, first, second = (box(page, place) for place in (".prose", "#fn1", "#fn2"))
    assert first["x"] >= prose["x"] + prose["width"]
    assert abs(first["y"] - box(page, "#fnref1")["y"]) < 12
    assert second["y"] >= first["y"] + first["height"]
    assert first["x"] + first["width"] <= 1280
    page.set_viewport_size({"width": 390, "height": 844})
    first, last = box(page, "#fn1"), box(page, ".prose > p:last-of-type")
    assert first["y"] > last["y"] + last["height"]
    assert first["x"] < 60


def test_a_footnotes_links_lead_there_and_back_by_keyboard(post: Post, live_server: LiveServer, page: Page) -> None:
    page.goto(live_server.url + post.get_absolute_url())
    page.locator("#fnref1").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#fn1$"))
    page.locator("#fn1 .footnote-backref").first.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#fnref1$"))


def test_a_headings_permalink_is_seen_when_the_keyboard_is_on_it(
    post: Post, live_server: LiveServer, page: Page
) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(live_server.url + post.get_absolute_url())
    link = page.locator("#code .anchor")
    expect(link).to_have_css("opacity", "0")
    page.locator(".prose a[href='#code']").first.focus()
    page.keyboard.press("Tab")
    expect(link).to_be_focused()
    expect(link).to_have_css("opacity", "1")


def test_wide_code_scrolls_in_its_own_box_by_keyboard(post: Post, live_server: LiveServer, page: Page) -> None:
    post.body = "```\n" + "long line " * 60 + "\n```\n\n| " + "A wide head | " * 12 + "\n|" + "---|" * 12 + "\n| x |\n"
    post.save()
    page.goto(live_server.url + post.get_absolute_url())
    for box_of in ("pre", ".table-scroll"):
        page.locator(box_of).focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(box_of)).not_to_have_js_property("scrollLeft", 0)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_page_with_everything(
    post: Post, live_server: LiveServer, page: Page, scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # one of two words
    page.goto(live_server.url + post.get_absolute_url())
    found = Axe().run(page).response["violations"]
    assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def box(page: Page, place: str) -> dict[str, float]:
    found = page.locator(place).first.bounding_box()
    assert found
    return dict(found)  # type: ignore[call-overload]  # a typed dictionary
