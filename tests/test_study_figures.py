"""The figures and tables of a study, from cells made by hand: what is drawn, where, and what is
left out.
"""

import io
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from records import TINY, record_of
from rich.console import Console

from minqkv.render import svg
from minqkv.render.figures import Panel, Series
from minqkv.render.figures import figure as svg_figure
from minqkv.render.study import cell_tables, curves, figure, memory_table
from minqkv.runs import configure
from minqkv.study.rates import Choice, arm_of
from minqkv.study.summary import summarise, told_apart, unresolved

SVG = "{http://www.w3.org/2000/svg}"


def runs(variant, head_dim, values, task="pairs", **changes):
    """Records of one arm; `changes` with a list hold a value for each seed."""
    of_record = {
        n: changes.pop(n) for n in ("curve", "reached", "lifted", "losses") & changes.keys()
    }
    given = {**TINY, "n_head": 1, "head_dim": head_dim, **changes}
    found = []
    for seed, value in enumerate(values):
        mine = {name: values[seed] for name, values in of_record.items()}
        found.append(record_of(configure(task, variant, **given, seed=seed), value, **mine))
    return found


def cells_of(*arms, equal="bytes", **more):
    return summarise([record for one in arms for record in one], equal, **more)


def by_hash(cells, *arms):
    """Hash of a configuration -> its record."""
    hashes = [name for cell in cells for row in cell.rows if not row.lifted for name in row.runs]
    records = [record for one in arms for record in one]
    return dict(zip(hashes, records, strict=True))


class Drawing:
    """Titles of marks, words, and lines of an SVG text, which parses."""

    def __init__(self, text):
        self.root = ET.fromstring(text)
        self.titles = [e.text for e in self.root.iter(f"{SVG}title")][1:]  # without the figure's
        self.words = " ".join(e.text for e in self.root.iter(f"{SVG}text"))
        self.about = self.root.find(f"{SVG}desc").text

    @property
    def points(self):
        """(series, x, mean) of every mark that tells a value."""
        found = [re.fullmatch(r"(.*), ([\d,]+): ([\d.]+)(?: ± .*)?", t) for t in self.titles]
        return [(m[1], int(m[2].replace(",", "")), float(m[3])) for m in found if m]

    def of_class(self, tag, name):
        found = self.root.iter(SVG + tag)
        return [e for e in found if name in e.get("class", "").split()]

    @property
    def legend(self):
        return [e.text for e in self.of_class("text", "ink")]


# ---- scores against bytes


def test_arms_that_differ_in_width_alone_are_one_series():
    cells = cells_of(
        *(runs("qkv", d, [0.5, 0.5 + d / 10]) for d in (1, 2, 3)),
        *(runs("q-k=v", 2 * d, [d / 10, d / 10]) for d in (1, 2, 3)),
    )
    drawn = Drawing(figure(cells))
    assert drawn.legend == ["qkv", "q-k=v"]
    wanted = [("qkv", 8 * d, pytest.approx(0.5 + d / 20, abs=1e-4)) for d in (1, 2, 3)]
    wanted += [("q-k=v", 8 * d, pytest.approx(d / 10, abs=1e-4)) for d in (1, 2, 3)]
    assert drawn.points == wanted
    assert len(drawn.of_class("circle", "seed")) == 12
    assert "Means of 2 seeds." in drawn.words


def test_heads_and_positions_are_named_only_where_they_differ():
    arms = [
        runs("qkv", 2, [0.5]),
        runs("qkv", 1, [0.6], n_head=2),
        runs("q-k=v", 4, [0.7], position="rope"),
        runs("q-k=v", 4, [0.8], position="rope", rope_value="unrotate"),
        runs("q=k-v", 2, [0.9]),
    ]
    drawn = Drawing(figure(cells_of(*arms)))
    names = ["qkv, H 1", "qkv, H 2", "q-k=v, raw", "q-k=v, unrotate", "q=k-v"]
    assert drawn.legend == names
    assert drawn.points == [(name, 16, (5 + i) / 10) for i, name in enumerate(names)]


def test_bytes_are_of_a_layer_not_of_the_model():
    (cell,) = cells_of(runs("qkv", 2, [0.5], n_layer=3), runs("q-k=v", 4, [0.25], n_layer=3))
    assert [row.cache_measured for row in cell.rows] == [48, 48]
    assert Drawing(figure([cell])).points == [("qkv", 16, 0.5), ("q-k=v", 16, 0.25)]


def test_each_task_has_a_panel():
    cells = cells_of(runs("qkv", 2, [0.5]), runs("qkv", 2, [0.75], task="mqar"))
    drawn = Drawing(figure(cells))
    assert [e.text for e in drawn.of_class("text", "strong")] == ["pairs", "mqar"]
    assert drawn.points == [("qkv", 16, 0.5), ("qkv", 16, 0.75)]
    assert drawn.legend == ["qkv"]


@pytest.mark.parametrize("equal", [None, "bytes"])
@pytest.mark.parametrize(
    ("name", "values"), [("weight_decay", (0.0, 0.1)), ("beta2", (0.9, 0.99)), ("n_embd", (8, 16))]
)
def test_panels_and_tables_say_in_what_they_differ(name, values, equal):
    """Also in what a title leaves out; a panel of curves is of one table, as always."""
    given = {"curve": [climb(3)], "reached": [3], "steps": 6}
    arms = [runs("qkv", 2, [0.5], **{name: value}, **given) for value in values]
    cells = told_apart(cells_of(*arms, equal=equal))
    for one, value in zip(cells, values, strict=True):
        assert f"{'d' if name == 'n_embd' else name} {value}" in one.title.split("  ")
    assert len({one.title for one in cells}) == 2
    for drawn in (Drawing(figure(cells)), Drawing(curves(cells, by_hash(cells, *arms)))):
        text = " ".join(e.text for e in drawn.of_class("text", "strong"))  # titles, in lines
        assert all(f" {value}" in text for value in values)


def test_a_diverged_seed_is_in_no_mean_and_an_arm_without_a_score_not_drawn():
    cells = cells_of(runs("qkv", 2, [0.5, None, 0.75]), runs("q-k=v", 4, [None] * 3))
    assert Drawing(figure(cells)).points == [("qkv", 16, 0.625)]


def test_lifted_models_are_in_the_caption_alone():
    lifted = [
        {"score": score, "params": 1, "variant": "q-k=v", "head_dim": 4} for score in (0.5, 0.74)
    ]
    cells = cells_of(runs("qkv", 2, [0.5, 0.75], lifted=lifted))
    assert [row.lifted for row in cells[0].rows] == [False, True]
    drawn = Drawing(figure(cells))
    assert drawn.points == [("qkv", 16, 0.625)]
    assert "In its form with K = V (lifted)" in drawn.words
    assert "(largest difference 0.01)" in drawn.words
    assert "Lifted" not in Drawing(figure(cells_of(runs("qkv", 2, [0.5])))).about


def test_the_axis_of_accuracy_is_whole_only_at_equal_bytes():
    """Differences of a few images would not be seen on a scale from 0 to 1."""
    equal = cells_of(runs("qkv", 2, [0.9, 0.92]), runs("q-k=v", 4, [0.94, 0.95]))
    assert equal[0].equal
    for cells, whole in ((equal, True), ([replace(cell, equal=None) for cell in equal], False)):
        texts = Drawing(figure(cells)).of_class("text", "soft")
        ticks = {float(e.text) for e in texts if e.text.replace(".", "").isdigit()}
        assert ({0, 1} <= ticks) == whole


def test_without_a_finished_run_there_is_no_figure():
    diverged = [runs("qkv", 2, [None, None]), runs("q-k=v", 4, [None, None])]
    assert figure(cells_of(*diverged)) == ""
    assert figure(cells_of(*diverged, equal=None)) == ""


SORT = {"seq_len": 16, "n_embd": 64, "n_layer": 2, "n_head": 4}


def sort_runs(variant, values):
    made = [configure("sort", variant, **SORT, seed=s) for s in range(len(values))]
    return [record_of(config, value) for config, value in zip(made, values, strict=True)]


def test_published_values_are_hollow_and_at_the_bytes_of_their_variant():
    cells = cells_of(sort_runs("qkv", [0.5, 0.6]), sort_runs("q-k=v", [0.4, 0.5]), equal=None)
    (cell,) = cells
    drawn = Drawing(figure(cells))
    published = {row.arm: row.published.mean for row in cell.rows}
    size = {"qkv": 2 * 2 * 64 * 4, "q-k=v": 2 * 64 * 4}
    measured = {"qkv": 0.55, "q-k=v": 0.45}
    assert drawn.points == [
        (name, size[name], pytest.approx(value, abs=1e-4))
        for name in size
        for value in (measured[name], published[name])
    ]
    hollow = [e.find(f"{SVG}title").text for e in drawn.of_class("g", "hollow")]
    assert len(hollow) == 2
    for name, text in zip(size, hollow, strict=True):
        assert text == f"{name}, {size[name]:,}: {published[name]:.4g}"
    assert "Hollow marks are published values." in drawn.words


def test_no_hollow_mark_where_nothing_was_published():
    drawn = Drawing(figure(cells_of(runs("qkv", 2, [0.5]), equal=None)))
    assert drawn.of_class("g", "hollow") == []
    assert "Hollow" not in drawn.words


@pytest.mark.parametrize("columns", [1, 2])
def test_hostile_names_are_escaped(columns):
    cells = cells_of(runs("qkv", 2, [0.5]), equal=None)
    cells = [replace(cells[0], title='<b> & "co" \']]>')]
    assert '<b> & "co" \']]>' in Drawing(figure(cells, columns)).about


# ---- points that stand alone


def places(drawn):
    """Name -> (x, y) of each mark that tells a value, and of each label: (x of its left end, y)."""
    marks, labels = {}, {}
    for mark in drawn.of_class("g", "mark"):
        name, _, value = mark.find(f"{SVG}title").text.partition(", ")
        if value:
            found = re.findall(r"[-\d.]+", mark.get("transform"))
            marks[name] = float(found[0]), float(found[1])
    for label in drawn.of_class("text", "label"):
        labels[label.text] = float(label.get("x")), float(label.get("y"))
    return marks, labels


def points_of(**values):
    """A figure of points (x, mean)."""
    series = tuple(Series(name, ((x, y, 0.01, ()),), line=False) for name, (x, y) in values.items())
    return Drawing(svg_figure("t", [Panel("p", "bytes", "y", series, x_log=True)]))


def test_a_point_alone_at_its_bytes_is_drawn_there():
    """Only points that share an x move aside, and as far to one side as to the other."""
    alone = places(points_of(a=(384, 1.0), b=(768, 2.0), c=(1536, 3.0), d=(3072, 4.0)))[0]
    shared = places(points_of(a=(384, 1.0), b=(768, 2.0), c=(1536, 3.0), d=(1536, 2.9),
                              e=(3072, 4.0)))[0]  # fmt: skip
    for name in "ab":
        assert shared[name][0] == alone[name][0]
    assert shared["e"][0] == alone["d"][0]
    assert shared["d"][0] - alone["c"][0] == pytest.approx(alone["c"][0] - shared["c"][0])
    assert shared["d"][0] > shared["c"][0]


@pytest.mark.parametrize("seed", range(20))
def test_no_label_covers_the_mark_of_another(seed):
    rng = random.Random(seed)
    sizes = [384, 768, 1536, 1536, 1536, 1536, 1536, 2048]
    drawn = points_of(**{f"arm{i}": (x, rng.gauss(5, 0.1)) for i, x in enumerate(sizes)})
    marks, labels = places(drawn)
    assert marks.keys() == labels.keys()
    for name, (left, base) in labels.items():
        box = left - 2, left + svg.text_width(name) + 2, base - svg.FONT, base + 0.2 * svg.FONT
        for x, y in marks.values():
            assert not (box[0] < x < box[1] and box[2] < y < box[3]), name


# ---- how the runs learned


def climb(goal, last=6):
    """Scores up to the end, whether or not the goal was reached before."""
    return [[step, min(1.0, 0.9 * step / (goal or 100))] for step in range(1, last + 1)]


def lines(drawn):
    """Number of points of each thin line."""
    return [len(e.get("d").replace("M", " ").replace("L", " ").split()) // 2
            for e in drawn.of_class("path", "run")]  # fmt: skip


def test_curves_end_where_the_task_was_learned():
    arms = [
        runs("qkv", 2, [1, 1], curve=[climb(2), climb(4)], reached=[2, 4], steps=6),
        runs("q-k=v", 4, [0.1, 0.1], curve=[climb(None)] * 2, reached=[None] * 2, steps=6),
    ]
    cells = cells_of(*arms)
    drawn = Drawing(curves(cells, by_hash(cells, *arms)))
    assert lines(drawn) == [2, 4, 6, 6]
    ends = [e for e in drawn.of_class("g", "mark") if e.find(f"{SVG}title").text == "qkv"]
    assert len(ends) == 1 + 2  # in the legend, and where two runs ended
    stuck = [e for e in drawn.of_class("g", "mark") if e.find(f"{SVG}title").text == "q-k=v"]
    assert len(stuck) == 1
    assert "validation accuracy" in drawn.words
    assert drawn.legend == ["qkv", "q-k=v"]


def test_curves_have_a_panel_for_each_table():
    arms = [
        runs("qkv", d, [1], curve=[climb(3)], reached=[3], steps=6, task=task)
        for task, d in (("pairs", 1), ("pairs", 2), ("mqar", 2))
    ]
    cells = cells_of(*arms)
    drawn = Drawing(curves(cells, by_hash(cells, *arms)))
    titles = [e.text for e in drawn.of_class("text", "strong")]
    assert titles == ["pairs, 8 B", "pairs, 16 B", "mqar, 16 B"]
    assert drawn.legend == ["qkv"]
    assert lines(drawn) == [3, 3, 3]


def test_without_a_watched_score_the_loss_is_drawn_over_the_steps():
    arm = runs("qkv", 2, [0.5], losses=[[3.0, 2.0, 1.0]], steps=6)
    cells = cells_of(arm)
    drawn = Drawing(curves(cells, by_hash(cells, arm)))
    assert lines(drawn) == [3]
    assert "training loss" in drawn.words
    assert "validation" not in drawn.words


def test_without_curves_there_is_no_figure():
    arm = runs("qkv", 2, [None])
    cells = cells_of(arm)
    assert curves(cells, by_hash(cells, arm)) == ""


def test_a_lifted_model_has_no_curve():
    lifted = [{"score": 1.0, "params": 1, "variant": "q-k=v", "head_dim": 4}]
    arm = runs("qkv", 2, [1.0], lifted=lifted, curve=[climb(3)], reached=[3], steps=6)
    cells = cells_of(arm)
    assert Drawing(curves(cells, by_hash(cells, arm))).legend == ["qkv"]


# ---- tables


def printed(draw):
    """What is drawn on a wide console."""
    console = Console(file=io.StringIO(), width=240)
    draw(console)
    return console.file.getvalue()


def table_of(*arms, **more):
    (cell,) = cells_of(*arms, **more)
    return printed(lambda console: cell_tables(console, cell, unresolved(cell)))


def line_of(text, name):
    (line,) = [
        line for line in text.splitlines() if re.match(rf"\W*{re.escape(name)}\s{{2}}", line)
    ]
    return line


def test_columns_that_would_be_empty_are_left_out():
    text = table_of(runs("qkv", 2, [0.5, 0.6], watch=0))
    for heading in ("steps to", "minus", "published", "learning", "by formula"):
        assert heading not in text
    for heading in ("solved", "parameters", "B/token", "each seed"):
        assert heading in text
    text = table_of(runs("qkv", 2, [0.5, 0.6], reached=[3, None]), runs("q-k=v", 4, [0.4, 0.5]))
    for heading in ("steps to", "minus qkv (H 1 d 2)"):
        assert heading in text


def test_each_seed_and_what_diverged():
    line = line_of(table_of(runs("qkv", 2, [0.5, None, 1.0])), "qkv (H 1 d 2)")
    assert ".500 diverged 1.000" in line
    assert "1/3" in line  # solved


def test_the_difference_from_the_baseline_is_paired():
    text = table_of(runs("qkv", 2, [0.5, 0.7]), runs("q-k=v", 4, [0.25, 0.45]))
    assert "−.250 ± .000" in line_of(text, "q-k=v (H 1 d 4)")
    assert "±" in line_of(text, "qkv (H 1 d 2)")
    assert "−" not in line_of(text, "qkv (H 1 d 2)")


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        ([100, 200, 300], "200 (3/3)"),
        ([100, None, 300], "300 (2/3)"),
        ([None, None, 300], "> 1,000 (1/3)"),
        ([None, None, None], "> 1,000 (0/3)"),
        ([100, 200], "150 (2/2)"),
        ([100, None], "> 1,000 (1/2)"),
    ],
)
def test_steps_to_learn_it(reached, said):
    arm = runs("qkv", 2, [0.5] * len(reached), reached=reached, steps=1000)
    assert f" {said} " in line_of(table_of(arm), "qkv (H 1 d 2)")


def test_the_rate_is_shown_where_rates_were_chosen():
    arms = [runs("qkv", 2, [0.5]), runs("q-k=v", 4, [0.4])]
    qkv, shared = (configure("pairs", v, **TINY, n_head=1, head_dim=d)
                   for v, d in (("qkv", 2), ("q-k=v", 4)))  # fmt: skip
    tried = {1e-3: 0.1, 3e-3: 0.5, 6e-3: 0.2}
    inside = {arm_of(config): Choice(3e-3, tried) for config in (qkv, shared)}
    text = table_of(*arms, choices=inside)
    assert "learning" in text
    assert "0.003" in line_of(text, "qkv (H 1 d 2)")
    assert "edge" not in text
    edge = inside | {arm_of(shared): Choice(3e-3, {1e-3: 0.1, 3e-3: 0.5})}
    text = table_of(*arms, choices=edge)
    assert "0.003 !" in line_of(text, "q-k=v (H 1 d 4)")
    assert "0.003 !" not in line_of(text, "qkv (H 1 d 2)")
    assert "the best rate is at the edge of the list" in text


def test_the_rate_is_shown_where_arms_differ_in_it():
    """Such a table is not made of one block; still nobody should take the rates for equal."""
    text = table_of(runs("qkv", 2, [0.5], lr=1e-3), runs("q-k=v", 4, [0.4], lr=2e-3))
    assert "0.001" in line_of(text, "qkv (H 1 d 2)")
    assert "0.002" in line_of(text, "q-k=v (H 1 d 4)")


def test_the_lifted_row_has_a_score_and_nothing_that_it_did_not_do():
    lifted = [{"score": 0.5, "params": 1234, "variant": "q-k=v", "head_dim": 4}] * 2
    arms = [runs("qkv", 2, [0.5, 0.5], lifted=lifted, reached=[3, 4]), runs("q-k=v", 4, [0.2, 0.2])]
    line = line_of(table_of(*arms), "qkv (H 1 d 2), lifted to q-k=v")
    assert ".500 .500" in line
    assert "1,234" in line
    assert "/2" not in line
    assert "−" not in line


def test_the_memory_table_adds_up():
    lifted = [{"score": 0.5, "params": 1, "variant": "q-k=v", "head_dim": 4}]
    cells = cells_of(runs("qkv", 2, [0.5], lifted=lifted), runs("q-k=v", 4, [0.2]))
    (cell,) = cells
    text = printed(lambda console: memory_table(console, cells))
    assert "lifted" not in text
    for row in (row for row in cell.rows if not row.lifted):
        memory = row.memory
        assert memory["weights"] == 4 * row.params
        assert memory["gradients"] == memory["moments"] == 2 * memory["weights"]
        assert memory["activations"] == memory["activations_formula"]
        parts = [memory[name] for name in ("weights", "gradients", "moments", "activations")]
        shown = [f"{n / 1e3:,.0f}" for n in (*parts, sum(parts), parts[3])]
        found = line_of(text, f"pairs, 16 B: {row.arm}").split()[-6:]
        assert [n for n in found if n != "│"] == shown


def test_without_memory_there_is_no_table():
    cells = [replace(c, rows=tuple(replace(r, memory=None) for r in c.rows))
             for c in cells_of(runs("qkv", 2, [0.5]))]  # fmt: skip
    assert printed(lambda console: memory_table(console, cells)) == ""
