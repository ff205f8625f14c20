"""Lesson events as lines of text that fit a width. Styles are names here; whoever has colours gives
them some.

Everything true is in the text: shading repeats numbers, a masked entry is a dot, a wide matrix
comes in blocks of columns, and no number is ever cut.
"""

import math
import re
import textwrap
from dataclasses import dataclass

PROSE_WIDTH = 88  # longer lines of prose are hard to read, however wide the terminal
SHADES = " ░▒▓█"
_SPELLED = {
    "√": "sqrt ", "ᵀ": "^T", "⁻¹": "^-1", "α": "alpha", "β": "beta", "ε": "eps", "σ": "sigma", "Σ": "sum ", "∂": "d", "∞": "inf",
    "·": "*", "×": "x", "−": "-", "–": "-", "—": "-", "±": "+/-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->",
    "←": "<-", "⟨": "<", "⟩": ">", "⌊": "floor(", "⌋": ")", "²": "^2", "₀": "_0", "₁": "_1", "₂": "_2", "ᵢ": "_i", "ⱼ": "_j",
    "’": "'", "“": '"', "”": '"', "…": "...", "µ": "u", "\u00a0": " ",
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
        return "".join(c if page.holds(c) else _SPELLED.get(c, "?") for c in value)
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


def wrap(text, width, style="", indent=""):
    """A paragraph of `code`, **strong** and plain words, filled to lines; code is not broken where
    it fits.
    """
    text = re.sub(
        r"[\t\v\f\r\x1b]", " ", text
    )  # textwrap turns a tab into several blanks; escape codes are nobody's to send
    letters = []  # (character, style); the ticks stay, for without colour they tell `it` from it
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        if part[:1] == "`" and len(part) > 1:
            letters += [("\u00a0" if c == " " else c, "code") for c in part]
        elif part[:2] == "**" and len(part) > 4:
            letters += [(c, "strong") for c in part[2:-2]]
        else:
            letters += [(c, style) for c in part]
    plain = "".join(c for c, _ in letters)
    filled = textwrap.wrap(
        plain, max(1, width), subsequent_indent=indent, break_on_hyphens=False
    ) or [""]
    at, laid = 0, []
    for number, row in enumerate(filled):
        line = [(indent, "")] if number and indent else []
        for c in row[len(indent) if number else 0 :]:
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
    for paragraph in re.split(r"\n\s*\n", event["text"].strip("\n")):
        rows = paragraph.split("\n")
        if all(row.startswith("    ") for row in rows):
            laid += [[(row.rstrip()[2:], "code")] for row in rows]
        elif rows[0].startswith("#"):
            laid += wrap(paragraph.lstrip("# "), width, "title")
        else:
            for item in re.split(r"\n(?=- )", paragraph):
                laid += wrap(
                    " ".join(item.split()), width, indent="  " if item.startswith("- ") else ""
                )
        laid.append([])
    return laid


def _say(event, page):
    width = min(page.width, PROSE_WIDTH)
    return [
        *(
            line
            for row in event["text"].split("\n")
            for line in wrap(row, width, event.get("style", ""))
        ),
        [],
    ]


def _step(event, page):
    title = f"step {event['number']} of {event['of']}: {event['title']}"
    return [
        [],
        [("-" * min(page.width, PROSE_WIDTH), "note")],
        *wrap(title, page.width, "title"),
        [],
    ]


def _code(event, page):
    laid = []
    for row in re.sub(r"[\v\f\r\x1b]", " ", event["source"]).expandtabs(4).split("\n"):
        beside, mark, comment = row.rpartition("  # ")
        margin = " " * (len(row) - len(row.lstrip()))
        if (
            mark and len(row) + 2 > page.width
        ):  # a comment with no room beside its line stands above it
            room = max(10, page.width - len(margin) - 4)
            laid += [
                [(f"  {margin}# {piece}"[: page.width], "code")]
                for piece in textwrap.wrap(comment, room)
            ]
            row = beside.rstrip()
        hang = margin + " " * 6
        options = {
            "subsequent_indent": hang,
            "break_on_hyphens": False,
            "replace_whitespace": False,
        }
        laid += [
            [(piece, "code")] for piece in textwrap.wrap("  " + row, page.width, **options) or [""]
        ]
    return [*laid, []]


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
    shape = event["shape"]
    title = [
        (event["name"], "strong"),
        ("  (" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")", "note"),
    ]
    if not shape:
        return [[(f"{event['name']} = {number(event['values'], event['digits'])}", "strong")], []]
    if len(shape) <= 2:
        return [
            title,
            *_matrix(event, page, event["values"] if len(shape) == 2 else [event["values"]]),
            [],
        ]
    laid = [title]
    for index, values in _matrices(event["values"], len(shape) - 2):
        laid += [[(f"[{', '.join(map(str, index))}]", "note")], *_matrix(event, page, values)]
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
            level = (
                min(4, int(4 * value + 0.5))
                if shaded and isinstance(value, (int, float)) and value >= 0
                else 0
            )
            text = number(value, event["digits"]) + (SHADES[level] if glyphs else "")
            cells[-1].append((text, f"heat{level}" if shaded else ""))
    widest = max((len(text) for row in cells for text, _ in row), default=0)
    cells = [[(text.rjust(widest), style) for text, style in row] for row in cells]
    columns = event["columns"] or (
        [str(j) for j in range(len(values[0]))] if len(values) > 1 and len(values[0]) > 1 else None
    )
    labels = event["rows"] or ([str(i) for i in range(len(values))] if len(values) > 1 else [""])
    if glyphs and columns:
        columns = [
            f"{label} " for label in columns
        ]  # the number's last digit, not its shade, stands below the label
    return grid(columns, labels, cells, page.width)


def grid(header, labels, rows, width, left=(), corner=""):
    """Cells (text, style) below a header (or None) and beside labels, in blocks of columns that fit
    the width.

    Columns stand to the right, those in `left` to the left; `corner` heads the labels.
    """
    count = len(rows[0]) if rows else len(header or ())
    beside = max(map(len, labels), default=0)
    widths = [
        max([len(row[j][0]) for row in rows] + ([len(header[j])] if header else []))
        for j in range(count)
    ]
    blocks, used = [], width + 1
    for j in range(count):
        if used + 2 + widths[j] > width:
            blocks.append([])
            used = beside
        blocks[-1].append(j)
        used += 2 + widths[j]
    laid = []
    for block in blocks:
        if laid:
            laid.append([])
        if header:
            heads = [
                header[j].ljust(widths[j]) if j in left else header[j].rjust(widths[j])
                for j in block
            ]
            laid.append(
                [(corner.ljust(beside) + "".join("  " + head for head in heads).rstrip(), "note")]
            )
        for label, row in zip(labels, rows, strict=True):
            line = [(label.ljust(beside), "note")]
            for j in block:
                text, style = row[j]
                line += [
                    ("  ", ""),
                    (text.ljust(widths[j]) if j in left else text.rjust(widths[j]), style),
                ]
            laid.append(line)
    return laid


def _table(event, page):
    first, *columns = event["columns"]
    labels = [first, *(number(row[0]) for row in event["rows"])]
    beside = max(map(len, labels))
    cells = [[(number(value), "") for value in row[1:]] for row in event["rows"]]
    left = {
        j for j in range(len(columns)) if any(isinstance(row[j + 1], str) for row in event["rows"])
    }
    body = grid(
        columns, [label.ljust(beside) for label in labels[1:]], cells, page.width, left, first
    )
    return [*wrap(event["title"], page.width, "strong"), *body, []]


# ---- curves


def _curve(event, page, height=8):
    series = {
        name: [math.log10(y) for y in ys] if event["log"] else ys
        for name, ys in event["series"].items()
    }
    low, high = min(map(min, series.values())), max(map(max, series.values()))
    step = (high - low) / (height - 1) or 1.0
    columns = max(2, min(page.width - 11, 64, max(map(len, series.values()))))
    rows = [[" "] * columns for _ in range(height)]
    marks = dict(zip(series, "abcdefghijklmnopqrstuvwxyz", strict=False))
    for name, ys in series.items():
        for c in range(columns):
            y = ys[round(c * (len(ys) - 1) / (columns - 1))]
            row = rows[round((y - low) / step)]
            row[c] = (
                marks[name] if row[c] in (" ", marks[name]) else "*"
            )  # a star: several curves meet
    laid = wrap(event["title"] + (" (logarithmic)" if event["log"] else ""), page.width, "strong")
    for i in reversed(range(height)):
        y = low + i * step
        laid.append(
            [(f"{10**y if event['log'] else y:9.3g} |", "note"), ("".join(rows[i]).rstrip(), "")]
        )
    laid.append([(" " * 10 + "+" + "-" * columns, "note")])
    for name, ys in event["series"].items():
        laid += wrap(
            f"{marks[name]}  {name}: {ys[0]:.3g} at first, {ys[-1]:.3g} at last",
            page.width,
            indent="   ",
        )
    return [*laid, [(f"   {event['x']} runs to the right, {len(ys)} values", "note")], []]


# ---- questions and comparisons


def _predict(event, page):
    laid = wrap("? " + event["question"], min(page.width, PROSE_WIDTH), "ask", indent="  ")
    for letter, option in zip("abcdefgh", event["options"] or (), strict=False):
        laid += wrap(f"  {letter}  {option}", min(page.width, PROSE_WIDTH), indent="     ")
    return laid


def _answer(event, page):
    text, style = {True: ("right: ", "good"), False: ("not quite: ", "bad"), None: ("", "strong")}[
        event["right"]
    ]
    return [
        *wrap(f"= {text}{event['answer']}", min(page.width, PROSE_WIDTH), style, indent="  "),
        [],
    ]


def _compare(event, page):
    verdict = "the same, up to rounding" if event["equal"] else "not the same"
    verdict = (
        f"largest difference {event['difference']:.1e}, {verdict}"
        if event["difference"]
        else "the same, bit for bit"
    )
    text = f"{event['left']} and {event['right']}: {verdict}"
    return [*wrap(text, min(page.width, PROSE_WIDTH), "good" if event["equal"] else "bad"), []]


def _source(event, page):
    return [
        *wrap(f"{event['name']}: {event['file']}, line {event['line']}", page.width, "code"),
        [],
    ]


_LAYOUTS = {
    "prose": _prose, "say": _say, "step": _step, "code": _code, "show": _array, "heat": _array, "table": _table,
    "curve": _curve, "predict": _predict, "answer": _answer, "compare": _compare, "source": _source,
}  # fmt: skip
