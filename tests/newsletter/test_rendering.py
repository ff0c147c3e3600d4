"""The mail's two parts: small, complete without stylesheet and pictures, fit for Outlook, and free of scripts."""

import io
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import html5lib
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from PIL import Image

from newsletter import message, rendering
from newsletter.management.commands import compile_mail
from newsletter.models import Issue, IssuePost
from posts import markdown, theme
from posts.models import Post, Publication
from tests.factories import make_issue, make_post
from tests.newsletter.weekly import FENCE, ONE_OF_EVERYTHING, long_post
from tests.posts.test_markdown import ATTACKS, CORPORA, dangers, needs_corpora

pytestmark = pytest.mark.django_db
CONDITIONAL = re.compile(r"<!--\[if ([^\]]*)\]>(.*?)<!\[endif\]-->", re.DOTALL)


@pytest.fixture(autouse=True)
def _publication(publication: Publication) -> None:
    """Every mail here is from a publication with a name and a postal address."""


@pytest.fixture
def everything() -> Issue:
    """An issue with one of everything in it: two posts in full and a teaser."""
    issue = make_issue(
        make_post(title="One", body=ONE_OF_EVERYTHING), make_post(title="Two", body=ONE_OF_EVERYTHING),
        number=7, preheader="What is in it.", introduction="Hello {{ name|there }}.",
    )  # fmt: skip
    teased = make_post(title="Three", body="A third one, in short.")
    IssuePost.objects.create(issue=issue, post=teased, position=2, mode=IssuePost.Mode.TEASER)
    return issue


def drawing(width: int, height: int) -> ContentFile:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "#0f6b5c").save(file, "PNG")
    return ContentFile(file.getvalue())


def unstyled(html: str) -> str:
    """The mail as a Gmail account shows it that drops stylesheets."""
    return re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)


# The template


def test_the_committed_template_is_what_its_source_compiles_to() -> None:
    assert compile_mail.COMPILED.read_text("utf-8") == compile_mail.compiled(compile_mail.SOURCE)
    call_command("compile_mail", check=True)


def test_a_template_that_is_out_of_date_is_noticed_and_written(monkeypatch: Any, tmp_path: Path) -> None:
    old = tmp_path / "body.html"
    old.write_text("as it was")
    monkeypatch.setattr(compile_mail, "COMPILED", old)
    with pytest.raises(CommandError, match="is not what body"):
        call_command("compile_mail", check=True)
    call_command("compile_mail")
    assert old.read_text("utf-8") == compile_mail.compiled(compile_mail.SOURCE)


def test_the_mail_asks_for_no_font_and_nothing_else_from_elsewhere(everything: Issue) -> None:
    html = rendering.preview_html(everything)
    assert "<link" not in html
    assert "url(" not in html


# The size


def test_the_mail_of_a_long_post_is_at_most_twice_its_article() -> None:
    post = make_post(title="The queue that was a table all along", body=long_post())
    assert len(FENCE.sub("", post.body).split()) >= 1500
    assert post.body_html.count("<pre") == 3
    article, mail = len(post.body_html.encode()), len(rendering.preview_html(make_issue(post)).encode())
    print(f"article {article} bytes, mail {mail} bytes: {mail / article:.2f} times")
    assert mail <= 2 * article


# What Outlook reads


def as_outlook_reads(html: str) -> str:
    """The mail with what stands in comments for Outlook, and without what stands there for the others."""
    return CONDITIONAL.sub(lambda found: found[2] if "!mso" not in found[1] else "", html)


def test_the_comments_for_outlook_are_in_every_copy_as_mjml_made_them(everything: Issue) -> None:
    made = CONDITIONAL.findall(compile_mail.COMPILED.read_text("utf-8"))
    assert len(made) > 10
    template = message.Template(rendering.render_issue(everything))
    for name in ("", "Ada", "<!-- -->", "<![endif]-->"):
        copy = template.html(message.Values("ada@example.org", name, UUID(int=7), ""))
        assert CONDITIONAL.findall(copy) == made
        assert "hole" not in copy


def test_for_outlook_and_for_the_others_every_table_is_closed_where_it_was_opened(everything: Issue) -> None:
    html = rendering.preview_html(everything)
    outlook, others = as_outlook_reads(html), CONDITIONAL.sub("", html)
    assert outlook.count("<table") > others.count("<table")
    for read in (outlook, others):
        body = read[read.index("<body") :]
        open_now: list[str] = []
        for closes, tag in re.findall(r"<(/?)(table|tbody|thead|tr|td|th|div)\b", body):
            assert not closes or open_now.pop() == tag
            open_now += [] if closes else [tag]
        assert not open_now


def test_outlook_is_told_how_wide_the_sheet_and_its_pictures_are(everything: Issue) -> None:
    default_storage.save("chart.png", drawing(1200, 600))
    html = as_outlook_reads(rendering.preview_html(everything))
    assert 'width="600"' in html
    picture = re.search(r'<img src="[^"]*chart.png"[^>]*>', html)
    assert picture
    assert 'alt="A chart" width="544" height="272"' in picture[0]


# Without a stylesheet, and in the dark


def test_without_a_stylesheet_code_keeps_its_colours_its_ground_and_its_line_breaks(everything: Issue) -> None:
    html = unstyled(rendering.preview_html(everything))
    assert re.search(r'<td style="background-color:#f3f1eb"><pre style="[^"]*white-space:pre-wrap;color:#1c1e20"', html)
    assert f'<span style="color:{markdown.KEYWORD[0]}">def</span>' in html
    assert html.count("word-break:break-word") >= 1


def test_every_colour_of_code_and_alerts_has_another_one_in_the_dark(everything: Issue) -> None:
    html = rendering.preview_html(everything)
    dark = html[html.index("prefers-color-scheme") : html.rindex("</style>")]
    inks = set(re.findall(r'<span style="color:(#\w{6})"', html))
    titles = set(re.findall(r'class="alert-title" style="[^"]*color:(#\w{6})', html))
    assert len(inks) >= 4
    assert titles == {"#8a5300"}
    assert all(f'span[style*="{ink}"]' in dark for ink in inks)
    assert all(f'.alert-title[style*="{ink}"]' in dark for ink in titles)


@pytest.mark.parametrize("accent", ["#ffee00", "#000000", "#ffffff", "#0f6b5c"])
def test_any_accent_colour_gives_links_that_can_be_read(accent: str) -> None:
    Publication.objects.update(accent_color=accent)
    html = rendering.preview_html(make_issue(introduction="[A link](https://example.com/)"))
    shown = re.search(r'<a href="https://example.com/" style="color:(#\w{6})"', html)
    dark = re.search(r"\.t a\[href\] \{ color: (#\w{6})", html)
    assert shown
    assert dark
    assert theme.contrast(shown[1], rendering.TINT) >= 4.5
    assert theme.contrast(dark[1], rendering.DARK_TINT) >= 4.5
    assert f"border-top:4px solid {accent}" in html


@pytest.mark.parametrize(("light", "dark"), rendering.ALERT_COLORS.values())
def test_the_titles_of_alerts_can_be_read(light: str, dark: str) -> None:
    assert theme.contrast(light, rendering.TINT) >= 4.5
    assert theme.contrast(dark, rendering.DARK_TINT) >= 4.5


# Who it is from, and the ways out


def test_a_logo_stands_for_the_name_with_its_size_and_says_the_name() -> None:
    publication = Publication.current()
    publication.logo.save("logo.png", drawing(960, 120))
    html = rendering.preview_html(make_issue())
    shown = re.search(r'<img class="logo" src="(http[^"]*)" width="240" height="30" alt="Query Notes"', html)
    assert shown
    assert shown[1].endswith(publication.logo.url)


@pytest.mark.parametrize("logo", ["", "logo/gone.png"])
def test_without_a_logo_the_name_stands_there(logo: str) -> None:
    Publication.objects.update(logo=logo)
    html = rendering.preview_html(make_issue())
    assert "<img" not in html
    assert re.search(r'class="ink"[^>]*>Query Notes</a>', html)


def test_the_first_words_of_the_mail_are_the_preheader_for_all_to_see(everything: Issue) -> None:
    html = rendering.preview_html(everything)
    body = html5lib.parse(CONDITIONAL.sub("", html), namespaceHTMLElements=False).find("body")
    assert " ".join(body.itertext()).split()[:4] == ["What", "is", "in", "it."]
    assert not re.search(r"display: ?none|visibility|opacity|font-size: ?1px", html)
    assert rendering.preview_text(everything).startswith("What is in it.\n")


def test_both_parts_say_who_sends_it_why_and_how_to_leave(everything: Issue) -> None:
    values = message.Values("reader@example.org", "Ada", UUID(int=7), "")
    template = message.Template(rendering.render_issue(everything))
    for part in (template.html(values), template.text(values)):
        for needed in (
            "You get Query Notes because reader@example.org subscribed", "/u/00000000-0000-0000-0000-000000000007/",
            "/preferences/", "/privacy/", "/issues/view/", "1 Example Street, Exampletown", "Issue 7",
        ):  # fmt: skip
            assert needed in part


def test_every_link_within_the_mail_finds_one_target_also_with_two_posts(everything: Issue) -> None:
    html = rendering.preview_html(everything)
    targets = re.findall(r'<a name="([^"]+)"></a>', html)
    assert len(targets) == len(set(targets))
    inner = re.findall(r'href="#([^"]+)"', html)
    assert len(inner) == 2 * 5
    assert set(inner) <= set(targets)


def test_the_text_part_has_no_trace_of_html_and_no_gap(everything: Issue) -> None:
    text = rendering.preview_text(everything)
    assert not re.search(r"</?\w+[ >]|&\w+;", text)
    assert "\n\n\n\n" not in text
    assert "\n\nOne\n===\n\nHello, with a link <https://example.com/a>" in text
    assert "Read on: http" in text


# Hostile words


def mail_of(text: str) -> str:
    """The HTML part of a mail that has `text` in every place that an author or a reader fills."""
    Publication.objects.update(name=text[:100], sender_name=text[:100], postal_address=text)
    post = Post(pk=1, slug="a", title=text, subtitle=text, body=text)
    teased = Post(pk=2, slug="b", title=text, excerpt=text)
    issue = Issue(pk=1, number=1, subject=text, preheader=text, introduction=text)
    items = [IssuePost(post=post, mode=IssuePost.Mode.FULL), IssuePost(post=teased, mode=IssuePost.Mode.TEASER)]
    template = message.Template(rendering.render_issue(issue, items=items))
    return template.html(message.Values("reader@example.org", text, UUID(int=7), ""))


def threats(html: str) -> list[str]:
    """What in a mail could run, load or send something, beyond the frame's own stylesheets and meta tags."""
    document = html5lib.parse(html, namespaceHTMLElements=False)
    assert [child.tag for child in document] == ["head", "body"]
    frame = sorted(element.tag for element in document.find("head") if isinstance(element.tag, str))
    assert frame == sorted(
        ["title", "meta", "meta", "meta", "meta", "meta", "style", "style", "style", "style", "style"]
    )
    return dangers(html[html.index("<body") :], "email")


def test_the_check_of_hostile_words_sees_what_it_looks_for() -> None:
    mail = mail_of("Harmless.")
    assert threats(mail) == []
    assert threats(mail.replace("Harmless.", "<img onerror=alert(1)>", 5)) != []
    with pytest.raises(AssertionError):
        threats(mail.replace("<title>", "<script></script><title>"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_any_place_becomes_nothing_that_runs(attack: str) -> None:
    assert threats(mail_of(attack)) == []


@needs_corpora
@pytest.mark.slow
def test_no_line_of_the_corpora_in_any_place_becomes_something_that_runs() -> None:
    texts = [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
    texts += json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8"))
    texts = [text.replace("\x00", "") for text in texts]  # PostgreSQL keeps none
    assert len(texts) > 450
    assert [(text, found) for text in texts if (found := threats(mail_of(text)))] == []
