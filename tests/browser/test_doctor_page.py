"""The doctor's page: it says that it is asking, and axe finds nothing in what it shows."""

from collections.abc import Iterator

import dns.resolver
import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Publication
from tests.nameserver import NameServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def desk(page: Page, live_server: LiveServer) -> Page:
    """The browser of an author who has signed in."""
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    return page


@pytest.fixture(autouse=True)
def _nameserver(publication: Publication, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A DNS that knows the sender's domain but none of its records, so that each finding shows what to add."""
    cache.clear()
    with NameServer({(".", "NS"): ["a.root-servers.example."], ("example.org", "A"): ["192.0.2.1"]}) as names:
        monkeypatch.setattr(dns.resolver, "default_resolver", names.resolver)
        yield


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_answer_reads_well_wide_and_narrow(desk: Page, live_server: LiveServer, scheme: str, width: int) -> None:
    desk.set_viewport_size({"width": width, "height": 900})
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # one of its words
    desk.goto(f"{live_server.url}/admin/doctor/")
    button = desk.get_by_role("button", name="Ask now")
    button.focus()
    button.press("Enter")
    expect(desk.get_by_role("button", name="Ask again")).to_be_visible(timeout=25_000)
    expect(desk.get_by_text("v=DMARC1; p=none; rua=mailto:dmarc@example.org")).to_be_visible()
    found = Axe().run(desk, context=".issue-page").response["violations"]
    assert [(problem["id"], problem["nodes"][0]["html"]) for problem in found] == []
    assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_press_is_answered_at_once(desk: Page, live_server: LiveServer) -> None:
    desk.goto(f"{live_server.url}/admin/doctor/")
    desk.evaluate("document.querySelector('.doctor-ask').addEventListener('submit', event => event.preventDefault())")
    desk.get_by_role("button", name="Ask now").click()
    expect(desk.locator(".doctor-ask [role=status]")).to_contain_text("twenty seconds")
    expect(desk.get_by_role("button", name="Ask now")).to_be_disabled()
