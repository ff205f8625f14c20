"""The parts of a drawing as SVG text: elements, scales, ticks, marks, and labels that keep apart.

Everything is a string: no library draws, and the same input gives the same bytes. Colours are CSS
variables with a light and a dark value, and nothing is said by colour alone. Coordinates are user
units, absolute, and printed with at most two decimals. `figures.py` puts the parts together.
"""

import math
import re
from dataclasses import dataclass
from html import escape

FONT, LINE = 13, 17  # the size of text, and the height of a line
BLOCK = 420  # the width of a panel: alone on a page of 400 pixels, its text is 11.6 pixels high
GAP, MARGIN = 26, 14  # between panels, and around the page
LARGEST = 1e150  # larger values have no place on an axis

COLOURS = 8
LIGHT = """--bg:#ffffff;--ink:#1f2328;--soft:#57606a;--grid:#d8dee4;--k0:#1f5fbf;--k1:#b34700;
--k2:#0f7a3d;--k3:#8a3ab9;--k4:#b8205a;--k5:#00727c;--k6:#6b6100;--k7:#4d5661"""
STYLE = """
.mq{LIGHT}
@media (prefers-color-scheme:dark){
.mq{--bg:#0d1117;--ink:#e6edf3;--soft:#a2acb8;--grid:#30363d;--k0:#79b0ff;--k1:#ffa657;
--k2:#5fd38a;--k3:#d2a8ff;--k4:#ff8fb5;--k5:#4fd0d9;--k6:#d6c94a;--k7:#c3ccd6}}
.mq .k0{color:var(--k0)} .mq .k1{color:var(--k1)} .mq .k2{color:var(--k2)} .mq .k3{color:var(--k3)}
.mq .k4{color:var(--k4)} .mq .k5{color:var(--k5)} .mq .k6{color:var(--k6)} .mq .k7{color:var(--k7)}
.mq text{font:13px system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--ink)}
.mq .big{font-size:17px;font-weight:600} .mq .strong{font-weight:600} .mq .soft{fill:var(--soft)}
.mq .label{fill:currentColor;stroke:var(--bg);stroke-width:3px;paint-order:stroke}
.mq .line,.mq .interval,.mq .run,.mq .leader{fill:none;stroke:currentColor}
.mq .mark,.mq .seed,.mq .cell{fill:currentColor} .mq .mark{stroke:var(--bg)}
.mq .grid,.mq .cell{stroke:var(--grid)} .mq .axis{stroke:var(--soft)} .mq .back{fill:var(--bg)}
.mq .line{stroke-width:2} .mq .interval{opacity:.8} .mq .leader{stroke-width:.8;opacity:.6}
.mq .run{opacity:.3} .mq .seed{opacity:.35} .mq .mark.hollow{fill:none;stroke:currentColor}
""".replace("LIGHT", LIGHT)
SHAPES = (  # circle, square, triangle, diamond, triangle, plus, cross, two triangles, …
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z", "M-4-4H4V4H-4Z", "M0-5L5 4H-5Z",
    "M0-5.5L5.5 0 0 5.5-5.5 0Z", "M0 5L5-4H-5Z", "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3Z",
    "M-5-2l3-3 2 2 2-2 3 3-2 2 2 2-3 3-2-2-2 2-3-3 2-2Z", "M-4-5L5 0-4 5Z", "M4-5L-5 0 4 5Z",
    "M-2.5-4.5h5L5 0 2.5 4.5h-5L-5 0Z", "M-4.5-5h9L-4.5 5h9Z", "M-6-2.5H6V2.5H-6Z",
)  # fmt: skip
DASHES = ("none", "9 3", "2 3", "9 3 2 3", "14 4")


# ---- text


def number(value):
    """A coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def clean(text):
    """Text that may stand in XML: escaped, and characters that XML forbids replaced."""
    allowed = "\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff"
    return escape(re.sub(f"[^{allowed}]", "\ufffd", str(text)))


def element(name, content="", **attributes):
    """One element. `content` is markup; attributes are numbers or text: `class_`, `text_anchor`."""
    listed = ""
    for key, value in attributes.items():
        name_of_it = key.rstrip("_").replace("_", "-")
        listed += f' {name_of_it}="{clean(value) if isinstance(value, str) else number(value)}"'
    return f"<{name}{listed}>{content}</{name}>" if content else f"<{name}{listed}/>"


def write(text, x, y, class_="soft", **more):
    """Text that starts at x and whose middle is at the height y."""
    return element("text", clean(text), x=x, y=y + 0.35 * FONT, class_=class_, **more)


def text_width(text):
    """An estimate for the widest of the common fonts: which one will be used is not known here."""
    return FONT * sum(0.86 if c in "=+<>~mwMW@%&" else 0.6 for c in text)


def cut(text, width):
    """The text, or as much of it as fits before an ellipsis."""
    while text_width(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text


def wrap(text, width):
    """Lines that fit."""
    lines = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(cut(word, width))
    return lines


def paragraph(lines, x, y, class_="soft", step=LINE):
    """Lines of text below each other, from the height y on."""
    return [write(line, x, y + (i + 0.5) * step, class_) for i, line in enumerate(lines)]


# ---- the page


def page(title, description, blocks, size, columns, footer, legend=lambda width, y: ([], 0)):
    """The whole drawing: title, legend, blocks in columns, and paragraphs below.

    `legend(width, y)` gives (its elements, its height); a block is a function of its top left
    corner that gives elements. All blocks have the same `size`: (width, height).
    """
    columns = max(1, min(columns, len(blocks)))
    inner = max(BLOCK, columns * (size[0] + GAP) - GAP)
    heading = wrap(title, inner * FONT / 19)
    parts = paragraph(heading, MARGIN, MARGIN, "big", 22)
    y = MARGIN + 22 * len(heading) + 4
    drawn, height = legend(inner, y)
    parts += drawn
    y += height + 10
    for i, block in enumerate(blocks):
        row, column = divmod(i, columns)
        parts += block(MARGIN + column * (size[0] + GAP), y + row * (size[1] + GAP))
    y += math.ceil(len(blocks) / columns) * (size[1] + GAP) - GAP + 8
    below = [line for text in footer for line in wrap(text, inner)]
    parts += paragraph(below, MARGIN, y)
    width, height = inner + 2 * MARGIN, y + LINE * len(below) + MARGIN
    style = element("style", STYLE)
    back = element("rect", width=width, height=height, class_="back")
    about = [element("title", clean(title)), element("desc", clean(description)), style, back]
    content = "\n".join(["", *about, *parts, ""])
    root = {"xmlns": "http://www.w3.org/2000/svg", "class_": "mq", "role": "img", "width": "100%"}
    box = f"0 0 {number(width)} {number(height)}"
    return element("svg", content, **root, viewBox=box) + "\n"


# ---- scales and ticks


@dataclass(frozen=True)
class Scale:
    """From values between lo and hi to coordinates between start and end."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value):
        """The coordinate, not rounded."""
        lo, hi, at = (math.log(v) if self.log else v for v in (self.lo, self.hi, value))
        return self.start + (at - lo) / (hi - lo) * (self.end - self.start)


def placeable(value, log=False):
    """Whether a value has a place on such an axis: no None, NaN or infinity, no zero on a log."""
    return value is not None and abs(value) < LARGEST and (value > 1 / LARGEST or not log)


def span(values, log=False):
    """(lo, hi) that holds the values; where they are equal, with room on both sides."""
    lo, hi = min(values, default=1), max(values, default=1)
    if hi - lo > max(1e-9 * max(abs(lo), abs(hi)), 1 / LARGEST):
        return lo, hi
    room = 0.1 * abs(lo) if abs(lo) > 1e-100 else 0.5
    return (lo / 1.5, hi * 1.5) if log else (lo - room, hi + room)


def nice_ticks(lo, hi, most=5):
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (hi - lo) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [k * step for k in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)]


def log_ticks(lo, hi):
    """1, 2 and 5 times powers of ten, thinned; on a short axis, linear ticks."""
    decades = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    steps = (1, 2, 5) if hi / lo < 1000 else (1,)
    found = [m * 10.0**k for k in decades for m in steps if lo <= m * 10.0**k <= hi]
    return found[:: math.ceil(len(found) / 8)] if len(found) > 2 else nice_ticks(lo, hi)


def tick_texts(ticks):
    """The ticks as text, with as many decimals as all of them need, or three digits."""
    exact = [d for d in range(5) if all(math.isclose(t, round(t, d), rel_tol=1e-6) for t in ticks)]
    form = f",.{exact[0]}f" if exact and max(map(abs, ticks), default=0) < 1e7 else ".3g"
    return [f"{t:{form}}".replace("-", "−") for t in ticks]


# ---- marks, lines and labels


def colour(look):
    """The class that gives an element the colour of a series."""
    return f"k{look % COLOURS}"


def titled(content, told, **attributes):
    """A group that tells something when the pointer rests on it."""
    return element("g", element("title", clean(told)) + content, **attributes)


def mark(look, x, y, told, hollow=False):
    """A mark, whose shape names a series as its colour does. A hollow one rings a full one."""
    place = f"translate({number(x)} {number(y)})" + " scale(1.5)" * hollow
    class_ = f"mark {colour(look)}" + " hollow" * hollow
    return titled(
        element("path", d=SHAPES[look % len(SHAPES)]), told, class_=class_, transform=place
    )


def joined(places, class_, **more):
    """A line through places (x, y); it breaks where a place is None."""
    path, pen = "", "M"
    for place in places:
        path += f"{pen}{number(place[0])} {number(place[1])}" if place else ""
        pen = "L" if place else "M"
    return element("path", d=path, class_=class_, **more) if path else ""


def line(look, places):
    """The line of a series: its dashes name it as its colour does."""
    return joined(places, f"line {colour(look)}", stroke_dasharray=DASHES[look % len(DASHES)])


def spread(wanted, spans, top, bottom, height=LINE):
    """Heights at which labels do not meet, as near to the wanted ones as their order allows.

    Labels whose spans (x0, x1) overlap end up at least `height` apart, and all lie between top and
    bottom, where there must be room for all of them on top of each other.
    """

    def swept(heights, order, sign, *bound):
        """In this order, each label pushed past the bound and past those before it."""
        heights = list(heights)
        for n, i in enumerate(order):
            met = [j for j in order[:n] if spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]]
            least = [*bound, *(heights[j] + sign * height for j in met), heights[i]]
            heights[i] = sign * max(sign * value for value in least)
        return heights

    down = sorted(range(len(wanted)), key=lambda i: wanted[i])
    up = down[::-1]
    # both keep labels apart, so their mean does too, and it prefers neither direction
    both = zip(swept(wanted, down, 1), swept(wanted, up, -1), strict=True)
    middle = [sum(pair) / 2 for pair in both]
    return swept(swept(middle, up, -1, bottom - height / 2), down, 1, top + height / 2)
