"""The post editor in a real browser: typed, shown, kept, illustrated and brought back, by keyboard too."""

import base64
import io
import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from PIL import Image
from playwright.sync_api import BrowserContext, FrameLocator, Locator, Page, Route, expect
from pytest_django.live_server_helper import LiveServer

from posts.models import Post, Publication, Snippet
from tests.factories import make_post
from tests.posts.test_markdown import ATTACKS

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
REFUSALS = ("status of 409", "status of 422", "ERR_INTERNET_DISCONNECTED")
ADD = "/admin/posts/post/add/"

PASTE = """
([area, bytes, name, type]) => {
  const data = new DataTransfer();
  const file = new File([Uint8Array.from(atob(bytes), (sign) => sign.charCodeAt(0))], name, { type });
  data.items.add(file);
  area.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}
"""
SLOW = """() => {
  const quick = window.fetch;
  const rest = () => new Promise((done) => setTimeout(done, 1500));
  window.fetch = async (...asked) => {
    if (String(asked[0]).includes("/keep/")) await rest();
    return quick(...asked);
  };
}"""
DROP = PASTE.replace('ClipboardEvent("paste", { clipboardData: data', 'DragEvent("drop", { dataTransfer: data')


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console reports; empty at the end but for refusals that a test is about."""
    return []


@pytest.fixture
def page(context: BrowserContext, complaints: list[str]) -> Iterator[Page]:
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.extend([message.text] if message.type == "error" else []))
    yield page
    assert [text for text in complaints if not any(sign in text for sign in REFUSALS)] == []


@pytest.fixture
def desk(page: Page, live_server: LiveServer, publication: Publication) -> Page:
    """The browser of an author who has signed in."""
    client = Client()
    client.force_login(User.objects.create_superuser("author", "author@example.org"))
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}]
    )
    return page


def open_post(desk: Page, live_server: LiveServer, post: Post) -> None:
    desk.goto(f"{live_server.url}/admin/posts/post/{post.pk}/change/")


def body_of(desk: Page) -> Locator:
    return desk.get_by_role("textbox", name="Body")


def shown(desk: Page) -> FrameLocator:
    return desk.frame_locator("[data-part=frame]")


def state(desk: Page, words: str) -> None:
    expect(desk.locator("[data-part=state]")).to_contain_text(words)


def picture(kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 36), "#0f6b5c").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def put(desk: Page, how: str, data: str, name: str = "shot.png", kind: str = "image/png") -> None:
    area = body_of(desk)
    area.focus()
    desk.evaluate(how, [area.element_handle(), data, name, kind])


@pytest.mark.both_widths
def test_a_post_is_written_seen_illustrated_and_kept(desk: Page, live_server: LiveServer) -> None:
    desk.goto(live_server.url + ADD)
    desk.locator("#id_title").fill("On locks")
    body_of(desk).fill("Rows *wait*.")
    expect(shown(desk).locator("em")).to_have_text("wait")
    expect(shown(desk).get_by_role("heading", name="On locks")).to_be_visible()
    state(desk, "Saved")
    assert Post.objects.get().body == "Rows *wait*."
    assert desk.url.endswith(f"/{Post.objects.get().pk}/change/")

    body_of(desk).press("Control+End")
    put(desk, PASTE, picture())
    dialog = desk.get_by_role("dialog")
    expect(dialog.get_by_text("Uploaded.")).to_be_visible()
    expect(dialog.get_by_role("button", name="Insert")).to_be_disabled()
    expect(dialog.get_by_label("What does the picture show?")).to_be_focused()
    desk.keyboard.type("A queue [of locks]")
    with desk.expect_response("**/keep/"):
        desk.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
    image = shown(desk).get_by_role("img", name="A queue [of locks]")
    expect(image).not_to_have_js_property("naturalWidth", 0)
    expect(image).to_have_js_property("width", 64)
    expect(body_of(desk)).to_be_focused()
    state(desk, "Saved")
    assert Post.objects.get().body.startswith("Rows *wait*.![A queue \\[of locks\\]](/media/posts/")
    desk.get_by_role("button", name="Save", exact=True).click()
    expect(desk.get_by_text("was changed successfully")).to_be_visible()
    assert Post.objects.count() == 1


def test_a_dropped_picture_that_only_decorates_and_one_that_is_none(desk: Page, live_server: LiveServer) -> None:
    desk.goto(live_server.url + ADD)
    put(desk, DROP, picture("JPEG"), "photo.jpg", "image/jpeg")
    desk.get_by_role("checkbox", name="It only decorates").check()
    desk.get_by_role("button", name="Insert").last.click()
    expect(body_of(desk)).to_have_value(re.compile(r"^!\[\]\(/media/posts/"))
    expect(shown(desk).locator(".prose img")).to_be_visible()
    put(desk, DROP, base64.b64encode(b"<svg onload=alert(1)>").decode(), "x.svg", "image/svg+xml")
    expect(desk.get_by_role("alert").filter(has_text="upload a JPEG, PNG, GIF or WebP")).to_be_visible()
    desk.keyboard.press("Escape")
    expect(desk.get_by_role("dialog")).to_have_count(0)
    assert body_of(desk).input_value().count("![") == 1


def test_the_button_waits_for_what_is_on_its_way(desk: Page, live_server: LiveServer) -> None:
    post = make_post("On locks", "Rows wait.")
    open_post(desk, live_server, post)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    desk.route("**/keep/", hold)
    with desk.expect_request("**/keep/"):
        body_of(desk).fill("Rows *wait*.")
    state(desk, "Saving")
    desk.get_by_role("button", name="Save", exact=True).click()
    held.pop().continue_()
    expect(desk.get_by_text("was changed successfully")).to_be_visible()
    post.refresh_from_db()
    assert post.body == "Rows *wait*."


def test_web_and_mail_narrow_and_wide_light_and_dark(desk: Page, live_server: LiveServer) -> None:
    open_post(desk, live_server, make_post(body="Rows wait.\n\n" * 60))
    body = shown(desk).locator("body")
    expect(body).to_contain_text("Rows wait.")
    ground = "body => getComputedStyle(body).backgroundColor"
    in_scheme(desk, "light")
    light = body.evaluate(ground)
    press(desk, "Dark")
    in_scheme(desk, "dark")
    assert body.evaluate(ground) != light
    assert desk.evaluate("document.querySelector('[data-part=frame]').offsetWidth") == 390
    press(desk, "Wide")
    assert desk.evaluate("document.querySelector('[data-part=frame]').offsetWidth") == 1100
    press(desk, "Mail")
    expect(body).to_contain_text("Unsubscribe")
    in_scheme(desk, "dark")
    dark = body.evaluate(ground)
    press(desk, "Light")
    in_scheme(desk, "light")
    assert body.evaluate(ground) != dark
    expect(desk.locator("[data-part=kilobytes]")).not_to_have_text("…")
    expect(desk.locator("[data-part=words]")).to_have_text("120")


def press(desk: Page, name: str) -> None:
    button = desk.get_by_role("button", name=name, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


def in_scheme(desk: Page, scheme: str) -> None:
    """Wait until the preview is loaded and has its colours."""
    expect(shown(desk).locator("html")).to_have_css("color-scheme", scheme)


def test_the_preview_keeps_its_place_while_one_types(desk: Page, live_server: LiveServer) -> None:
    open_post(desk, live_server, make_post(body="Rows wait.\n\n" * 200))
    in_scheme(desk, "light")
    frame = desk.locator("[data-part=frame]")
    frame.evaluate("frame => frame.contentWindow.scrollTo(0, 900)")
    body_of(desk).press("Control+End")
    desk.keyboard.type("The end.")
    expect(shown(desk).locator("body")).to_contain_text("The end.")
    assert frame.evaluate("frame => frame.contentWindow.scrollY") == 900


def test_a_change_behind_it_is_never_written_over(desk: Page, live_server: LiveServer) -> None:
    post = make_post(body="Both began here.")
    open_post(desk, live_server, post)
    Post.objects.filter(pk=post.pk).update(body="Theirs began here.")
    body_of(desk).fill("Mine began here.")
    expect(desk.get_by_text("This post was changed elsewhere while you wrote")).to_be_visible()
    state(desk, "changed elsewhere")
    assert Post.objects.get().body == "Theirs began here."
    desk.get_by_role("button", name="Compare both, and decide").click()
    expect(desk.locator("del", has_text="Theirs")).to_be_visible()
    expect(desk.locator("ins", has_text="Mine")).to_be_visible()
    assert body_of(desk).input_value() == "Mine began here."
    desk.get_by_role("button", name="Save my text in its place").click()
    expect(desk.get_by_text("What it replaced stands in the revisions")).to_be_visible()
    assert Post.objects.get().body == "Mine began here."


def test_what_is_left_aside_in_a_conflict_is_offered_again(desk: Page, live_server: LiveServer) -> None:
    post = make_post(body="Both.")
    open_post(desk, live_server, post)
    Post.objects.filter(pk=post.pk).update(body="Theirs.")
    body_of(desk).fill("Mine.")
    desk.get_by_role("button", name="Compare both, and decide").click()
    desk.get_by_role("link", name="Leave what is saved, and open it").click()
    expect(body_of(desk)).to_have_value("Theirs.")
    desk.get_by_role("button", name="Go on with it").click()
    expect(body_of(desk)).to_have_value("Mine.")


def test_typing_in_a_published_post_changes_nothing_for_readers(desk: Page, live_server: LiveServer) -> None:
    post = make_post(body="Seen.", status=Post.Status.PUBLISHED, published_at=timezone.now())
    open_post(desk, live_server, post)
    body_of(desk).fill("Half a sen")
    state(desk, "nothing changes for readers until you press Save")
    assert Post.objects.get().body == "Seen."
    desk.on("dialog", lambda dialog: dialog.accept())
    desk.reload()
    expect(body_of(desk)).to_have_value("Seen.")
    desk.get_by_role("button", name="Go on with it").click()
    desk.get_by_role("button", name="Save", exact=True).click()
    expect(desk.get_by_text("was changed successfully")).to_be_visible()
    assert Post.objects.get().body == "Half a sen"
    open_post(desk, live_server, post)
    expect(desk.get_by_role("button", name="Go on with it")).to_be_hidden()


def test_what_is_typed_offline_is_kept_and_saved_later(desk: Page, live_server: LiveServer) -> None:
    open_post(desk, live_server, make_post(body="Begun."))
    expect(shown(desk).locator("body")).to_contain_text("Begun.")
    away = []
    desk.route("**/keep/", lambda route: (away.append(1), route.abort("internetdisconnected")))
    body_of(desk).fill("Typed on a train.")
    state(desk, "Not saved: offline")
    assert desk.evaluate("Object.values(localStorage).join()").count("Typed on a train.") == 1
    desk.unroute("**/keep/")
    desk.evaluate("dispatchEvent(new Event('online'))")
    state(desk, "Saved")
    assert Post.objects.get().body == "Typed on a train."
    assert away


def test_pressing_save_while_a_new_draft_is_being_made_makes_no_second(desk: Page, live_server: LiveServer) -> None:
    desk.goto(live_server.url + ADD)
    desk.evaluate(SLOW)
    desk.locator("#id_title").fill("Pressed at once")
    state(desk, "Saving …")
    desk.get_by_role("button", name="Save", exact=True).click()
    expect(desk.get_by_text("was changed successfully")).to_be_visible()
    assert [post.title for post in Post.objects.all()] == ["Pressed at once"]


def test_a_revision_is_brought_back(desk: Page, live_server: LiveServer) -> None:
    post = make_post(body="The first text.")
    post.body = "The second text."
    post.save()
    open_post(desk, live_server, post)
    desk.get_by_role("link", name="Revisions").click()
    desk.locator(".revision-list a").last.click()
    expect(desk.locator("del", has_text="first")).to_be_visible()
    desk.get_by_role("button", name="Bring this text back").click()
    expect(desk.get_by_text("is back")).to_be_visible()
    post.refresh_from_db()
    assert (post.body, post.history.count()) == ("The first text.", 3)


def test_everything_is_reached_and_done_by_keyboard_alone(desk: Page, live_server: LiveServer) -> None:
    Snippet.objects.create(name="Sign-off", body="See you on Monday.")
    open_post(desk, live_server, make_post(body=""))
    body = body_of(desk)
    body.focus()
    desk.keyboard.type("one")
    desk.keyboard.press("Control+a")
    desk.keyboard.press("Control+b")
    assert body.input_value() == "**one**"
    desk.keyboard.press("Control+b")
    assert body.input_value() == "one"
    desk.keyboard.press("Control+i")
    desk.keyboard.press("Control+e")
    assert body.input_value() == "*`one`*"
    desk.keyboard.press("Control+z")
    assert body.input_value() == "*one*"
    desk.keyboard.press("Control+]")
    assert body.input_value() == "  *one*"
    desk.keyboard.press("Control+[")
    assert body.input_value() == "*one*"
    desk.keyboard.press("Control+End")
    desk.keyboard.press("Control+k")
    desk.keyboard.type("/posts/")
    desk.keyboard.press("End")
    assert body.input_value() == "*one*[text](/posts/)"
    reached = tab_through(desk)
    assert reached[0] == "Web"
    for name in ("Mail", "Narrow", "Wide", "Light", "Dark", "Preview", "Save"):
        assert name in reached
    body.focus()
    back = []
    for _press in range(9):
        desk.keyboard.press("Shift+Tab")
        back.append(name_of_focus(desk))
    assert back[:2] == ["Insert", "Snippet"]
    assert {"Picture …", "Link", "Bold", "Move the line left"} <= set(back)
    desk.get_by_role("combobox", name="Snippet").focus()
    desk.keyboard.press("ArrowDown")
    desk.keyboard.press("Tab")
    desk.keyboard.press("Enter")
    assert body.input_value().endswith("(/posts/)See you on Monday.")


def name_of_focus(desk: Page) -> str:
    return desk.evaluate(
        """() => {
          const element = document.activeElement;
          const label = element.labels?.[0]?.textContent;
          const spoken = element.querySelector?.(".editor-spoken")?.textContent;
          const title = element.tagName === "IFRAME" && element.title;
          return (label || title || spoken || element.textContent).trim();
        }"""
    )


def tab_through(desk: Page, most: int = 60) -> list[str]:
    names: list[str] = []
    for _press in range(most):
        desk.keyboard.press("Tab")
        names.append(name_of_focus(desk))
        if names[-1] == "Save":
            break
    return names


def test_nothing_in_a_preview_runs(desk: Page, live_server: LiveServer, complaints: list[str]) -> None:
    alarms: list[str] = []
    desk.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    open_post(desk, live_server, make_post(body="\n\n".join(ATTACKS[:12]), subtitle=ATTACKS[1]))
    expect(shown(desk).locator(".prose")).to_be_attached()
    press(desk, "Mail")
    expect(shown(desk).locator("body")).to_contain_text("Unsubscribe")
    in_scheme(desk, "light")
    frame = desk.locator("[data-part=frame]")
    # Even past the sanitiser nothing runs: the frame itself has no scripts.
    frame.evaluate(
        """frame => {
          const page = frame.contentDocument;
          page.body.innerHTML = "<p onclick='parent.alert(1)'>press</p>";
          const script = page.createElement("script");
          script.textContent = "parent.alert(2)";
          page.body.append(script);
          page.querySelector("p").click();
        }"""
    )
    desk.wait_for_timeout(500)
    assert alarms == []
    assert [text for text in complaints if "'allow-scripts' permission is not set" in text]
    complaints.clear()


@pytest.mark.both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_too_wide(desk: Page, live_server: LiveServer, scheme: str) -> None:
    desk.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    post = make_post(body="Rows *wait*.", ready=True)
    revision = post.history.first().pk
    post.body = "Rows *go on*.\n\nAt last."
    post.save()
    pages = {
        ADD: ".editor",
        f"/admin/posts/post/{post.pk}/change/": "#content-main",
        f"/admin/posts/post/{post.pk}/history/?revision={revision}": ".revisions",
    }
    for path, ours in pages.items():
        desk.goto(live_server.url + path)
        if "history" not in path:
            expect(shown(desk).locator("article")).to_be_attached()
        found = Axe().run(desk, context=ours).response["violations"]
        grave = [p for p in found if p["impact"] in ("serious", "critical") or ours != "#content-main"]
        assert [(problem["id"], problem["nodes"][0]["html"]) for problem in grave] == [], path
        assert desk.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
