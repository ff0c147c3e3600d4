"""A reader's whole way on a phone, with and without scripts: joins, chooses, pauses, moves, takes his data, leaves,
comes back, and is forgotten."""

import datetime as dt
import json
import re
from collections.abc import Iterator

import pytest
from django.core import mail
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from newsletter import delivery
from posts.models import Publication, Tag
from subscribers import emails, submissions
from subscribers.models import Subscriber, SystemMail
from tests import site
from tests.browser.conftest import WIDTHS
from tests.browser.test_accessibility import looked_at
from tests.factories import make_issue

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
LINK = re.compile(r"https?://\S+?(/(?:subscribe/confirm|preferences/[a-z-]+)/[\w:.-]+/)")


@pytest.fixture(params=[True, False], ids=["with scripts", "without scripts"])
def phone(browser: Browser, request: pytest.FixtureRequest, live_server: LiveServer) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": WIDTHS["phone"], "height": 844},
        locale="en-GB",
        java_script_enabled=request.param,
        base_url=live_server.url,
    )
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


def mailed_to(address: str) -> str:
    """Do what workers would, and return the path of the newest link that was mailed to `address`."""
    submissions.decide_waiting()
    emails.send_all_due(limit=10)
    letters = [letter for letter in mail.outbox if letter.to == [address] and LINK.search(str(letter.body))]
    found = LINK.search(str(letters[-1].body))
    assert found
    return found.group(1)


def a_day_passes() -> None:
    """Let throttles forget what was mailed so far."""
    SystemMail.objects.update(created_at=timezone.now() - dt.timedelta(days=1, minutes=1))


def press(page: Page, name: str) -> None:
    page.locator("main").get_by_role("button", name=name, exact=True).click()


def open_desk(page: Page, address: str) -> None:
    page.goto("/preferences/")
    page.get_by_label("Your e-mail address").fill(address)
    press(page, "Send me the link")
    expect(page.locator("h1")).to_have_text("Check your inbox")
    page.goto(mailed_to(address))
    press(page, "Open my preferences")
    expect(page.locator("h1")).to_have_text("Your preferences")


def test_a_readers_way_from_joining_to_being_forgotten(publication: Publication, phone: Page, settings: object) -> None:
    page = phone
    Tag.objects.create(name="Locks", offered=True)
    page.goto("/subscribe/")
    page.wait_for_timeout(2100)  # a person takes so long
    page.locator("main").get_by_label("Your e-mail address").fill("ada@example.org")
    press(page, "Subscribe")
    expect(page.locator("h1")).to_have_text("Check your inbox")
    page.goto(mailed_to("ada@example.org"))
    press(page, "Yes, subscribe me")
    expect(page.locator("h1")).to_have_text("You are subscribed")
    reader = Subscriber.objects.get()
    assert reader.status == Subscriber.Status.ACTIVE
    delivery.send_now(make_issue(subject="The first"))

    open_desk(page, "ada@example.org")
    page.get_by_label("Locks").check()
    page.get_by_label("Your name").fill("Ada")
    press(page, "Save")
    expect(page.get_by_role("status")).to_have_text("Saved.")
    expect(page.get_by_label("Locks")).to_be_checked()
    press(page, "4 weeks")
    expect(page.locator(".lead")).to_contain_text("paused")
    press(page, "Get mail again now")
    expect(page.get_by_role("status")).to_have_text("You get mail again.")

    page.get_by_label("Your new address").fill("ada@example.com")
    press(page, "Write to it")
    expect(page.get_by_role("status")).to_contain_text("the old one counts")
    expect(page.locator(".lead")).to_contain_text("ada@example.org")
    page.goto(mailed_to("ada@example.com"))
    press(page, "Yes, write to it")
    expect(page.locator(".lead")).to_contain_text("ada@example.com")

    a_day_passes()
    open_desk(page, "ada@example.com")
    page.get_by_role("link", name="My issues").click()
    expect(page.get_by_role("link", name="The first")).to_be_visible()
    page.goto("/preferences/data/")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as JSON").click()
    with open(download.value.path()) as file:  # as Playwright names it
        held = json.load(file)
    assert (held["reader"]["address"], held["reader"]["topics"]) == ("ada@example.com", ["Locks"])

    page.goto("/preferences/")
    press(page, "Unsubscribe")
    expect(page.locator("h1")).to_have_text("You are unsubscribed")
    press(page, "That was a mistake: undo")
    expect(page.locator("h1")).to_have_text("Good to have you back")
    reader.refresh_from_db()
    assert reader.status == Subscriber.Status.ACTIVE
    page.goto("/preferences/")
    expect(page.get_by_label("Your e-mail address")).to_be_visible()  # leaving ended the session

    a_day_passes()
    open_desk(page, "ada@example.com")
    page.get_by_role("link", name="Erase me").click()
    press(page, "Erase me for good")
    expect(page.locator("h1")).to_have_text("You are forgotten")
    reader.refresh_from_db()
    assert (reader.status, reader.address) == (Subscriber.Status.ERASED, "")


def test_axe_finds_nothing_on_the_desk(
    publication: Publication, alice: Subscriber, live_server: LiveServer, page: Page
) -> None:
    site.make_site(publication)
    Tag.objects.update(offered=True)
    delivery.send_now(make_issue(subject="The first"))
    page.goto(live_server.url + "/preferences/")
    emails.owe(SystemMail.Kind.MAGIC_LINK, subscriber=alice)
    page.goto(live_server.url + mailed_to(alice.address))
    press(page, "Open my preferences")
    found = {}
    for path in ("", "?said=moving", "data/", "issues/", "erase/", "new-address/x/", "old-address/x/"):
        page.goto(f"{live_server.url}/preferences/{path}")
        found[path] = looked_at(page)
    page.goto(live_server.url + "/preferences/")
    press(page, "Pause until then")
    expect(page.get_by_role("alert")).not_to_be_empty()
    found["refused"] = looked_at(page)
    page.goto(f"{live_server.url}/u/{alice.unsubscribe_id}/")
    press(page, "8 weeks")
    expect(page.locator("h1")).to_have_text("Paused")
    found["paused"] = looked_at(page)
    page.goto(live_server.url + "/preferences/")
    press(page, "Unsubscribe")
    expect(page.locator("h1")).to_have_text("You are unsubscribed")
    found["left"] = looked_at(page)
    assert {path: problems for path, problems in found.items() if problems} == {}
