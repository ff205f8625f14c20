"""`minqkv report`: what is read from folders, what is on the page, and the page in a browser."""

import io
import json
import math
import os
import random
import re
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import overflow, pale, unfold, visit
from pages import Page
from records import TINY, record_of
from rich.console import Console

from minqkv.analysis.patterns import LONGEST, patterns
from minqkv.cli.report import train_command
from minqkv.render import page as parts
from minqkv.render.document import (
    Code,
    Figure,
    Fold,
    Gallery,
    Items,
    Section,
    Sheet,
    Table,
    Text,
    show,
    to_html,
    to_markdown,
)
from minqkv.render.figures import bars
from minqkv.render.forest import NARROW, WIDE, Difference, forest
from minqkv.render.report import differences, read_run, run_sections, study_sections
from minqkv.runs import configure, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import EnvironmentFault, MinqkvError
from minqkv.runtime.files import read_sealed
from minqkv.study.execute import _path
from minqkv.study.plan import Part, Plan
from minqkv.study.stored import read_study, write_plan
from minqkv.study.summary import as_results, summarise, write_results

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted(path.parent for path in (ROOT / "bench/results").glob("*/results.json"))
LEARNED = {"losses": [3.0, 2.0, 1.0], "curve": [[2, 0.4], [4, 0.95]], "reached": 4}


def configs(variants=("qkv", "q-k=v"), seeds=(0, 1, 2), **given):
    return [configure("pairs", v, **{**TINY, **given}, seed=s) for v in variants for s in seeds]


def scores(config):
    """A score that differs by arm and seed, and so do the differences."""
    return 0.9 + 0.01 * config.seed - 0.1 * config.seed * (config.variant == "q-k=v") - 0.02


@pytest.fixture(scope="module")
def records():
    return [record_of(config, scores(config), **LEARNED) for config in configs()]


@pytest.fixture(scope="module")
def finished(records, tmp_path_factory):
    """The folder of a study that has ended."""
    out = tmp_path_factory.mktemp("finished")
    write_results(out, as_results(records, "minqkv study --tasks pairs", 5.0))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run."""
    out = tmp_path_factory.mktemp("run") / "small"
    given = {"seq_len": 6, "n_layer": 2, "n_head": 2, "n_embd": 8, "steps": 6, "n_test": 20}
    train_run(configure("reverse", "q-k=v", **given), out)
    return out


def started(out, wanted, found, rates=(), equal=None):
    """The folder of a study of which only the records `found` exist."""
    (out / "runs").mkdir(parents=True)
    write_plan(out, Plan([Part(wanted, rates, equal)], ["mqar thin-1: too thin"]), "minqkv study")
    for record, config in found:
        files.write_json(_path(config, out, "none"), {"kind": "minqkv study run"} | record)
    return out


def page_of(folder):
    return to_html("Report", study_sections(read_study(folder), "minqkv report"))


# ---- parts of a page


def test_text_is_escaped_by_every_part():
    bad = "<script>alert('x')</script> & \"q\""
    texts = [parts.heading(bad, 2), parts.paragraph(bad), parts.listed([bad]), parts.code(bad)]
    texts += [parts.link(bad, "#x"), parts.fold(bad, bad), parts.inline(f"`{bad}` **{bad}**")]
    texts.append(parts.table(bad, [(bad, "left"), (bad, "right")], [[bad, (bad, bad)], [bad, bad]]))
    texts.append(parts.array(bad, [[bad, 0.5]], [bad], [bad, bad]))
    texts.append(parts.page(bad, bad, description=bad, footer=bad))
    for text in texts:
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text
        Page(text)


def test_markup_stays_as_it_is_and_only_that():
    made = parts.tag("b", "x", title='"', class_=None, hidden=True)
    assert made == '<b title="&quot;" hidden="">x</b>'
    assert parts.tag("p", [made, None, "<"]) == f"<p>{made}&lt;</p>"
    assert parts.tag("br") == "<br>"


@pytest.mark.parametrize("to", ["javascript:alert(1)", "JavaScript:x", "data:text/html,x", " j:x"])
def test_an_address_that_could_run_is_no_link(to):
    assert parts.link("here", to) == "here"


@pytest.mark.parametrize("to", ["#a", "a.html#b", "https://example.org/a:b", "../a:b"])
def test_other_addresses_are_links(to):
    assert parts.link("here", to) == f'<a href="{to}">here</a>'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("−.51 ± .28", -0.51),
        ("+1.70 ± .20 %", 1.7),
        ("1,024", 1024),
        ("> 1,000 (3/10)", 1000),
        (".003 !", 0.003),
        ("4/10", 4),
        ("2e-05", 2e-5),
        ("–", None),
        ("diverged", None),
        ("", None),
    ],
)
def test_what_a_cell_is_sorted_by(text, value):
    assert parts.value(text) == value
    made = parts.table("t", [("a", "left"), ("b", "right")], [["x", text]] * 2)
    assert made.count(f'data-value="{value and float(value)}"') == (0 if value is None else 2)


def test_an_array_on_shades_of_its_sizes():
    made = Page(parts.array("a", [[0.5, None, -2.0], [math.nan, "on", 1]], "pq", "xyz"))
    cells = [attributes for tag, attributes in made.tags if tag == "td"][1:]
    shades = [re.search(r"[\d.]+(?=\)$)", cell.get("style") or "") for cell in cells]
    shades = [float(found[0]) if found else None for found in shades]
    assert (shades[1], shades[3:5]) == (None, [None, None])
    assert 0 < shades[0] < shades[5] < shades[2]
    assert cells[0]["style"].rpartition(",")[0] != cells[2]["style"].rpartition(",")[0]  # below 0
    assert "0.500 . -2.000" in made.text("table")


# ---- a report as data


def sample():
    drawing = bars("b", ("q",), [("bytes", (1,))])
    rows = [["a | b", (".1", "green")], ["*c*\nd", "–"]]
    return [
        Section("One", [Text("See `a_b` & **c**: x < y."), Items(["p", "`q`"]), Code("ls `a`")]),
        Section("One", [Table("T", [("n", "left"), ("v", "right")], rows), Text("!", True)]),
        Section("Two", [Section("Deep", [Fold("More", [Text("in")]), Text("after")])]),
        Section("Pictures", [Figure("F", drawing, drawing), Gallery([Figure("", drawing)])]),
    ]


def test_html_of_every_block():
    text = to_html("A <title>", sample(), "about")
    made = Page(text)
    assert made.levels() == [1, 2, 2, 2, 3, 2]
    assert made.links() == ["#content", "#one", "#one-2", "#two", "#pictures"]
    assert set(made.links()) <= {f"#{name}" for name in made.ids()}
    assert len(made.ids()) == len(set(made.ids()))
    assert [a.get("class") for a in made.all("p")] == [None, "warning", None, None]
    assert [a.get("class") for a in made.all("td")] == ["right good", "right"]
    assert len(made.all("svg")) == 3
    assert text.count("<style>") == 1
    assert made.outside() == []
    with pytest.raises(TypeError, match="is not a block"):
        to_html("t", [Section("s", ["text"])])


def test_markdown_of_every_block():
    text = to_markdown("A <title>", sample())
    assert text.startswith(
        "## A \\<title\\>\n\n### One\n\nSee `a_b` &amp; **c**: x \\< y.\n\n- p\n- `q`"
    )
    assert "```sh\nls `a`\n```" in text
    assert "| n | v |\n| --- | ---: |\n| a \\| b | .1 |\n| \\*c\\* d | – |" in text
    assert "#### Deep\n\n**More**\n\nin\n\nafter" in text
    assert "Pictures" not in text, "there is no file to show"
    figure = Figure("F [x]", "", file="a/figure.svg")
    assert "![F \\[x\\]](a/figure.svg)" in to_markdown("t", [Section("s", [figure])])


def test_a_terminal_shows_every_block():
    out = io.StringIO()
    show(Console(file=out, width=60), "A", sample())
    words = " ".join(out.getvalue().split())
    assert words.startswith("A One See `a_b` & c: x < y. - p - `q` ls `a` One T n v")
    assert words.endswith("Two Deep in after")


def test_a_sheet_keeps_what_is_written():
    sheet = Sheet()
    sheet.say("")
    sheet.say("x", "bold")
    sheet.print()
    sheet.table("t", [], [])
    assert sheet.blocks == [Text("x"), Table("t", [], [])]


# ---- reading a study


def without_nan(cells):
    return json.loads(json.dumps([asdict(cell) for cell in cells]).replace("NaN", "null"))


def test_a_finished_study_is_read_as_it_was_written(finished, records):
    stored = read_study(finished)
    assert without_nan(stored.cells) == without_nan(summarise(records))
    assert (stored.missing, stored.planned, stored.diverged) == (0, 6, [])
    hashes = [name for row in stored.cells[0].rows for name in row.runs]
    assert hashes == [config.hash for config in configs()]
    assert [stored.records[name]["curve"] for name in hashes] == [[(2, 0.4), (4, 0.95)]] * 6
    assert (stored.command, stored.seconds) == ("minqkv study --tasks pairs", 5.0)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_committed_studies(folder):
    """Of any version: every arm and every seed is on the page, and its difference."""
    stored = read_study(folder)
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert len(stored.records) == len(results["runs"])
    sections = study_sections(stored, "minqkv report")
    words = Page(to_html("Report", sections)).text("main")
    for cell, old in zip(stored.cells, results["cells"], strict=True):
        assert [row.by_seed for row in cell.rows] == [
            {int(seed): v for seed, v in row["by_seed"].items()} for row in old["rows"]
        ]
        for row in cell.rows:
            assert row.arm in words
            assert row.lifted or row.runs
    assert "\n| q" in to_markdown("Report", sections)


@pytest.mark.parametrize("lost", ["seed", "arm"])
def test_a_lifted_model_without_the_one_it_was_made_of(lost, tmp_path):
    (folder,) = (path for path in COMMITTED if path.name == "study-default-again")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    row = results["cells"][0]["rows"][0]
    if lost == "seed":
        row["by_seed"].popitem()
    else:
        row["arm"] = "q-k=v"
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(EnvironmentFault, match="scores of seeds that were not trained"):
        read_study(tmp_path)


def test_an_unfinished_study(tmp_path, records):
    wanted = configs()
    out = started(tmp_path / "s", wanted, list(zip(records[:4], wanted, strict=False)))
    stored = read_study(out)
    assert (stored.missing, stored.planned, len(stored.records)) == (2, 6, 4)
    (cell,) = stored.cells
    assert [list(row.by_seed) for row in cell.rows] == [[0, 1, 2], [0]]
    words = Page(page_of(out)).text("main")
    assert "not finished: 2 of 6 runs are missing" in words
    assert "mqar thin-1: too thin" in words


def test_nothing_has_run_yet(tmp_path):
    out = started(tmp_path / "s", configs(), [])
    assert read_study(out).cells == []
    assert "6 of 6 runs are missing" in Page(page_of(out)).text("main")


def test_before_the_rates_are_chosen(tmp_path):
    out = started(tmp_path / "s", configs(), [], rates=(1e-3, 3e-3))
    stored = read_study(out)
    assert (stored.missing, stored.planned, stored.chosen) == (18, 18, False)
    assert "rates are not chosen yet" in Page(page_of(out)).text("main")


def test_damaged_records_count_as_missing(tmp_path, records):
    wanted = configs()
    out = started(tmp_path / "s", wanted, list(zip(records, wanted, strict=True)))
    damaged, *_ = sorted((out / "runs").iterdir())
    damaged.write_text(damaged.read_text()[:-20])
    stored = read_study(out)
    assert (stored.missing, stored.damaged) == (1, 1)
    assert "1 record could not be read and counts as missing" in Page(page_of(out)).text("main")


def test_a_study_that_was_extended_is_unfinished(tmp_path, records):
    out = started(
        tmp_path / "s", configs(seeds=range(4)), list(zip(records, configs(), strict=True))
    )
    write_results(out, as_results(records, "minqkv study", 1.0))
    assert read_study(out).missing == 2


def test_the_plan_of_a_finished_study_changes_nothing(tmp_path, records):
    out = started(tmp_path / "s", configs(), list(zip(records, configs(), strict=True)))
    write_results(out, as_results(records, "minqkv study", 1.0))
    assert read_study(out).missing == 0
    assert read_study(out).seconds == 1.0


def test_runs_that_diverged(tmp_path):
    found = [record_of(c, None if c.seed == 1 else scores(c), **LEARNED) for c in configs()]
    write_results(tmp_path, as_results(found, "minqkv study", 1.0))
    words = Page(page_of(tmp_path)).text("main")
    assert "2 of 6 runs diverged; the first: the loss is nan" in words
    assert "Runs that diverged are in no mean or interval: 2." in words


# ---- damaged and hostile files


ODD = (
    "x",
    None,
    [],
    {},
    -1,
    1e300,
    True,
    [1],
    {"a": 1},
    "<script>",
    "\x1b[31m",
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    "\udcff",
)
GONE = object()


def places(value, path=()):
    """The path of every value within a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(value, path, new):
    """A JSON value with another value at a place."""
    copy = json.loads(json.dumps(value))
    if not path:
        return new
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = new
    if new is GONE:
        del inside[path[-1]]
    return copy


def made_or_said(folder):
    """(the page, "") or ("", the error in words)."""
    try:
        return page_of(folder), ""
    except MinqkvError as error:
        return "", str(error)


@pytest.mark.parametrize("file", ["results.json", "plan.json"])
def test_whatever_a_file_holds_there_is_a_page_or_one_clear_line(file, tmp_path, finished, records):
    rng, wanted = random.Random(0), configs()
    out = started(tmp_path / "s", wanted, list(zip(records[:5], wanted, strict=False)))
    if file == "results.json":
        (out / "plan.json").unlink()
        (out / file).write_bytes((finished / file).read_bytes())
    whole = read_sealed(out / file)  # as an earlier version wrote it, without a checksum
    for path in rng.choices(list(places(whole))[1:], k=250):
        (out / file).write_text(json.dumps(changed(whole, path, rng.choice((*ODD, GONE)))))
        text, said = made_or_said(out)
        if said:
            assert "\n" not in said
            assert len(said) < 400
        else:
            assert len(Page(text).all("script")) == 1
            assert "\x1b" not in text


def test_hostile_names_stay_text(tmp_path, finished, cli):
    evil = "</script><script>alert(1)</script> `x` **y** | <img src=x onerror=alert(1)>"
    results = read_sealed(finished / "results.json")
    results["command"] = results["versions"]["machine"] = evil + "\x1b]0;owned\x07"
    cell = results["cells"][0]
    for name in ("title", "task", "metric"):
        cell[name] = evil
    cell["rows"][1]["arm"] = cell["rows"][1]["formula"] = evil
    results["hyper_parameters"] = {evil: {evil: evil}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = page_of(tmp_path)
    made = Page(text)
    assert len(made.all("script")) == 1
    assert made.all("img") == []
    assert made.outside() == []
    assert not any(name.startswith("on") for _, attributes in made.tags for name in attributes)
    assert "<script>alert(1)</script> " in made.text()
    _, markdown, _ = cli("report", tmp_path, "--markdown")
    assert not re.search(
        r"(?<!\\)<(script|img)", re.sub(r"```.*?```|`[^`]*`", "", markdown, flags=re.S)
    )
    for out in (text, markdown, cli("report", tmp_path)[1]):
        assert "\x1b" not in out


def test_a_file_that_is_too_large(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("minqkv.runtime.files.LARGEST", 1000)
    with pytest.raises(EnvironmentFault, match="is larger than"):
        read_study(finished)


def test_no_code_is_imported_because_a_file_names_it(tmp_path, records, monkeypatch):
    wanted = configs()
    out = started(tmp_path / "s", wanted, [])
    plan = json.dumps(read_sealed(out / "plan.json"))
    (out / "plan.json").write_text(plan.replace('"name": "pairs"', '"name": "evil:Task"'))
    monkeypatch.setattr("importlib.import_module", None)
    with pytest.raises(MinqkvError, match="evil:Task is a task of your own"):
        read_study(out)


# ---- a run


def test_the_page_of_a_run(run):
    made = Page(to_html("Run", run_sections(read_run(run), ["minqkv train", "minqkv report"])))
    words = made.text("main")
    for text in (
        "layer 0, head 0",
        "layer 1, head 1",
        "training loss",
        "one seed gives no interval",
    ):
        assert text in made.text("html") or text in words, text
    assert len(made.all("details")) == 3
    assert [("open" in a) for a in made.all("details")] == [True, False, False]
    assert len(made.all("svg")) == 2 + 3 * 4
    assert "minqkv study --tasks reverse --variants qkv,q-k=v --seeds 5" in words
    assert "ends at its largest weight" in words
    tops = re.findall(r"0 to ([\d.]+) \(masked", made.text("html"))
    assert len(set(tops)) > 1, "weights that have hardly been trained are far below 1"
    assert all(1 / 6 <= float(top) < 1 for top in tops)


def test_a_run_without_a_checkpoint(run, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:4]))
    words = Page(to_html("Run", run_sections(read_run(tmp_path), []))).text("main")
    assert "not finished: 2 of 6 steps are missing" in words
    assert "attends" not in words


def test_damaged_metrics_of_a_run(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    huge = f'{{"loss": 1{"0" * 400}}}'
    for line in ('{"loss": "<b>"}', "[1]", '{"loss": 1, "validation": [2]}', "{}", huge):
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(EnvironmentFault, match=r"good up to step 0; line 1 is damaged"):
            read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000)  # as if it were cut short
    assert read_run(tmp_path).metrics == []


def test_without_the_data_the_rest_of_a_report_stands(run, monkeypatch):
    def gone(*_):
        raise EnvironmentFault("the text is gone")

    monkeypatch.setattr("minqkv.tasks.synthetic.Synthetic.draw", gone)
    words = Page(to_html("Run", run_sections(read_run(run), []))).text("main")
    assert "There are no examples to show this on: the text is gone" in words
    assert "reverse with q-k=v, test split" in words


@pytest.mark.parametrize("form", ["encoder", "causal"])
def test_patterns_are_those_of_the_forward(form):
    config = configure("reverse", "q-k=v", seq_len=13, n_layer=1, n_head=2, n_embd=8, form=form)
    model = config.build().eval()
    x, _ = config.task.draw(0, "validation", 2)
    found = patterns(model, x)
    (weights,) = found.values()
    n = min(x.shape[1], LONGEST)
    assert list(found) == ["blocks.0.attn"]
    assert weights.shape == (2, 2, n, n)
    assert np.isnan(weights).sum() == (4 * n * (n - 1) // 2 if form == "causal" else 0)
    if x.shape[1] <= LONGEST or form == "causal":
        assert np.allclose(np.nansum(weights, -1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "variant", "given"),
    [
        ("reverse", "qkv", {}),
        ("sort", "q-k=v", {"form": "causal", "steps": 7, "lr": 0.01, "plus_start": None}),
        (
            "mqar",
            "qkv/q-k=v",
            {"pairs": 4, "head_dim": 12, "watch": 5, "restart": False, "seed": 3},
        ),
        ("reverse", "q=k-v+", {"hide_self": True, "threads": 2, "split": "validation"}),
    ],
)
def test_the_command_of_a_run_makes_that_run(task, variant, given, cli, tmp_path):
    config = configure(task, variant, **given)
    files.make_folder(tmp_path / "r")
    from minqkv.runs import write_config

    write_config(tmp_path / "r", config)
    words = shlex.split(train_command(config))[1:]
    resumed = cli("train", "--resume", "--out", tmp_path / "r", "--show-config")
    assert cli(*words, "--show-config") == resumed
    assert resumed[0] == 0


# ---- a forest plot


def test_a_forest_plot():
    rows = [Difference("a", 0.5, 0.1, "+.5"), Difference("b", -0.2, 0.3, "−.2"),
            Difference("c", 0.0, None, "0"), Difference("d", math.nan, None, "–")]  # fmt: skip
    for width in (WIDE, NARROW):
        text = forest("F", [("one", rows[:2]), ("two", rows[2:])], "minus qkv", 0.02, 1, width)
        xs = [float(x) for x in re.findall(r'mark[^>]*transform="translate\(([\d.]+)', text)]
        assert len(xs) == 3
        middle = xs[2]
        assert (xs[0] - middle) / (middle - xs[1]) == pytest.approx(2.5, abs=0.01)
        assert text.count('k0 hollow"') == 2
        assert text.count('class="interval') == 2
        assert "±0.02" in text
        assert "arrowhead" not in text
    assert "arrowhead" in forest("F", [("one", [Difference("a", 0.1, 9, "")])], "x", limit=1)
    assert "<svg" in forest("F", [("none", [])], "x")


# ---- what every page keeps


@pytest.fixture(scope="module")
def pages(finished, run, tmp_path_factory):
    """Files of pages: a small study, a large one, a run, and both together."""
    from minqkv.cli.report import write_page

    out = tmp_path_factory.mktemp("pages")
    folders = {"small": [finished], "large": [ROOT / "bench/results/recall-full"], "run": [run]}
    folders["both"] = [ROOT / "bench/results/study-plus", run]
    for name, these in folders.items():
        write_page(these, out / f"{name}.html", {})
    return {name: out / f"{name}.html" for name in folders}


NAMES = ["small", "large", "run", "both"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_stands_alone_and_can_be_read_by_all(pages, name):
    made = Page(pages[name].read_text("utf-8"))
    assert made.outside() == []
    assert made.all("html")[0]["lang"] == "en"
    assert made.levels()[0] == 1
    assert made.levels().count(1) == 1
    assert all(b <= a + 1 for a, b in zip(made.levels(), made.levels()[1:], strict=False))
    assert len(made.ids()) == len(set(made.ids()))
    assert set(made.links()) <= {f"#{name}" for name in made.ids()}
    assert all(a["role"] == "img" for a in made.all("svg"))
    around = [names for names, _ in made.texts if names[-1:] == ("title",) and names[-2] == "svg"]
    assert len(around) >= len(made.all("svg")), "each drawing has a title"
    assert len(made.all("caption")) == len(made.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in made.all("th"))
    policy = next(a["content"] for a in made.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_the_structure_of_a_study(pages):
    text = pages["small"].read_text("utf-8")
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings == [
        "Summary",
        "Figures",
        "Tables",
        "What this n cannot tell",
        "How it was made",
    ]
    words = Page(text).text("main")
    for told in (
        "6 runs, 2 arms, 3 seeds. Task: pairs.",
        "not distinguishable from zero: q-k=v",
        "cannot give a p below .250",
        "minqkv study --tasks pairs",
        "Differences of accuracy, paired by seed",
        "How the runs learned",
        "Score against cache bytes",
        "softmax(αQKᵀ)K",
    ):
        assert told in words or told in text, told


# ---- the command


def test_the_command(cli, finished, tmp_path):
    code, out, err = cli("report", finished, "--html", "new/folder/r.html")
    assert (code, out, err) == (0, "", "written: new/folder/r.html\n")
    assert Page((tmp_path / "new/folder/r.html").read_text("utf-8")).levels()[0] == 1
    code, out, _ = cli("report", finished)
    assert code == 0
    assert "What this n cannot tell" in out
    code, out, _ = cli("report", finished, "--markdown")
    assert out.startswith(f"## Results of {finished.name}\n")


def test_json(cli, finished, run):
    code, out, _ = cli("report", finished, run, "--json")
    study, of_run = json.loads(out)
    assert code == 0
    assert (study["kind"], study["runs"], study["missing"]) == ("study", 6, 0)
    assert [row["arm"] for row in study["cells"][0]["rows"]] == ["qkv", "q-k=v"]
    assert (of_run["kind"], of_run["steps"]) == ("run", 6)
    assert 0 <= of_run["result"]["accuracy"] <= 1


def test_without_folders_it_takes_all_in_runs(cli, finished, tmp_path):
    code, _, err = cli("report")
    assert (code, err.count("\n")) == (2, 2)
    assert "no study and no run in runs/" in err
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/a/results.json").write_bytes((finished / "results.json").read_bytes())
    code, out, _ = cli("report", "--markdown")
    assert (code, out.split("\n")[0]) == (0, "## Results of a")


def test_folders_that_hold_nothing(cli, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "old/runs").mkdir(parents=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/results.json").write_text('{"command": 3}')
    for name, code, words in (
        ("missing", 2, "missing is not a folder"),
        ("file", 2, "file is not a folder"),
        ("empty", 3, "empty contains neither a study nor a run"),
        ("old", 3, "there are no study results in old"),
        ("bad", 3, "bad/results.json is damaged"),
    ):
        found, out, err = cli("report", name, "--html", "r.html")
        assert (found, out) == (code, ""), name
        assert words in err
        assert err.count("\n") == 2
        assert not (tmp_path / "r.html").exists()


def test_places_that_cannot_be_written(cli, finished, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.html").write_text("<old")
    for place in ("file/r.html", "folder", "/dev/full"):
        if Path(place).is_absolute() and not Path(place).exists():
            continue  # no such device on this system
        code, _, err = cli("report", finished, "--html", place)
        assert code == 3, place
        assert err.startswith("minqkv: cannot write ")
        assert err.splitlines()[1].strip() == "choose another file with --html"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = cli("report", finished, "--html", "old.html")
    assert (code, "No space left" in err) == (3, True)
    assert (tmp_path / "old.html").read_text() == "<old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "old.html"]


@pytest.mark.parametrize("file", ["results.json", "figure.svg", "new.html", "empty"])
def test_a_page_takes_no_place_of_another_kind_of_file(file, cli, finished, tmp_path):
    (tmp_path / "results.json").write_bytes(before := (finished / "results.json").read_bytes())
    (tmp_path / "figure.svg").write_text("<svg>")
    (tmp_path / "empty").write_text("")
    code, _, err = cli("report", ".", "--html", file)
    assert code == (2 if file == "results.json" else 0), err
    assert (tmp_path / "results.json").read_bytes() == before
    code, _, err = cli("trace", "forward", "--svg", "results.json")
    assert (code, "results.json is another kind of file" in err) == (2, True)
    assert (tmp_path / "results.json").read_bytes() == before


def test_study_and_train_write_pages_too(cli, tmp_path):
    small = ["--set", "n_test=4", "--set", "batch=2", "--set", "keys=4", "--pairs", 2]
    small += ["--n-embd", 8, "--steps", 2]
    code, _, err = cli(
        "study", "--tasks", "pairs", "--variants", "qkv,q-k=v", "--seeds", 2, "--jobs", 1,
        *small, "--out", "s", "--html", "s.html",
    )  # fmt: skip
    assert code == 0, err
    words = Page((tmp_path / "s.html").read_text("utf-8")).text("main")
    assert "4 runs, 2 arms, 2 seeds" in words
    assert "minqkv report s --html s.html" in words
    code, _, err = cli("train", "--task", "pairs", *small, "--out", "r", "--html", "r.html")
    assert code == 0, err
    assert "layer 0, head 0" in (tmp_path / "r.html").read_text("utf-8")


# ---- in a browser


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows(browser, pages, name):
    with visit(browser, pages[name]) as page:
        unfold(page)
        for width in (400, 800, 1200):
            page.set_viewport_size({"width": width, "height": 900})
            assert overflow(page) == [], width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, pages, scheme):
    with visit(browser, pages["both"], 800, scheme) as page:
        unfold(page)
        assert pale(page) == []


def column(table, i):
    """The texts of a column, from above."""
    return table.locator(f"tbody tr > :nth-child({i})").all_inner_texts()


def test_tables_sort_by_click_and_by_key(browser, pages):
    with visit(browser, pages["large"]) as page:
        table = page.locator("table.sortable", has_text="pairs  P 8  keys 64").nth(1)
        button = table.get_by_role("button", name="minus qkv")
        written = column(table, 1)
        assert len(written) > 8
        header = button.locator("xpath=ancestor::th")
        number = int(header.evaluate("th => th.cellIndex")) + 1
        seen = []
        for act, order in (
            (button.click, "ascending"),
            (partial(button.press, "Enter"), "descending"),
            (partial(button.press, "Space"), "none"),
        ):
            act()
            assert header.get_attribute("aria-sort") == order
            seen.append((column(table, 1), [parts.value(t) for t in column(table, number)]))
        (_, up), (_, down), (again, _) = seen
        known = [v for v in up if v is not None]
        assert known == sorted(known)
        assert up == known + [None] * (len(up) - len(known)), "without a value: last"
        assert down == sorted(known, reverse=True) + [None] * (len(up) - len(known))
        assert again == written
        first = table.get_by_role("button").first
        first.click()
        assert [t.casefold() for t in column(table, 1)] == sorted(t.casefold() for t in written)
        assert header.get_attribute("aria-sort") == "none"


def test_links_lead_somewhere(browser, pages):
    with visit(browser, pages["both"]) as page:
        for link in page.locator("nav a").all():
            link.click()
            name = link.get_attribute("href").removeprefix("#")
            assert page.evaluate("document.querySelector(':target').id") == name


def test_the_keyboard_reaches_everything_that_scrolls_or_opens(browser, pages):
    with visit(browser, pages["run"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        for kind in (".scroll", "summary", "thead button", "pre"):
            reached = page.locator(kind).evaluate_all("all => all.map((e) => e.tabIndex)")
            assert reached, kind
            assert set(reached) == {0}, kind


def test_one_of_two_drawings_is_shown(browser, pages):
    for width, shown in ((400, ["narrow"]), (1200, ["wide"])):
        with visit(browser, pages["small"], width) as page:
            kinds = page.locator("figure > div").evaluate_all(
                "all => all.filter((e) => e.checkVisibility()).map((e) => e.classList[0])"
            )
            assert set(kinds) == set(shown)


def test_five_intervals_promise_no_false_one():
    stored = read_study(Path(__file__).parents[1] / "bench/results/cifar10")
    text = " ".join(to_markdown("t", study_sections(stored, "")).split())
    assert "There are 5 intervals" in text
    assert "by chance about one in 20 such intervals would still not contain zero" in text
    assert "steps, against qkv" in "".join(forests[0] for forests in differences(stored.cells))
    assert "4 × 4, d 64, L 2" in "".join(forests[0] for forests in differences(stored.cells))
