"""A real Chromium for the browser tests: found or fetched. Where none can be had they are skipped, and that is said."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, sync_playwright

# Playwright's synchronous API runs an event loop in the test's own thread, which Django takes for asynchronous code
# and refuses to query in. The loop only waits while the test runs, so nothing here is concurrent.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"phone": 390, "desk": 1280}
MISSING = "no Chromium was found (CHROMIUM, PATH) and none could be installed (playwright, apt-get)"
FETCH_SECONDS = 600


@cache
def chromium() -> str | None:
    """Return the path of a Chromium: named, on PATH, fetched by Playwright or installed by apt; None without one."""
    return named() or on_path() or fetched() or installed()


def named() -> str | None:
    return os.environ.get("CHROMIUM") or None


def on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def fetched() -> str | None:
    """Return the browser that Playwright keeps for itself, after asking it to fetch it."""
    if not succeeds(sys.executable, "-m", "playwright", "install", "chromium"):
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
        return path if starts(path) else None


def installed() -> str | None:
    """Return the distribution's browser, where we may install it: as root on Debian."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        return None
    apt = ("apt-get", "-y", "-q")
    succeeds(*apt, "update")
    return on_path() if succeeds(*apt, "install", "--no-install-recommends", "chromium") else None


def starts(path: str) -> bool:
    """Tell whether the browser's libraries are all there: a fetched one brings none along."""
    return Path(path).exists() and succeeds(path, "--version")


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=FETCH_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any(MISSING in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"The browser tests were skipped: {MISSING}.", yellow=True, bold=True)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests here; it ends with them, since no worker can run in a thread that has its loop."""
    path = chromium()
    if not path:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET + sandbox)
        yield browser
        browser.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let what is marked both_widths run in a phone's window too; what else is tried does not depend on it."""
    chosen = any("width" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "width" in metafunc.fixturenames and not chosen:
        widths = WIDTHS if metafunc.definition.get_closest_marker("both_widths") else {"desk": WIDTHS["desk"]}
        metafunc.parametrize("width", widths.values(), ids=widths)


@pytest.fixture
def width() -> int:
    """The width of the window in CSS pixels."""
    return WIDTHS["desk"]


@pytest.fixture
def context(browser: Browser, width: int) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": width, "height": 844}, locale="en-GB")
    context.set_default_timeout(15_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page whose test fails if the console reports an error: a missing file, a refused style, an exception."""
    page = context.new_page()
    complaints: list[tuple[str, str]] = []
    documents: set[str] = set()
    page.on("console", lambda message: complaints.extend(errors(message)))
    page.on("pageerror", lambda error: complaints.append((str(error), "")))
    page.on("response", lambda response: documents.update(navigation(response)))
    yield page
    # The status of the page itself is the test's own business: it may have asked for a 404.
    assert not [complaint for complaint in complaints if complaint[1] not in documents]


def errors(message: ConsoleMessage) -> list[tuple[str, str]]:
    return [(message.text, message.location["url"])] if message.type == "error" else []


def navigation(response: Response) -> set[str]:
    return {response.url} if response.request.is_navigation_request() and response.status >= 400 else set()
