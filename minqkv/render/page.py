"""A page of HTML that stands alone: no network, nothing from elsewhere, light and dark.

Parts are made by functions and put together by `page`. Text is escaped by all of them: only what is
`Markup`, which they return, enters a page as it is. The style is in page.css. The only script,
page.js, sorts tables, opens answers, and shows in a map what a token attends to; everything else
works without it. A policy in the page forbids every other script and every request.

    page("Title", heading("Results", 2), table("Scores", [("arm", "left"), ("score", "right")],
         [["qkv", ".98"], ["q-k=v", (".97", "good")]]))
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from . import svg
from .layout import number, parts

_EMPTY = {"br", "img", "link", "meta"}  # elements that have no end
_ABOVE, _BELOW = "31,95,191", "179,71,0"  # shades of numbers: --k0 and --k1 of svg.py, light
_ABSENT = "–"  # how a table says that there is no value


class Markup(str):
    """HTML that is finished. Any other string is text, and is escaped."""

    __slots__ = ()


def tag(name, /, *content, **attributes):
    """One element around its content, text or Markup. None in it is left out, and a list is taken
    apart. Attributes are text or numbers: `class_`, `aria_label`; True: without a value; None:
    left out.
    """
    listed = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is not None:
            listed += f" {key}" + ('=""' if value is True else f'="{svg.clean(value)}"')
    if name in _EMPTY:
        return Markup(f"<{name}{listed}>")
    return Markup(f"<{name}{listed}>{joined(*content)}</{name}>")


def joined(*content, between=""):
    """Markup of several pieces: see `tag`."""
    pieces = []
    for piece in content:
        if isinstance(piece, (list, tuple)):
            pieces.append(joined(*piece, between=between))
        elif piece is not None:
            pieces.append(piece if isinstance(piece, Markup) else svg.clean(piece))
    return Markup(between.join(pieces))


# ---- text


def inline(text, plain=lambda words: words):
    """`code` between backquotes and **strong** words of a text, as Markup. `plain` is asked what
    becomes of the other words.
    """
    made = []
    for part, style in parts(text):
        if style:
            made.append(tag(style, part[1:-1] if style == "code" else part))
        else:
            made.append(plain(part))
    return joined(*made)


def paragraph(text, class_=None):
    """A paragraph of text with `code` and **strong** words, or of Markup."""
    return tag("p", text if isinstance(text, Markup) else inline(text), class_=class_)


def listed(items, ordered=False):
    """A list; its items are text with `code`, or Markup."""
    made = [tag("li", item if isinstance(item, Markup) else inline(item)) for item in items]
    return tag("ol" if ordered else "ul", *made)


def anchor(text):
    """A name for a heading in the address of a page."""
    return "-".join(re.findall(r"\w+", text.lower())) or "part"


def heading(text, level, name=None):
    """A heading of a level from 1 to 4; others can link to its `name`, by default `anchor(text)`.
    A page takes care that its names differ.
    """
    return tag(f"h{level}", text, id=name or anchor(text))


def link(text, to):
    """A link to an address of the web, or within this page or folder; anything else stays text."""
    scheme = re.match(r"[^/?#]*:", to)
    return tag("a", text, href=to) if not scheme or scheme[0] in ("http:", "https:") else text


def code(text):
    """Lines of code or of a command, as they are. They scroll where they are too long."""
    return tag("pre", tag("code", text), tabindex="0")


def fold(summary, *content, unfolded=False, class_=None):
    """Content that opens below a summary."""
    return tag("details", tag("summary", summary), *content, open=unfolded or None, class_=class_)


# ---- tables and arrays


def value(text):
    """What a cell of numbers is sorted by: its first number, or None. "−.51 ± .28" is -0.51."""
    found = re.search(r"[-−]?(\d[\d,]*\.?\d*|\.\d+)(e[-+−]?\d+)?", text)
    return found and float(found[0].replace(",", "").replace("−", "-"))


def table(caption, columns, rows, sortable=True):
    """A table in its own scrolling box.

    `columns` are (header, "left" or "right"), and those on the right hold numbers, by which they
    are sorted. A cell is text, a pair (text, class: good, bad, strong or note), or Markup. The
    first of a row names it.
    """
    sides = [side for _, side in columns]
    heads = [tag("th", text, scope="col", class_=side) for text, side in columns]
    body = [tag("tr", [_cell(*of) for of in zip(row, sides, range(len(row)), strict=True)])
            for row in rows]  # fmt: skip
    parts = (_caption(caption), tag("thead", tag("tr", *heads)), tag("tbody", *body))
    made = tag("table", *parts, class_="sortable" if sortable and len(rows) > 1 else None)
    return _scrolling(made, caption)


def _cell(cell, side, place):
    """A cell of a table, with what it is sorted by where that is more than nothing."""
    text, style = cell if isinstance(cell, tuple) else (cell, "")
    plain = re.sub(r"<[^>]*>", "", text) if isinstance(text, Markup) else str(text)
    key = value(plain) if side == "right" else plain.casefold()
    key = None if plain in ("", _ABSENT) or key is None else str(key)
    of_row = {"scope": "row"} if not place else {}
    class_ = f"{side} {style}".rstrip()
    return tag("td" if place else "th", text, **of_row, class_=class_, data_value=key)


def _caption(text):
    """A caption that stays where it is while its table scrolls."""
    return tag("caption", tag("span", text))


def _scrolling(content, label):
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def array(caption, values, rows=None, columns=None, digits=3, shaded=True):
    """A matrix of numbers (rows of values; None is masked) as a table. With `shaded`, each lies on
    a shade of its size: blue above zero and orange below, from 0 to 1 or to the largest.
    """
    width = max(map(len, values), default=0)
    rows, columns = rows or range(len(values)), columns or range(width)
    sizes = [abs(v) for row in values for v in row if not isinstance(v, str) and svg.placeable(v)]
    limit = max([1, *sizes])

    def cell(v):
        known = shaded and not isinstance(v, str) and svg.placeable(v)
        if not known:
            return tag("td", number(v, digits))
        shade = f"{_BELOW if v < 0 else _ABOVE},{svg.number(0.45 * abs(v) / limit)}"
        return tag("td", number(v, digits), style=f"background-color:rgba({shade})")

    heads = [tag("th", text, scope="col") for text in ("", *columns)]
    heads[0] = tag("td")  # the corner names nothing
    body = [tag("tr", tag("th", name, scope="row"), [cell(v) for v in row])
            for name, row in zip(rows, values, strict=True)]  # fmt: skip
    parts = (_caption(caption), tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return _scrolling(tag("table", *parts, class_="array"), caption)


# ---- figures


def drawing(text, class_=None):
    """A drawing of svg.py as a part of a page, which has its colours already. Its letters become
    no larger than those of the page.
    """
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
    inner = Markup(re.sub(r"<style>.*?</style>\n?", "", text, count=1, flags=re.S).strip())
    return tag("div", inner, class_=class_, style=f"max-width:{svg.number(1.2 * width)}px")


def figure(wide, narrow=None, caption=None):
    """A drawing with a caption. `narrow` takes its place on narrow screens."""
    caption = caption and tag("figcaption", caption)
    if narrow is None:
        return tag("figure", drawing(wide), caption)
    both = drawing(wide, "wide has-narrow"), drawing(narrow, "narrow has-wide")
    return tag("figure", *both, caption)


def gallery(figures):
    """Small figures beside each other, as many as fit."""
    return tag("div", *figures, class_="gallery")


# ---- the page


@cache
def _part(name):
    return files("minqkv.render").joinpath(name).read_text("utf-8")


def contents(links, label="Contents"):
    """Links (text, address) for the top of a page."""
    items = [tag("li", link(text, to)) for text, to in links]
    return tag("nav", tag("ul", *items), class_="top", aria_label=label)


def page(title, *content, description="", top=None, footer=None, kind=""):
    """The text of an HTML file. `top` is shown below the title, `footer` at the end; `kind` is a
    class for page.css.
    """
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    policy += "; base-uri 'none'; form-action 'none'"
    paper = f"\n@media print {{ .mq {{ {svg.LIGHT} }} }}\n"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="minqkv"),
        tag("meta", name="description", content=description) if description else None,
        tag("title", title),
        tag("style", Markup(svg.STYLE + _part("page.css") + paper)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", heading(title, 1, "top"), top),
        tag("main", *content, id="content", tabindex="-1"),
        footer and tag("footer", footer),
        tag("script", Markup(script)),
        class_=f"mq {kind}".rstrip(),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
