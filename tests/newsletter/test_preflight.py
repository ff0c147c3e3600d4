"""Preflight: each rule with what trips it and what nearly does, waivers, and what the author is told."""

import datetime as dt
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.test import Client
from django.utils import timezone
from PIL import Image
from simple_history.models import HistoricalRecords

from newsletter import delivery, doctor, inspection, preflight, rules, sweeper
from newsletter.linkcheck import Answer, Outcome
from newsletter.models import Heartbeat, Issue, IssuePost, Waiver
from posts.importer import import_folder
from posts.models import Post, Publication
from subscribers import emails
from subscribers.models import Subscriber, SystemMail
from tests.factories import make_issue, make_post, make_slot

pytestmark = pytest.mark.usefixtures("publication")

CORPORA = os.environ.get("CORPORA_DIR", "")
LINK = "https://example.com/a"
# Put together here, so that nobody's scanner takes them for real ones.
AWS_KEY = "AKIA" + "Q3EGR7TKJVZ2LWNB"
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzq8tR5vL2k"
GITHUB = "ghp" + "_16C7e42F292c6912E7710c838347Ae178B4a"
SLACK = "xox" + "b-2401234567-abcdefGHIJKL"
JWT = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY_HEAD, KEY_BODY = "-----BEGIN RSA PRIVATE" + " KEY-----", "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn7ygWyF8PbnGy0AHB7"
STRIPE = "sk" + "_live_4eC39HqLyjWDarjtT1zdp7dc"
PALE = '<td style="background-color:#272d33"><pre><span style="color:#5c646b">x</span></pre></td>'
CLEAR = PALE.replace("#5c646b", "#a1d394")
DARK = "<style>@media (prefers-color-scheme: dark) {{ .code td {{ background-color: #272d33 !important; }}{} }}</style>"
SPAN = '<td style="background-color:#f3f1eb"><pre><span style="color:#1f5590">x</span></pre></td>'


def wide(count: int) -> str:
    return f"```\nshort\n{'x' * count}\n```"


def picture(name: str, size: tuple[int, int] = (40, 30), kind: str = "PNG", weight: int = 0) -> str:
    """Keep a picture among the media and return its address."""
    output = io.BytesIO()
    Image.new("RGB", size, "#336699").save(output, kind)
    return default_storage.url(default_storage.save(name, ContentFile(output.getvalue() + b"\0" * weight)))


# Each rule: what trips it, and what comes near and does not. Texts are a post's body unless the key says otherwise.
CASES: dict[str, tuple[Any, Any]] = {
    "subject-empty": ({"subject": "  "}, {"subject": "?"}),
    "subject-long": ({"subject": "x" * 71}, {"subject": "x" * 70}),
    "subject-repeated": ({"subject": "  last WEEK"}, {"subject": "Last week, too"}),
    "subject-shouts": ({"subject": "VACUUM EVERYTHING NOW"}, {"subject": "NASA on VACUUM, now!"}),
    "subject-reply": ({"subject": "Re: your tables"}, {"subject": "Resetting: your tables"}),
    "preheader-missing": ({"preheader": ""}, {"preheader": "What comes next."}),
    "preheader-long": ({"preheader": "x" * 141}, {"preheader": "x" * 140}),
    "preheader-repeats": ({"preheader": "this week"}, {"preheader": "This week, and next."}),
    "not-renderable": ({"publication": {"sender_address": "nobody"}}, {}),
    "issue-empty": ({"body": None, "introduction": ""}, {"body": None, "introduction": "Hello."}),
    "post-empty": ({"body": " "}, {"body": "x"}),
    "post-repeated": ({"mailed_before": True}, {}),
    "teaser-without-page": (
        {"mode": "teaser", "visibility": Post.Visibility.EMAIL_ONLY},
        {"mode": "teaser", "visibility": Post.Visibility.UNLISTED},
    ),
    "size-near-limit": ({"found": {"size": 80_000}}, {"found": {"size": 79_999}}),
    "size-over-limit": ({"found": {"size": 100_001}}, {"found": {"size": 100_000}}),
    "postal-address": ({"publication": {"postal_address": " \n"}}, {"publication": {"postal_address": "1 A Street"}}),
    "sender-no-reply": (
        {"publication": {"sender_address": "no-reply@example.org"}},
        {"publication": {"sender_address": "no-reply@example.org", "reply_to": "author@example.org"}},
    ),
    "footer-incomplete": ({"found": {"text": "no way out"}}, {"publication": {"postal_address": "A & Sons\nTown"}}),
    "unsubscribe-broken": ({"found": {"unsubscribe_problem": "it answers 302"}}, {}),
    "unsubscribe-outside": (
        {"found": {"unsubscribe_answer": Answer(Outcome.UNKNOWN, "answers 301", status=301)}},
        {"found": {"unsubscribe_answer": Answer(Outcome.DEAD, "answers 404", status=404)}},
    ),
    "unsubscribe-not-https": ({}, {"site": "https://news.example.org"}),
    "link-empty": (f"[]({LINK})", f"[![A tree](/static/tree.png)]({LINK})"),
    "link-lost": ("[words ](https://example.com/a b)", "`[words](https://example.com/a b)` and a list [a](b c)"),
    "link-relative": ("[notes](notes.md)", f"[notes](/posts/notes/) [here we go](#there) [all]({LINK})"),
    "link-scheme": ('<a href="ftp://example.com/a">files</a>', "[write](mailto:a@example.com)"),
    "link-localhost": ("[the page](http://127.0.0.2:8000/a)", "[local](https://localhost.example.com/) `localhost`"),
    "link-private": ("[wiki](https://wiki.corp/a)", "[wiki](https://wiki.example.com/) [dns](https://9.9.9.9/)"),
    "link-password": ("[feed](https://me:secret@example.com/)", "[post](https://example.com/@me:here)"),
    "link-shortened": ("[talk](https://bit.ly/abc)", "[talk](https://notbit.ly/abc)"),
    "link-tracking": ("[a](https://example.com/?a=1&utm_source=x)", "[a](https://example.com/?utm=1&source=utm_x)"),
    "link-http": ("[old](http://example.com/)", f"[own]({'http://127.0.0.1:8000'}/about/) [new]({LINK})"),
    "link-vague": (f"Look [Here!]({LINK})", f"[Here is the talk]({LINK})"),
    "link-anchor": ("[up](#nowhere)", "## Some place\n\n[own](/posts/#nowhere) <a id='x'></a>"),
    "link-unpublished": ("[draft](/posts/no-such-post/)", "[this](/posts/on-vacuum/) [that](/posts/published/)"),
    "link-dead": ({"answers": Answer(Outcome.DEAD, "answers 404")}, {"answers": Answer(Outcome.OK)}),
    "link-moved": ({"answers": Answer(Outcome.MOVED, final="https://example.com/b")}, {"answers": Answer(Outcome.OK)}),
    "link-inside": ({"answers": Answer(Outcome.INSIDE, "leads to 10.0.0.1")}, {"answers": Answer(Outcome.DEAD)}),
    "link-not-asked": ({"answers": Answer(Outcome.UNKNOWN, "answers 403")}, {"answers": Answer(Outcome.OK)}),
    "alt-missing": ("![](/static/a.png)", '![A tree](/static/a.png) <img src="/static/line.png" alt="">'),
    "alt-lazy": ("![IMG_2041.jpeg](/static/a.png)", "![Image of a tree in March](/static/a.png)"),
    "image-missing": ("![A tree](/media/no-such.png)", {"picture": {"name": "tree.png"}}),
    "image-embedded": ("![A tree](data:image/png;base64,iVBORw0KGgo=)", f"![Not data:]({LINK}.png)"),
    "image-heavy": (
        {"picture": {"name": "a.png", "weight": 1_000_000}},
        {"picture": {"name": "a.png", "weight": 990_000}},
    ),
    "image-wide": (
        {"picture": {"name": "a.png", "size": (1601, 2)}},
        {"picture": {"name": "a.png", "size": (1600, 2)}},
    ),
    "image-format": (
        {"picture": {"name": "a.png", "kind": "WEBP"}},
        f"![A tree]({LINK}/b.JPG) ![Build passes](https://example.com/v1.0)",
    ),
    "image-http": ("![A tree](http://example.com/a.png)", f"![A tree]({LINK}.png) [http](http://example.com/)"),
    "fence-unclosed": ("```py\nx = 1\n", "> ~~~py\n> ```\n> ~~~\n\n- ```\n  x\n  ````\n"),
    "code-wide": (wide(41), wide(40)),
    "code-contrast": ({"found": {"html": PALE}}, {"found": {"html": CLEAR}}),
    "text-black": (
        '<span style="color: #000">x</span>',
        '<span style="background-color: #000; color: #0f6b5c">x</span>',
    ),
    "placeholder-unknown": ({"introduction": "Hi {{ first_name }}"}, {"introduction": "Hi {{ name|there }} `{{ x }}`"}),
    "placeholder-bare": ({"subject": "{{ name }}, look"}, {"subject": "{{name|Reader}}, look"}),
    "placeholder-in-post": ("Dear {{ name|reader }}", "Templates say `{{ name }}`, and {{ item }} too."),
    "left-tk": ("It takes TKTK ms.", "Tcl/TK, a TK-90X, `TK`, and tk."),
    "left-todo": ("TODO explain", "My TODO list, TODOs, and `TODO: nothing`."),
    "left-lorem": ("Lorem ipsum dolor", "Lorem, and later ipsum"),
    "footnote-missing": ("A claim[^1].", "A claim[^1] and `x[^2]`.\n\n[^1]: Proof."),
    "attachment-missing": (
        "I've attached the slides.",
        "I attached to the process; the volume is attached, see attach(2).",
    ),
    "heading-skipped": ("## One\n\n#### Two", "## One\n\n### Two\n\n## Three\n\n```\n##### Four\n```"),
    "heading-empty": ("##\n\nText", "## Words\n\nText"),
    "secret-aws-key": (f"```\nkey = {AWS_KEY}\n```", "`AKIAIOSFODNN7EXAMPLE` and AKIAXXXXXXXXXXXXXXXX"),
    "secret-github-token": (f"`{GITHUB}`", f"`ghp_{'x' * 36}` and ghp_short"),
    "secret-slack-token": (f"token: {SLACK}", "xoxb-xxxxxxxxxxxxxxxxxxxx and xoxo-love-and-kisses"),
    "secret-private-key": (f"```\n{KEY_HEAD}\n{KEY_BODY}\n```", f"```\n{KEY_HEAD}\n...\n```"),
    "secret-jwt": (f"Bearer {JWT}", "eyJhbGciOiJIUzI1NiJ9 and eyJ.eyJ.x"),
    "secret-other-token": (f"`{STRIPE}`", "`sk_test_4eC39HqLyjWDarjtT1zdp7dc` and sk_live_xxxxxxxxxxxxxxxxxxxx"),
    "secret-aws-account": ("arn:aws:iam::584620914773:role/a", "arn:aws:iam::123456789012:role/a and 584620914773"),
}


def make(case: Any) -> Issue:
    """Make the issue of a case; what it does not say is as it should be."""
    case = {"body": case} if isinstance(case, str) else dict(case)
    published = {"title": "Published", "status": Post.Status.PUBLISHED, "published_at": timezone.now()}
    Post.objects.get_or_create(slug="published", defaults=published)
    Publication.objects.update(**case.get("publication", {}))
    if "picture" in case:
        case["body"] = f"![A tree]({picture(**case['picture'])})"
    if "answers" in case:
        case["body"] = f"[A talk]({LINK})"
    body = case.get("body", "Tables *grow*.")
    posts = [] if body is None else [make_post(body=body, visibility=case.get("visibility", Post.Visibility.PUBLIC))]
    values = {name: case[name] for name in ("subject", "introduction") if name in case}
    issue = make_issue(*posts, preheader=case.get("preheader", "And why they do."), **values)
    IssuePost.objects.update(mode=case.get("mode", IssuePost.Mode.FULL))
    mailed_before(*(posts if case.get("mailed_before") else ()))
    return issue


def mailed_before(*posts: Post) -> None:
    """Make last week's issue, which has been sent."""
    sent = {"state": "completed", "prepared_at": timezone.now(), "candidates": 0, "planned": 0, "excluded": 0}
    make_issue(*posts, subject="Last week", started_at=timezone.now(), **sent)


def found_in(case: Any) -> set[str]:
    issue, case = make(case), {} if isinstance(case, str) else case
    looked = replace(inspection.look_at(issue), **case.get("found", {}))
    if "answers" in case:
        looked = replace(looked, answers={LINK: case["answers"]})
    return {finding.check_id for finding in preflight.findings(looked)}


@pytest.fixture(autouse=True)
def _site(settings: Any, request: pytest.FixtureRequest) -> None:
    settings.SITE_URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize("check_id", CASES)
def test_it_is_found_where_it_is_wrong(check_id: str) -> None:
    assert check_id in found_in(CASES[check_id][0])


@pytest.mark.parametrize("check_id", CASES)
def test_it_is_not_found_where_it_comes_near(check_id: str, settings: Any) -> None:
    case = CASES[check_id][1]
    if "site" in case:
        settings.SITE_URL, settings.ALLOWED_HOSTS = case["site"], ["news.example.org"]
    assert check_id not in found_in(case)


def test_every_rule_is_tried_both_ways() -> None:
    assert set(CASES) == set(rules.RULES)
    assert len(CASES) >= 30


def test_a_good_issue_is_found_good() -> None:
    body = f"## Words\n\nSee [the talk]({LINK}).\n\n```py\ndef f():\n    return 1  # one\n```\n\n> [!TIP]\n> Y."
    assert found_in({"body": body, "introduction": "Hi {{ name|there }}."}) == {"unsubscribe-not-https"}


@pytest.mark.parametrize(
    ("check_id", "body"),
    [
        ("link-private", "[printer](http://printer/)"),
        ("link-private", "![A tree](https://192.168.0.4/a.png)"),
        ("link-private", "[a](https://[::ffff:10.0.0.1]/)"),
        ("link-localhost", '<div>\n<a href="http://localhost/">the page</a></div>'),
        ("link-vague", '<p><a href="https://example.com/">click\nhere</a></p>'),
        ("link-scheme", '<a href="javascript:alert(1)">go</a>'),
        ("image-missing", "![A tree](tree.png)"),
        ("alt-missing", '<img src="https://example.com/a.png">'),
        ("secret-slack-token", "https://hooks.slack.com/services/T0AB12CD3/B0AB12CD3/" + "a8Kf93nQzL0pXv72RtYbW1cD"),
        ("secret-aws-key", f"aws_secret_access_key = {AWS_SECRET}"),
        ("secret-aws-account", "584620914773.dkr.ecr.eu-west-1.amazonaws.com"),
        ("attachment-missing", "Please find attached the figures."),
        ("left-todo", "Speed (TODO measure) matters."),
        ("heading-skipped", "### At once"),
        ("fence-unclosed", "- item\n\n  ```\n  x\n\nmore"),
    ],
)
def test_it_is_found_in_other_shapes_too(check_id: str, body: str) -> None:
    assert check_id in found_in(body)


@pytest.mark.parametrize(
    "body",
    [
        "The disk is attached to the host, and attachments are off.",
        "We read the XXX byte, the TODO app, and KEP-TK.",
        "<pre>\nTODO: nothing\nTK\n</pre>\n\n<!-- TODO: later -->",
        "Indented:\n\n    ```\n    not a fence\n\nEnd.",
        "A template has {{ item.title }} and {% if %}.",
        "[relative in code](/about/) `[x](y.md)` and a\\_b [1] [x] text](not a link",
        "[^1] is fine.\n\n[^1]: Here.",
    ],
)
def test_what_technical_texts_say_is_no_finding(body: str) -> None:
    assert found_in(body) - {"unsubscribe-not-https"} == set()


# Code in dark mode


@pytest.mark.parametrize(
    ("instead", "expected"),
    [("", {"code-contrast"}), ('span[style*="#1f5590"] {{ color: #8dbdf6 !important; }}', set())],
)
def test_contrast_is_reckoned_with_the_colours_that_dark_mode_puts_there(instead: str, expected: set[str]) -> None:
    html = DARK.format(instead.replace("{{", "{").replace("}}", "}")) + SPAN
    assert found_in({"found": {"html": html}}) & {"code-contrast"} == expected


def test_contrast_is_that_of_wcag() -> None:
    assert rules.contrast("#000", "#ffffff") == pytest.approx(21)
    assert rules.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert rules.contrast("#0d1117", "#0d1117") == 1


def test_the_mails_own_code_can_be_read_in_dark_mode() -> None:
    code = "```py\n@a\nclass B(C):\n    '''Doc'''\n    x = 1.5  # y\n    def f(self): return None\n```\n"
    html = inspection.look_at(make(code)).html
    assert len(re.findall(r"<pre\b", html)) == 1
    assert html.count('style="color:') > 4
    assert "code-contrast" not in found_in(code)


# Where it is found


def test_a_finding_names_the_post_and_the_line() -> None:
    body = "One\ntwo\n\n> three\n> [four](http://localhost/)\n\n- ```\n  x\n\n| a |\n|---|\n| TK |\n"
    found = {each.check_id: each for each in preflight.inspect(make(body))}
    assert (found["link-localhost"].location, found["left-tk"].line) == ("“On vacuum”, line 5", 12)
    assert found["fence-unclosed"].line == 7
    assert found["link-localhost"].post_id == Post.objects.get(title="On vacuum").pk


def test_the_same_thing_twice_is_one_finding_and_the_gravest_come_first() -> None:
    found = preflight.inspect(make("TK [a](http://localhost/)\n\n[b](http://localhost/)"))
    assert [each.check_id for each in found if each.severity != "notes"] == ["link-localhost", "left-tk"]


def test_a_secret_is_never_written_down() -> None:
    for secret in (AWS_KEY, GITHUB, SLACK, JWT, STRIPE):
        (found,) = preflight.blocking(make_issue(make_post(body=secret)))
        assert secret[5:] not in json.dumps(found.as_dict())


# The way out


def test_unsubscribing_is_tried_through_the_whole_site_and_leaves_nothing(settings: Any) -> None:
    inspection._try_unsubscribing.cache_clear()
    before = Subscriber.objects.count()
    assert inspection.unsubscribe_problem() == ""
    assert Subscriber.objects.count() == before


def test_trying_to_unsubscribe_leaves_the_request_under_way_its_own(alice: Subscriber) -> None:
    """Who wrote a revision is read from there: without it the posts of an issue sent now name nobody."""
    inspection._try_unsubscribing.cache_clear()
    HistoricalRecords.context.request = under_way = HttpRequest()
    try:
        assert inspection.unsubscribe_problem() == ""
        assert getattr(HistoricalRecords.context, "request", None) is under_way
    finally:
        del HistoricalRecords.context.request


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"SECURE_SSL_REDIRECT": True, "SECURE_REDIRECT_EXEMPT": []}, "it answers 301"),
        ({"ALLOWED_HOSTS": ["elsewhere.example"]}, "it answers 400"),
        ({"ROOT_URLCONF": "posts.urls"}, ""),
    ],
)
def test_a_site_that_redirects_or_refuses_the_press_is_found_out(settings: Any, changes: Any, problem: str) -> None:
    inspection._try_unsubscribing.cache_clear()
    if "ROOT_URLCONF" in changes:  # the way back: what was wrong is asked again, and good again
        assert inspection.unsubscribe_problem() == ""
        return
    for name, value in changes.items():
        setattr(settings, name, value)
    assert inspection.unsubscribe_problem() == problem
    assert preflight.blocking(make_issue())[0].check_id == "unsubscribe-broken"


# Waivers and scheduling


def local_link() -> tuple[Issue, preflight.Finding]:
    issue = make("[a page](http://localhost/)")
    (finding,) = preflight.blocking(issue)
    return issue, finding


def test_what_blocks_keeps_an_issue_from_being_scheduled_and_sent_until_it_is_waived() -> None:
    issue, finding = local_link()
    for act in (lambda: delivery.schedule(issue, make_slot()), lambda: delivery.send_now(issue)):
        with pytest.raises(ValidationError, match=r"localhost.*“On vacuum”, line 1; link-localhost"):
            act()
    preflight.waive(issue, finding.check_id, finding.place, " It is about localhost. ", "author")
    delivery.schedule(issue, make_slot(days=8))
    assert Issue.objects.get(pk=issue.pk).state == Issue.State.SCHEDULED


def test_the_page_shows_what_is_found_and_takes_a_waiver(admin_client: Client) -> None:
    issue, finding = local_link()
    page, act = (f"/admin/newsletter/issue/{issue.pk}/{name}/" for name in ("change", "act"))
    assert "1 finding keeps this issue from going" in admin_client.get(page).text
    values = {"act": "waive", "check": finding.check_id, "place": finding.place}
    assert "Write why this may stand" in admin_client.post(act, {**values, "reason": " "}, follow=True).text
    shown = admin_client.post(act, {**values, "reason": "About <b>localhost</b>."}, follow=True).text
    assert "Nothing keeps this issue from going" in shown
    assert "About &lt;b&gt;localhost&lt;/b&gt;." in shown
    assert Waiver.objects.get().by == "admin"


def test_a_waived_finding_is_still_shown_with_its_reason_wherever_the_line_goes() -> None:
    issue, finding = local_link()
    preflight.waive(issue, finding.check_id, finding.place, "It is about localhost.", "author")
    Post.objects.update(body="Before.\n\n[a page](http://localhost/)")
    (shown,) = [each for each in preflight.inspect(issue) if each.check_id == "link-localhost"]
    assert shown.waiver is not None
    assert (shown.line, shown.blocks, shown.waiver.reason, shown.waiver.by) == (
        3, False, "It is about localhost.", "author"
    )  # fmt: skip
    assert preflight.blocking(issue) == []


def test_a_waiver_holds_for_what_was_waived_and_stays_when_that_is_gone() -> None:
    issue, finding = local_link()
    waiver = preflight.waive(issue, finding.check_id, finding.place, "Why.", "author")
    Post.objects.update(body="[another](http://localhost/other)")
    assert [each.check_id for each in preflight.blocking(issue)] == ["link-localhost"]
    assert preflight.panel(issue)["past_waivers"] == [waiver]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reason": "  "}, "Write why"),
        ({"place": "post 1: elsewhere"}, "no longer found"),
        ({"check_id": "no-such-check"}, "no longer found"),
        ({"check_id": "left-tk", "place": "TK"}, "keeps nothing from being sent"),
    ],
)
def test_what_can_not_be_waived_says_why(change: dict[str, str], words: str) -> None:
    issue = make("[a page](http://localhost/)\n\nTK")
    found = {each.check_id: each for each in preflight.inspect(issue)}
    named = found["link-localhost"]
    values = {"check_id": named.check_id, "place": named.place, "reason": "Why."} | change
    values["place"] = found["left-tk"].place if values["place"] == "TK" else values["place"]
    with pytest.raises(ValidationError, match=words):
        preflight.waive(issue, **values, by="author")
    assert not Waiver.objects.exists()


def test_a_finding_is_waived_once_and_the_law_never() -> None:
    issue, finding = local_link()
    preflight.waive(issue, finding.check_id, finding.place, "Why.", "author")
    with pytest.raises(ValidationError, match="waived before"):
        preflight.waive(issue, finding.check_id, finding.place, "Again.", "author")
    Publication.objects.update(postal_address="")
    with pytest.raises(ValidationError, match=r"can't be waived.*The law asks"):
        preflight.waive(issue, "postal-address", "publication: postal address", "Why.", "author")
    with pytest.raises(IntegrityError), transaction.atomic():
        Waiver.objects.create(issue=issue, check_id="x", reason="", by="author")


def test_a_long_place_fits_its_column_and_stays_its_own() -> None:
    long = "http://localhost/" + "a" * 300
    issue = make(f"[one]({long}1)\n\n[two]({long}2)")
    found = preflight.blocking(issue)
    assert len({each.place for each in found}) == 2
    assert max(len(each.place) for each in found) <= 250
    for each in found:
        preflight.waive(issue, each.check_id, each.place, "Why.", "author")


# An hour before


def told() -> list[dict[str, Any]]:
    return [row.context for row in SystemMail.objects.filter(kind=SystemMail.Kind.ALERT).order_by("pk")]


def scheduled(body: str, *, minutes: float) -> Issue:
    issue = make(body)
    issue.schedule(make_slot())
    Issue.objects.filter(pk=issue.pk).update(due_at=timezone.now() + dt.timedelta(minutes=minutes))
    issue.refresh_from_db()
    return issue


def test_what_blocks_an_hour_before_is_told_once_in_words() -> None:
    issue = scheduled("[a page](http://localhost/)", minutes=59)
    for _time in range(2):
        sweeper.look_before_sending()
    (context,) = told()
    assert (context["event"], context["issue"]) == ("preflight", str(issue))
    assert "leads to the reader's own machine" in context["found"][0]
    assert Heartbeat.objects.filter(name=f"preflight:{issue.pk}").count() == 1
    emails.send_all_due(limit=10)
    (letter,) = mail.outbox
    assert "look at it before it goes" in letter.subject
    assert "- “http://localhost/” leads to the reader's own machine" in letter.body


@pytest.mark.parametrize(
    ("body", "minutes"), [("[a page](http://localhost/)", 61), ("[a page](http://localhost/)", -1), ("Fine.", 30)]
)
def test_what_is_good_or_not_so_near_is_not_told(body: str, minutes: float) -> None:
    scheduled(body, minutes=minutes)
    sweeper.look_before_sending()
    assert told() == []


def test_an_issue_that_moved_to_another_week_is_looked_at_again() -> None:
    issue = scheduled("[a page](http://localhost/)", minutes=30)
    sweeper.look_before_sending()
    Heartbeat.objects.update(at=timezone.now() - dt.timedelta(days=7))
    Issue.objects.filter(pk=issue.pk).update(due_at=timezone.now() + dt.timedelta(minutes=20))
    sweeper.look_before_sending()
    assert len(told()) == 2


# The command


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    try:
        call_command("preflight", *words)
    except SystemExit as ended:
        return int(ended.code or 0), capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_the_command_prints_what_is_found_and_ends_with_1_where_something_blocks(capsys: Any) -> None:
    issue, finding = local_link()
    code, out = run(capsys, f"draft:{issue.pk}")
    assert code == 1
    assert "BLOCKS link-localhost: “On vacuum”, line 1" in out
    preflight.waive(issue, finding.check_id, finding.place, "It is about localhost.", "author")
    code, out = run(capsys, f"draft:{issue.pk}")
    assert code == 0
    assert "waived by author: It is about localhost." in out


def test_the_command_prints_json_alone(capsys: Any) -> None:
    issue, _finding = local_link()
    issue.number = 7
    issue.save()
    code, out = run(capsys, "7", "--json")
    answer = json.loads(out)
    assert (code, answer["blocking"], answer["findings"][0]["id"]) == (1, 1, "link-localhost")
    assert answer["findings"][0]["line"] == 1


@pytest.mark.parametrize(("name", "words"), [("99", "There is no issue 99"), ("x", "neither"), ("draft:0", "no issue")])
def test_the_command_says_which_issue_it_did_not_find(name: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("preflight", name)


# Real texts


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA, reason="CORPORA_DIR is not set: the corpora were not tried")
def test_years_of_real_issues_raise_nothing_and_few_of_them_are_blocked() -> None:
    import_folder(Path(CORPORA) / "markdown" / "lwkd")
    posts = list(Post.objects.all())
    assert len(posts) > 250
    blocked = sum(bool(preflight.blocking(make_issue(post, preheader="Next."))) for post in posts)
    assert blocked < len(posts) / 10


def test_what_the_doctor_found_wrong_with_the_domain_blocks_until_it_is_waived(publication: Publication) -> None:
    issue = make_issue(make_post("On locks", "Rows wait."), subject="On locks", preheader="And why it matters")
    assert not [found for found in preflight.blocking(issue) if found.check_id.startswith("domain-")]
    facts = doctor.gather()
    wrong = doctor.Finding("spf", "domain", "SPF", doctor.Status.FAILS, "There is no record.", "Add it.")
    well = doctor.Finding("dkim", "domain", "DKIM", doctor.Status.UNASKED, "Nobody answered.")
    doctor.keep(facts, doctor.Report(timezone.now().isoformat(), [wrong, well]))
    (found,) = [found for found in preflight.blocking(issue) if found.check_id.startswith("domain-")]
    assert (found.check_id, found.message) == ("domain-spf", "SPF. There is no record. Add it.")
    with pytest.raises(ValidationError, match="There is no record"):
        preflight.check_clear(issue)
    preflight.waive(issue, found.check_id, found.place, "The record is on its way.", "author")
    preflight.check_clear(issue)
