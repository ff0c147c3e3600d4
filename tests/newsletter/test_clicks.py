"""Counted links: the destination is fixed at freeze, the count is a number a link, and machines are left out."""

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from newsletter import clicks, delivery, message, rendering
from newsletter.models import Issue, Link
from posts.models import Post
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post, make_readers

pytestmark = pytest.mark.usefixtures("publication")
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
BODY = """[One](https://one.example.com/a?b=1&c=2), [two](http://two.example.com/),
[three](https://three.example.com/), [four](https://four.example.com/), [one again](https://one.example.com/a?b=1&c=2).
[Mail](mailto:me@example.org), [for you](https://five.example.com/?for={{ name }}), [a footnote][^1].

[^1]: Here.
"""


@pytest.fixture(autouse=True)
def _nobody_yet() -> Iterator[None]:
    clicks.RECENT.clear()
    yield
    clicks.RECENT.clear()


@pytest.fixture
def issue(alice: Subscriber) -> Issue:
    """An issue that counts clicks and began five minutes ago."""
    return begun(make_issue(introduction=BODY, count_clicks=True))


def begun(issue: Issue, *, ago: float = 300) -> Issue:
    delivery.send_now(issue)
    Issue.objects.filter(pk=issue.pk).update(started_at=timezone.now() - dt.timedelta(seconds=ago))
    issue.refresh_from_db()
    return issue


def path(issue: Issue, url: str) -> str:
    return clicks.address(issue.links.get(url=url)).removeprefix(settings.SITE_URL)


def paths(issue: Issue) -> list[str]:
    """Return the addresses of the links to the outside."""
    return [path(issue, link.url) for link in issue.links.exclude(url__startswith=settings.SITE_URL)]


def follow(where: str, *, ip: str = "192.0.2.1", agent: str = BROWSER, **headers: str) -> Any:
    return Client().get(where, REMOTE_ADDR=ip, headers={"user-agent": agent, **headers})


def counts(issue: Issue) -> dict[str, int]:
    return {url: number for url, number in issue.links.values_list("url", "clicks") if number}


def hrefs(shown: str) -> list[str]:
    return re.findall(r'<a[^>]*\shref="([^"]*)"', shown)


ONE = "https://one.example.com/a?b=1&c=2"
TWO = "http://two.example.com/"


def test_nothing_is_counted_unless_the_author_wants_it(alice: Subscriber) -> None:
    plain = begun(make_issue(introduction=BODY))
    assert not Link.objects.exists()
    assert "/c/" not in plain.source["html"]
    assert TWO in hrefs(plain.source["html"])


def test_at_freeze_each_destination_is_written_down_once_and_led_through_this_site(issue: Issue) -> None:
    outside = issue.links.exclude(url__startswith=settings.SITE_URL).order_by("number")
    assert [link.url for link in outside] == [ONE, TWO, "https://three.example.com/", "https://four.example.com/"]
    led = hrefs(issue.source["html"])
    assert led.count(clicks.address(issue.links.get(url=ONE))) == 2
    assert not [link for link in led if "one.example.com" in link or "two.example.com" in link]
    assert issue.source_sha256 == message.source_sha256(issue.source)


def test_uns_4_the_ways_out_and_what_differs_from_reader_to_reader_stay_as_they_are(issue: Issue) -> None:
    copy = message.Template(issue.source).html(message.Values("a@example.org", "Ada", UUID(int=7), "<x@example.org>"))
    led = hrefs(copy)
    for url in (
        f"{settings.SITE_URL}/u/{UUID(int=7)}/", f"{settings.SITE_URL}/preferences/", f"{settings.SITE_URL}/privacy/",
        rendering.view_url(issue), "mailto:me@example.org", "https://five.example.com/?for=Ada",
    ):  # fmt: skip
        assert url in led
    assert any(link.startswith("#") for link in led)


def test_the_text_twin_leads_straight(issue: Issue) -> None:
    assert "/c/" not in issue.source["text"]
    assert TWO in issue.source["text"]


def test_all_readers_get_the_same_links(issue: Issue) -> None:
    template = message.Template(issue.source)
    ada = template.html(message.Values("ada@example.org", "", UUID(int=7), ""))
    bela = template.html(message.Values("bela@example.org", "", UUID(int=8), ""))
    led = [link for link in hrefs(ada) if "/c/" in link]
    assert led == [link for link in hrefs(bela) if "/c/" in link]
    assert len(led) >= 5


def test_a_destination_does_not_move_with_the_post_that_named_it(alice: Subscriber) -> None:
    post = make_post(body="[One](https://one.example.com/)")
    issue = begun(make_issue(post, count_clicks=True))
    where = path(issue, "https://one.example.com/")
    Post.objects.filter(pk=post.pk).update(body="[One](https://evil.example.com/)")
    assert follow(where).headers["Location"] == "https://one.example.com/"


def test_following_a_link_leads_on_counts_and_tells_nobody(issue: Issue) -> None:
    response = follow(path(issue, ONE))
    assert (response.status_code, response.headers["Location"]) == (302, ONE)
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert not response.cookies
    follow(path(issue, ONE))
    follow(path(issue, TWO).rstrip("/"))
    assert counts(issue) == {ONE: 2, TWO: 1}


def test_counting_is_one_update_that_names_no_reader(issue: Issue) -> None:
    where = path(issue, ONE)
    with CaptureQueriesContext(
        connection,
    ) as found:
        follow(where, ip="198.51.100.77")
    told = [query["sql"] for query in found.captured_queries]
    written = [sql for sql in told if not sql.startswith("SELECT")]
    assert [sql.split()[:2] for sql in written] == [["UPDATE", '"newsletter_link"']]
    assert "198.51.100.77" not in "".join(told)


def test_head_leads_on_and_does_not_count(issue: Issue) -> None:
    response = Client().head(path(issue, ONE), headers={"user-agent": BROWSER})
    assert (response.status_code, response.headers["Location"]) == (302, ONE)
    assert Client().post(path(issue, ONE)).status_code == 405
    assert counts(issue) == {}


@pytest.mark.parametrize(
    "agent",
    [
        "", "curl/8.9.1", "python-requests/2.32", "Mozilla/5.0 (compatible; Examplebot/2.1)", "Go-http-client/2.0",
        "Mozilla/5.0 (X11) HeadlessChrome/140.0", "Mozilla/5.0 AppleWebKit (compatible; BarracudaCentral)",
        "Mozilla/5.0 (compatible; MSIE 9.0; Mimecast)", "facebookexternalhit/1.1", "SomeLinkScanner/1.0",
    ],
)  # fmt: skip
def test_programs_that_say_so_are_led_on_and_not_counted(issue: Issue, agent: str) -> None:
    assert follow(path(issue, ONE), agent=agent).headers["Location"] == ONE
    assert counts(issue) == {}


@pytest.mark.parametrize(
    "agent",
    [
        BROWSER, "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Mobile Safari/604.1",
        "Mozilla/5.0 (Linux; Android 14; CUBOT P80) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36",
    ],
)  # fmt: skip
def test_people_s_browsers_are_counted(issue: Issue, agent: str) -> None:
    follow(path(issue, ONE), agent=agent)
    assert counts(issue) == {ONE: 1}


@pytest.mark.parametrize("name", ["sec-purpose", "purpose", "x-moz"])
def test_what_is_fetched_ahead_was_not_followed(issue: Issue, name: str) -> None:
    assert follow(path(issue, ONE), **{name: "prefetch"}).status_code == 302
    assert counts(issue) == {}


def test_the_first_minute_belongs_to_scanners(alice: Subscriber) -> None:
    issue = begun(make_issue(introduction=BODY, count_clicks=True), ago=50)
    assert follow(path(issue, ONE)).status_code == 302
    assert counts(issue) == {}
    Issue.objects.filter(pk=issue.pk).update(started_at=timezone.now() - dt.timedelta(seconds=61))
    follow(path(issue, ONE))
    assert counts(issue) == {ONE: 1}


def test_many_links_from_one_address_within_seconds_are_a_sweep_and_none_of_them_counts(issue: Issue) -> None:
    follow(path(issue, ONE), ip="198.51.100.9")
    for where in [*paths(issue), *paths(issue)]:
        assert follow(where).status_code == 302
    assert counts(issue) == {ONE: 1}


def test_a_few_links_or_many_addresses_or_more_time_are_people(issue: Issue, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in [*paths(issue)[:3], *paths(issue)[:3]]:
        follow(where)
    assert sum(counts(issue).values()) == 6
    for number, where in enumerate(paths(issue)):
        follow(where, ip=f"203.0.113.{number}")
    assert sum(counts(issue).values()) == 10
    monkeypatch.setattr(clicks, "SWEEP_SECONDS", -1.0)
    for where in paths(issue):
        follow(where, ip="2001:db8::1")
    assert sum(counts(issue).values()) == 14


def test_what_is_remembered_of_addresses_is_little_and_soon_forgotten(
    issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks, "SWEEPS_KEPT", 10)
    for number in range(40):
        follow(path(issue, ONE), ip=f"203.0.113.{number}")
    assert len(clicks.RECENT._seen) <= 11
    assert "203.0.113" not in repr(clicks.RECENT._seen)
    assert counts(issue) == {ONE: 40}


@pytest.mark.parametrize("change", ["proof", "id", "nothing", "long", "odd", "url"])
def test_an_address_that_we_did_not_write_is_not_found_and_leads_nowhere(issue: Issue, change: str) -> None:
    name, _dash, proof = path(issue, ONE).split("/")[2].partition("-")
    token = {
        "proof": f"{name}-{proof[:-1]}{'A' if proof[-1] != 'A' else 'B'}", "id": f"zz-{proof}", "nothing": "-",
        "long": "9" * 400, "odd": "%F0%9F%98%80-%00", "url": "https:example.com",
    }[change]  # fmt: skip
    for where in (f"/c/{token}/", f"/c/{token}", f"/c/{token}/?next=https://evil.example.com/&url=//evil.example.com"):
        response = follow(where)
        assert response.status_code == 404
        assert "Location" not in response.headers
    assert counts(issue) == {}


def test_a_link_that_is_gone_is_not_found(issue: Issue) -> None:
    where = path(issue, ONE)
    issue.links.all().delete()
    assert follow(where).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "ftp://example.com/", "https://[bad", "//example.com/", "https:///nowhere",
        "https://example.com/" + "x" * 3000, "https://example.com/\u2028", "data:text/html,x",
    ],
)  # fmt: skip
def test_only_whole_web_addresses_are_led_through_this_site(alice: Subscriber, url: str) -> None:
    issue = make_issue(count_clicks=True)
    source = {"html": f'<a href="{url}">x</a>', "holes": []}
    assert clicks.lead_through(issue, source)["html"] == source["html"]
    assert not issue.links.exists()


def test_attributes_that_look_like_links_are_left_alone(alice: Subscriber) -> None:
    issue = make_issue(count_clicks=True)
    shown = '<a title="x > href=" class=\'a "b\' href="https://one.example.com/?a=1&amp;b=2">x</a><p data-href="https://b.example/">'
    led = clicks.lead_through(issue, {"html": shown, "holes": []})["html"]
    link = issue.links.get()
    assert link.url == "https://one.example.com/?a=1&b=2"
    assert led == shown.replace("https://one.example.com/?a=1&amp;b=2", clicks.address(link))


def test_the_issue_in_the_browser_leads_straight(issue: Issue) -> None:
    shown = follow(rendering.view_url(issue).removeprefix(settings.SITE_URL)).text
    assert "/c/" not in shown
    assert ONE.replace("&", "&amp;") in hrefs(shown)


def test_the_mail_hardly_grows_by_counting(alice: Subscriber) -> None:
    urls = [f"https://blog{n}.example.com/2026/11/an-article-with-a-usual-name-{n}/" for n in range(40)]
    body = "\n\n".join(f"[Article {n}]({url})" for n, url in enumerate(urls))
    plain, counted = (begun(make_issue(introduction=body, count_clicks=on)) for on in (False, True))
    assert message.size_of_html(counted.source) <= message.size_of_html(plain.source)
    longest = max(len(clicks.address(link)) for link in counted.links.all())
    assert longest <= len(settings.SITE_URL) + 24


def test_an_issue_of_very_many_links_still_goes_out(alice: Subscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks, "MOST_LINKS", 5)
    issue = begun(
        make_issue(introduction="\n\n".join(f"[x](https://e.example/{n})" for n in range(50)), count_clicks=True)
    )
    assert issue.links.count() == 5
    assert "https://e.example/49" in hrefs(issue.source["html"])


def test_sending_to_those_who_joined_since_makes_no_new_links(issue: Issue) -> None:
    before = list(issue.links.values_list("pk", flat=True))
    make_readers(1)
    delivery.send_to_joined(issue)
    assert list(issue.links.values_list("pk", flat=True)) == before


def test_the_author_turns_it_on_while_it_is_a_draft(admin_client: Client, alice: Subscriber) -> None:
    issue = make_issue()
    posts = {f"issue_posts-{name}": "0" for name in ("TOTAL_FORMS", "INITIAL_FORMS", "MIN_NUM_FORMS", "MAX_NUM_FORMS")}
    data = {"subject": "x", "introduction": "y", "count_clicks": "on", **posts}
    admin_client.post(f"/admin/newsletter/issue/{issue.pk}/change/", data)
    issue.refresh_from_db()
    assert issue.count_clicks


def test_the_privacy_page_tells_of_it(client: Client) -> None:
    page = client.get("/privacy/").text
    assert "counts how often each link is followed" in page
    assert "no tracking pixel" in page


def test_no_mail_has_a_picture_that_tells_of_its_opening(issue: Issue) -> None:
    assert "<img" not in issue.source["html"]
    templates = Path(settings.BASE_DIR, "templates/emails")
    assert not [file for file in templates.rglob("*.html") if re.search(r'width="1"', file.read_text())]
