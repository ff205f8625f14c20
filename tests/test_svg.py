"""Figures as SVG: golden files, labels that keep apart, marks that stay where their values are,
and what a browser makes of it.

`python tests/test_svg.py` writes the golden files anew; look at them in a browser before a commit.
"""

import math
import random
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest

from minqkv.render import svg
from minqkv.render.figures import Panel, Series, bars, figure, heat_map, learning_curves

GOLDEN = Path(__file__).parent / "data" / "svg"
NAN, INF = float("nan"), float("inf")


# ---- examples


def accuracy():
    """Eight variants at three cache sizes: bimodal seeds, a cut interval, published values."""
    seeds = {0.25: (0.06, 0.08, 0.1, 0.76), 0.5: (0.02, 0.02, 0.98, 0.98), 0.9: (0.86, 0.88, 0.94)}
    half = {0.25: 0.54, 0.5: 0.88, 0.9: 0.1}
    names = ("qkv", "q-k=v", "q=k-v", "q=k=v", "q-gqa-2", "q-mqa", "thin", "q-k=v, unrotate")

    def series(i, name):
        means = [(0.25, 0.5, 0.9)[min(2, (i + j) // 3)] for j in range(3)]
        rows = zip((16, 24, 32), means, strict=True)
        return Series(name, tuple((x, m, half[m], seeds[m]) for x, m in rows))

    measured = tuple(series(i, name) for i, name in enumerate(names))
    published = Series("qkv", ((16, 0.4, None, ()), (32, 0.9, None, ())), line=False, hollow=True)
    axes = {"x_log": True, "y_range": (0, 1)}
    return figure(
        "Recall at equal bytes: what sharing K and V costs",
        [
            Panel("pairs: 32 keys", "cache bytes per token", "accuracy", measured, **axes),
            Panel(
                "mqar: 64 keys, learned positions",
                "cache bytes per token",
                "accuracy",
                (*measured[::-1], published),
                **axes,
            ),
        ],
        caption="Means of 4 seeds.",
    )


def single():
    """One size for each variant: labels beside the points, one mean missing."""
    sizes = {"qkv": 1024, "q-k=v": 512, "q=k=v": 512, "q-gqa-2": 512, "q-mqa": 128}
    points = {name: ((x, 0.9 + x / 2e4, 0.01, ()),) for name, x in sizes.items()}
    points["q=k=v"] = ((512, NAN, None, (0.9, None, INF)),)
    series = tuple(Series(name, p) for name, p in points.items())
    panel = Panel("reverse", "cache bytes per token", "accuracy", series, x_log=True)
    return figure("One size each", [panel], columns=1)


def curves():
    """Three arms; the runs of the second reach their goal, one of them early."""

    def run(speed, last=3000):
        return tuple((s, 3 / (1 + (s / 1000) ** speed)) for s in range(0, last + 1, 300))

    arms = (
        learning_curves("qkv", (run(1), run(1.5), run(2))),
        learning_curves("q-k=v, unrotate", (run(5, 2100), run(4), run(4.5)), (True, True, False)),
        learning_curves("q-k=v, raw", (run(0.1), run(0.2), run(0.3)), (False, False, False)),
    )
    return figure("Learning curves", [Panel("16 bytes", "step", "loss", arms, y_log=True)], 1)


TOKENS = ("the", "<b>", "&", '"', "end")


def heat():
    """Two causal patterns."""
    rows = [[1 / (i + 1) if j <= i else None for j in range(5)] for i in range(5)]
    flat = [[0.2] * 5 for _ in range(5)]
    return heat_map("Attention pattern", [("head 1", rows), ("head 2", flat)], TOKENS, TOKENS)


def signed():
    """Scores of both signs, one of them not finite."""
    rows = [[(i - j) / 2 for j in range(5)] for i in range(5)]
    rows[0][0] = -INF
    return heat_map("Scores", [("head 1", rows)], TOKENS, TOKENS, caption="Before the softmax.")


def table():
    """Bytes and parameters; one value is missing."""
    measures = [("cache bytes per token", (1024, 512, 0)), ("parameters", (262144, 196608, None))]
    return bars("Variants", ("qkv", "q-k=v", "q=k=v <&>"), measures, caption="Per layer.")


EXAMPLES = {f.__name__: f for f in (accuracy, single, curves, heat, signed, table)}
MARKS = {"accuracy": 8 + 8 * 3 + 8 * 3 + 2, "single": 5 + 4, "curves": 3 + 2}  # with the legend
CELLS = {"heat": 11 + 15 + 25, "signed": 11 + 24, "table": 6}  # with the key


# ---- reading a drawing


class Drawing:
    """What stands in an SVG text: its size, texts as (class, words, box), marks as (x, y)."""

    def __init__(self, text):
        self.root = ET.fromstring(text)
        self.width, self.height = map(float, self.root.get("viewBox").split()[2:])
        self.marks = []
        for group in self.all("g", "mark"):
            self.marks.append(tuple(map(float, re.findall(r"[-\d.]+", group.get("transform"))[:2])))

    def all(self, tag, name=""):
        """The elements of this tag and class."""
        found = self.root.iter("{http://www.w3.org/2000/svg}" + tag)
        return [e for e in found if name in e.get("class", "").split() or not name]

    def frames(self):
        """(left, right, bottom) of every panel, from its axis."""
        paths = [re.findall(r"[-\d.]+", e.get("d")) for e in self.all("path", "axis")]
        lines = [tuple(map(float, numbers)) for numbers in paths]
        return [(x0, x1, y0) for x0, y0, x1, y1 in lines if y0 == y1]

    def texts(self, name=""):
        """(words, (x0, y0, x1, y1)) of the texts of this class; boxes as the writer estimates."""
        for e in self.all("text", name):
            size = 17 if "big" in e.get("class") else svg.FONT
            width = svg.text_width(e.text) * size / svg.FONT
            x = (
                float(e.get("x"))
                - {"start": 0, "middle": 0.5, "end": 1}[e.get("text-anchor", "start")] * width
            )
            y = float(e.get("y"))
            if turn := e.get("transform"):
                assert turn.startswith("rotate(-90 ")
                y -= 0.35 * size
                yield e.text, (x - size / 2, y - width, x + size / 2, y)
            else:
                yield e.text, (x, y - 0.8 * size, x + width, y + 0.2 * size)


def meet(a, b):
    """Whether two boxes overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check(text):
    """What holds of every figure: no two texts meet, and nothing leaves the drawing."""
    drawing = Drawing(text)
    texts = list(drawing.texts())
    for words, (x0, y0, x1, y1) in texts:
        assert x0 >= 0, words
        assert x1 <= drawing.width, words
        assert 0 <= y0 <= y1 <= drawing.height, words
    for (one, a), (other, b) in combinations(texts, 2):
        assert not meet(a, b), (one, other)
    for x, y in drawing.marks:
        assert 0 <= x <= drawing.width
        assert 0 <= y <= drawing.height
    return drawing


def shape(panel_series, **options):
    """The drawing of one panel."""
    options = {"title": "t", "x_label": "x", "y_label": "y", **options}
    return check(figure("f", [Panel(series=tuple(panel_series), **options)], 1))


def point(x, mean, half=None, seeds=()):
    return (x, mean, half, seeds)


# ---- the files


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden(name):
    drawn = EXAMPLES[name]()
    assert drawn == EXAMPLES[name]()
    assert drawn == (GOLDEN / f"{name}.svg").read_text("utf-8"), "see the docstring of this file"
    drawing = check(drawn)
    if name in MARKS:
        assert len(drawing.marks) == MARKS[name]
    else:
        assert len(drawing.all("rect", "cell")) == CELLS[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_drawing_stands_alone(name):
    text = EXAMPLES[name]()
    root = ET.fromstring(text)
    assert (root.get("role"), root.get("width")) == ("img", "100%")
    assert [child.tag.split("}")[1] for child in root][:3] == ["title", "desc", "style"]
    assert root[1].text.strip()
    assert not re.search(r"<script|href|url\(|@import|@font-face|\bon\w+=", text)
    assert text.count("http") == 1, "the name of the format alone"
    numbers = re.sub(r"<(style|title|desc|text).*?</\1>", "", text, flags=re.S)
    assert not re.search(r"\.\d{3}|nan|inf|e[-+]\d", numbers), "at most two decimals"


def test_contrast_on_light_and_dark():
    """Text and marks against the background, by the formula of WCAG 2."""

    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    themes = re.findall(r"\.mq\{(--bg[^}]*)\}", svg.STYLE)
    assert len(themes) == 2
    assert "@media (prefers-color-scheme:dark){\n.mq{--bg" in svg.STYLE
    for theme in themes:
        colours = dict(re.findall(r"--(\w+):(#\w{6})", theme))
        assert set(colours) == {"bg", "ink", "soft", "grid", *(f"k{i}" for i in range(svg.COLOURS))}
        for name in set(colours) - {"bg", "grid"}:
            light, dark = sorted(map(luminance, (colours[name], colours["bg"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, theme)


def test_series_differ_without_colour():
    assert len(set(svg.SHAPES)) == len(svg.SHAPES) >= 12


# ---- labels


def random_figure(rng):
    """Names, sizes and values of any kind; means close together and missing ones."""
    letters = "qkvm=-+ <&\"'W"

    def value(log):
        odd = [None, NAN, INF, -INF, 0.0]
        return rng.choice(odd) if rng.random() < 0.1 else rng.choice([0.5, rng.uniform(-log, 1)])

    def series(name, xs, log):
        rows = [
            (x, value(log), rng.choice([None, 0.2, NAN, INF])) for x in xs if rng.random() < 0.8
        ]
        rows = [(*row, tuple(value(log) for _ in range(rng.randrange(4)))) for row in rows]
        return Series(name, tuple(rows), hollow=rng.random() < 0.2)

    names = ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(rng.randint(1, 12))]
    panels = []
    for i in range(rng.randint(1, 4)):
        xs = rng.sample([0, 16, 24, 32, 64, 128, 1024], rng.randint(1, 6))
        x_log, y_log = rng.random() < 0.5, rng.random() < 0.3
        drawn = tuple(series(name, xs, not y_log) for name in names)
        y_range = rng.choice([None, (0, 1)])
        title = " ".join(rng.choices(["equal", "bytes", "W" * 9], k=rng.randint(1, 12)))
        panels.append(Panel(title, "bytes", f"y{i % 2}", drawn, x_log, y_log, y_range))
    return figure("Any " * rng.randint(1, 30), panels, rng.randint(1, 3), "c " * rng.randint(0, 99))


@pytest.mark.parametrize("seed", range(200))
def test_labels_never_meet_and_marks_stay_in_their_panel(seed):
    text = random_figure(random.Random(seed))
    drawing = check(text)
    frames = drawing.frames()
    legend = len(list(drawing.texts("ink")))
    for x, y in drawing.marks[legend:]:
        assert any(x0 <= x <= x1 and y1 - 300 <= y <= y1 for x0, x1, y1 in frames)


def test_spread_moves_labels_no_more_than_needed():
    together = [(0, 9)] * 3
    assert svg.spread([50, 100, 150], together, 0, 200) == [50, 100, 150]
    assert svg.spread([100, 100, 100], together, 0, 200) == [83, 100, 117]
    assert svg.spread([100, 100, 100], [(0, 9), (10, 19), (20, 29)], 0, 200) == [100, 100, 100]
    assert svg.spread([0, 0, 0], together, 0, 200) == [8.5, 25.5, 42.5]
    assert svg.spread([200, 200, 200], together, 0, 200) == [157.5, 174.5, 191.5]
    assert svg.spread([], [], 0, 200) == []


def test_a_moved_label_has_a_leader():
    apart = [Series(n, (point(1, y), point(2, y))) for n, y in (("a", 0.0), ("b", 1.0))]
    close = [Series(n, (point(1, y), point(2, y))) for n, y in (("a", 0.5), ("b", 0.51))]
    heights = []
    for series in (apart, close):
        drawing = shape(series, y_range=(0, 1))
        leaders = [e.get("d") for e in drawing.all("path", "leader")]
        ends = [[float(v) for v in re.findall(r"[-\d.]+", d)] for d in leaders]
        heights.append([y1 - y0 for _, y0, _, y1 in ends])
    assert heights[0] == [0, 0]
    assert heights[1][0] > 2
    assert heights[1][1] < -2


def test_only_a_moved_label_of_a_curve_has_a_leader():
    for end, leaders in ((3.0, 0), (1.01, 2)):
        both = [
            learning_curves(n, [((0, 0.0), (5, 4.0), (9, y))]) for n, y in (("a", 1.0), ("b", end))
        ]
        assert len(shape(both).all("path", "leader")) == leaders


# ---- axes


def test_marks_are_exactly_where_their_values_are():
    means = (0, 0.1234, 0.5, 0.9999, 1)
    series = [Series("a", tuple(point(16 * 2**i, m) for i, m in enumerate(means)))]
    marks = shape(series, x_log=True, y_range=(0, 1)).marks[1:]  # the first is the legend's
    (x0, y0), (x1, y1) = marks[0], marks[-1]
    for i, mean in enumerate(means):
        assert marks[i][0] == pytest.approx(x0 + i / 4 * (x1 - x0), abs=0.02)
        assert marks[i][1] == pytest.approx(y0 + mean * (y1 - y0), abs=0.02)
    assert marks[3][1] != marks[4][1], ".9999 is not 1"


def test_panels_with_equal_labels_have_equal_axes():
    low, high = (Series("a", (point(16, y), point(x, y))) for x, y in ((32, 0.1), (64, 0.8)))
    panels = [Panel("one", "x", "y", (low,)), Panel("two", "x", "y", (high,))]
    words = [[w for w, _ in Drawing(figure("f", [p], 1)).texts("soft")] for p in panels]
    assert words[0] != words[1]
    (xa, ya), (xb, yb), (_, yc), _ = Drawing(figure("f", panels, 2)).marks[1:]
    assert ya == yb
    assert yc < ya - 100
    assert xb < xa + 0.5 * (svg.BLOCK - 36), "32 is not at the end of an axis that holds 64"


def test_an_axis_holds_what_lies_outside_its_range():
    drawing = shape([Series("a", (point(1, 1.5, None, (-0.5,)), point(2, 0.5)))], y_range=(0, 1))
    (_, top), (_, middle) = drawing.marks[1:]
    (seed,) = drawing.all("circle", "seed")
    assert float(seed.get("cy")) - middle == pytest.approx(middle - top, abs=0.02)


def test_a_cut_interval_is_marked():
    def arrows(half):
        drawing = shape([Series("a", (point(1, 0.9, half), point(2, 0.5)))], y_range=(0, 1))
        (bar,) = drawing.all("path", "interval")
        said = any("arrowhead" in words for words, _ in drawing.texts())
        return len(re.findall(r"l3 -?4", bar.get("d"))), said

    assert arrows(0.05) == (0, False)
    assert arrows(0.2) == (1, True)
    assert arrows(INF) == (2, True)


def test_ticks():
    assert svg.tick_texts(svg.nice_ticks(0, 1)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert svg.tick_texts(svg.nice_ticks(0, 3000)) == ["0", "1,000", "2,000", "3,000"]
    assert svg.tick_texts(svg.nice_ticks(-0.002, 0.002))[0] == "−0.002"
    assert svg.log_ticks(0.02, 3) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    assert svg.log_ticks(1e-6, 1e6)[:2] == pytest.approx([1e-6, 1e-4])
    assert svg.log_ticks(0.3, 0.4) == svg.nice_ticks(0.3, 0.4)
    assert svg.tick_texts([16, 24, 1024]) == ["16", "24", "1,024"]
    assert svg.tick_texts([1e-9, 1e30]) == ["1e−09", "1e+30"]


def test_ticks_of_bytes_are_the_values_that_occur():
    xs = (16, 24, 32, 64, 128, 1024)
    drawing = shape([Series("a", tuple(point(x, 0.5) for x in xs))], x_log=True)
    assert {"16", "24", "32", "64", "128", "1,024"} <= {words for words, _ in drawing.texts("soft")}


# ---- extremes


@pytest.mark.parametrize(
    "points",
    [
        (),
        (point(16, 0.5),),
        (point(16, 0.5, 0.0, (0.5, 0.5)),),
        (point(16, 0.5), point(16, 0.5)),
        (point(16, 0.0), point(24, 0.0)),
        (point(16, 1e30), point(24, -1e30)),
        (point(16, 1.0), point(24, 1.0 + 1e-16)),
        (point(16, 1e-310), point(24, 2e-310)),
        (point(16, None), point(24, NAN), point(32, INF)),
        (point(NAN, 0.5), point(None, 0.5), point(0, 0.5)),
    ],
)
def test_extremes(points):
    for options in ({}, {"x_log": True}, {"x_log": True, "y_log": True}):
        drawing = shape([Series("a", points), Series("b", points)], **options)
        placed = [
            p
            for p in points
            if svg.placeable(p[0], "x_log" in options) and svg.placeable(p[1], "y_log" in options)
        ]
        assert len(drawing.marks) == 2 + 2 * len(placed)


def test_what_is_left_out_is_said():
    points = (point(1, NAN, None, (0.5, None)), point(2, 0.4), point(3, 0.6, NAN, (INF,)))
    drawing = shape([Series("good", (point(1, 0.5),)), Series("bad", points)])
    assert len(drawing.marks) == 2 + 1 + 2
    note = " ".join(words for words, _ in drawing.texts("soft"))
    assert note.endswith("Values not drawn because they are missing or not finite: bad (3).")


def test_a_line_breaks_where_a_mean_is_missing():
    points = tuple(point(x, None if x == 2 else 0.5) for x in range(5))
    line = shape([Series("a", points)]).all("path", "line")[1].get("d")
    assert (line.count("M"), line.count("L")) == (2, 2)


def test_twelve_series_and_hostile_names():
    names = ["<b>&\"'", "]]>", "\x00\x1b[31m", "\ud800", "W" * 90, "−" * 40, "qkv", "a", "b", "c"]
    names += ["d", "e"]
    series = [Series(n, (point(16, 0.5), point(32, 0.5))) for n in names]
    drawing = shape(series, title="<&>\x07", x_label="<" * 99, y_label="&" * 99)
    assert len(drawing.marks) == 12 * 3
    labels = [words for words, _ in drawing.texts("label")]
    assert len(labels) == 12
    assert "<b>&\"'" in labels
    assert any(words.endswith("…") for words in labels)


def test_points_at_the_same_x_stand_side_by_side():
    series = [Series(n, (point(16, 0.5), point(32, 0.5))) for n in ("a", "b", "c")]
    drawing = shape(series, x_log=True)
    a, _, b, _, c, _ = [x for x, _ in drawing.marks[3:]]
    assert a < b < c
    assert (a + c) / 2 == pytest.approx(b, abs=0.02)
    assert any("side by side" in words for words, _ in drawing.texts())


# ---- learning curves


def test_the_median_counts_finished_runs_with_their_last_value():
    early = ((0, 5.0), (1, 1.0))
    late = ((0, 5.0), (1, 4.0), (2, 3.0))
    stuck = ((0, 5.0), (1, 5.0), (2, 5.0))
    median = [
        m for _, m, *_ in learning_curves("a", (early, late, stuck), (True, False, False)).points
    ]
    assert median == [5, 4, 3]
    censored = learning_curves("a", (early, late, stuck), (False, False, False)).points
    assert [m for _, m, *_ in censored] == [5, 4, None]


def test_only_a_run_that_reached_its_goal_ends_with_a_mark():
    run = ((0, 3.0), (100, 1.0))
    for reached, marks in (((), 0), ((False, False), 0), ((True, False), 1), ((True, True), 2)):
        drawing = shape([learning_curves("a", (run, run), reached)])
        assert len(drawing.marks) == 1 + marks
        assert any("reached" in words for words, _ in drawing.texts()) == (marks > 0)
        assert len(drawing.all("path", "run")) == 2


def test_a_diverged_run_breaks_and_is_said():
    drawing = shape([learning_curves("a", (((0, 3.0), (1, NAN), (2, 2.0), (3, 0.0)),))], y_log=True)
    (run,) = drawing.all("path", "run")
    assert run.get("d").count("M") == 2
    assert any("a (2)" in words for words, _ in drawing.texts())


# ---- heat maps and bars


def test_cells_tell_their_values_and_masked_ones_are_not_there():
    drawing = check(heat_map("h", [("one", [[0.25, None], [0.5, 1]])], ["q0", "q1"], ["k0", "k1"]))
    titles = [e[0].text for e in drawing.all("g") if len(e) > 1 and "one" in e[0].text]
    assert titles == ["one, q0, k0: 0.25", "one, q1, k0: 0.5", "one, q1, k1: 1"]
    strengths = [float(e.get("fill-opacity")) for e in drawing.all("rect", "cell")][-3:]
    assert strengths == [0.25, 0.5, 1]


def test_a_negative_value_differs_without_colour():
    drawing = check(heat_map("h", [("one", [[-2.0, 1.0]])], ["q"], ["a", "b"]))
    negative, positive = [e for e in drawing.all("g") if "one" in e[0].text]
    assert [child.tag.split("}")[1] for child in negative] == ["title", "rect", "path"]
    assert [child.tag.split("}")[1] for child in positive] == ["title", "rect"]
    assert negative.get("class") != positive.get("class")
    assert any(words.startswith("−2 to 2") for words, _ in drawing.texts())


@pytest.mark.parametrize("size", [1, 12, 100])
def test_heat_maps_of_any_size(size):
    labels = [f"token {i}" for i in range(size)]
    drawing = check(heat_map("h", [("one " * 60, [[0.5] * size] * size)] * 3, labels, labels, 3))
    assert len(drawing.all("rect", "cell")) == 11 + 3 * size**2


def test_bars_are_as_long_as_their_values():
    drawing = check(bars("b", ("a", "b", "c", "d"), [("bytes", (1000, 500, 0, None))]))
    widths = [float(e.get("width")) for e in drawing.all("rect", "cell")]
    assert widths[0] > 200
    assert widths[1:] == pytest.approx([widths[0] / 2, 0, 0], abs=0.01)
    assert [w for w, _ in drawing.texts("soft")] == ["1,000", "500", "0", "–"]
    assert all(math.isfinite(w) for w in widths)
    check(bars("b " * 300, ("name " * 60, "b"), [("bytes " * 60, (1e9, 1 / 3))] * 2))


# ---- a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def dom(path, profile):
    """What a browser makes of a file."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", path.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_a_browser_reads_it(tmp_path):
    for name in EXAMPLES:
        read = dom(GOLDEN / f"{name}.svg", tmp_path / "profile")
        assert "</svg>" in read
        assert "parsererror" not in read
        assert len(re.findall(r'class="mark\b', read)) == MARKS.get(name, 0)
        assert len(re.findall(r'class="cell\b', read)) == CELLS.get(name, 0)
    broken = tmp_path / "broken.svg"
    broken.write_text((GOLDEN / "table.svg").read_text("utf-8")[:-20], "utf-8")
    assert "parsererror" in dom(broken, tmp_path / "profile"), "else this test could not fail"


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, draw in EXAMPLES.items():
        (GOLDEN / f"{name}.svg").write_text(draw(), "utf-8")
