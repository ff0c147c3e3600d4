"""The mail in a browser, as mail programs show it: no sideways scroll, readable in light and dark, without pictures and
without a stylesheet."""

import io
import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from PIL import Image
from playwright.sync_api import BrowserContext, Page, Route

from newsletter import rendering
from newsletter.models import Issue, IssuePost
from posts.models import Publication
from tests.factories import make_issue, make_post
from tests.newsletter.weekly import ONE_OF_EVERYTHING

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
MATTERING = {"serious", "critical"}
# Text that stands further right than the window reaches, but for what scrolls within its own box.
BEYOND = """() => [...document.querySelectorAll("body *")].filter(
    element => !element.closest(".wide") && element.getBoundingClientRect().right > innerWidth + 0.5
).map(element => element.outerHTML.slice(0, 120))"""

Show = Callable[[str], Page]


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "#0f6b5c").save(file, "PNG")
    return file.getvalue()


def serve(route: Route) -> None:
    route.fulfill(body=picture(1200, 600), content_type="image/png")


@pytest.fixture
def mail(publication: Publication) -> str:
    default_storage.save("chart.png", ContentFile(picture(1200, 600)))
    publication.logo.save("logo.png", ContentFile(picture(480, 96)))
    issue = make_issue(
        make_post(title="One of everything", subtitle="It has a long subtitle, too.", body=ONE_OF_EVERYTHING),
        number=7, preheader="What is in it.", introduction="Hello {{ name|there }}.",
    )  # fmt: skip
    return rendering.preview_html(issue)


@pytest.fixture
def digest(publication: Publication) -> str:
    issue = make_issue(introduction="Three older ones.", number=8)
    for position, title in enumerate(["Backups are restores", "A" * 90, "Time zones at nine"]):
        post = make_post(title=title, body="A backup that nobody has restored is a hope. " * 5)
        IssuePost.objects.create(issue=issue, post=post, position=position, mode=IssuePost.Mode.TEASER)
    return rendering.preview_html(Issue.objects.get(pk=issue.pk))


@pytest.fixture
def show(page: Page, context: BrowserContext) -> Show:
    """Show HTML in the browser, with a picture for every picture it asks for."""
    context.route("**/media/**", serve)

    def show(html: str) -> Page:
        page.set_content(html, wait_until="load")
        return page

    return show


def dressed(html: str, dress: str) -> str:
    return STYLE.sub("", html) if dress == "bare" else html


@pytest.mark.both_widths
@pytest.mark.parametrize("dress", ["styled", "bare"])
@pytest.mark.parametrize("kind", ["mail", "digest"])
def test_nothing_reaches_beyond_the_window(request: pytest.FixtureRequest, show: Show, kind: str, dress: str) -> None:
    page = show(dressed(request.getfixturevalue(kind), dress))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(BEYOND) == []


def test_the_check_of_the_width_sees_what_is_too_wide(show: Show, width: int, mail: str) -> None:
    page = show(mail.replace("<h1", f'<p style="width:{width + 9}px">x</p><h1'))
    assert page.evaluate(BEYOND) != []


@pytest.mark.both_widths
@pytest.mark.parametrize("dress", ["styled", "bare"])
def test_code_is_wrapped_within_its_box(show: Show, mail: str, dress: str) -> None:
    page = show(dressed(mail, dress))
    sizes = page.evaluate("[...document.querySelectorAll('pre')].map(pre => [pre.scrollWidth, pre.clientWidth])")
    assert len(sizes) == 3
    assert all(content <= box for content, box in sizes)
    assert page.evaluate("getComputedStyle(document.querySelector('pre')).whiteSpaceCollapse") == "preserve"


def test_a_wide_table_scrolls_within_itself_and_breaks_no_word(show: Show, width: int, mail: str) -> None:
    page = show(mail)
    box, table = page.evaluate("['.wide', '.wide table'].map(name => document.querySelector(name).clientWidth)")
    assert (table > box) == (width == 390)
    assert page.evaluate("getComputedStyle(document.querySelector('.wide td')).wordBreak") == "normal"


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["mail", "digest"])
def test_axe_finds_nothing_serious(request: pytest.FixtureRequest, show: Show, kind: str, scheme: str) -> None:
    page = show(request.getfixturevalue(kind))
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"]) for rule in found if rule["impact"] in MATTERING] == []


def test_the_dark_mail_is_dark_and_the_light_one_light(show: Show, mail: str) -> None:
    page = show(mail)
    for scheme, ground, words, code in [
        ("light", "rgb(255, 255, 255)", "rgb(28, 30, 32)", "rgb(122, 46, 142)"),
        ("dark", "rgb(27, 31, 35)", "rgb(230, 228, 223)", "rgb(211, 163, 236)"),
    ]:
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        assert page.evaluate("getComputedStyle(document.querySelector('.sheet')).backgroundColor") == ground
        assert page.evaluate("getComputedStyle(document.querySelector('.t')).color") == words
        assert page.evaluate("getComputedStyle(document.querySelector('pre span:nth-of-type(2)')).color") == code


def test_a_picture_is_as_wide_as_the_text_at_most_and_keeps_its_shape(show: Show, mail: str) -> None:
    shown = show(mail).locator('img[alt="A chart"]').bounding_box()
    text = show(mail).locator("td.t").bounding_box()
    assert shown
    assert text
    assert shown["width"] <= min(544, text["width"])
    assert shown["width"] / shown["height"] == pytest.approx(2, rel=0.01)


def test_a_footnote_leads_there_and_back(show: Show, mail: str) -> None:
    page = show(mail)
    page.get_by_role("link", name="[1]").first.click()
    page.wait_for_function("document.querySelector('.footnotes').getBoundingClientRect().top < innerHeight")
    page.get_by_role("link", name="Back to the text").first.click()
    page.wait_for_function("scrollY < 400")
