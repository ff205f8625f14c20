"""A forest plot: differences with their intervals, around a line at zero, as SVG text.

On a wide page names and numbers stand beside the intervals, on a narrow one above them. All rows
share one axis; where an interval goes beyond it, an arrowhead says so.
"""

from dataclasses import dataclass
from functools import partial

from . import svg
from .svg import LINE, Scale, element, number, placeable, write

ROW, END = 24, 9  # the height of a row, and the room at both ends of the axis
NAME = 280  # longer names are cut
WIDE, NARROW = 884, svg.BLOCK  # widths of a plot: that of two panels, and that of one


@dataclass(frozen=True)
class Difference:
    """A row: a mean, the half-width of its interval or None, and both as text."""

    name: str
    mean: float
    half: float | None
    text: str

    def ends(self):
        """(lo, hi) of its interval; where there is none, both are the mean."""
        half = self.half if placeable(self.half) else 0
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Frame:
    """Where everything is: the axis, the height of a row, and ±`margin`, which is dotted."""

    x: Scale
    pitch: int
    width: int
    label: str
    margin: float | None

    def height(self, group):
        """The height of a heading, its rows, ticks and the label."""
        lines, rows = group
        return LINE * (len(lines) + 2) + self.pitch * len(rows) + svg.GAP


def forest(title, groups, label, margin=None, limit=svg.LARGEST, width=NARROW, caption=""):
    """The plot. `groups` holds (heading, Differences), and `label` names the axis, which does not
    go beyond ±`limit` for an interval, only for a mean. Differences within ±`margin` do not matter.
    """
    groups = [(text, [row for row in rows if placeable(row.mean)]) for text, rows in groups]
    rows = [row for _, found in groups for row in found]
    far = [max(abs(row.mean), min(limit, max(map(abs, row.ends())))) for row in rows]
    most = max([margin or 0, *far]) or 1
    beside = width >= WIDE
    names = [svg.text_width(svg.cut(row.name, NAME)) + 12 for row in rows if beside]
    texts = [svg.text_width(row.text) + 12 for row in rows if beside]
    start = svg.MARGIN + max(names, default=0) + END
    end = svg.MARGIN + width - max(texts, default=0) - END
    x = Scale(-most, most, start, end)
    frame = Frame(x, ROW if beside else ROW + LINE, width, label, margin)
    groups = [(svg.wrap(text, 0.9 * width), found) for text, found in groups]
    size = (width, sum(map(frame.height, groups)) - svg.GAP)
    told = "; ".join([label, *(f"{row.name}: {row.text}" for row in rows)])
    footer = [caption, _notes(rows, frame)]
    return svg.page(title, told, [partial(_groups, groups, frame)], size, 1, footer)


def _notes(rows, frame):
    """What the marks of this plot mean."""
    said = {
        "Bars are 95 % intervals; where one contains zero, the mark is hollow.": rows,
        f"Between the dotted lines, at ±{frame.margin}, differences are too small to matter.": (
            frame.margin
        ),
        "An arrowhead means that the interval continues beyond the axis.": any(
            max(map(abs, row.ends())) > frame.x.hi for row in rows
        ),
    }
    return " ".join(sentence for sentence, holds in said.items() if holds)


def _groups(groups, frame, x0, y0):
    """The groups below each other, each with the axis."""
    parts, x = [], frame.x
    ticks = svg.nice_ticks(x.lo, x.hi)
    for lines, rows in groups:
        top, bottom = y0 + LINE * len(lines), y0 + LINE * len(lines) + frame.pitch * len(rows)

        def upright(at, class_, ends=(top, bottom), **more):
            return svg.joined([(x(at), end) for end in ends], class_, **more)

        parts += svg.paragraph(lines, x0, y0, "strong")
        for tick, text in zip(ticks, svg.tick_texts(ticks), strict=True):
            parts.append(upright(tick, "grid"))
            parts.append(write(text, x(tick), bottom + 0.5 * LINE + 2, text_anchor="middle"))
        parts.append(upright(0, "axis"))
        for at in (-frame.margin, frame.margin) if frame.margin else ():
            parts.append(upright(at, "axis", stroke_dasharray=svg.DASHES[2]))
        for i, row in enumerate(rows):
            parts += _row(row, frame, x0, top + i * frame.pitch)
        label = svg.cut(frame.label, frame.width)
        parts.append(write(label, x(0), bottom + 1.5 * LINE + 2, text_anchor="middle"))
        y0 += frame.height((lines, rows))
    return parts


def _row(row, frame, x0, y):
    """The interval of one row, its mark, its name and its numbers."""
    x, at, (lo, hi) = frame.x, y + frame.pitch - ROW / 2, row.ends()
    words = at if frame.pitch == ROW else y + LINE / 2 + 4
    mark = svg.mark(0, x(row.mean), at, f"{row.name}: {row.text}", hollow=lo <= 0 <= hi)
    name = write(svg.cut(row.name, NAME), x0, words, "ink")
    text = write(row.text, x0 + frame.width, words, text_anchor="end")
    return [_bar(lo, hi, at, x) if placeable(row.half) else "", mark, name, text]


def _bar(lo, hi, at, x):
    """A bar from lo to hi. An end outside the axis is cut there and drawn as an arrowhead."""
    low, high = x(max(lo, x.lo)), x(min(hi, x.hi))
    path = f"M{number(low)} {number(at)}H{number(high)}"
    for end, back in ((low, 4 * (lo < x.lo)), (high, -4 * (hi > x.hi))):
        path += f"M{number(end + back)} {number(at - 3)}L{number(end)} {number(at)}l{back} 3"
    return element("path", d=path, class_=f"interval {svg.colour(0)}")
