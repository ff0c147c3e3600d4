"""Hostile words in each place of a mail, opened in a real browser that would tell if anything ran."""

import html
import json
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page

from posts.models import Publication
from tests.newsletter.test_rendering import mail_of
from tests.posts.test_markdown import ATTACKS, CORPORA, needs_corpora

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]

AT_ONCE = 40
# What the payloads call, in every frame, before anything of the frame runs.
HOOK = """for (const name of ["alert", "prompt", "confirm", "print"]) window[name] = () => { top.ran = true }; """


@pytest.fixture
def width() -> int:
    return 1280


@pytest.fixture
def hooked(context: BrowserContext) -> Page:
    """A page that notes whether a script ran in it or in one of its frames; it asks the network for nothing."""
    context.route("**/*", lambda route: route.abort())
    page = context.new_page()
    page.add_init_script(HOOK)
    return page


def ran(page: Page, mails: list[str]) -> bool:
    frames = "".join(f'<iframe srcdoc="{html.escape(mail)}"></iframe>' for mail in mails)
    page.set_content(f"<!doctype html>{frames}", wait_until="load")
    return bool(page.evaluate("async () => { await new Promise(done => setTimeout(done, 200)); return !!top.ran }"))


def test_the_browser_tells_when_a_script_runs(hooked: Page) -> None:
    assert not ran(hooked, ["<p>Harmless.</p>"])
    assert ran(hooked, ["<p>Harmless.</p>", "<img src=x onerror=alert(1)>"])


def test_no_attack_runs_in_a_mail(hooked: Page) -> None:
    assert not ran(hooked, [mail_of(attack) for attack in ATTACKS])


@needs_corpora
@pytest.mark.slow
def test_nothing_of_the_corpora_runs_in_a_mail(hooked: Page, publication: Publication) -> None:
    texts = [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
    texts += json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8"))
    mails = [mail_of(text.replace("\x00", "")) for text in texts]
    assert len(mails) > 450
    for start in range(0, len(mails), AT_ONCE):
        assert not ran(hooked, mails[start : start + AT_ONCE]), texts[start : start + AT_ONCE]
