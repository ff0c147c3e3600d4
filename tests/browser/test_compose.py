"""Composing in a real browser: by keyboard alone, without scripts, and with the mail beside it."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Page, expect
from pytest_django.live_server_helper import LiveServer

from newsletter.models import Issue, PreviewGroup, Slot
from posts.models import Publication
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post, make_readers, make_slot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
GRAVE = ("serious", "critical")
LONG = "A subject that says so much that no phone on earth has the room to show it to its very end"
FOCUSED = "document.activeElement.labels?.[0]?.innerText ?? document.activeElement.innerText"
MOST_TABS = 150


def sign_in(context: BrowserContext, live_server: LiveServer) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}])


@pytest.fixture
def desk(page: Page, live_server: LiveServer, publication: Publication) -> Page:
    """The browser of an author who has signed in."""
    sign_in(page.context, live_server)
    return page


@pytest.fixture
def plain(browser: Browser, live_server: LiveServer, publication: Publication, width: int) -> Iterator[Page]:
    """The same without scripts."""
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": 844})
    context.set_default_timeout(15_000)
    sign_in(context, live_server)
    yield context.new_page()
    context.close()


@pytest.fixture
def issue(publication: Publication) -> Issue:
    """A draft with something of everything around it."""
    make_readers(3)
    PreviewGroup.objects.create(name="Proofreaders", addresses="one@example.org")
    make_issue(subject="Before it").schedule(make_slot(days=3))
    make_slot(days=4).hold()
    make_issue(subject="Could go, too")
    return make_issue(make_post("On locks"), make_post("On plans"), subject=LONG, preheader="And why it matters")


def address(live_server: LiveServer, issue: Issue) -> str:
    return f"{live_server.url}/admin/newsletter/issue/{issue.pk}/change/"


def tab_to(page: Page, words: str) -> None:
    """Press Tab until what has the focus says so."""
    for _press in range(MOST_TABS):
        page.keyboard.press("Tab")
        if words in (page.evaluate(FOCUSED) or ""):
            return
    pytest.fail(f"the keyboard does not reach “{words}”")


def test_an_issue_is_composed_and_scheduled_by_keyboard_alone(desk: Page, live_server: LiveServer) -> None:
    make_readers(2)
    make_post("On locks", "Rows wait, and nobody knows for how long they do.", ready=True)
    desk.goto(f"{live_server.url}/admin/newsletter/issue/")
    tab_to(desk, "Compose from what is ready: 1 post")
    desk.keyboard.press("Enter")
    expect(desk.get_by_text("Here is a draft of what is ready")).to_be_visible()
    tab_to(desk, "Subject")
    desk.keyboard.press("End")
    desk.keyboard.type(", for once")
    expect(desk.locator(".inbox-phone [data-inbox=subject]")).to_have_text("On locks, for once")
    desk.keyboard.press("Enter")  # saves, and sends nothing
    expect(desk.get_by_text("was changed successfully")).to_be_visible()
    expect(desk.locator("#id_subject")).to_have_value("On locks, for once")
    assert Issue.objects.get().state == "draft"
    tab_to(desk, "Schedule for")
    assert ", to 2 readers" in desk.evaluate(FOCUSED)
    desk.keyboard.press("Enter")
    expect(desk.get_by_text("the issue is now “Scheduled”")).to_be_visible()
    tab_to(desk, "Back to draft")
    desk.keyboard.press("Enter")
    expect(desk.get_by_text("the issue is now “Draft”")).to_be_visible()
    found = Issue.objects.get()
    assert (found.subject, found.state) == ("On locks, for once", "draft")


def test_an_issue_is_composed_and_scheduled_without_scripts(plain: Page, live_server: LiveServer) -> None:
    make_readers(2)
    make_post("On locks", "Rows wait, and nobody knows for how long they do.")
    plain.goto(f"{live_server.url}/admin/newsletter/issue/add/")
    plain.get_by_label("Subject").fill("Without scripts")
    plain.get_by_label("Preheader").fill("Plain forms do, and they always did")
    plain.locator("select[name=issue_posts-0-post]").select_option(label="On locks")
    plain.get_by_role("button", name="Save", exact=True).click()
    expect(plain.get_by_text("The draft is saved.")).to_be_visible()
    expect(plain.locator(".inbox-phone [data-inbox=subject]")).to_have_text("Without scripts")
    plain.locator("#dates").get_by_role("button", name="Schedule for").nth(1).click()
    expect(plain.get_by_text("the issue is now “Scheduled”")).to_be_visible()
    issue = Issue.objects.get()
    assert issue.slot == Slot.objects.upcoming()[1]
    assert issue.posts.get().title == "On locks"


def test_the_inbox_tells_where_a_line_is_cut_off(desk: Page, live_server: LiveServer, issue: Issue) -> None:
    desk.goto(address(live_server, issue))
    expect(desk.locator("[data-cut-note=phone]")).to_contain_text("Cut off after “…")
    desk.locator("#id_subject").fill("Short, {{ name|friend }}")
    expect(desk.locator("[data-cut-note=phone]")).to_have_text("All is seen.")
    expect(desk.locator(".inbox-desk [data-inbox=subject]")).to_have_text("Short, friend")
    desk.locator("#id_subject").fill("<b>Bold</b>")
    expect(desk.locator(".inbox-phone [data-inbox=subject]")).to_have_text("<b>Bold</b>")


def test_the_mail_is_seen_narrow_dark_as_text_and_as_a_reader(
    desk: Page, live_server: LiveServer, issue: Issue, width: int, alice: Subscriber
) -> None:
    Issue.objects.filter(pk=issue.pk).update(introduction="Dear {{ name|friend }},")
    desk.goto(address(live_server, issue))
    mail = desk.locator("iframe[name=look-mail]")
    mail.scroll_into_view_if_needed()
    words = desk.frame_locator("iframe[name=look-mail]").locator("body")
    expect(words).to_contain_text("Dear friend,")
    desk.get_by_label("As the reader").fill("alice@example.org")
    desk.get_by_role("button", name="Show the mail").click()
    expect(words).to_contain_text("Dear Alice,")
    switches = desk.locator(".issue-switches")
    switches.get_by_label("Phone").check()
    box = mail.bounding_box()
    assert box
    assert box["width"] <= 390
    switches.get_by_label("Dark").check()
    expect(mail).to_have_css("color-scheme", "dark")
    switches.get_by_label("Text").check()
    expect(mail).to_be_hidden()
    expect(desk.frame_locator("iframe[name=look-text]").locator("body")).to_contain_text("Dear friend,")


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_grave_and_nothing_is_too_wide(
    desk: Page, live_server: LiveServer, issue: Issue, scheme: str
) -> None:
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    make_post("Waits", ready=True)
    for url in (address(live_server, issue), f"{live_server.url}/admin/newsletter/issue/"):
        desk.goto(url)
        for details in desk.locator("#dates details").all():
            details.evaluate("element => element.open = true")
        found = [each for each in Axe().run(desk).response["violations"] if each["impact"] in GRAVE]
        assert [(each["id"], node["html"]) for each in found for node in each["nodes"]] == [], url
        assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), url
