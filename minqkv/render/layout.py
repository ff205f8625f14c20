"""Lesson events as lines of text that fit a width. Styles are only names here; the terminal gives
them colours.

Nothing is said by colour alone: shading repeats numbers, and a masked entry is a dot. A wide matrix
comes in blocks of columns, and no number is ever cut.
"""

import ast
import io
import math
import re
import textwrap
import tokenize
from collections import defaultdict
from dataclasses import dataclass

PROSE_WIDTH = 88  # longer lines of prose are hard to read, however wide the terminal
SHADES = " ░▒▓█"
SPELLED = {
    "√": "sqrt ", "ᵀ": "^T", "⁻¹": "^-1", "α": "alpha", "β": "beta", "ε": "eps", "σ": "sigma",
    "Σ": "sum ", "∂": "d", "∞": "inf", "·": "*", "×": "x", "−": "-", "–": "-", "—": "-", "±": "+/-",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->", "←": "<-", "⟨": "<", "⟩": ">",
    "⌊": "floor(", "⌋": ")", "²": "^2", "⁶": "^6", "⁹": "^9", "₀": "_0", "₁": "_1",
    "₂": "_2", "ᵢ": "_i", "ⱼ": "_j", "’": "'", "“": '"', "”": '"', "…": "...", "µ": "u",
    "\u00a0": " ",
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What is drawn on: columns, and what its encoding can hold."""

    width: int = 80
    encoding: str = "utf-8"

    def holds(self, text):
        """Whether the encoding has all these characters."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True


def lines(event, page):
    """The event as lines; a line is a list of (text, style) whose lengths add up to at most the
    page's width.
    """
    laid = _LAYOUTS[event["event"]](legible(event, page), page)
    return [piece for line in laid for piece in _fold(line, page.width)]


def legible(value, page):
    """The same event with each character that the encoding lacks spelled out: √ becomes "sqrt "."""
    if isinstance(value, str):
        if page.holds(value):
            return value
        return "".join(c if page.holds(c) else SPELLED.get(c, "?") for c in value)
    if isinstance(value, dict):
        return {legible(key, page): legible(item, page) for key, item in value.items()}
    return [legible(item, page) for item in value] if isinstance(value, (list, tuple)) else value


def _fold(line, width):
    """A line that is too long, in pieces."""
    pieces, room = [[]], width
    for text, style in line:
        while len(text) > room:
            pieces[-1].append((text[:room], style))
            text, room = text[room:], width
            pieces.append([])
        if text:
            pieces[-1].append((text, style))
            room -= len(text)
    return pieces


# ---- prose


def parts(text):
    """`code`, **strong** and plain words as (text, style). The ticks stay: without colour only they
    show what is code.
    """
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        if part[:1] == "`" and len(part) > 1:
            yield part, "code"
        elif part[:2] == "**" and len(part) > 4:
            yield part[2:-2], "strong"
        elif part:
            yield part, ""


def paragraphs(text):
    """Prose as a list for each paragraph: [(kind, text)], where the kind is "formula", "title",
    "item" or "". Only a paragraph with items has several.
    """
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        rows = paragraph.split("\n")
        if all(row.startswith("    ") for row in rows):
            yield [("formula", "\n".join(row.rstrip()[4:] for row in rows))]
        elif rows[0].startswith("#"):
            yield [("title", paragraph.lstrip("# "))]
        else:
            items = re.split(r"\n(?=- )", paragraph)
            yield [("item" * item.startswith("- "), " ".join(item.split())) for item in items]


def wrap(text, width, style="", indent=""):
    """A paragraph of `code`, **strong** and plain words, filled to lines. Code is not broken where
    it fits.
    """
    # textwrap would make several blanks of a tab; an escape code would reach the terminal
    text = re.sub(r"[\t\v\f\r\x1b]", " ", text)
    letters = []  # (character, style)
    for part, kind in parts(text):
        part = part.replace(" ", "\u00a0") if kind == "code" else part
        letters += [(c, kind or style) for c in part]
    plain = "".join(c for c, _ in letters)
    options = {"subsequent_indent": indent, "break_on_hyphens": False}
    at, laid = 0, []
    for row in textwrap.wrap(plain, max(1, width), **options) or [""]:
        line = [(indent, "")] if laid and indent else []
        for c in row[len(indent) if laid else 0 :]:
            while letters[at][0] != c:  # the white space that a line break swallowed
                at += 1
            line.append((c.replace("\u00a0", " "), letters[at][1]))
            at += 1
        laid.append(_join(line))
    return laid


def _join(line):
    """Neighbours of one style as one piece."""
    joined = []
    for text, style in line:
        if joined and joined[-1][1] == style:
            joined[-1] = (joined[-1][0] + text, style)
        else:
            joined.append((text, style))
    return joined


def _prose(event, page):
    width, laid = min(page.width, PROSE_WIDTH), []
    for paragraph in paragraphs(event["text"]):
        for kind, text in paragraph:
            if kind == "formula":
                laid += [[(f"  {row}".rstrip(), "code")] for row in text.split("\n")]
            else:
                style = "title" if kind == "title" else ""
                laid += wrap(text, width, style, indent="  " if kind == "item" else "")
        laid.append([])
    return laid


def _say(event, page):
    laid = []
    for row in event["text"].split("\n"):
        laid += wrap(row, min(page.width, PROSE_WIDTH), event.get("style", ""))
    return [*laid, []]


def _step(event, page):
    title = f"step {event['number']} of {event['of']}: {event['title']}"
    rule = [("-" * min(page.width, PROSE_WIDTH), "note")]
    return [[], rule, *wrap(title, page.width, "title"), []]


def _code(event, page):
    source = re.sub(r"[\v\f\r\x1b]", " ", event["source"]).expandtabs(4)
    laid, breaks = [], _breaks(source)
    for line, row in enumerate(source.split("\n"), 1):
        beside, mark, comment = row.rpartition("  # ")
        margin = " " * (len(row) - len(row.lstrip()))
        if mark and len(row) + 2 > page.width:  # a comment with no room beside its line goes above
            room = max(10, page.width - len(margin) - 4)
            for piece in textwrap.wrap(comment, room):
                laid.append([(f"  {margin}# {piece}"[: page.width], "code")])
            row = beside.rstrip()
        pieces = _pieces(row, breaks[line], page.width, margin)
        laid += [[(piece, "code")] for piece in pieces]
    return [*laid, []]


def _pieces(row, breaks, width, margin):
    """A row of code, two columns in, in pieces that fit where that is possible.

    `breaks` is what `_breaks` gives for the row; None for prose.
    """
    further = margin + " " * 6
    if breaks is None:
        options = {"break_on_hyphens": False, "replace_whitespace": False}
        comment = row.lstrip().startswith("#")
        options["subsequent_indent"] = f"  {margin}# " if comment else further
        return textwrap.wrap("  " + row, width, **options) or [""]
    pieces, start, indent = [], 0, "  "
    while len(indent) + len(row) - start > width:
        room = start + width - len(indent)
        fits = [at for at, mark in breaks.items() if start < at and len(mark) + at - 1 <= room]
        if not fits:
            break
        at = fits[-1]
        pieces.append(indent + row[start:at].rstrip() + breaks[at])
        start, indent = at, further
    return [*pieces, (indent + row[start:]).rstrip()]


def _breaks(source):
    """Row number -> {column: what has to end the row that is broken there}, for Python source.

    Rows break between tokens, so never inside a string: within brackets as they are, elsewhere
    after a backslash. None for a row of a docstring or a comment, and for any text that is not
    Python.
    """
    try:
        ast.parse(textwrap.dedent(source))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        return defaultdict(lambda: None)
    found, depth, quoted, before = defaultdict(dict), 0, 0, None
    opens, closes = (getattr(tokenize, f"FSTRING_{end}", -1) for end in ("START", "END"))
    for token in tokens:
        (row, column), text = token.start, token.string
        prose = row != token.end[0] or text.startswith(("#", '"""'))
        follows = before and before.end[0] == row and before.end[1] < column
        if prose and not (found[row] and text.startswith("#")):
            found.update(dict.fromkeys(range(row, token.end[0] + 1)))
        elif follows and not quoted and not prose:
            found[row][column] = "" if depth else " \\"
        quoted += (token.type == opens) - (token.type == closes)
        if token.type == tokenize.OP and not quoted:
            depth += (text in "([{") - (text in ")]}")
        before = token
    return found


# ---- arrays


def number(value, digits=3):
    """One entry: 0.731, 12, "." where masked."""
    if value is None:
        return "."
    if isinstance(value, (str, bool, int)):
        return str(value)
    text = f"{value:.{digits}f}"
    return text if len(text) <= 7 + digits else f"{value:.{digits}e}"


def _array(event, page):
    name, shape, values = event["name"], tuple(event["shape"]), event["values"]
    if not shape:
        return [[(f"{name} = {number(values, event['digits'])}", "strong")], []]
    laid, size = [[(name, "strong")]], f"  {shape}"
    if len(name + size) > page.width:
        laid = wrap(name, page.width - len(size), "strong")
    laid[-1].append((size, "note"))
    if len(shape) <= 2:
        return [*laid, *_matrix(event, page, values if len(shape) == 2 else [values]), []]
    for index, part in _matrices(values, len(shape) - 2):
        laid += [[(f"[{', '.join(map(str, index))}]", "note")], *_matrix(event, page, part)]
    return [*laid, []]


def _matrices(values, depth, index=()):
    """(index, matrix) of everything above the last two axes."""
    if not depth:
        yield index, values
        return
    for i, part in enumerate(values):
        yield from _matrices(part, depth - 1, (*index, i))


def _matrix(event, page, values):
    shaded = event["event"] == "heat"
    glyphs = shaded and page.holds(SHADES)
    cells = []
    for row in values:
        cells.append([])
        for value in row:
            text, level = number(value, event["digits"]), _level(value) if shaded else 0
            style = f"heat{level}" if shaded else ""
            cells[-1].append((text + (SHADES[level] if glyphs else ""), style))
    widest = max((len(text) for row in cells for text, _ in row), default=0)
    cells = [[(text.rjust(widest), style) for text, style in row] for row in cells]
    several = len(values) > 1
    columns, labels = event["columns"], event["rows"]
    if not columns and several and len(values[0]) > 1:
        columns = [str(j) for j in range(len(values[0]))]
    if not labels:
        labels = [str(i) for i in range(len(values))] if several else [""]
    if glyphs and columns:  # a label is above the number's last digit, not above its shade
        columns = [f"{label} " for label in columns]
    return grid(columns, labels, cells, page.width)


def _level(value):
    """How dark an entry is shaded, 0 to 4; words, masked and negative entries are not."""
    shown = isinstance(value, (int, float)) and value >= 0
    return min(4, int(4 * value + 0.5)) if shown else 0


def grid(header, labels, rows, width, left=(), corner=""):
    """Cells (text, style) below a header (or None) and beside labels, in blocks of columns that fit
    the width.

    Columns are aligned to the right, those in `left` to the left; `corner` heads the labels.
    """

    def aligned(text, j):
        return text.ljust(widths[j]) if j in left else text.rjust(widths[j])

    count = len(rows[0]) if rows else len(header or ())
    beside = max(map(len, labels), default=0)
    widths = [
        max([len(row[j][0]) for row in rows] + ([len(header[j])] if header else []))
        for j in range(count)
    ]
    laid = []
    for block in _blocks(widths, beside, width):
        if laid:
            laid.append([])
        if header:
            heads = "".join("  " + aligned(header[j], j) for j in block)
            laid.append([(corner.ljust(beside) + heads.rstrip(), "note")])
        for label, row in zip(labels, rows, strict=True):
            line = [(label.ljust(beside), "note")]
            for j in block:
                text, style = row[j]
                line += [("  ", ""), (aligned(text, j), style)]
            laid.append(line)
    return laid


def _blocks(widths, beside, limit):
    """Column numbers in groups that fit next to labels of the width `beside`."""
    blocks, used = [], limit + 1
    for j, width in enumerate(widths):
        if used + 2 + width > limit:
            blocks.append([])
            used = beside
        blocks[-1].append(j)
        used += 2 + width
    return blocks


def _table(event, page):
    (first, *columns), rows = event["columns"], event["rows"]
    labels = [number(row[0]) for row in rows]
    beside = max(map(len, [first, *labels]))
    cells = [[(number(value), "") for value in row[1:]] for row in rows]
    left = {j for j in range(len(columns)) if any(isinstance(row[j + 1], str) for row in rows)}
    labels = [label.ljust(beside) for label in labels]
    body = grid(columns, labels, cells, page.width, left, first)
    return [*wrap(event["title"], page.width, "strong"), *body, []]


# ---- curves


def _curve(event, page, height=8):
    def scaled(ys):
        return [math.log10(y) for y in ys] if event["log"] else ys

    series = {name: scaled(ys) for name, ys in event["series"].items()}
    low, high = min(map(min, series.values())), max(map(max, series.values()))
    step = (high - low) / (height - 1) or 1.0
    columns = max(2, min(page.width - 11, 64, max(map(len, series.values()))))
    rows = [[" "] * columns for _ in range(height)]
    marks = dict(zip(series, "abcdefghijklmnopqrstuvwxyz", strict=False))
    for name, ys in series.items():
        for c in range(columns):
            y = ys[round(c * (len(ys) - 1) / (columns - 1))]
            row = rows[round((y - low) / step)]
            row[c] = marks[name] if row[c] in (" ", marks[name]) else "*"  # where curves meet
    laid = wrap(event["title"] + (" (logarithmic)" if event["log"] else ""), page.width, "strong")
    for i in reversed(range(height)):
        y = low + i * step
        label = f"{10**y if event['log'] else y:9.3g} |"
        laid.append([(label, "note"), ("".join(rows[i]).rstrip(), "")])
    laid.append([(" " * 10 + "+" + "-" * columns, "note")])
    for name, ys in event["series"].items():
        ends = f"starts at {ys[0]:.3g}, ends at {ys[-1]:.3g}"
        laid += wrap(f"{marks[name]}  {name}: {ends}", page.width, indent="   ")
    return [*laid, [(f"   horizontal: {event['x']}, {len(ys)} values", "note")], []]


def roof(event):
    """(left, right): the powers of ten that hold all points and the corner of the roof."""
    xs = [event["rate"] / event["bandwidth"], *event["points"].values()]
    return math.floor(math.log10(min(xs))), math.floor(math.log10(max(xs))) + 1


def under(event, intensity):
    """The numbers of a point of the roofline, in words."""
    rate = min(event["rate"], intensity * event["bandwidth"]) / 1e12
    return f"{intensity:.3g} operations per byte, at most {rate:.3g} trillion per second"


def _roofline(event, page, height=10):
    (left, right), bandwidth, top = roof(event), event["bandwidth"], math.log10(event["rate"])
    columns, low = max(2, min(page.width - 11, 64)), left + math.log10(bandwidth)
    across, up = (columns - 1) / (right - left), (height - 1) / (top - low or 1)
    rows = [[" "] * columns for _ in range(height)]
    for c in range(columns):
        rows[round((min(top, low + c / across) - low) * up)][c] = "."
    marks = dict(zip(event["points"], "abcdefghijklmnopqrstuvwxyz", strict=False))
    for name, x in event["points"].items():
        c = round((math.log10(x) - left) * across)
        row = rows[round((min(top, low + c / across) - low) * up)]
        row[c] = marks[name] if row[c] == "." else "*"  # where points meet
    laid = [*wrap(event["title"], page.width, "strong")]
    for i in reversed(range(height)):
        label = f"{10 ** (low + i / up) / 1e12:9.3g} |"
        laid.append([(label, "note"), ("".join(rows[i]).rstrip(), "")])
    ticks = "".join(f"{10.0**p:g}".ljust(round(across)) for p in range(left, right))
    laid += [[(f"{'':10}+{'-' * columns}", "note")], [(f"{'':11}{ticks}"[: page.width], "note")]]
    for name, x in event["points"].items():
        laid += wrap(f"{marks[name]}  {name}: {under(event, x)}", page.width, indent="   ")
    axes = "horizontal: operations per byte; vertical: trillion operations per second"
    return [*laid, *wrap(f"   {axes}", page.width, "note", "   "), []]


# ---- questions and comparisons


def _predict(event, page):
    width = min(page.width, PROSE_WIDTH)
    laid = wrap("? " + event["question"], width, "ask", indent="  ")
    for letter, option in zip("abcdefgh", event["options"] or (), strict=False):
        laid += wrap(f"  {letter}  {option}", width, indent="     ")
    return laid


def _answer(event, page):
    verdicts = {True: ("right: ", "good"), False: ("not quite: ", "bad"), None: ("", "strong")}
    text, style = verdicts[event["right"]]
    width = min(page.width, PROSE_WIDTH)
    return [*wrap(f"= {text}{event['answer']}", width, style, indent="  "), []]


def compared(event):
    """A comparison as a sentence."""
    verdict = "the same, bit for bit"
    if event["difference"]:
        verdict = "the same, up to rounding" if event["equal"] else "not the same"
        verdict = f"largest difference {event['difference']:.1e}, {verdict}"
    return f"{event['left']} and {event['right']}: {verdict}"


def _compare(event, page):
    style = "good" if event["equal"] else "bad"
    return [*wrap(compared(event), min(page.width, PROSE_WIDTH), style), []]


def _source(event, page):
    text = f"{event['name']}: {event['file']}, line {event['line']}"
    return [*wrap(text, page.width, "code"), []]


_LAYOUTS = {
    "prose": _prose,
    "say": _say,
    "step": _step,
    "code": _code,
    "show": _array,
    "heat": _array,
    "table": _table,
    "curve": _curve,
    "roofline": _roofline,
    "predict": _predict,
    "answer": _answer,
    "compare": _compare,
    "source": _source,
}
