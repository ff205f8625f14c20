"""Figures as SVG text: points with intervals, learning curves, heat maps, and bars.

Plain data goes in and one string comes out, which has a light and a dark look, no script, and no
reference to anything outside. A mark has exactly the height of its value: an axis is widened until
it holds every mean and every seed, and where an interval is cut, an arrowhead says so. What cannot
be drawn is named below the figure.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

from . import svg
from .svg import LINE, Scale, element, number, placeable, write

HEIGHT = 230  # of the area in which marks lie, where the labels of a panel need no more
SIDE, END = 36, 9  # room in that area: left and right of points, above and below them
WIDEST = 150  # longer labels are cut
LEFT_OF_IT = 24  # a label goes left of its point only where that saves more than this height
CELL, ROW = 26, 24  # the largest cell of a heat map, and the height of a row of bars


# ---- what is drawn


@dataclass(frozen=True)
class Series:
    """The measured points of one series. Each is (x, mean, half-width of its interval or None, a
    tuple of every seed's value). `line` joins them; `hollow` marks are published values. A series
    that is not `marked` is a line alone.

    Instead of marks, a series may have `runs`: see `learning_curves`. Series of the same name share
    colour and shape in all panels of a figure.
    """

    name: str
    points: tuple
    line: bool = True
    hollow: bool = False
    marked: bool = True
    runs: tuple = ()
    reached: tuple = ()

    def kept(self, x_log, y_log):
        """The points that fit on these axes, in order of x. A mean, or a value of a run, that does
        not fit becomes None.
        """

        def known(value):
            return value if placeable(value, y_log) else None

        points = []
        for x, mean, half, seeds in (p for p in self.points if placeable(p[0], x_log)):
            half = half if known(mean) is not None and half is not None and half >= 0 else None
            points.append((x, known(mean), half, [v for v in seeds if placeable(v, y_log)]))
        runs = [[(s, known(v)) for s, v in run if placeable(s, x_log)] for run in self.runs]
        return replace(self, points=sorted(points, key=lambda point: point[0]), runs=runs)

    def ys(self):
        """Every value that was measured; None for one that is missing."""
        if self.runs:
            return [value for run in self.runs for _, value in run]
        return [v for _, mean, _, seeds in self.points for v in (mean, *seeds)]

    def draw(self, look, x, y, shift):
        """(what lies behind the marks, the marks, places of the means)."""
        behind, marks, places = [], [], []
        for run, reached in zip(self.runs, self.reached, strict=True):
            curve = [v if v is None else (x(step), y(v)) for step, v in run]
            behind.append(svg.joined(curve, "run"))
            if reached and curve and curve[-1]:
                marks.append(svg.mark(look, *curve[-1], self.name))
        for value, mean, half, seeds in self.points:
            at = x(value) + shift
            behind += [element("circle", cx=at, cy=y(v), r=2, class_="seed") for v in seeds]
            places.append(None if mean is None else (at, y(mean)))
            if half is not None:
                behind.append(_interval(at, mean - half, mean + half, y))
            if mean is not None and self.marked and not self.runs:
                told = f"{self.name}, {value:,g}: {mean:.4g}" + (f" ± {half:.2g}" if half else "")
                marks.append(svg.mark(look, *places[-1], told, self.hollow))
        return [*behind, svg.line(look, places) if self.line else ""], marks, places


def learning_curves(name, runs, reached=()):
    """A Series of thin lines, one for each seed, and their median. A run is (step, value), by step.

    `reached` says for each run whether it ended because it reached its goal. Then its line ends
    with a mark, and its last value stays in the median. A censored run ends without a mark. Where
    any run has no value, there is no median: it would be that of the other runs alone.
    """
    reached = reached or (False,) * len(runs)
    values = {step: [] for step in sorted({step for run in runs for step, _ in run})}
    for run, done in zip(runs, reached, strict=True):
        known, last = dict(run), run[-1] if run and done else None
        for step, at_step in values.items():
            at_step.append(last[1] if last and step > last[0] else known.get(step))
    middle = [(s, median(v) if all(map(placeable, v)) else None) for s, v in values.items()]
    return Series(name, [(*point, None, ()) for point in middle], runs=runs, reached=reached)


@dataclass(frozen=True)
class Panel:
    """One plot of a figure. `title` says what differs.

    On a logarithmic x axis the ticks are the values that occur. The y axis holds `y_range`
    (lo, hi) and whatever mean or seed lies outside. Panels with equal labels have equal axes.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple
    x_log: bool = False
    y_log: bool = False
    y_range: tuple | None = None


# ---- panels


def figure(title, panels, columns=2, caption=""):
    """Panels side by side with one legend, as SVG text.

    With `columns` = 1 the text stays readable on 400 pixels.
    """
    held, left_out = [], Counter()
    for panel in panels:
        series = tuple(s.kept(panel.x_log, panel.y_log) for s in panel.series)
        for before, after in zip(panel.series, series, strict=True):
            left_out[before.name] += len(before.ys()) - sum(v is not None for v in after.ys())
        held.append(replace(panel, series=series))
    axes = [_axes(panel, held) for panel in held]
    looks = {n: i for i, n in enumerate(dict.fromkeys(s.name for p in held for s in p.series))}
    headings = [svg.wrap(panel.title, 0.9 * svg.BLOCK) for panel in held]
    left = 8 + max(svg.text_width(t) for *_, ticks in axes for t in svg.tick_texts(ticks))
    right = svg.BLOCK - 14 - max(svg.text_width(svg.cut(name, WIDEST)) for name in looks)
    top = LINE * (max(map(len, headings)) + 1) + 6
    bottom = top + max(HEIGHT, LINE * max(len(panel.series) for panel in held))
    frame = (left, top, right, bottom)  # of the area in which marks lie, within a panel
    each = zip(held, axes, headings, strict=True)
    blocks = [partial(_panel, *one, frame, looks) for one in each]
    told = [caption, *(f"{p.title}: {p.y_label} against {p.x_label}." for p in held), *looks]
    footer = [caption, _notes(held, axes, left_out)]
    size = (svg.BLOCK, bottom + 2 * LINE + 6)
    return svg.page(title, " ".join(told), blocks, size, columns, footer, partial(_legend, looks))


def _intervals(series):
    """(lo, hi) of every interval."""
    return [(m - half, m + half) for _, m, half, _ in series.points if half is not None]


def _axes(panel, panels):
    """The axes of a panel: (range of x, its ticks, range of y, its ticks)."""
    alike = [p for p in panels if (p.x_label, p.x_log) == (panel.x_label, panel.x_log)]
    xs = [x for p in alike for s in p.series for x, *_ in s.points]
    ys = []
    for p in (p for p in panels if (p.y_label, p.y_log) == (panel.y_label, panel.y_log)):
        ys += [y for s in p.series for y in s.ys()]
        ys += p.y_range or [end for s in p.series for both in _intervals(s) for end in both]
    x = svg.span(xs, panel.x_log)
    y = svg.span([v for v in ys if placeable(v, panel.y_log)], panel.y_log)
    x_ticks = sorted(set(xs)) if panel.x_log else svg.nice_ticks(*x)
    return x, x_ticks, y, (svg.log_ticks if panel.y_log else svg.nice_ticks)(*y)


def _panel(panel, axis, heading, frame, looks, x0, y0):
    """A panel whose top left corner is at (x0, y0)."""
    left, top, right, bottom = x0 + frame[0], y0 + frame[1], x0 + frame[2], y0 + frame[3]
    side = SIDE if any(not s.runs for s in panel.series) else 6
    x = Scale(*axis[0], left + side, right - side, panel.x_log)
    y = Scale(*axis[2], bottom - END, top + END, panel.y_log)
    parts = svg.paragraph(heading, x0, top - LINE * (len(heading) + 1) - 6, "strong")
    parts.append(write(svg.cut(panel.y_label, svg.BLOCK), x0, top - 0.5 * LINE - 4))
    parts += _grid(panel, axis, x, y, (left, right, bottom))
    marks, ends, shifts = [], {}, _shifts(panel, x)
    for series in panel.series:
        look = looks[series.name]
        behind, front, places = series.draw(look, x, y, shifts.get(series.name, 0))
        parts.append(element("g", "".join(behind), class_=svg.colour(look)))
        marks += front
        if last := next(filter(None, reversed(places)), None):
            ends.setdefault(series.name, last)
    return parts + _labels(panel, ends, looks, (left, top, right, bottom)) + marks


def _grid(panel, axis, x, y, frame):
    """Lines, ticks and the label of x. A tick whose text would touch another's has none."""
    left, right, bottom = frame
    parts = [svg.joined([(left, bottom), (right, bottom)], "axis")]
    for tick, text in zip(axis[3], svg.tick_texts(axis[3]), strict=True):
        parts.append(svg.joined([(left, y(tick)), (right, y(tick))], "grid"))
        parts.append(write(text, left - 6, y(tick), text_anchor="end"))
    free = right + SIDE
    for tick, text in reversed([*zip(axis[1], svg.tick_texts(axis[1]), strict=True)]):
        at, half = x(tick), svg.text_width(text) / 2 + 2
        parts.append(svg.joined([(at, bottom), (at, bottom + 4)], "axis"))
        if at + half <= free:
            parts.append(write(text, at, bottom + 0.5 * LINE + 5, text_anchor="middle"))
            free = at - half
    label, middle = svg.cut(panel.x_label, right - left + 30), (left + right) / 2
    return [*parts, write(label, middle, bottom + 1.5 * LINE + 6, text_anchor="middle")]


def _shifts(panel, x):
    """Name -> how far from its x it is drawn, so that points at the same x stay apart; empty where
    no two names share an x. Where no series has more than one point, each x has its own middle.
    """
    marked = [s for s in panel.series if s.marked and not s.runs]
    points = {(s.name, v) for s in marked for v, *_ in s.points}
    places = sorted({x(v) for _, v in points})
    if len(points) == len(places):
        return {}
    groups = {}
    for series in marked:
        for v, *_ in series.points:
            groups.setdefault(v if _are_alone(panel) else None, {})[series.name] = None
    most = max(map(len, groups.values()))
    gap = min((b - a for a, b in pairwise(places)), default=2 * SIDE)
    step = min(9, 2 * (SIDE - 6) / most, 0.7 * gap / most)
    each = [(i - (len(g) - 1) / 2, name) for g in groups.values() for i, name in enumerate(g)]
    return {name: place * step for place, name in each}


def _are_alone(panel):
    """Whether no series has more than one point, apart from lines beside marks."""
    return all(len(s.points) < 2 for s in [s for s in panel.series if s.marked] or panel.series)


def _interval(at, lo, hi, y):
    """A bar from lo to hi. An end outside the axis is cut there and drawn as an arrowhead."""
    low, high = y(max(lo, y.lo)), y(min(hi, y.hi))
    path = f"M{number(at)} {number(low)}V{number(high)}"
    for end, back in ((low, -4 * (lo < y.lo)), (high, 4 * (hi > y.hi))):
        path += f"M{number(at - 3)} {number(end + back)}L{number(at)} {number(end)}l3 {back}"
    return element("path", d=path, class_="interval")


def _labels(panel, ends, looks, frame):
    """Names pushed apart, with a leader where a name is not close to its last mark. They stand
    right of the panel, or beside the points where no series has more than one.
    """
    _, top, right, bottom = frame
    names = [svg.cut(name, WIDEST) for name in ends]
    widths = [svg.text_width(text) for text in names]
    places = _beside([*ends.values()], widths, frame) if _are_alone(panel) else None
    if not places:
        starts = [10 + (x if _are_alone(panel) else right) for x, _ in ends.values()]
        spans = [(s - 4, s + width + 4) for s, width in zip(starts, widths, strict=True)]
        heights = svg.spread([y for _, y in ends.values()], spans, top, bottom)
        places = list(zip(starts, heights, strict=True))
    parts = []
    for name, text, width, (start, height) in zip(ends, names, widths, places, strict=True):
        (x, y), tint = ends[name], svg.colour(looks[name])
        near, end = (x + 6, start - 3) if start > x else (x - 6, start + width + 3)
        if abs(height - y) > 2 or end - near > 9:
            parts.append(svg.joined([(near, y), (end, height)], f"leader {tint}"))
        parts.append(write(text, start, height, f"label {tint}"))
    return parts


def _beside(points, widths, frame):
    """(start, height) of the label of each point: the nearest place, rather right than left of it,
    that meets no mark and no other label. None if there is no place for one of them.
    """
    left, top, _, bottom = frame
    taken = [(x - 6, x + 6, y, 6) for x, y in points]  # from, to, middle, half of the height
    places = []
    for (x, y), width in zip(points, widths, strict=True):
        sides = ((0, x + 10), (LEFT_OF_IT, x - 10 - width))
        wanted = [(abs(dy) + far, s, y + dy) for dy in range(-90, 91, 6) for far, s in sides]
        free = [
            (start, height)
            for _, start, height in sorted(wanted)
            if start >= left + 4 and top + LINE / 2 <= height <= bottom - LINE / 2
            and not any(start - 4 < b and a < start + width + 4 and abs(height - m) < LINE / 2 + h
                        for a, b, m, h in taken)
        ]  # fmt: skip
        if not free:
            return None
        places.append(free[0])
        taken.append((free[0][0], free[0][0] + width, free[0][1], LINE / 2))
    return places


def _legend(looks, width, y):
    """(lines and marks with their names, in rows that fill the width; the height of the rows)."""
    parts, x, row = [], 0, 0
    for name, look in looks.items():
        text = svg.cut(name, width - 40)
        room = 30 + svg.text_width(text)
        if x + room > width:
            x, row = 0, row + 1
        left, at = svg.MARGIN + x, y + (row + 0.5) * LINE
        parts.append(svg.line(look, [(left, at), (left + 24, at)]))
        parts += [svg.mark(look, left + 12, at, name), write(text, left + 30, at, "ink")]
        x += room + 16
    return parts, (row + 1) * LINE


def _notes(panels, axes, left_out):
    """What the marks of this figure mean, and what is missing."""
    both = [(s, axis[2]) for panel, axis in zip(panels, axes, strict=True) for s in panel.series]
    bars = [(lo < y[0] or hi > y[1]) for s, y in both for lo, hi in _intervals(s)]
    goals = any(any(s.reached) for s, _ in both)
    lost = ", ".join(f"{name} ({n})" for name, n in left_out.items() if n)
    said = {
        "Vertical bars are 95 % intervals.": bars,
        "An arrowhead means that the interval continues beyond the axis.": any(bars),
        "Each small dot is one seed.": any(seeds for s, _ in both for *_, seeds in s.points),
        "Hollow marks are published values.": any(s.hollow for s, _ in both),
        "Points at the same x are drawn side by side.": any(_shifts(p, float) for p in panels),
        "Thin lines are single seeds, thick lines their median.": any(s.runs for s, _ in both),
        "A mark shows where a run reached its goal; the median keeps its last value.": goals,
        f"Values not drawn because they are missing or not finite: {lost}.": lost,
    }
    return " ".join(sentence for sentence, holds in said.items() if holds)


# ---- heat maps


def heat_map(title, maps, row_labels, column_labels, columns=2, caption="", least_scale=1):
    """Heat maps side by side, as SVG text. `maps` holds (title, rows of values); a cell is empty
    where its value is None or not finite.

    The scale is 0 to `least_scale`, or to the largest value. With a negative value among them it is
    symmetric: blue above zero, orange with a minus below. Every cell shows its value on hover.
    """
    values = [v for _, rows in maps for row in rows for v in row if placeable(v)]
    least, most = min(values, default=0), max(values, default=0)
    limit = max(-least, most, 1e-9) if least < 0 else max(least_scale, most, 1e-9)
    cell = min(CELL, (svg.BLOCK - 90) / len(column_labels))
    names = [[svg.cut(str(t), 80) for t in texts] for texts in (row_labels, column_labels)]
    left, above = (6 + max(map(svg.text_width, labels)) for labels in names)
    frame = (left, above + LINE + 6, cell, limit)
    size = (max(200, left + cell * len(names[1])), frame[1] + cell * len(names[0]))
    blocks = [partial(_heat, *heat, *names, frame) for heat in maps]
    told = f"{caption} {len(maps)} maps with values from {least:.3g} to {most:.3g}."
    legend = partial(_scale_key, -limit if least < 0 else 0, limit)
    return svg.page(title, told, blocks, size, columns, [caption], legend)


def _heat(title, values, rows, columns, frame, x0, y0):
    """One map. Where cells are small, only every other name (or fewer) is written."""
    left, above, cell, limit = frame
    x, y, each = x0 + left, y0 + above, int(svg.FONT // cell) + 1
    title = svg.cut(title, max(140, left + cell * len(columns)))
    parts = [write(title, x0, y0 + 0.5 * LINE, "strong")]
    for i in range(0, len(rows), each):
        parts.append(write(rows[i], x - 6, y + (i + 0.5) * cell, text_anchor="end"))
    for j in range(0, len(columns), each):
        at = x + (j + 0.5) * cell
        turn = f"rotate(-90 {number(at)} {number(y - 6)})"
        parts.append(write(columns[j], at, y - 6, transform=turn))
    for i, row in enumerate(values):
        for j, value in ((j, v) for j, v in enumerate(row) if placeable(v)):
            told = f"{title}, {rows[i]}, {columns[j]}: {value:.3g}"
            parts.append(_cell(value / limit, x + j * cell, y + i * cell, cell, told))
    return parts


def _cell(share, x, y, size, told):
    """A square filled by a share of the limit. A negative share has another colour and a minus."""
    box = {"x": x, "y": y, "width": size, "height": size, "stroke_width": size / CELL}
    content = element("rect", **box, class_="cell", fill_opacity=abs(share))
    if share < 0:
        minus = [(x + 0.3 * size, y + size / 2), (x + 0.7 * size, y + size / 2)]
        content += svg.joined(minus, "axis")
    return svg.titled(content, told, class_=svg.colour(share < 0))


def _scale_key(lo, hi, width, y):
    """(the scale of colours and what it runs from and to, its height)."""
    size, x = 14, svg.MARGIN
    values = [lo + (hi - lo) * i / 10 for i in range(11)]
    cells = [_cell(v / hi, x + i * size, y + 2, size, f"{v:.3g}") for i, v in enumerate(values)]
    text = f"{lo:.3g} to {hi:.3g} (masked: empty)".replace("-", "−")
    return [*cells, write(text, x + 11 * size + 8, y + 9)], 22


# ---- bars


def bars(title, names, measures, columns=2, caption=""):
    """Horizontal bars with their numbers, as SVG text. `measures` holds (heading, for each name a
    value of at least zero, or None); each has its own scale, which starts at zero.
    """
    blocks = [partial(_bars, names, *measure) for measure in measures]
    told = [f"{heading}: {', '.join(map(str, values))}." for heading, values in measures]
    size = (svg.BLOCK, ROW * (len(names) + 1))
    return svg.page(title, " ".join([caption, *names, *told]), blocks, size, columns, [caption])


def _bars(names, heading, values, x0, y0):
    """One measure: a heading, and for each name a bar with its number at the end."""
    names = [svg.cut(name, WIDEST) for name in names]
    texts = [svg.tick_texts([v])[0] if placeable(v) else "–" for v in values]
    values = [v if placeable(v) else 0 for v in values]
    left, most = (max(map(svg.text_width, column)) for column in (names, texts))
    unit = (svg.BLOCK - left - most - 20) / (max(values) or 1)
    parts = [write(svg.cut(heading, svg.BLOCK), x0, y0 + ROW / 2, "strong")]
    parts += svg.paragraph(names, x0, y0 + ROW, "ink", ROW)
    for i, (value, text) in enumerate(zip(values, texts, strict=True), 1):
        x, width = x0 + left + 10, unit * value
        box = {"y": y0 + i * ROW + 4, "width": width, "height": ROW - 8, "class_": "cell k0"}
        parts += [element("rect", x=x, **box), write(text, x + width + 6, y0 + (i + 0.5) * ROW)]
    return parts
