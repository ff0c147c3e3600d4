"""Turn an author's Markdown into sanitised HTML for the web or for mail, and into plain text.

One parser (CommonMark, GFM tables and task lists, footnotes, alerts), two dresses, and the sanitiser always last.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, groupby, pairwise
from operator import itemgetter
from typing import Any
from urllib.parse import urljoin, urlsplit

import nh3
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.text import Truncator, slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from mdit_py_plugins.gfm import gfm_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Generic, Keyword, Name, Number, Operator, String, _TokenType
from pygments.util import ClassNotFound

from posts import images

MAX_CHARACTERS = 250_000
MAX_NESTING = 100
WORDS_A_MINUTE = 220
EXCERPT_WORDS = 42
MAIL_IMAGE_WIDTH = 544  # pixels: as wide as the text of a mail
TEXT_WIDTH = 72
# Ids that the page of a post has itself: a heading of these words gets another.
PAGE_IDS = {"content", "contents-title", "copied", "correction", "name", "related-title", "series"}
TASK = re.compile(r'<input class="task-list-item-checkbox"[^>]*?(checked="")?\s*/?>')
SWALLOWING = re.compile(
    r"<(?=/?(?:title|textarea|style|xmp|iframe|noembed|noframes|noscript|script|plaintext|svg|math|template|select)\b)",
    re.IGNORECASE,
)

RAW_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)", re.IGNORECASE)
# Tags that hold nothing, or that the next of their kind ends: these don't nest.
SHALLOW = {
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
    *("dd", "dt", "li", "option", "p", "tbody", "td", "tfoot", "th", "thead", "tr"),
}

TAGS = {
    *("a", "abbr", "b", "blockquote", "br", "caption", "cite", "code", "dd", "del", "details", "div", "dl", "dt", "em"),
    *("figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol"),
    *("p", "pre", "q", "s", "section", "small", "span", "strong", "sub", "summary", "sup"),
    *("table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {
    "*": {"class", "id", "lang", "dir", "title"},
    "a": {"href", "aria-label", "role"},
    "div": {"role", "aria-label", "tabindex"},
    "img": {"src", "alt", "width", "height", "loading"},
    "ol": {"start"},
    "pre": {"tabindex", "role", "aria-label"},
    "section": {"role", "aria-label"},
    "span": {"role", "aria-label", "aria-hidden"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
}
# A page lets the browser choose among the copies of an image of ours; mail programs and feed readers get the image.
WEB_ATTRIBUTES = ATTRIBUTES | {"img": ATTRIBUTES["img"] | {"srcset", "sizes"}}
IMAGE_SIZES = "(min-width: 45rem) 41rem, 100vw"  # as wide as the text of a page: --measure of site.css
OWN_COPIES = re.compile(rf"(?:{re.escape(settings.MEDIA_URL)}[\w-][\w./-]* \d+w(?:, )?)+")
# Mail has no stylesheet that every reader keeps, so there colours and alignment stand in the text, and a table says by
# attributes how it looks. Anchors have names: Gmail and Outlook find no other target of a link within a mail.
IN_MAIL = {
    "a": {"name"},
    "span": {"style"},
    "table": {"border", "cellpadding", "cellspacing", "frame", "role", "rules", "width"},
    "td": {"align", "style"},
    "th": {"align", "style"},
}
MAIL_ATTRIBUTES = ATTRIBUTES | {tag: ATTRIBUTES.get(tag, set()) | more for tag, more in IN_MAIL.items()}
ALERTS = {
    "note": gettext_noop("Note"),
    "tip": gettext_noop("Tip"),
    "important": gettext_noop("Important"),
    "warning": gettext_noop("Warning"),
    "caution": gettext_noop("Caution"),
}
MAIL_CLASSES = {"alert-title", "code", "footnotes", "wide", *(f"alert {kind}" for kind in ALERTS)}
RAW_IMAGE = re.compile(r"<img\b[^<>]*>", re.IGNORECASE)
RAW_ATTRIBUTE = re.compile(r"""(?<![\w-])([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
# The colours of code in a mail, with what the mail's stylesheet makes of each on a dark ground. All else is plain.
KEYWORD, NAME, STRING = ("#7a2e8e", "#d3a3ec"), ("#1f5590", "#8dbdf6"), ("#2a6430", "#a1d394")
NUMBER, COMMENT, REMOVED = ("#97430d", "#f0b784"), ("#62666a", "#9fa7ae"), ("#a32019", "#f59d95")
CODE_COLORS = [KEYWORD, NAME, STRING, NUMBER, COMMENT, REMOVED]
COLOR_OF: dict[_TokenType, tuple[str, str]] = {
    **dict.fromkeys((Keyword, Operator.Word, Name.Tag), KEYWORD),
    **dict.fromkeys((Name.Function, Name.Class, Name.Decorator, Name.Builtin, Name.Attribute), NAME),
    **dict.fromkeys((Name.Namespace, Name.Exception, Name.Label), NAME),
    **dict.fromkeys((String, Generic.Inserted), STRING),
    **dict.fromkeys((Number, Name.Constant, Name.Variable), NUMBER),
    **dict.fromkeys((Comment, Generic.Prompt, Generic.Output), COMMENT),
    Generic.Deleted: REMOVED,
}
STYLE_PROPERTIES = {"color", "background-color", "font-weight", "font-style", "text-align", "text-decoration"}
PLAIN_STYLE = re.compile(r"[\w\s#:;,.%-]*")
SCHEMES = {"http", "https", "mailto"}


@dataclass(frozen=True)
class Rendered:
    """A text made ready: sanitised web HTML, plain text for search and excerpt, minutes to read it, headings and code.

    A heading is [level, id, words]; the code is all there is of it, in blocks and in lines.
    """

    html: str
    text: str
    excerpt: str
    reading_minutes: int
    headings: list[list[Any]]
    code: str


def render(text: str, target: str = "web", prefix: str = "") -> str:
    """Return sanitised HTML of Markdown `text` for `target`: "web" or "email".

    `prefix` goes before every id, so that several texts can stand on one page. Raises ValueError on a text that is too
    long or too deeply nested.
    """
    env: dict[str, Any] = {"docId": prefix.rstrip("-"), "prefix": prefix} if prefix else {}
    parser = PARSERS[target]
    raw = str(parser.renderer.render(_parse(text, target, env), parser.options, env))
    return CLEANERS[target](TASK.sub(_checkbox, raw))


def validate(text: str) -> None:
    """Raise ValidationError on a text that `render` would refuse."""
    try:
        _parse(text)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def render_post(text: str) -> Rendered:
    """Return what a post stores of its Markdown."""
    tokens = _parse(text)
    plain = _plain_words(tokens)
    minutes = max(1, round(len(plain.split()) / WORDS_A_MINUTE))
    return Rendered(render(text), plain, _excerpt(tokens), minutes, _headings(tokens), _all_code(tokens))


def _parse(text: str, target: str = "email", env: dict[str, Any] | None = None) -> list[Token]:
    """Parse `text`, refusing one that would cost a reader of it seconds: the parser and sanitiser slow with depth."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(_("The text is too long: at most %(most)s characters.") % {"most": MAX_CHARACTERS})
    tokens = PARSERS[target].parse(text, {} if env is None else env)
    if _depth(tokens) > MAX_NESTING:
        raise ValueError(_("The text is nested too deeply: at most %(most)s levels.") % {"most": MAX_NESTING})
    return tokens


def _depth(tokens: Sequence[Token]) -> int:
    """Return how deep the marks of a text nest, or its raw tags, whichever is deeper."""
    leaves = [leaf for token in tokens for leaf in (token, *(token.children or ()))]
    raw = deepest = 0
    for found in (tag for leaf in leaves if leaf.type.startswith("html_") for tag in RAW_TAG.finditer(leaf.content)):
        if found[2].lower() not in SHALLOW:
            raw = max(0, raw - 1) if found[1] else raw + 1
            deepest = max(deepest, raw)
    return max(deepest, max((leaf.level for leaf in leaves), default=0))


def _excerpt(tokens: Sequence[Token]) -> str:
    """Return how the prose of a text begins: without headings and code, cut between two words."""
    prose = [_words(inline) for opening, inline in pairwise(tokens) if opening.type == "paragraph_open"]
    return Truncator(" ".join(filter(None, prose))).words(EXCERPT_WORDS)


def _headings(tokens: Sequence[Token]) -> list[list[Any]]:
    """Return the headings that stand in no box of the text."""
    found = [(opening, inline) for opening, inline in pairwise(tokens) if opening.type == "heading_open"]
    return [
        [int(opening.tag[1]), str(opening.attrGet("id")), _words(inline)]
        for opening, inline in found
        if opening.level == 0 and _words(inline)
    ]


def first_paragraph(text: str) -> str:
    """Return the words of the first paragraph of a text."""
    prose = (_words(inline) for opening, inline in pairwise(_parse(text)) if opening.type == "paragraph_open")
    return next(filter(None, prose), "")


def _all_code(tokens: Sequence[Token]) -> str:
    leaves = (leaf for token in tokens for leaf in (token, *(token.children or ())))
    return "\n".join(leaf.content for leaf in leaves if leaf.type in ("fence", "code_block", "code_inline"))


def _plain_words(tokens: Sequence[Token]) -> str:
    """Return the words of a text, code included, a block a line."""
    lines = [_words(token) for token in tokens if token.type in ("inline", "fence", "code_block")]
    return "\n".join(filter(None, lines))


def render_text(text: str) -> str:
    """Return Markdown `text` as plain text that reads well in a mail, wrapped at 72 columns but for code and links."""
    root = SyntaxTreeNode(_parse(text))
    return _blocks(root.children, TEXT_WIDTH).strip()


# Web and mail: how the parser's tokens are dressed


def _parser(target: str) -> MarkdownIt:
    # Raw HTML passes the parser and is sanitised with the rest: imported posts are full of it.
    parser = MarkdownIt("commonmark", {"html": True}).use(gfm_plugin)
    parser.core.ruler.before("inline", "alert_titles", _alert_titles)
    parser.core.ruler.push("heading_ids", _heading_ids)
    for rule, function in RULES[target].items():
        parser.add_render_rule(rule, _unbound(function))
    return parser


def _unbound(function: Callable[..., str]) -> Callable[..., str]:
    def rule(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return function(renderer, tokens, index, options, env)

    return rule


def _alert_titles(state: StateCore) -> None:
    """Say what kind of alert it is in the language of the moment: the parser knows English only."""
    for token, inline in pairwise(state.tokens):
        if token.type == "alert_title_open":
            inline.content = _(ALERTS[inline.content.lower()])


def _heading_ids(state: StateCore) -> None:
    """Give each heading an id made of its words, unique in the text."""
    taken = set(PAGE_IDS)
    for token, inline in pairwise(state.tokens):
        if token.type == "heading_open":
            words = slugify(_words(inline))[:60] or "section"
            free = next(name for name in _numbered(words) if name not in taken)
            taken.add(free)
            token.attrSet("id", f"{state.env.get('prefix', '')}{free}")


def _numbered(words: str) -> Iterator[str]:
    """Yield locks, locks-2, locks-3 and so on."""
    return chain([words], (f"{words}-{number}" for number in count(2)))


def _raw(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Show a raw tag that would swallow the text after it as text (GFM, 6.11); the sanitiser sees to the others."""
    return SWALLOWING.sub("&lt;", tokens[index].content)


def _permalink(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    opening = tokens[index - 2]  # its only child stands between: the inline token
    link = f'<a class="anchor" href="#{opening.attrGet("id")}" aria-label="{_("Link to this section")}">#</a>'
    return f" {link}{renderer.renderToken(tokens, index, options, env)}"


def _web_code(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    language = _language(tokens[index])
    label = html.escape(_("Code in %(language)s") % {"language": language} if language else _("Code"))
    badge = f'<span class="code-language" aria-hidden="true">{html.escape(language)}</span>' if language else ""
    code = _highlight(tokens[index].content, language, WEB_FORMATTER)
    return (
        f'<div class="code">{badge}<pre class="highlight" tabindex="0" role="region" aria-label="{label}">'
        f"<code>{code}</code></pre></div>\n"
    )


def _mail_code(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    code = _color(tokens[index].content.strip("\n"), _language(tokens[index]))
    return f"{_box('code')}<pre>{code}</pre>{BOX_END}"


def _box(kind: str) -> str:
    """Open a box of one cell: Outlook gives padding and a background to nothing else."""
    return f'<table class="{kind}" role="presentation" width="100%" cellpadding="14" cellspacing="0"><tr><td>'


BOX_END = "</td></tr></table>\n"


def _alert_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return _box(f"alert {tokens[index].info.lower()}")


def _alert_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return BOX_END


def _alert_title(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<p class="alert-title">'


def _language(token: Token) -> str:
    return token.info.split(maxsplit=1)[0].strip("{}.").lower()[:30] if token.info.strip() else ""


def _highlight(code: str, language: str, formatter: HtmlFormatter[str]) -> str:
    lexer = _lexer(language)
    return highlight(code, lexer, formatter) if lexer else html.escape(code)


def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return None


def _color(code: str, language: str) -> str:
    """Return code with its colours in the text: what has one colour in one span, and most of it in none."""
    lexer = _lexer(language)
    if lexer is None:
        return html.escape(code)
    runs = groupby(_colors(lexer.get_tokens(code)), key=itemgetter(0))
    return "".join(_run(color, "".join(text for _color, text in run)) for color, run in runs).removesuffix("\n")


def _colors(tokens: Iterable[tuple[_TokenType, str]]) -> Iterator[tuple[str, str]]:
    """Give each token its colour, and white space that of what stands before it."""
    color = ""
    for kind, text in tokens:
        color = color if text.isspace() else _color_of(kind)
        yield color, text


def _run(color: str, text: str) -> str:
    if not color:
        return html.escape(text)
    words = text.rstrip()
    return f'<span style="color:{color}">{html.escape(words)}</span>{text[len(words) :]}'


@cache
def _color_of(kind: _TokenType) -> str:
    """Return the colour of a kind of token, or of the nearest kind that it belongs to; empty where it has none."""
    return next((COLOR_OF[part][0] for part in reversed(kind.split()) if part in COLOR_OF), "")


def _table_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<div class="table-scroll" role="region" aria-label="{_("Table")}" tabindex="0"><table>'


def _table_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _aligned_cell(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Say a column's alignment by a class: the page's policy forbids style attributes."""
    token = tokens[index]
    style = str(token.attrs.pop("style", ""))
    if style:
        token.attrSet("class", f"align-{style.rpartition(':')[2]}")
    return str(renderer.renderToken(tokens, index, options, env))


def _mail_table_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return (
        '<div class="wide" tabindex="0"><table border="1" frame="hsides" rules="rows" cellpadding="6" cellspacing="0">'
    )


def _mail_table_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _mail_cell(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Say a column's alignment by an attribute, the shortest way; a head without one is to the left like its cells."""
    token = tokens[index]
    align = str(token.attrs.pop("style", "")).rpartition(":")[2] or "left"
    if token.tag == "th" or align != "left":
        token.attrSet("align", align)
    return str(renderer.renderToken(tokens, index, options, env))


def _web_image(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("loading", "lazy")
    _set_size(tokens[index], most=None)
    for name, value in _copies(str(tokens[index].attrGet("src") or "")).items():
        tokens[index].attrSet(name, value)
    return str(renderer.image(tokens, index, options, env))


def _web_raw(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return RAW_IMAGE.sub(_raw_web_image, _raw(renderer, tokens, index, options, env))


def _raw_web_image(found: re.Match[str]) -> str:
    """Let an image in raw HTML wait and say its size; of two attributes of a name the sanitiser keeps the first."""
    said = _said(found[0])
    attributes = {"loading": "lazy"} | _copies(said.get("src", ""))
    size = image_size(said.get("src", ""))
    if size and not {"width", "height"} & set(said):
        attributes |= {"width": str(size[0]), "height": str(size[1])}
    more = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<img{more} {found[0][4:]}"


def _copies(src: str) -> dict[str, str]:
    """Return the attributes that let a browser choose among the copies of one of our own images."""
    name, size = own_name(src), image_size(src)
    found = images.srcset(name, size[0], images.copies(name, size[0])) if name and size else ""
    return {"srcset": found, "sizes": IMAGE_SIZES} if found else {}


def _mail_image(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    _set_size(tokens[index], most=MAIL_IMAGE_WIDTH)
    return str(renderer.image(tokens, index, options, env))


def _mail_raw(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return RAW_IMAGE.sub(_raw_image, _raw(renderer, tokens, index, options, env))


def _raw_image(found: re.Match[str]) -> str:
    """Let an image in raw HTML fit a mail; of two attributes of a name the sanitiser keeps the first."""
    tag, said = found[0], _said(found[0])
    width, height = (int(said[name]) if said.get(name, "").isdecimal() else 0 for name in ("width", "height"))
    size = image_size(said.get("src", "")) or (width, height)
    more = "" if "alt" in said else ' alt=""'
    if all(size):
        shown = min(width or size[0], MAIL_IMAGE_WIDTH)
        more += f' width="{shown}" height="{round(size[1] * shown / size[0])}"'
    return f"<img{more} {tag[4:]}"


def _said(tag: str) -> dict[str, str]:
    """Return the attributes of a raw tag that have values."""
    return {name.lower(): html.unescape("".join(value)) for name, *value in reversed(RAW_ATTRIBUTE.findall(tag))}


def _mail_heading(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    anchor = _anchor(str(tokens[index].attrs.pop("id", "")))
    return f"{renderer.renderToken(tokens, index, options, env)}{anchor}"


def _anchor(name: str) -> str:
    """Return a target for links that every mail program finds: an empty anchor with a name."""
    return f'<a name="{html.escape(name)}"></a>'


def _mail_link(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Let a link within the text find its target, whose name has the text's prefix."""
    href = str(tokens[index].attrGet("href") or "")
    if href.startswith("#"):
        tokens[index].attrSet("href", f"#{env.get('prefix', '')}{href[1:]}")
    return str(renderer.renderToken(tokens, index, options, env))


def _mail_paragraph(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f"{renderer.renderToken(tokens, index, options, env)}{tokens[index].meta.get('anchor', '')}"


def _set_size(token: Token, *, most: int | None) -> None:
    """Name the size of one of our own images, so that nothing jumps while it loads."""
    if size := image_size(str(token.attrGet("src") or "")):
        width = min(size[0], most or size[0])
        token.attrSet("width", str(width))
        token.attrSet("height", str(round(size[1] * width / size[0])))


def image_size(src: str) -> tuple[int, int] | None:
    """Return the width and height in pixels of one of our own images, None of any other."""
    name = own_name(src)
    return images.stored_size(name) if name else None


def own_name(src: str) -> str:
    """Return the name under which an image of ours is stored, by its address; empty for any other."""
    try:
        path = urlsplit(src.removeprefix(settings.SITE_URL)).path
    except ValueError:
        return ""
    return path.removeprefix(settings.MEDIA_URL) if path.startswith(settings.MEDIA_URL) else ""


def _footnote_back(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    name = renderer.rules["footnote_anchor_name"](tokens, index, options, env)
    again = f":{tokens[index].meta['subId']}" if tokens[index].meta["subId"] > 0 else ""
    label = _("Back to the text")
    return f' <a href="#fnref{name}{again}" class="footnote-backref" aria-label="{label}">\u21a9\ufe0e</a>'


def _mail_footnote_ref(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    name = renderer.rules["footnote_anchor_name"](tokens, index, options, env)
    meta = tokens[index].meta
    anchor = _anchor(f"fnref{name}:{meta['subId']}" if meta.get("subId", 0) > 0 else f"fnref{name}")
    return f'{anchor}<sup><a href="#fn{name}">[{meta["id"] + 1}]</a></sup>'


def _mail_footnote_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Open a footnote; its anchor goes into its first paragraph, since it would push the number away before it."""
    name = renderer.rules["footnote_anchor_name"](tokens, index, options, env)
    if tokens[index + 1].type != "paragraph_open":
        return f"<li>{_anchor(f'fn{name}')}"
    tokens[index + 1].meta["anchor"] = _anchor(f"fn{name}")
    return "<li>"


def _mail_footnotes_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="footnotes"><ol>\n'


def _mail_footnotes_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</ol></div>\n"


def _footnotes_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<section class="footnotes" role="region" aria-label="{_("Footnotes")}">\n<ol>\n'


def _checkbox(found: re.Match[str]) -> str:
    """Show a task's box as a sign: a form field that can't be used helps nobody."""
    sign, label = ("☑", _("done")) if found.group(1) is not None else ("☐", _("open"))
    return f'<span class="task" role="img" aria-label="{label}">{sign}</span>'


def _cleaner(target: str) -> Callable[[str], str]:
    mail = target == "email"
    cleaner = nh3.Cleaner(
        tags=TAGS,
        attributes=MAIL_ATTRIBUTES if mail else WEB_ATTRIBUTES,
        url_schemes=SCHEMES,
        link_rel=None if mail else "noopener noreferrer",
        filter_style_properties=STYLE_PROPERTIES if mail else set(),
        attribute_filter=_mail_attribute if mail else _web_attribute,
    )
    return cleaner.clean


def _mail_attribute(tag: str, attribute: str, value: str) -> str | None:
    """Make addresses whole, and drop classes of others and styles with more than plain values.

    The sanitiser looks at the names of styles only.
    """
    if attribute == "class":
        return value if value in MAIL_CLASSES else None
    if attribute == "style":
        return value if PLAIN_STYLE.fullmatch(value) else None
    return absolute(value) if attribute in ("href", "src") else value


def _web_attribute(tag: str, attribute: str, value: str) -> str | None:
    """Let `srcset` name copies of our own images only: an author's own could lead a reader's browser elsewhere."""
    if attribute == "srcset":
        return value if OWN_COPIES.fullmatch(value) and ".." not in value else None
    return value if attribute != "sizes" or value == IMAGE_SIZES else None


def absolute(address: str) -> str:
    """Make an address of our own whole: a mail has no page to be relative to."""
    try:
        own = not address.startswith("#") and not urlsplit(address).scheme
        return urljoin(f"{settings.SITE_URL}/", address) if own else address
    except ValueError:  # an address that can't be read is left as it is
        return address


WEB_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)
RULES: dict[str, dict[str, Callable[..., str]]] = {
    "web": {
        "html_inline": _web_raw,
        "html_block": _web_raw,
        "footnote_anchor": _footnote_back,
        "footnote_block_open": _footnotes_open,
        "heading_close": _permalink,
        "fence": _web_code,
        "code_block": _web_code,
        "table_open": _table_open,
        "table_close": _table_close,
        "th_open": _aligned_cell,
        "td_open": _aligned_cell,
        "image": _web_image,
    },
    "email": {
        "html_inline": _mail_raw,
        "html_block": _mail_raw,
        "heading_open": _mail_heading,
        "paragraph_open": _mail_paragraph,
        "link_open": _mail_link,
        "fence": _mail_code,
        "code_block": _mail_code,
        "alert_open": _alert_open,
        "alert_close": _alert_close,
        "alert_title_open": _alert_title,
        "table_open": _mail_table_open,
        "table_close": _mail_table_close,
        "th_open": _mail_cell,
        "td_open": _mail_cell,
        "image": _mail_image,
        "footnote_ref": _mail_footnote_ref,
        "footnote_anchor": _footnote_back,
        "footnote_open": _mail_footnote_open,
        "footnote_block_open": _mail_footnotes_open,
        "footnote_block_close": _mail_footnotes_close,
    },
}
PARSERS = {target: _parser(target) for target in RULES}
CLEANERS = {target: _cleaner(target) for target in RULES}


# Plain text


def _words(token: Token) -> str:
    if token.children is None:
        return token.content
    written = ("text", "code_inline", "image")
    breaks = ("softbreak", "hardbreak")
    parts = [child.content if child.type in written else " " * (child.type in breaks) for child in token.children]
    return " ".join("".join(parts).split())


def _blocks(nodes: Sequence[SyntaxTreeNode], width: int) -> str:
    # The parser hides the paragraphs of a tight list: what follows one stands right below it.
    gap = "\n" if any(node.type == "paragraph" and node.hidden for node in nodes) else "\n\n"
    return gap.join(filter(None, (_block(node, width) for node in nodes)))


def _block(node: SyntaxTreeNode, width: int) -> str:
    writer = BLOCKS.get(node.type)
    if writer:
        return writer(node, width)
    if node.type == "inline":
        return _wrap(_inline(node), width)
    return _blocks(node.children, width)


def _wrap(text: str, width: int) -> str:
    """Wrap each line of `text`, never breaking an address."""
    lines = text.split("\n")
    return "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines)


def _inline(node: SyntaxTreeNode) -> str:
    raw = _Raw()
    return "".join(raw.write(child.content) if child.type == "html_inline" else _span(child) for child in node.children)


def _span(node: SyntaxTreeNode) -> str:
    if node.type == "link":
        return _link(_inline(node), str(node.attrs.get("href", "")))
    if node.type == "image":
        return _picture(node.content)
    if node.type == "footnote_ref":
        return f"[{node.meta['id'] + 1}]"
    if node.type in SIGNS:
        return SIGNS[node.type]
    if node.type in AROUND:
        return AROUND[node.type] + _inline(node) + AROUND[node.type]
    return _inline(node) if node.children else node.content


SIGNS = {"softbreak": " ", "hardbreak": "\n", "footnote_anchor": ""}
AROUND = {"em": "_", "strong": "*", "s": "~"}


def _link(text: str, href: str) -> str:
    """Return a link's words and where it leads; within the text it leads nowhere, and an address is its own words."""
    url = absolute(href)
    if not href or href.startswith("#"):
        return text
    if text in ("", url, url.partition("://")[2]):
        return url
    return text if url == f"mailto:{text}" else f"{text} <{url}>"


def _picture(alt: str) -> str:
    return _("[Image: %(alt)s]") % {"alt": alt} if alt else _("[Image]")


class _Raw:
    """Writes raw tags as plain text, one after the other: where links lead and what images show stays known."""

    def __init__(self) -> None:
        self._hrefs: list[str] = []

    def write(self, tag: str) -> str:
        found = RAW_TAG.match(tag)
        if not found:
            return ""
        name = found[2].lower()
        if found[1]:
            return self._link_end() if name == "a" else RAW_ENDS.get(name, "")
        if name == "a":
            self._hrefs.append(_said(tag).get("href", ""))
        return _picture(_said(tag).get("alt", "")) if name == "img" else RAW_BEGINS.get(name, "")

    def _link_end(self) -> str:
        href = self._hrefs.pop() if self._hrefs else ""
        return f" <{absolute(href)}>" if href and not href.startswith("#") else ""


RAW_BEGINS = {"br": "\n", "li": "\n- ", "hr": "\n\n* * *\n\n"}
RAW_ENDS = {"td": "  ", "th": "  ", "tr": "\n"} | dict.fromkeys(
    ("blockquote", "div", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul"), "\n\n"
)


def _raw_html(node: SyntaxTreeNode, width: int) -> str:
    raw = _Raw()
    pieces = re.split(r"(<[^<>]*>)", re.sub(r"\s+", " ", node.content))
    text = "".join(raw.write(piece) if n % 2 else html.unescape(piece) for n, piece in enumerate(pieces))
    lines = "\n".join(line.strip() for line in text.split("\n")).strip()
    return _wrap(re.sub(r"\n{3,}", "\n\n", lines), width)


def _heading(node: SyntaxTreeNode, width: int) -> str:
    words = _inline(node.children[0])
    return f"{words}\n{('=' if node.tag == 'h1' else '-') * min(len(words), width)}"


def _code(node: SyntaxTreeNode, width: int) -> str:
    return textwrap.indent(node.content.rstrip("\n"), "    ")


def _quote(node: SyntaxTreeNode, width: int) -> str:
    return _quoted(_blocks(node.children, width - 2))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _list(node: SyntaxTreeNode, width: int) -> str:
    start = int(node.attrs.get("start", 1))
    items = [_item(item, f"{start + n}. " if node.tag == "ol" else "- ", width) for n, item in enumerate(node.children)]
    loose = any("\n\n" in item for item in items)
    return ("\n\n" if loose else "\n").join(items)


def _item(node: SyntaxTreeNode, bullet: str, width: int) -> str:
    if "checked" in node.meta:
        bullet += "[x] " if node.meta["checked"] else "[ ] "
    body = _blocks(node.children, width - len(bullet))
    return bullet + textwrap.indent(body, " " * len(bullet)).lstrip()


def _table(node: SyntaxTreeNode, width: int) -> str:
    rows = [[_inline(cell.children[0]) for cell in row.children] for part in node.children for row in part.children]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return _narrow_table(rows)
    numbers = ["right" in str(cell.attrs.get("style", "")) for cell in node.children[0].children[0].children]
    lines = ["  ".join(map(_cell, row, widths, numbers)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * size for size in widths), *lines[1:]])


def _cell(text: str, size: int, right: bool) -> str:
    return text.rjust(size) if right else text.ljust(size)


def _narrow_table(rows: list[list[str]]) -> str:
    """Show a table too wide for a line as one small list a row."""
    head, *body = rows
    return "\n\n".join(
        "\n".join(f"{name}: {cell}" if name else cell for name, cell in zip(head, row, strict=True)) for row in body
    )


def _rule(node: SyntaxTreeNode, width: int) -> str:
    return "* * *"


def _alert(node: SyntaxTreeNode, width: int) -> str:
    title, *blocks = node.children
    return _quoted(f"{_inline(title.children[0]).upper()}\n{_blocks(blocks, width - 2)}")


def _footnote(node: SyntaxTreeNode, width: int) -> str:
    return _item(node, f"[{node.meta['id'] + 1}] ", width)


def _footnotes(node: SyntaxTreeNode, width: int) -> str:
    head = _("Footnotes")
    return "\n".join([head, "-" * len(head), *(_footnote(child, width) for child in node.children)])


BLOCKS: dict[str, Callable[[SyntaxTreeNode, int], str]] = {
    "heading": _heading,
    "fence": _code,
    "code_block": _code,
    "blockquote": _quote,
    "alert": _alert,
    "bullet_list": _list,
    "ordered_list": _list,
    "table": _table,
    "hr": _rule,
    "html_block": _raw_html,
    "footnote_block": _footnotes,
}
