"""Search as one types: with a script the results come by themselves, without one the form leads to the same page."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Post, Publication
from tests.posts.test_search import publish

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def posts(publication: Publication) -> list[Post]:
    return [
        publish("Locks", "Run `pg_stat_activity` first.", days=1, tags=("Locks",)),
        publish("Queues", "Locks in queues.", days=400, tags=("Queues",)),
        publish("Backups", "Nobody wants them.", days=2),
    ]


def test_results_come_as_one_types_and_the_address_follows(
    posts: list[Post], live_server: LiveServer, page: Page
) -> None:
    page.goto(f"{live_server.url}/search/")
    page.locator("#q").press_sequentially("lock", delay=20)
    expect(page.locator("#found")).to_have_text("2 posts found")
    expect(page.locator("#results h2")).to_have_text(["Locks", "Queues"])
    expect(page).to_have_url(re.compile(r"/search/\?q=lock$"))
    page.locator("#tag").select_option("queues")
    expect(page.locator("#results h2")).to_have_text(["Queues"])
    expect(page).to_have_url(re.compile(r"/search/\?q=lock&tag=queues$"))
    page.reload()
    expect(page.locator("#results h2")).to_have_text(["Queues"])
    expect(page.locator("#q")).to_have_value("lock")
    page.locator("#q").fill("")
    page.locator("#tag").select_option("")
    expect(page.locator("#results")).to_have_text("")


def test_without_scripts_the_form_leads_to_the_results(
    posts: list[Post], live_server: LiveServer, context: BrowserContext
) -> None:
    browser = context.browser
    assert browser
    plain = browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    page.goto(f"{live_server.url}/search/")
    page.fill("#q", "pg_stat_activity")
    page.keyboard.press("Enter")
    expect(page.locator("#results h2")).to_have_text(["Locks"])
    expect(page.locator("#results mark").first).to_have_text("pg_stat_activity")
    plain.close()
