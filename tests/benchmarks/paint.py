"""How soon a reader sees a page: its largest paint in Chromium with the processor slowed down four times."""

from __future__ import annotations

from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from tests.browser.conftest import QUIET, chromium

SLOWER = 4
ROUNDS = 5
WIDTHS = (390, 1280)
WATCH = """() => {
  window.seen = { paint: 0, moved: 0 };
  const watch = (type, take) =>
    new PerformanceObserver((list) => list.getEntries().forEach(take)).observe({ type, buffered: true });
  watch("largest-contentful-paint", (entry) => { window.seen.paint = entry.startTime; });
  watch("layout-shift", (entry) => { window.seen.moved += entry.value; });
}"""
SETTLED_MS = 500  # after the last answer: a paint may still come


def measure(url: str) -> dict[str, Any]:
    """Return milliseconds to the largest paint, layout shift, bytes and requests; nothing where there is no Chromium.

    Each round is a browser context of its own, so nothing is kept from the round before.
    """
    path = chromium()
    if path is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET, "--no-sandbox"])
        rounds = [_look(browser, url, width) for _round in range(ROUNDS) for width in WIDTHS]
        browser.close()
    return {
        "slowed_down": SLOWER,
        "largest_paint_ms": round(median(each["paint"] for each in rounds)),
        "largest_paint_worst_ms": round(max(each["paint"] for each in rounds)),
        "layout_shift": max(each["moved"] for each in rounds),
        "bytes": max(each["bytes"] for each in rounds),
        "requests": max(each["requests"] for each in rounds),
    }


def _look(browser: Browser, url: str, width: int) -> dict[str, Any]:
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    sizes: list[int] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    page.add_init_script(f"({WATCH})()")
    page.goto(url, wait_until="networkidle")
    page.wait_for_timeout(SETTLED_MS)
    seen = page.evaluate("window.seen")
    context.close()
    return {**seen, "bytes": sum(sizes), "requests": len(sizes)}
