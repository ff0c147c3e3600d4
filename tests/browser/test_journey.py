"""From the first visit to the last mail: reader and author in a real browser, with real workers, beat and relay."""

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from newsletter import sweeper
from newsletter.models import Issue, Slot
from posts.models import Publication
from subscribers.models import Subscriber
from tests.smtpd import Mail, SmtpServer
from tests.workers import Workers, wait_until

READER = "ada@example.org"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser]


@pytest.fixture
def workers(live_server: Any, settings: Any, tmp_path: Path) -> Iterator[Workers]:
    settings.SITE_URL = live_server.url
    settings.CSRF_TRUSTED_ORIGINS = [live_server.url]
    with SmtpServer() as relay, Workers(relay, tmp_path) as workers:
        yield workers


@pytest.fixture
def author() -> User:
    return User.objects.create_superuser("author", "author@example.org", "a long password")


def mail_to(workers: Workers, recipient: str, *, subject: str) -> Mail:
    """Wait for a mail and return it."""

    def found() -> list[Mail]:
        mails = [mail for mail in workers.relay.mails if mail.recipient == recipient]
        return [mail for mail in mails if f"Subject: {subject}".encode() in mail.content]

    wait_until(found, seconds=40, why=lambda: [mail.content[:300] for mail in workers.relay.mails])
    return found()[-1]


def link_in(mail: Mail, pattern: str) -> str:
    """Return the first link of a mail's text that matches; quoted-printable's soft breaks are taken out."""
    text = mail.content.decode().replace("=\r\n", "").replace("=3D", "=")
    found = re.search(rf"http://[^\s\"<>]*{pattern}[^\s\"<>]*", text)
    assert found, text
    return found.group()


def subscribe(page: Page, workers: Workers, site: str) -> None:
    page.goto(site)
    page.get_by_label("Your e-mail address").fill(READER)
    page.get_by_role("button", name="Subscribe", exact=True).click()
    expect(page.get_by_role("heading", name="Check your inbox")).to_be_visible()
    mail = mail_to(workers, READER, subject="Confirm your subscription")
    page.goto(link_in(mail, "/subscribe/confirm/"))
    page.get_by_role("button", name="Yes, subscribe me").click()
    expect(page.get_by_role("heading", name="You are subscribed")).to_be_visible()
    mail_to(workers, READER, subject="Welcome to")


def sign_in(page: Page, site: str) -> None:
    page.goto(f"{site}/admin/")
    page.get_by_label("Username").fill("author")
    page.locator("input[name=password]").fill("a long password")
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", name="Next issue")).to_be_visible()


def write_and_schedule(page: Page, site: str, *, title: str) -> None:
    page.goto(f"{site}/admin/posts/post/add/")
    page.locator("input[name=title]").fill(title)
    page.locator("textarea[name=body]").fill("The **first** thing is to `EXPLAIN` it.")
    expect(page.frame_locator("[data-part=frame]").locator(".prose strong")).to_have_text("first")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("was (added|changed) successfully"))).to_be_visible()
    page.goto(f"{site}/admin/newsletter/issue/add/")
    page.locator("input[name=subject]").fill(title)
    page.locator("textarea[name=introduction]").fill("Hello {{ name|there }},")
    choose_post(page, title)
    page.get_by_role("button", name="Save and continue editing").click()
    page.get_by_role("button", name=re.compile("^Schedule for .*, to 1 reader$")).first.click()
    expect(page.get_by_text("the issue is now “Scheduled”")).to_be_visible()


def choose_post(page: Page, title: str) -> None:
    page.locator("select[name=issue_posts-0-post]").select_option(label=title)


def let_the_slot_come(title: str) -> Issue:
    """Move the issue's instant to now: beat finds it by the database's clock."""
    issue = Issue.objects.get(subject=title)
    now = timezone.now() - dt.timedelta(seconds=1)
    Slot.objects.filter(issue=issue).update(due_at=now)
    Issue.objects.filter(pk=issue.pk).update(due_at=now)
    wait_until(lambda: Issue.objects.get(pk=issue.pk).state == Issue.State.COMPLETED, seconds=40)
    return issue


@pytest.mark.both_widths
def test_a_reader_joins_is_mailed_on_the_beat_and_leaves(
    page: Page, browser: Browser, width: int, workers: Workers, live_server: Any, publication: Publication, author: User
) -> None:
    site = live_server.url
    sweeper.ensure_slots()
    subscribe(page, workers, site)

    desk = browser.new_context(viewport={"width": width, "height": 844})
    desk.set_default_timeout(20_000)
    author_page = desk.new_page()
    sign_in(author_page, site)
    write_and_schedule(author_page, site, title="Slow by default")
    let_the_slot_come("Slow by default")
    mail = mail_to(workers, READER, subject="Slow by default")
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click" in mail.content

    page.goto(link_in(mail, "/issues/view/"))
    expect(page.get_by_role("heading", name="Slow by default")).to_be_visible()
    page.goto(f"{site}/posts/slow-by-default/")
    expect(page.get_by_role("heading", name="Slow by default")).to_be_visible()

    page.goto(link_in(mail, "/u/"))
    page.get_by_role("button", name="Unsubscribe", exact=True).click()
    expect(page.get_by_role("heading", name="You are unsubscribed")).to_be_visible()

    subscribe_another()
    write_and_schedule(author_page, site, title="A week later")
    issue = let_the_slot_come("A week later")
    assert list(issue.deliveries.values_list("address", flat=True)) == ["grace@example.org"]
    assert workers.relay.recipients["grace@example.org"] == 1
    desk.close()


def subscribe_another() -> None:
    """Somebody else reads on, so that next week's issue has a reader at all."""
    Subscriber.objects.create(address="grace@example.org", status="active", confirmed_at=timezone.now())
