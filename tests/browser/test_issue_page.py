"""The author's page of an issue under way: it follows the ledger by itself, reads well, and axe finds nothing in it."""

import datetime as dt
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from newsletter import delivery
from newsletter.models import Delivery, Issue, Lease
from posts.models import Publication
from tests.factories import make_issue, make_readers

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
State = Delivery.State
LONG = "4.7.0 Slow down, see https://relay.example.org/" + "limits" * 20


@pytest.fixture
def issue(publication: Publication) -> Issue:
    """An issue in the midst of being sent, with something of everything."""
    make_readers(40)
    issue = make_issue(subject="The queue that was a table all along")
    delivery.send_now(issue)
    soon = timezone.now() + dt.timedelta(minutes=5)
    put(issue, State.ACCEPTED, 20)
    put(issue, State.DEFERRED, 4, next_attempt_at=soon, reply_class="rate", smtp_code=450, reply_text=LONG)
    put(issue, State.REJECTED, 2, reply_class="hard_address", smtp_code=550, reply_text="5.1.1 Nobody")
    put(issue, State.UNCERTAIN, 3, next_attempt_at=soon, reply_text="the connection broke")
    Lease.objects.create(issue=issue, owner="mail-host-with-a-long-name.example.org:12345", expires_at=soon)
    return issue


def put(issue: Issue, state: str, count: int, **values: Any) -> None:
    """Put so many of the copies that wait into `state`, as a worker would."""
    rows = issue.deliveries.filter(state=State.PENDING).order_by("pk").values_list("pk", flat=True)[:count]
    changes = {"state": state, "fence": 1, "attempt": 1, "updated_at": timezone.now(), **values}
    Delivery.objects.filter(pk__in=list(rows)).update(**changes)


@pytest.fixture
def desk(page: Page, live_server: LiveServer) -> Page:
    """The browser of an author who has signed in."""
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    return page


def address(live_server: LiveServer, issue: Issue, page: str = "change") -> str:
    return f"{live_server.url}/admin/newsletter/issue/{issue.pk}/{page}/"


def test_the_page_follows_the_ledger_until_the_issue_is_through(
    desk: Page, live_server: LiveServer, issue: Issue
) -> None:
    desk.goto(address(live_server, issue))
    expect(desk.locator("[data-count=sent]")).to_have_text("20")
    desk.get_by_role("button", name="Cancel for good …").focus()
    put(issue, State.ACCEPTED, 5)
    expect(desk.locator("[data-count=sent]")).to_have_text("25")
    expect(desk.get_by_role("button", name="Cancel for good …")).to_be_focused()
    Issue.objects.filter(pk=issue.pk).update(state="paused", pause_reason="The relay wants a signature")
    expect(desk.get_by_text("The relay wants a signature")).to_be_visible()
    expect(desk.get_by_role("button", name="Go on sending")).to_be_visible()
    Delivery.objects.update(state=State.ACCEPTED, next_attempt_at=None)
    Issue.objects.filter(pk=issue.pk).update(state="completed", completed_at=timezone.now())
    expect(desk.get_by_role("button", name="Send to those who joined since …")).to_be_visible()
    asked: list[str] = []
    desk.on("request", lambda request: asked.append(request.url))
    desk.wait_for_timeout(3000)
    assert [url for url in asked if "counts" in url] == []


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_what_is_ours_and_nothing_is_too_wide(
    desk: Page, live_server: LiveServer, issue: Issue, scheme: str
) -> None:
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    history = f"{live_server.url}/admin/newsletter/delivery/history/?q="
    pages = {
        address(live_server, issue): ".issue-panel",
        address(live_server, issue, "unknown"): ".issue-page",
        history + "reader0@example.org": ".issue-page",
        history + "reader": ".issue-page",
    }
    for url, ours in pages.items():
        desk.goto(url)
        found = Axe().run(desk, context=ours).response["violations"]
        assert [(problem["id"], problem["nodes"][0]["html"]) for problem in found] == [], url
        assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), url


def test_unknown_copies_are_decided_in_the_browser(desk: Page, live_server: LiveServer, issue: Issue) -> None:
    desk.goto(address(live_server, issue))
    desk.get_by_role("link", name="See what is known, and decide").click()
    desk.get_by_role("checkbox").nth(1).check()
    desk.get_by_role("radio", name="Count as sent").check()
    desk.get_by_role("button", name="Do so for the ticked …").click()
    expect(desk.get_by_role("heading", name="Count 1 copy as sent?")).to_be_visible()
    desk.get_by_role("button", name="Count as sent").click()
    expect(desk.get_by_text("1 copy decided.")).to_be_visible()
    assert issue.deliveries.unknown().count() == 2
