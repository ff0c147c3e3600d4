"""The desk and the guide in a real browser: charts are drawn, axe finds nothing grave, and the keyboard is enough."""

import datetime as dt

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from newsletter import delivery
from newsletter.models import Delivery, Issue, Link
from posts.models import Publication
from subscribers import subscription
from tests.factories import make_issue, make_readers, make_slot

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
State = Delivery.State
GRAVE = ("serious", "critical")


@pytest.fixture
def desk(page: Page, live_server: LiveServer) -> Page:
    """The browser of an author who has signed in."""
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    return page


@pytest.fixture
def busy(publication: Publication) -> None:
    """A desk with something of everything: an issue that went out, one under way, and nothing for the next date."""
    readers = make_readers(30)
    past = make_issue(subject="What went out, with a subject that is longer than any phone is wide", count_clicks=True)
    delivery.send_now(past)
    past.deliveries.update(state=State.ACCEPTED)
    started = timezone.now() - dt.timedelta(minutes=5)
    Issue.objects.filter(pk=past.pk).update(state="completed", started_at=started, completed_at=started)
    Link.objects.create(issue=past, number=99, url="https://example.com/" + "a-long-address/" * 12, clicks=12)
    for reader in readers[:4]:
        subscription.unsubscribe(reader.pk)
    under_way = make_issue(subject="Under way")
    delivery.send_now(under_way)
    first = under_way.deliveries.order_by("pk")[0]
    Delivery.objects.filter(pk=first.pk).update(state=State.UNCERTAIN_FINAL, fence=1)
    make_slot(days=3)
    make_issue(subject="Half done")


def grave(page: Page, context: str | None = None) -> list[tuple[str, str]]:
    found = Axe().run(page, context=context).response["violations"]
    return [(problem["id"], problem["nodes"][0]["html"]) for problem in found if context or problem["impact"] in GRAVE]


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_desk_and_nothing_is_too_wide(
    desk: Page, live_server: LiveServer, busy: None, scheme: str
) -> None:
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    desk.goto(f"{live_server.url}/admin/")
    expect(desk.locator(".desk-details")).to_have_count(3)
    desk.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert grave(desk) == []
    assert grave(desk, ".desk") == []
    assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_guide(desk: Page, live_server: LiveServer, db: None, scheme: str) -> None:
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    for step in ("name", "sender", "when", "test", "done"):
        desk.goto(f"{live_server.url}/admin/guide/{step}/")
        assert grave(desk) == [], step
        assert grave(desk, ".guide") == [], step
        assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), step


def test_the_charts_are_drawn_and_follow_the_theme(desk: Page, live_server: LiveServer, busy: None) -> None:
    desk.emulate_media(color_scheme="light")
    desk.goto(f"{live_server.url}/admin/")
    shown = "[...document.querySelectorAll('[data-chart]')].map((each) => Chart.getChart(each)?.data.datasets.length)"
    desk.wait_for_function(f"{shown}.every(Boolean)")
    assert desk.evaluate(shown) == [1, 2, 2]
    colour = "Chart.getChart(document.querySelector('[data-chart=readers]')).data.datasets[0].borderColor"
    light = desk.evaluate(colour)
    desk.emulate_media(color_scheme="dark")
    desk.evaluate("document.documentElement.classList.add('dark')")
    desk.wait_for_function(f"{colour} !== '{light}'")
    last = "Chart.getChart(document.querySelector('[data-chart=readers]')).data.datasets[0].data.at(-1)"
    assert desk.evaluate(last) == 26


def test_the_countdown_goes_by_itself(desk: Page, live_server: LiveServer, busy: None) -> None:
    desk.goto(f"{live_server.url}/admin/")
    expect(desk.locator("[data-countdown]")).to_contain_text("in 2 days 23 hours")
    desk.evaluate("document.querySelector('[data-countdown]').dateTime = new Date(Date.now() + 2500).toISOString()")
    expect(desk.locator("[data-countdown]")).to_have_text("in 1 second", timeout=4000)
    expect(desk.locator("[data-countdown]")).to_have_text("due now", timeout=4000)


def test_the_guide_is_walked_by_keyboard_alone(desk: Page, live_server: LiveServer, db: None) -> None:
    desk.goto(f"{live_server.url}/admin/")
    desk.get_by_role("link", name="Begin").focus()
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", name="Who speaks", level=2)).to_be_visible()
    tab_to(desk, "name")
    desk.keyboard.press("ControlOrMeta+a")
    desk.keyboard.type("Slow Query")
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", name="From whom", level=2)).to_be_visible()
    tab_to(desk, "sender_address")
    desk.keyboard.press("ControlOrMeta+a")
    desk.keyboard.type("nonsense")
    desk.keyboard.press("Enter")
    expect(desk.get_by_text("Enter a valid email address.")).to_be_visible()
    tab_to(desk, "sender_address")
    desk.keyboard.press("ControlOrMeta+a")
    desk.keyboard.type("robin@example.org")
    tab_to(desk, "postal_address")
    desk.keyboard.type("1 Example Street")
    desk.keyboard.press("Tab")
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", name="When", level=2)).to_be_visible()
    desk.get_by_role("button", name="Save and go on").press("Enter")
    expect(desk.get_by_role("heading", name="Does it arrive?", level=2)).to_be_visible()
    desk.get_by_role("link", name="Go on").press("Enter")
    desk.get_by_role("button", name="Finish, and go to the desk").press("Enter")
    expect(desk.get_by_role("heading", name="Next issue")).to_be_visible()
    expect(desk.get_by_text("Set up your publication")).to_have_count(0)
    found = Publication.current()
    assert (found.name, found.sender_address, found.postal_address) == (
        "Slow Query", "robin@example.org", "1 Example Street",
    )  # fmt: skip


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the field of that name has the focus, as somebody without a mouse would."""
    for _press in range(120):
        if page.evaluate("document.activeElement.name") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {name}.")
