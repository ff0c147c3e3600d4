"""Markdown becomes HTML that carries no script, for web and mail, and plain text."""

import colorsys
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import html5lib
import pytest
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from PIL import Image

from posts import images, markdown, theme

TARGETS = ["web", "email"]
CORPORA = os.environ.get("CORPORA_DIR", "")
needs_corpora = pytest.mark.skipif(not CORPORA, reason="CORPORA_DIR is not set: the corpora were not tried")
SCRIPTED = {"script", "style", "svg", "math", "iframe", "object", "embed", "form", "input", "button", "link", "meta"}
SCRIPTED |= {"base", "applet", "frame", "frameset", "video", "audio", "source", "template", "noscript", "textarea"}
ADDRESSES = {"href", "src", "action", "formaction", "xlink:href", "background", "poster", "srcset", "data"}

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](java&#x0A;script:alert(1))",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    "[a](vbscript:msgbox(1))",
    "![a](javascript:alert(1))",
    '![a](data:image/svg+xml,<svg onload="alert(1)">)',
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    '<a href="&#106;avascript:alert(1)">a</a>',
    '<a href=" &#1;javascript:alert(1)">a</a>',
    '<p style="background:url(javascript:alert(1))">a</p>',
    '<span style="color:expression(alert(1));position:fixed">a</span>',
    '<form action="//example.org"><input name=x><button>a</button></form>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '```"><script>alert(1)</script>\ncode\n```',
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '# <img src=x onerror="alert(1)">',
    '[^a"onclick=alert(1)]\n\n[^a"onclick=alert(1)]: <script>x</script>',
    "|<script>alert(1)</script>|\n|:-|\n|<img src=x onerror=alert(1)>|",
    '> [!NOTE] <script>alert(1)</script>\n> <img src=x onerror="alert(1)">',
    '![x" onerror="alert(1)](/media/a.png "t" onerror="alert(1)")',
    "<meta http-equiv=refresh content='0;url=//example.org'><base href=//example.org>",
    "<title><img src=x onerror=alert(1)></title>",
]


def elements(html: str) -> Iterator[tuple[str, dict[str, str]]]:
    for element in html5lib.parseFragment(html, namespaceHTMLElements=False).iter():
        if isinstance(element.tag, str):
            yield element.tag.lower(), {str(name).lower(): value for name, value in element.attrib.items()}


def dangers(html: str, target: str) -> list[str]:
    """Return what of `html` could run, load or send something, as a browser's parser sees it."""
    found = []
    for tag, attributes in elements(html):
        found += [f"<{tag}>"] if tag.rpartition("}")[2] in SCRIPTED else []
        found += [f"{tag} {name}" for name in attributes if name.startswith("on") or name in ("srcdoc", "formaction")]
        found += [f"{tag} style" for name in attributes if name == "style" and target == "web"]
        found += [value for name, value in attributes.items() if name in ADDRESSES and not _harmless(value)]
        found += [value for name, value in attributes.items() if name == "style" and re.search(r"[(\\@]", value)]
    return found


def _harmless(address: str) -> bool:
    # As the URL standard has it: control characters go at the ends, tabs and line ends everywhere.
    bare = re.sub(r"[\t\n\r]", "", address.strip("".join(map(chr, range(33)))))
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", bare, re.IGNORECASE)
    return scheme is None or scheme[1].lower() in ("http", "https", "mailto")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_becomes_nothing_that_runs(attack: str, target: str) -> None:
    assert dangers(markdown.render(attack, target), target) == []


def test_the_check_itself_sees_a_danger() -> None:
    raw = '<p onclick=x><script></script><a href="java\nscript:x"></a><p style="a:b(c)">'
    assert len(dangers(raw, "web")) == 5


@needs_corpora
@pytest.mark.parametrize("target", TARGETS)
def test_no_line_of_the_attack_corpora_becomes_something_that_runs(target: str) -> None:
    texts = [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
    texts += json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8"))
    texts += [line for text in texts for line in text.splitlines()]
    assert len(texts) > 500
    assert [(text, found) for text in texts if (found := dangers(markdown.render(text, target), target))] == []


@needs_corpora
def test_every_example_of_the_specifications_is_rendered_harmlessly() -> None:
    texts = [example["markdown"] for example in json.loads(Path(CORPORA, "commonmark/spec.json").read_text("utf-8"))]
    texts += [path.read_text("utf-8") for path in Path(CORPORA).glob("commonmark/markdown-it-fixtures/*.md")]
    texts += [path.read_text("utf-8") for path in Path(CORPORA, "gfm").rglob("*.txt")]
    assert len(texts) > 650
    for text in texts:
        assert [dangers(markdown.render(text, target), target) for target in TARGETS] == [[], []]
        markdown.render_text(text)
        markdown.render_post(text)


@pytest.mark.parametrize(
    "text",
    [
        ">" * 20_000 + " x",
        "- " * 20_000 + "x",
        "[" * 50_000,
        "![" * 20_000,
        "`" * 50_000,
        "<a " * 50_000,
        "# a\n" * 10_000,
        "|a" * 500 + "|\n" + "|-" * 500 + "|\n" + ("|a" * 500 + "|\n") * 50,
        "[a]: b\n" * 20_000,
        "~~a " * 30_000,
        "```python\n" + "a, " * 80_000 + "\n```",
        "<p><img " + "a" * 200_000 + ">",
        "<p><img " + 'a="' * 60_000 + ">",
    ],
)
def test_hostile_text_costs_a_moment_only(text: str) -> None:
    start = time.process_time()
    for target in TARGETS:
        markdown.render(text, target)
    markdown.render_text(text)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", ["<div>" * 50_000, "<div>\n\n" * 20_000, "**a " * 3000 + "b**" * 3000])
def test_text_nested_too_deeply_is_refused_with_the_reason(text: str) -> None:
    for write in (markdown.render, markdown.render_text, markdown.render_post):
        with pytest.raises(ValueError, match="nested too deeply"):
            write(text)
    with pytest.raises(ValidationError, match="nested too deeply"):
        markdown.validate(text)


def test_text_too_long_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="too long"):
        markdown.render("a" * (markdown.MAX_CHARACTERS + 1))


def test_old_html_with_open_paragraphs_is_not_taken_for_nested() -> None:
    assert markdown.render("<p>one<br>\n<li>two\n" * 300).count("<li>") == 300


def test_code_has_classes_on_the_web_and_colours_in_the_mail() -> None:
    text = "```python\nx = 1\n```"
    assert '<span class="mi">1</span>' in markdown.render(text)
    assert 'aria-label="Code in python"' in markdown.render(text)
    assert 'tabindex="0"' in markdown.render(text)
    assert re.search(r'<span style="color:#\w{6}">1</span>', markdown.render(text, "email"))
    assert "class=" not in markdown.render(text, "email").replace('<table class="code"', "")


def test_code_in_a_mail_has_a_span_for_a_run_of_one_colour_and_none_for_what_is_plain() -> None:
    html = markdown.render("```python\n\ndef run(size, *, until):\n    return size + until\n```", "email")
    assert re.findall(r'<span style="color:(#\w{6})">([^<]*)</span>', html) == [
        (markdown.KEYWORD[0], "def"), (markdown.NAME[0], "run"), (markdown.KEYWORD[0], "return"),
    ]  # fmt: skip
    assert "<pre><span" in html
    assert "until</pre>" in html
    words = re.sub("<[^>]*>", "", html)
    assert words == "def run(size, *, until):\n    return size + until\n"


def colors_on(ground: str, *, dark: bool) -> list[float]:
    return [theme.contrast(pair[dark], ground) for pair in markdown.CODE_COLORS]


def inverted(color: str) -> str:
    """As mail programs do that turn light to dark themselves: the lightness the other way round, the hue as it is."""
    hue, light, full = colorsys.rgb_to_hls(*(part / 255 for part in theme.parse(color)))
    return "#" + "".join(f"{round(part * 255):02x}" for part in colorsys.hls_to_rgb(hue, 1 - light, full))


def test_the_colours_of_code_can_be_read_on_light_dark_and_inverted_grounds() -> None:
    assert min(colors_on("#f3f1eb", dark=False)) >= 4.5
    assert min(colors_on("#ffffff", dark=False)) >= 4.5
    assert min(colors_on("#272d33", dark=True)) >= 4.5
    for ground in ("#f3f1eb", "#ffffff"):
        assert min(theme.contrast(inverted(ink), inverted(ground)) for ink, _dark in markdown.CODE_COLORS) >= 4.5
    assert min(colors_on("#272d33", dark=False)) < 4.5


def test_code_in_an_unknown_language_stands_as_written() -> None:
    assert "a &lt; b" in markdown.render("```nonesuch\na < b\n```")


def test_a_table_scrolls_within_the_page_and_aligns_by_class() -> None:
    html = markdown.render("|a|b|\n|:-|-:|\n|1|2|")
    assert '<div class="table-scroll" role="region" aria-label="Table" tabindex="0"><table>' in html
    assert '<td class="align-right">2</td>' in html
    mail = markdown.render("|a|b|\n|:-|-:|\n|1|2|", "email")
    assert re.findall("<t[hd].*?</t[hd]>", mail) == [
        '<th align="left">a</th>', '<th align="right">b</th>', "<td>1</td>", '<td align="right">2</td>',
    ]  # fmt: skip


def test_headings_have_ids_unique_in_the_text_and_links_to_them_on_the_web_only() -> None:
    text = "## Vacuum\n\n## Vacuum"
    assert re.findall(r'<h2 id="([^"]+)"', markdown.render(text)) == ["vacuum", "vacuum-2"]
    assert 'href="#vacuum-2"' in markdown.render(text)
    assert "href" not in markdown.render(text, "email")


def test_a_link_within_a_mail_leads_to_an_empty_anchor_with_a_name() -> None:
    html = markdown.render("[there](#vacuum)\n\n## Vacuum\n\nOne.[^1]\n\n[^1]: Note.", "email", prefix="p7-")
    assert '<a href="#p7-vacuum">there</a>' in html
    assert '<h2><a name="p7-vacuum"></a>Vacuum</h2>' in html
    assert 'One.<a name="fnref-p7-1"></a><sup><a href="#fn-p7-1">[1]</a></sup>' in html
    assert '<li><p><a name="fn-p7-1"></a>Note. <a href="#fnref-p7-1"' in html
    assert " id=" not in html


def test_a_prefix_keeps_the_ids_of_two_texts_apart() -> None:
    text = "## Vacuum\n\nOne.[^1]\n\n[^1]: Note."
    ids = [
        set(re.findall(r' (?:id|name)="([^"]+)"', markdown.render(text, target, prefix=prefix)))
        for target in TARGETS
        for prefix in ("p1-", "p2-")
    ]
    assert all(len(found) == 3 for found in ids)
    assert not ids[0] & ids[1]
    assert not ids[2] & ids[3]


@pytest.mark.parametrize("target", TARGETS)
def test_every_link_within_the_text_finds_its_target(target: str) -> None:
    html = markdown.render("## A\n\nOne.[^1] Two.[^1] Three.[^x]\n\n[^1]: Note.\n[^x]: Other.", target, prefix="p7-")
    ids = re.findall(r' (?:id|name)="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert 'aria-label="Back to the text"' in html


def test_tasks_and_alerts_are_shown_without_form_fields() -> None:
    html = markdown.render("- [x] done\n- [ ] open\n\n> [!WARNING]\n> Careful.")
    assert 'aria-label="done">☑' in html
    assert 'aria-label="open">☐' in html
    assert "markdown-alert-warning" in html
    assert "<input" not in html


def test_mail_has_whole_addresses(settings: Any) -> None:
    settings.SITE_URL = "https://news.example.org"
    html = markdown.render("[a](/posts/x/) [b](#part) [c](https://example.com/) ![d](/media/none.png)", "email")
    assert 'href="https://news.example.org/posts/x/"' in html
    assert 'href="#part"' in html
    assert 'src="https://news.example.org/media/none.png"' in html


def test_an_image_of_our_own_says_its_size() -> None:
    wide = ContentFile(b"", name="wide.png")
    Image.new("RGB", (1120, 400)).save(wide, "PNG")
    wide.seek(0)
    url = default_storage.url(default_storage.save("wide.png", images.clean_image(wide)))
    web, mail = (markdown.render(f"![Wide]({url})", target) for target in TARGETS)
    assert 'width="1120" height="400"' in web
    assert 'loading="lazy"' in web
    assert 'width="544" height="194"' in mail
    raw = markdown.render(f"<img src='{url}'> and <img src={url} width=200 alt=Wide>", "email")
    assert '<img alt="" width="544" height="194" src="http' in raw
    assert '<img width="200" height="71" src="http' in raw


def test_an_image_from_elsewhere_that_says_its_size_is_made_to_fit_a_mail() -> None:
    html = markdown.render('<img src="https://example.com/a.png" width="1088" height="100" alt="A">', "email")
    assert 'width="544" height="50"' in html
    assert 'src="https://example.com/a.png" width="100%"' in markdown.render(
        '<img src="https://example.com/a.png" width="100%">', "email"
    )


def test_a_mail_has_no_classes_but_those_of_its_own_look() -> None:
    html = markdown.render('<p class="sheet">a</p>\n\n> [!TIP]\n> b', "email")
    assert re.findall('class="(.*?)"', html) == ["alert tip", "alert-title"]


@pytest.mark.parametrize("address", ["/media/../../etc/passwd", "/media/%00", "/media/", "http://[", "/media/none.png"])
def test_an_image_that_is_not_there_is_no_error(address: str) -> None:
    assert "width" not in markdown.render(f"![a]({address})")


TEXT = """## Why *vacuum*

A [link](https://example.com/a) and `code`, ![a chart](/c.png).[^1]

- one
- two
  1. deeper

> Quoted.

```sql
select 1;  -- a line that is longer than the seventy-two columns that text is wrapped at
```

| a | b |
|---|---|
| 1 | 2 |

[^1]: The note.
"""


def test_plain_text_reads_without_html() -> None:
    text = markdown.render_text(TEXT)
    assert text.startswith("Why _vacuum_\n---")
    assert "A link <https://example.com/a> and code, [Image: a chart].[1]" in text
    assert "- one\n- two" in text
    assert "> Quoted." in text
    assert "    select 1;  -- a line that is longer" in text
    assert "a  b\n-  -\n1  2" in text
    assert text.endswith("Footnotes\n---------\n[1] The note.")


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("[vacuum](https://example.com/vacuum)", "vacuum <https://example.com/vacuum>"),
        ("<https://example.com/a>", "https://example.com/a"),
        ("[example.com/a](https://example.com/a)", "https://example.com/a"),
        ("<me@example.com>", "me@example.com"),
        ("[below](#part)", "below"),
        ("[![A](/a.png)](https://example.com/)", "[Image: A] <https://example.com/>"),
        (
            'One<br>two <a href="https://example.com/?a=1&amp;b=2">three</a>',
            "One\ntwo three <https://example.com/?a=1&b=2>",
        ),
        ("<p>One\nand <b>two</b></p><ul><li>a</li><li>b &amp; c</li></ul>", "One and two\n\n- a\n- b & c"),
        ('<div><img src="a.png" alt="A"><img src="b.png"></div>', "[Image: A][Image]"),
        ("> [!NOTE]\n> One\n>\n> two", "> NOTE\n> One\n>\n> two"),
        ("|a|much|\n|-|-:|\n|one|2|", "a    much\n---  ----\none     2"),
        ("One[^x] two[^y]\n\n[^y]: Y\n[^x]: X", "One[1] two[2]\n\nFootnotes\n---------\n[1] X\n[2] Y"),
    ],
)
def test_plain_text_says_what_the_html_says(written: str, plain: str) -> None:
    assert markdown.render_text(written) == plain


def test_plain_text_is_wrapped_but_never_breaks_an_address() -> None:
    address = "https://example.com/" + "a" * 90
    lines = markdown.render_text("word " * 60 + f"<{address}>").splitlines()
    assert address in lines
    assert all(len(line) <= 72 for line in lines if line != address)


def test_a_table_too_wide_for_a_line_becomes_a_list() -> None:
    long = "word " * 12
    assert markdown.render_text(f"|a|b|\n|-|-|\n|{long}|{long}|").startswith("a: word")


def test_a_post_keeps_its_words_its_beginning_and_its_minutes() -> None:
    rendered = markdown.render_post("# Head\n\nFirst *words*.[^1]\n\n```\ncode\n```\n\n[^1]: Note.")
    assert rendered.text.splitlines()[:3] == ["Head", "First words.", "code"]
    assert rendered.excerpt.startswith("First words.")
    assert rendered.reading_minutes == 1
    assert markdown.render_post("word " * 2200).reading_minutes == 10


def test_headings_take_no_id_twice_and_none_of_the_page() -> None:
    html = markdown.render("# Locks\n\n# Locks\n\n# Locks 2\n\n# Content\n\n# Correction\n")
    assert re.findall(r'<h\d id="([^"]+)"', html) == ["locks", "locks-2", "locks-2-2", "content-2", "correction-2"]
