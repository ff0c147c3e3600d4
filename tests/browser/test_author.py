"""An author's first week in a real browser, from an empty database to the result, with real workers, beat and relay."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from playwright.sync_api import Page, expect

from newsletter.models import Issue
from posts.models import Publication
from tests.browser.test_editor import PASTE, body_of, picture, put, shown
from tests.browser.test_journey import let_the_slot_come, mail_to
from tests.browser.test_login import PASSWORD, code, type_password
from tests.factories import make_readers
from tests.smtpd import SmtpServer
from tests.workers import Workers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.browser, pytest.mark.slow]
AUTHOR = "author@example.org"
TITLE = "Locks that nobody sees"
BODY = """Rows *wait*, and nobody knows how long they do.

## What waits

```sql
SELECT pid, wait_event FROM pg_stat_activity;
```

Then look at [your own dashboard](http://localhost:3000/locks).
"""


@pytest.fixture
def workers(live_server: Any, settings: Any, tmp_path: Path) -> Iterator[Workers]:
    """Everything that runs beside the site; the site has a name, and asks for a second factor."""
    site = str(live_server.url).replace("127.0.0.1", "localhost")
    settings.SITE_URL, settings.CSRF_TRUSTED_ORIGINS = site, [site]
    settings.SECOND_FACTOR_REQUIRED = True
    cache.clear()
    with SmtpServer() as relay, Workers(relay, tmp_path) as workers:
        settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", relay.port
        yield workers


def come_in(page: Page, site: str) -> None:
    type_password(page, site)
    page.get_by_role("link", name="Set up an app").click()
    page.get_by_label("Authenticator code").fill(code(page.locator(".secret").inner_text()))
    page.get_by_role("button", name="Set it up").click()
    page.get_by_role("link", name="I have kept them").click()


def set_up(page: Page, site: str, workers: Workers) -> None:
    """Go through the guide that the desk leads to."""
    page.goto(f"{site}/admin/")
    page.locator("main, #content").get_by_role(
        "link", name=re.compile("guide|Set up|Begin", re.IGNORECASE)
    ).first.click()
    page.get_by_label("Name", exact=True).fill("Query Notes")
    page.get_by_label("Tagline").fill("What databases do while nobody looks. Every Monday.")
    page.get_by_role("button", name="Save and go on").click()
    page.get_by_label("Sender address").fill(AUTHOR)
    page.get_by_label("Postal address").fill("1 Example Street, Exampletown")
    page.get_by_role("button", name="Save and go on").click()
    page.get_by_role("button", name="Save and go on").click()
    page.get_by_role("button", name="Send me a test").click()
    expect(page.get_by_text("A test went to")).to_be_visible()
    mail_to(workers, AUTHOR, subject="[Test] It arrives")
    page.get_by_role("link", name="Go on").click()
    page.get_by_role("button", name="Finish, and go to the desk").click()
    expect(page.get_by_role("heading", name="Next issue")).to_be_visible()
    assert Publication.current().set_up_at


def write(page: Page, site: str) -> None:
    """Write a post with a picture and code, and see it become what readers will see."""
    page.goto(f"{site}/admin/posts/post/add/")
    page.locator("#id_title").fill(TITLE)
    body_of(page).fill(BODY)
    expect(shown(page).locator("em")).to_have_text("wait")
    expect(shown(page).locator("pre")).to_contain_text("pg_stat_activity")
    body_of(page).press("Control+End")
    put(page, PASTE, picture())
    expect(page.get_by_role("dialog").get_by_text("Uploaded.")).to_be_visible()
    page.keyboard.type("A queue of locks")
    page.keyboard.press("Enter")
    expect(shown(page).get_by_role("img", name="A queue of locks")).to_be_visible()
    page.locator("input[name=ready]").check()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("was (added|changed) successfully"))).to_be_visible()


@pytest.mark.both_widths
def test_an_author_goes_from_nothing_to_a_sent_issue(page: Page, workers: Workers, settings: Any, width: int) -> None:
    site = settings.SITE_URL
    User.objects.create_superuser("author", AUTHOR, PASSWORD)
    come_in(page, site)
    set_up(page, site, workers)
    make_readers(5)
    write(page, site)

    page.goto(f"{site}/admin/newsletter/issue/")
    page.get_by_role("button", name=re.compile("Compose from what is ready")).click()
    expect(page.get_by_label("Subject")).to_have_value(TITLE)
    page.get_by_label("Preheader").fill("Why a quiet table can still be slow")
    page.get_by_label("Introduction").fill("Hello {{ nmae|there }},")
    page.get_by_role("button", name=re.compile("^Schedule for")).first.click()
    expect(page.get_by_text("placeholder-unknown").first).to_be_visible()
    expect(page.get_by_text("link-localhost").first).to_be_visible()
    issue = Issue.objects.get()
    assert issue.state == "draft"

    page.get_by_label("Introduction").fill("Hello {{ name|there }},")
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text("link-localhost").first).to_be_visible()
    expect(page.get_by_text("placeholder-unknown")).to_have_count(0)
    page.get_by_text("Let it stand …").first.click()
    page.get_by_label(re.compile("Why it may stand")).first.fill("Readers run it on their own machine.")
    page.get_by_role("button", name="Let it stand for this reason").first.click()
    expect(page.get_by_text("Readers run it on their own machine.")).to_be_visible()

    page.get_by_role("button", name=f"Send a test to me, {AUTHOR}").click()
    mail_to(workers, AUTHOR, subject=f"[Test] {TITLE}")
    page.get_by_role("button", name=re.compile("^Schedule for .*, to 5 readers")).first.click()
    expect(page.get_by_text("the issue is now “Scheduled”")).to_be_visible()

    let_the_slot_come(TITLE)
    page.goto(f"{site}/admin/newsletter/issue/{issue.pk}/change/")
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.get_by_text("Readers run it on their own machine.").first).to_be_attached()
    assert {workers.relay.recipients[f"reader{n}@example.org"] for n in range(5)} == {1}
    page.goto(f"{site}/admin/")
    expect(page.get_by_role("link", name=re.compile(TITLE)).first).to_be_visible()
