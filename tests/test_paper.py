"""`minqkv paper`: every state is worked out again here, from the files; the rules at their
boundaries; folders of one's own; studies that are run for it.
"""

import csv
import itertools
import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from browser import chromium, overflow, pale, visit
from pages import Page

from bench import ours
from minqkv.cli import study as study_command
from minqkv.render import paper as view
from minqkv.render.document import Section, Table
from minqkv.runs import configure
from minqkv.runtime import files
from minqkv.runtime.errors import UsageError
from minqkv.study import beside, measured, paper, stats
from minqkv.study.claims import MARGIN

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "minqkv/study/published"
RESULTS = ROOT / "bench/results"
SIZE = {"seq_len": 16, "n_embd": 64, "n_layer": 2, "n_head": 4}
VARIANTS = ("qkv", "q=k-v", "q=k-v+", "q-k=v", "q=k=v", "q=k=v+")


@pytest.fixture(scope="module")
def committed():
    return measured.committed()


@pytest.fixture(scope="module")
def tables(committed):
    return {table.name: table for table in paper.tables(committed)}


def lines(name):
    with open(PUBLISHED / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def folder(path, runs):
    """A study's folder: `runs` are (config, score)."""
    path.mkdir(exist_ok=True)
    entries = [{"config": asdict(c), c.task.metric: score} for c, score in runs]
    (path / "results.json").write_text(json.dumps({"runs": entries}))
    return path


def results(**scores_of):
    """Results of reverse at SIZE: variant -> scores of seeds 0, 1, …"""
    found = {}
    for variant, scores in scores_of.items():
        config = configure("reverse", variant, **SIZE)
        found[config] = measured.Measured(config, dict(enumerate(scores)), ("here",))
    return found


# ---- every state, worked out again


def student(freedom):
    """(x, P(T < x)) of Student's t, on a grid far beyond any quantile here."""
    x = np.linspace(0, 400, 400_001)
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = np.exp(constant - (freedom + 1) / 2 * np.log1p(x * x / freedom))
    density /= math.sqrt(freedom * math.pi)
    return x, 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * x[1]


def quantile(freedom):
    x, below = student(freedom)
    return float(np.interp(0.975, below, x))


def welch(a, b):
    """(difference of the means, half-width of its 95 % interval, two-sided p)"""
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    mean = statistics.fmean(a) - statistics.fmean(b)
    if va + vb == 0:
        return mean, 0.0, float(mean == 0)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    error = math.sqrt(va + vb)
    p = 2 - 2 * float(np.interp(abs(mean) / error, *student(freedom)))
    return mean, quantile(freedom) * error, p


def one_sample(values):
    mean, n = statistics.fmean(values), len(values)
    return mean, quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)


def flips(values):
    """The exact sign-flip test, by every choice of signs."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums = np.abs(signs @ np.array(values))
    return float(np.mean(sums >= abs(sum(values)) - 1e-9 * sum(map(abs, values))))


def raw_scores():
    """(task, L, H, variant) -> seed -> accuracy of all committed runs at T 16, d 64, of protocol
    2026, with nothing else changed. Where several folders have a run, the first counts; the others
    differ from it in rounding, if they were made on another machine.
    """
    found = {}
    for path in sorted(RESULTS.glob("*/results.json")):
        for run in json.loads(path.read_text("utf-8"))["runs"]:
            size = run.get("seq_len"), run["n_embd"]
            plain = run["task"] in ("reverse", "sort") and run["arm"] == run["variant"]
            usual = run.get("lr", 1e-3) == 1e-3 and run.get("position", "learned") == "learned"
            if plain and usual and size == (16, 64):
                key = run["task"], run["n_layer"], run["n_head"], run["variant"]
                first = found.setdefault(key, {}).setdefault(run["seed"], run["accuracy"])
                assert abs(first - run["accuracy"]) < 0.005, (key, run["seed"])
    return found


def authors():
    """(task, L, H, variant) -> accuracies of the authors' runs at T 16, d 64."""
    found = {}
    for row in lines("synthetic_2026.csv"):
        if (row["seq_len"], row["n_embd"]) == ("16", "64"):
            key = row["task"], int(row["n_layer"]), int(row["n_head"]), row["variant"]
            found.setdefault(key, []).append(float(row["accuracy"]))
    return found


def holm(p_values):
    """The corrected p of each key, from its definition."""
    order = sorted(p_values, key=p_values.get)
    raised = [(len(order) - i) * p_values[key] for i, key in enumerate(order)]
    return {key: min(1, max(raised[: i + 1])) for i, key in enumerate(order)}


def test_the_cells(tables):
    ours_, theirs = raw_scores(), authors()
    p_values = {}
    for key in ours_.keys() & theirs.keys():
        if len(ours_[key]) >= 8:
            mean = statistics.fmean(theirs[key])
            mine = list(ours_[key].values())
            p_values[key] = max(flips([of - mean for of in mine]), welch(mine, theirs[key])[2])
    adjusted, seen = holm(p_values), set()
    for group in tables["cells"].groups[:-1]:
        task, _, _, layers, heads = group.title.split("  ")
        for row in group.rows:
            key = task, int(layers[2:]), int(heads[2:]), row.name
            mine = list(ours_[key].values())
            mean, half, _ = welch(mine, theirs[key])
            assert row.ours.n == len(mine)
            assert row.ours.mean == pytest.approx(statistics.fmean(mine))
            assert float(row.published["re-run"]) == round(statistics.fmean(theirs[key]), 3)
            assert (row.difference.mean, row.difference.half) == pytest.approx(
                (mean, half), abs=1e-5
            )
            assert row.p == (pytest.approx(adjusted[key], abs=1e-4) if key in adjusted else None)
            state = "cannot be told"
            if abs(mean) + half < 0.02:
                state = "the same"
            elif adjusted.get(key, 1) <= 0.05:
                state = "different"
            assert row.state == state, key
            seen.add(key)
    assert seen == ours_.keys() & theirs.keys()
    assert len(seen) == 48


def test_what_the_plus_adds(tables):
    ours_, theirs = raw_scores(), authors()
    rows = {}
    for group in tables["plus"].groups:
        for row in group.rows:
            task, base = row.name.split()
            first, second = {"gain": ("+", ""), "temperature": ("+", "+temperature"),
                             "bias": ("+bias", "")}[group.name]  # fmt: skip
            pair = [ours_[task, 2, 4, base + end] for end in (first, second)]
            gains = [pair[0][seed] - pair[1][seed] for seed in pair[0].keys() & pair[1].keys()]
            rows[group.name, row.name] = row, gains
            assert (row.ours.mean, row.ours.half) == pytest.approx(one_sample(gains), abs=1e-5)
    published, rough = {}, {}
    for (name, label), (row, gains) in rows.items():
        task, base = label.split()
        published[name, label] = 0.0
        if name == "gain":
            pair = zip(theirs[task, 2, 4, base + "+"], theirs[task, 2, 4, base], strict=True)
            differences = [a - b for a, b in pair]
            published[name, label] = statistics.fmean(differences)
            assert float(row.published["re-run"]) == round(published[name, label], 3)
            found = row.difference.mean, row.difference.half
            *expected, rough[name, label] = welch(gains, differences)
            assert found == pytest.approx(tuple(expected), abs=1e-5)
    p_values = {
        key: max(rough.get(key, 0), flips([gain - published[key] for gain in gains]))
        for key, (_, gains) in rows.items()
        if len(gains) >= 8
    }
    adjusted = holm(p_values)
    for key, (row, _) in rows.items():
        assert row.p == (pytest.approx(adjusted[key], abs=1e-4) if key in adjusted else None)
        of = row.difference or row.ours
        inside, certain = abs(of.mean) + of.half < 0.02, adjusted.get(key, 1) <= 0.05
        if key[0] == "gain":
            state = "the same" if inside else "different" if certain else "cannot be told"
        else:  # what is published takes the positions to help
            state = "different" if inside or (certain and of.mean < 0) else "cannot be told"
            state = "the same" if certain and of.mean > 0 else state
        assert row.state == state, key


def closed_form(variant, d, H, L, f=None, V=50304, P=2048):
    """(parameters, MACs of n tokens, cached numbers per token), from the formulas of the paper."""
    q, streams, h = {
        "qkv": (1, 2, H), "q=k-v": (0, 2, H), "q-k=v": (1, 1, H), "q=k=v": (0, 1, H),
        "gqa-4": (1, 2, 4), "mqa": (1, 2, 1), "q-gqa-4": (1, 1, 4), "q-mqa": (1, 1, 1),
    }[variant]  # fmt: skip
    f, stored = f or 4 * d, streams * h * (d // H)
    attention = (q + 1) * (d * d + d) + stored * d + stored
    params = L * (attention + 2 * d * f + f + d + 4 * d) + 2 * d + V * d + P * d

    def macs(n):
        return L * (n * d * ((q + 1) * d + stored) + 2 * n * n * d + 2 * n * d * f) + n * d * V

    return params, macs, L * stored


@pytest.mark.parametrize("name", ["cache-300m", "cache-1-2b", "deployment", "params", "macs"])
def test_what_is_computed(name, tables):
    shape = (2048, 32, 22) if name == "cache-1-2b" else (1024, 16, 20)
    full = closed_form("qkv", *shape)[2]
    for group in tables[name].groups:
        for row in group.rows:
            params, macs, cached = closed_form(row.name, *shape)
            (printed,) = row.published.values()
            value = {
                "saved": 100 * (1 - cached / full),
                "times": full / cached,
                "32K": cached * 2 * 32768 / 1e9,
                "640 MiB": cached * 2 * 32768 / 1e9,
                "all": params,
                "overhead": (float(printed) + 100) / 2 - 100 if group.name == "overhead" else 0,
            }.get(group.name)
            value = macs(int(group.name)) if value is None else value
            assert row.ours.mean == pytest.approx(value, rel=1e-12)
            decimals = len(printed.partition(".")[2])
            same = f"{value:.{decimals}f}" == f"{float(printed):.{decimals}f}"
            assert row.state == ("the same" if same else "different"), (group.name, row.name)


def test_the_slips_of_the_sources(tables):
    different = {
        (table.name, group.name, row.name)
        for table in tables.values()
        for group in table.groups
        for row in group.rows
        if row.state == "different" and row.agrees is not None
    }
    assert different == {
        ("cache-300m", "32K", "qkv"), ("cache-300m", "640 MiB", "gqa-4"),
        ("cache-1-2b", "saved", "q-mqa"), ("cache-1-2b", "times", "q-mqa"),
        ("macs", "overhead", "qkv"),
        ("mechanism", "direction", "q=k-v+"), ("mechanism", "direction", "q=k=v+"),
    }  # fmt: skip
    assert abs(32_000 * 81_920 / 1e9 - 2.62) < 0.002  # the reason that is given
    assert 32_768 * 20_480 == 8_192 * 81_920 == 640 * 2**20


def test_the_direction(tables):
    """Zero with Q = K, "+" or not; not with a Q of its own."""
    (group,) = [g for g in tables["mechanism"].groups if g.name == "direction"]
    curls = {row.name: row.ours.mean for row in group.rows}
    assert set(curls) == set(VARIANTS)
    for variant, curl in curls.items():
        assert abs(curl) < 1e-3 if variant.startswith("q=k") else curl > 0.1


def test_published_means(tables):
    """The means over all sizes are those of the file; the others are as printed."""
    scores = {}
    for row in lines("synthetic_2026.csv"):
        scores.setdefault((row["task"], row["variant"]), []).append(float(row["accuracy"]))
    for group in tables["synthetic"].groups:
        for row in group.rows:
            tasks = [t for t, v in scores if v == row.name and group.name in (t, "average")]
            mean = statistics.fmean(statistics.fmean(scores[task, row.name]) for task in tasks)
            assert float(row.published["re-run"]) == round(mean, 3)
            assert row.state == "not run"
    models = {row.name: row.published for row in tables["lm-300m"].rows}
    for line in lines("language_models.csv"):
        assert float(models[line["variant"]]["paper"]) == float(line["padded"])


def test_every_difference_has_a_reason(tables):
    for table in tables.values():
        for row in table.rows:
            assert row.state in paper.STATES
            if row.state == "different":
                assert row.why not in ("", paper.UNEXPLAINED), (table.name, row.name)
            if row.state == "not run":
                assert row.why, (table.name, row.name)


def test_what_the_page_says(tables):
    """docs/results.md"""
    text = " ".join((ROOT / "docs/results.md").read_text("utf-8").split())

    def short(value):
        return f"{abs(value):.3f}".removeprefix("0")

    states = [row.state for row in tables["cells"].rows]
    same, untold = states.count("the same"), states.count("cannot be told")
    assert states.count("different") == 0
    told = (
        f"Of the {same + untold} configurations of the synthetic tasks that both sides have run, "
    )
    assert f"{told}{same} are the same and none is different. The other {untold} cannot" in text
    rows = {(g.name, r.name): r.ours for g in tables["plus"].groups for r in g.rows}
    for name in ("sort q=k-v", "sort q=k=v", "reverse q=k=v"):
        of = rows["temperature", name]
        assert of.n == 12
        assert f"{short(of.mean)} ± {short(of.half)}" in text.partition("row by row")[2]
    found = {(g.title, r.name): r.ours for g in tables["cells"].groups for r in g.rows}
    four = found["reverse  T 16  d 64  L 4  H 4", "q=k=v"]
    assert f"{short(four.mean)} ± {short(four.half)} at L 4, H 4" in text
    exact = [r for n in ("params", "macs") for g in tables[n].groups for r in g.rows
             if g.name != "overhead"]  # fmt: skip
    assert {row.state for row in exact} == {"the same"}
    saved = [r for n in ("cache-300m", "cache-1-2b", "deployment") for g in tables[n].groups
             for r in g.rows if g.name == "saved"]  # fmt: skip
    assert [row.state for row in saved].count("different") == 1


# ---- what is registered


def test_every_published_number_is_in_a_table(tables):
    shown = {
        (table.name, group.name, row.name, *figure)
        for table in tables.values()
        for group in table.groups
        for row in group.rows
        for figure in row.published.items()
    }
    for line in lines("paper.csv"):
        assert tuple(line.values()) in shown
    for line in lines("vision.csv"):
        variant, source, *_ = line.values()
        figures = [(group, line[group]) for group in list(line)[2:] if line[group]]
        for group, figure in figures:
            assert ("vision", group, variant, source, figure) in shown


def planned(args, monkeypatch):
    """What a study would run: (configuration, seed) of each run."""

    class Planned(Exception):
        pass

    def stop(plan, *about):
        raise Planned(plan)

    monkeypatch.setattr(study_command, "_outlook", stop)
    with pytest.raises(Planned) as found:
        study_command.study.main(args, standalone_mode=False)
    return {replace(config, threads=1) for config in found.value.args[0].configs}


def test_the_commands_make_what_is_committed(committed, monkeypatch):
    """Every run of these commands is committed, and every committed arm of these tables is one of a
    command.
    """
    studies = paper.studies()
    assert set(paper.studies(quick=True)) == {"cells", "plus"}
    made = {}
    for name in ("cells", "plus", "agreement", "reverse"):
        made[name] = planned(studies[name][1:], monkeypatch)
        for config in made[name]:
            assert config.seed in committed[replace(config, seed=0)].scores, (name, config)
    every = {replace(config, seed=0) for configs in made.values() for config in configs}
    ours_ = [configure(t, v, **SIZE | {"n_layer": L, "n_head": H}) for t, L, H, v in raw_scores()]
    assert len(ours_) > 48
    tabled = {variant + end for variant in VARIANTS for end in ("", "+temperature", "+bias")}
    assert {config for config in ours_ if config.variant in tabled} <= every


def test_every_study_can_be_planned(monkeypatch):
    """All but those that need a download are; the sweep is the one that its table expects."""
    sizes = paper.registered()["synthetic"]["sizes"]
    made = planned(paper.studies()["sweep-2023"][1:], monkeypatch)
    assert len(made) == 6 * 5 * 3 * math.prod(map(len, sizes.values()))
    assert {config.task.protocol for config in made} == {"2023"}
    for args in paper.studies().values():
        assert args[0] == "study"
        study_command.study.make_context("study", args[1:])
    commands = {
        command for table in paper.tables({}) for g in table.groups for command in g.commands
    }
    for command in commands:
        assert command.startswith("minqkv ")


# ---- the rules, at their boundaries

BASE = "q=k=v"  # whose published values differ between seeds: .4912 .6878 .6080


def state(scores, variant=BASE):
    (group, _) = paper.tables(results(**{variant: scores}), ("cells",))[0].groups
    (row,) = group.rows
    return row


def around(mean, half, n):
    """n values with this mean and half-width."""
    values = np.linspace(-1, 1, n)
    values *= half / (stats.t_quantile(n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return list(mean + values)


def test_the_margin(monkeypatch):
    """Published values that agree, so that the interval is ours alone."""
    key = ("qkv", "reverse", 16, 64, 2, 4)
    monkeypatch.setitem(beside.synthetic_2026(), key, [0.5, 0.5, 0.5])
    for n in (2, 8):
        assert state(around(0.51, 0.0099, n), "qkv").state == "the same"
        assert state(around(0.51, 0.0101, n), "qkv").state == "cannot be told"
    assert MARGIN == 0.02


def test_different_takes_eight_seeds(monkeypatch):
    monkeypatch.setitem(beside.synthetic_2026(), ("qkv", "reverse", 16, 64, 2, 4), [0.5] * 3)
    row = state(around(0.6, 0.01, 7), "qkv")
    assert (row.state, row.p) == ("cannot be told", None)
    assert "7 seeds are too few" in row.why
    row = state(around(0.6, 0.01, 8), "qkv")
    assert (row.state, row.p) == ("different", 2 / 256)
    assert row.why == paper.UNEXPLAINED


def test_the_spread_of_the_published_seeds_counts(monkeypatch):
    """The sign-flip test alone would call this different."""
    far = [0.5, 0.9, 0.1]
    monkeypatch.setitem(beside.synthetic_2026(), ("qkv", "reverse", 16, 64, 2, 4), far)
    mine = around(0.6, 0.01, 8)
    assert flips([score - 0.5 for score in mine]) == 2 / 256
    row = state(mine, "qkv")
    assert row.p == pytest.approx(welch(mine, far)[2], abs=1e-4)
    assert row.p > 0.5
    assert row.state == "cannot be told"


def test_the_p_values_of_a_table_are_corrected_together(monkeypatch):
    for variant in VARIANTS:
        key = (variant, "reverse", 16, 64, 2, 4)
        monkeypatch.setitem(beside.synthetic_2026(), key, [0.5] * 3)
    found = results(**{variant: around(0.6, 0.01, 8) for variant in VARIANTS})
    rows = paper.tables(found, ("cells",))[0].rows[:-1]
    assert {row.p for row in rows} == {6 * 2 / 256}
    assert {row.state for row in rows} == {"different"}
    seven = found | results(**{"qkv": around(0.6, 0.01, 8)})
    sort = configure("sort", "qkv", **SIZE)
    monkeypatch.setitem(beside.synthetic_2026(), ("qkv", "sort", 16, 64, 2, 4), [0.5] * 3)
    seven[sort] = measured.Measured(sort, dict(enumerate(around(0.6, 0.01, 8))), ("here",))
    rows = paper.tables(seven, ("cells",))[0].rows[:-1]
    assert {row.state for row in rows} == {"cannot be told"}  # 7 · 2 / 256 is above .05


def test_one_seed_and_runs_that_diverged():
    row = state([0.5])
    assert (row.state, row.why) == ("cannot be told", "one seed gives no interval")
    row = state([1.0, 1.0, None], "qkv")
    assert (row.state, row.why) == ("cannot be told", "runs that diverged: 1")
    row = state([None, None], "qkv")
    assert (row.state, row.ours) == ("cannot be told", None)


@pytest.mark.parametrize(
    ("gain", "half", "expected"),
    [
        (0.0, 0.019, "different"),
        (0.0, 0.021, "cannot be told"),
        (0.1, 0.05, "the same"),
        (-0.1, 0.05, "different"),
    ],
)
def test_a_claim_that_something_helps(gain, half, expected):
    """Published: more than the temperature alone."""
    found, size = {}, {"seq_len": 16, "n_embd": 64, "n_layer": 2, "n_head": 4}
    for variant, scores in (
        ("q=k-v+", around(0.5 + gain, half, 8)),
        ("q=k-v+temperature", [0.5] * 8),
    ):
        config = configure("sort", variant, **size)
        found[config] = measured.Measured(config, dict(enumerate(scores)), ("here",))
    rows = {r.name: r for g in paper.tables(found, ("plus",))[0].groups for r in g.rows
            if g.name == "temperature"}  # fmt: skip
    assert rows["sort q=k-v"].state == expected


@pytest.mark.parametrize(
    ("value", "printed", "same"),
    [
        (96.875, "96.9", True),
        (96.84, "96.9", False),
        (64.0, "67", False),
        (305534976, "305534976", True),
        (305534977, "305534976", False),
        (0.0004, "> 0", False),
        (0.001, "> 0", True),
        (0.0, "0", True),
    ],
)
def test_agreement_of_what_is_computed(value, printed, same):
    assert beside.agree(value, printed) == same


# ---- a smaller scale, and the whole one


def language(scores_of, **given):
    """Results of language models: variant -> perplexities."""
    found = {}
    for variant, scores in scores_of.items():
        config = configure("text", variant, text="builtin", **given)
        found[config] = measured.Measured(config, dict(enumerate(scores)), ("here",))
    return found


def test_a_smaller_scale_gets_no_verdict():
    scores = {"qkv": [6.0, 6.1, 6.2], "q-k=v": [6.3, 6.4, 6.4], "gqa-2": [6.0, 6.0, 6.0]}
    (group,) = paper.tables(language(scores), ("lm-300m",))[0].groups
    rows = {row.name: row for row in group.rows}
    row = rows["q-k=v"]
    assert (row.state, row.difference) == ("smaller scale", None)
    assert "3 layers and width 128, trained on builtin with 64 tokens" in row.why
    ratios = [6.3 / 6.0 - 1, 6.4 / 6.1 - 1, 6.4 / 6.2 - 1]
    assert (row.our_change.mean, row.our_change.half) == pytest.approx(one_sample(ratios), abs=1e-6)
    assert row.change == {"paper": pytest.approx(5.27 / 5.11 - 1),
                          "later": pytest.approx(21.28 / 20.82 - 1)}  # fmt: skip
    assert rows["qkv"].our_change is None
    assert {rows[name].state for name in ("mqa", "gqa-4")} == {"not run"}
    assert row.relative


def test_a_terminal_does_not_obey_a_file():
    """A text of this name would clear the screen."""
    found = {}
    for config, one in language({"qkv": [6.0, 6.1]}).items():
        named = replace(config, task=replace(config.task, text="a\x1b[2Jb"))
        found[named] = replace(one, config=named)
    why = paper.tables(found, ("lm-300m",))[0].rows[0].why
    assert "trained on a\ufffd[2Jb with" in why


def test_where_nothing_is_published_ours_is_shown():
    found = language({"qkv": [6.0, 6.1], "mqa": [6.2, 6.3]})
    spec = {"title": "texts", "settings": {"name": "text", "seq_len": 64}, "full": {}}
    rows = {row.name: row for _, row in beside.runs(spec, {}, found)}
    assert list(rows) == ["qkv", "mqa"]
    assert rows["mqa"].ours.mean == pytest.approx(6.25)
    assert rows["mqa"].our_change.mean == pytest.approx((6.2 / 6.0 + 6.3 / 6.1) / 2 - 1)
    assert rows["mqa"].difference is None
    assert rows["mqa"].smaller["seq_len"] == 64
    other = spec | {"settings": {"name": "text", "seq_len": 65}}
    assert list(beside.runs(other, {}, found)) == []


def test_the_whole_scale_is_judged_by_one_per_cent():
    large = {"n_layer": 20, "n_embd": 1024, "n_head": 16, "seq_len": 2048, "steps": 4238}
    scores = {"qkv": around(5.12, 0.02, 3), "mqa": around(5.19 * 1.02, 0.02, 8)}
    rows = {row.name: row for row in paper.tables(language(scores, **large), ("lm-300m",))[0].rows}
    assert rows["qkv"].state == "the same"
    assert rows["qkv"].difference.mean == pytest.approx(5.12 / 5.11 - 1)
    assert rows["mqa"].state == "different"
    assert rows["mqa"].difference.mean == pytest.approx(0.02)


def test_a_sweep_counts_when_it_is_complete():
    found = {}
    sizes = itertools.product((64, 128), (64, 256), (2, 4), (2, 4))
    for i, size in enumerate(sizes):
        named = dict(zip(SIZE, size, strict=True))
        config = configure("reverse", "qkv", protocol="2023", **named)
        found[config] = measured.Measured(config, {0: 0.5, 1: 0.7 + i / 100}, ("here",))

    spec = paper.registered()["synthetic"] | {"title": "reverse", "tasks": ["reverse"]}
    published = {"qkv": {"paper": ".698"}}

    def row():
        (only,) = beside.sweep(spec, published, found)
        return only[1]

    assert row().ours.n == 2
    assert row().ours.mean == pytest.approx((0.5 + 0.7 + 7.5 / 100) / 2)
    assert row().difference.mean == pytest.approx(row().ours.mean - 0.698)
    found[config] = measured.Measured(config, {0: 0.5, 1: None}, ("here",))
    assert (row().ours.n, row().lost) == (1, 1)
    assert paper.tables(found, ("synthetic",))[0].rows[0].state == "cannot be told"
    del found[config]
    assert row().ours is None


# ---- folders


def test_committed_results_in_short(committed):
    """ours.csv is what bench/results holds: python -m bench.ours writes it."""
    assert measured.IN_SHORT.read_text("utf-8") == ours.in_short()
    short = measured.in_short()
    assert short == {config: committed[config] for config in short}
    assert paper.as_data(paper.tables(short)) == paper.as_data(paper.tables(committed))
    assert measured.IN_SHORT.stat().st_size < 50_000


def test_an_installed_package_reads_them_in_short(committed, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "COMMITTED", tmp_path)
    assert measured.committed() == measured.in_short()
    assert '"minqkv.study.published": ["*.csv", "*.toml"]' in (ROOT / "setup.py").read_text("utf-8")


def row_of(out, table, group, name):
    found = json.loads(out)["tables"]
    (row,) = [r for t in found if t["name"] == table for g in t["groups"] if g["title"] == group
              for r in g["rows"] if r["name"] == name]  # fmt: skip
    return row


CELL = "reverse  T 16  d 64  L 2  H 4"


def test_a_folder_takes_the_place_of_committed_results(cli, tmp_path):
    config = configure("reverse", "q=k=v", **SIZE)
    mine = folder(tmp_path / "mine", [(replace(config, seed=s), 0.6 + s / 100) for s in range(3)])
    code, out, err = cli("paper", "mine", "--json", "--table", "cells")
    assert (code, err) == (0, "")
    row = row_of(out, "cells", CELL, "q=k=v")
    assert (row["ours"]["n"], row["ours"]["mean"]) == (3, pytest.approx(0.61))
    assert row["folders"] == ["mine"]
    assert row_of(out, "cells", CELL, "q-k=v")["folders"] != ["mine"]
    folder(tmp_path / "more", [(replace(config, seed=s), 0.9) for s in range(1, 5)])
    row = row_of(cli("paper", "mine", "more", "--json")[1], "cells", CELL, "q=k=v")
    assert row["ours"]["n"] == 5  # the seeds of both, the first before the second
    assert row["ours"]["mean"] == pytest.approx((0.6 + 0.61 + 0.62 + 0.9 + 0.9) / 5)
    assert mine.exists()


def test_a_folder_that_adds_nothing_is_named(cli, tmp_path):
    folder(tmp_path / "recall", [(configure("pairs", "qkv"), 0.5)])
    code, _, err = cli("paper", "recall")
    assert code == 0
    assert err == "recall: nothing in it belongs to a table of the paper\n"


def test_runs_that_are_not_test_scores_or_of_unknown_tasks_are_left_out(tmp_path):
    config = configure("reverse", "qkv", **SIZE)
    path = folder(
        tmp_path / "mine", [(config, 0.5), (replace(config, split="validation", seed=1), 1)]
    )
    values = json.loads((path / "results.json").read_text())
    other = json.loads(json.dumps(values["runs"][0]))
    other["config"]["task"]["name"] = "my_file:MyTask"
    values["runs"].append(other)
    (path / "results.json").write_text(json.dumps(values))
    assert measured.in_folder(path) == {config: measured.Measured(config, {0: 0.5}, (str(path),))}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"runs": 7}', '{"runs": [7]}', '{"runs": [{"config": 7}]}',
     '{"runs": [{"config": {"task": 7}}]}', '{"runs": [{"config": {"task": "reverse"}}, null]}',
     "score: 1.5", "score: NaN", 'score: "high"', "score: missing"],
)  # fmt: skip
def test_a_damaged_folder(cli, tmp_path, text):
    path = tmp_path / "mine"
    config = configure("reverse", "qkv", **SIZE)
    folder(path, [(config, 0.5)])
    if text.startswith("score"):
        file = (path / "results.json").read_text()
        new = file.replace('"accuracy": 0.5', text.replace("score", '"accuracy"'))
        new = file.replace('"accuracy"', '"other"') if "missing" in text else new
        (path / "results.json").write_text(new)
    else:
        (path / "results.json").write_text(text)
    code, out, err = cli("paper", "mine")
    assert (code, out) == (3, "")
    assert err.startswith("minqkv: ")
    assert "mine/results.json" in err
    assert err.count("\n") <= 2


def test_no_folder_no_results_or_too_many(cli, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "file", "empty"):
        code, out, err = cli("paper", name)
        assert (code, out) == (2, "")
        assert f"there is no results.json in {name}" in err
        assert "name the folder of a finished study" in err
    with open(tmp_path / "empty" / "results.json", "wb") as file:
        file.truncate(files.LARGEST + 1)
    code, _, err = cli("paper", "empty")
    assert code == 3
    assert "is larger than 67,108,864 bytes" in err


def test_names(cli):
    code, _, err = cli("paper", "--table", "sythetic")
    assert code == 2
    assert "unknown table 'sythetic'" in err
    assert "did you mean synthetic?" in err
    code, out, _ = cli("paper", "--table", "params,macs", "--json")
    assert [table["name"] for table in json.loads(out)["tables"]] == ["params", "macs"]
    code, _, err = cli("paper", "--dry-run")
    assert code == 2
    assert "--run" in err


# ---- the text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits(width, committed, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    scores = {
        "qkv": [6.0, 6.1, 6.2],
        "q-k=v": [6.3, 6.4, 6.4],
        "mqa": [6.1, 6.2, None],
        "q-mqa": [None],
    }
    everything = committed | language(scores)
    monkeypatch.setattr(measured, "committed", lambda: everything)
    code, out, _ = cli("paper")
    assert code == 0
    for line in out.splitlines():
        assert len(line) <= width or line.startswith("minqkv "), line
    if width >= 80:
        assert "q-k=v     smaller scale    5.27    +3.1 %   21.28   +2.2 %   6.37 ± .14   3" in out


def test_what_comes_first(cli, tables):
    code, out, _ = cli("paper")
    assert code == 0
    said = " ".join(out.split())
    counts = {state: sum(r.state == state for t in tables.values() for r in t.rows)
              for state in paper.STATES}  # fmt: skip
    first = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    assert said.startswith(f"The paper and minqkv, row by row: {first}. Table by table")
    order = [out.index(f"[{name}]") for name in tables]
    assert out.index("Different from the paper") < order[0]
    assert order == sorted(order)
    for table in tables.values():
        for row in table.rows:
            assert row.state != "different" or " ".join(row.why.split()) in said
    assert "minqkv study --preset nano" in out


def test_json_has_no_nan(cli, tmp_path):
    folder(tmp_path / "one", [(configure("reverse", "qkv", **SIZE), 0.5)])

    def refuse(name):
        raise AssertionError(name)

    code, out, _ = cli("paper", "one", "--json")
    assert code == 0
    found = json.loads(out, parse_constant=refuse)
    assert sum(found["states"].values()) == sum(
        len(group["rows"]) for table in found["tables"] for group in table["groups"]
    )
    assert row_of(out, "cells", CELL, "qkv")["difference"]["half"] is None


def test_a_page(cli, tables, tmp_path):
    code, out, err = cli("paper", "--html", "page.html")
    assert (code, out) == (0, "")
    assert err == "written: page.html\n"
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert page.outside() == []
    text = page.text()
    for table in tables.values():
        assert f"{table.title} [{table.name}]" in text
        for row in table.rows:
            assert all(
                f"{int(of):,}" if len(of) > 6 else of in text for of in row.published.values()
            )
            assert row.state != "different" or row.why in text
    assert text.index("Different from the paper") < text.index("Table 1; re-run")
    code, out, err = cli("paper", "--html", "/proc/no/page.html")
    assert code == 3
    assert "choose another file with --html" in err


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_the_page_in_a_browser(width, cli, tmp_path):
    with chromium() as browser:
        assert cli("paper", "--html", "page.html")[0] == 0
        for scheme in ("light", "dark"):
            with visit(browser, tmp_path / "page.html", width, scheme) as page:
                assert overflow(page) == []
                assert pale(page) == []


# ---- studies that are run for it

TINY = ("--tasks copy --variants qkv,q-k=v --seeds 2 --seq-len 16 --n-embd 32 --n-layer 2 "
        "--n-head 2 --steps 2")  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """Studies of two runs, of which one cannot be planned."""
    known = paper.registered()
    known["studies"] = {
        "small": {"command": f"minqkv study {TINY}", "quick": True},
        "lost": {"command": "minqkv study --tasks text --text nowhere.txt", "quick": True},
        "long": {"command": "minqkv study --preset paper"},
    }
    for table in known.values():
        table.pop("study", None)
        for group in table.get("groups", {}).values():
            group.pop("study", None)
    monkeypatch.setattr(paper, "registered", lambda: json.loads(json.dumps(known)))


def test_it_runs_studies_and_resumes(tiny, cli, tmp_path):
    code, out, err = cli("paper", "--run", "quick", "--dry-run", "--jobs", 1)
    said = " ".join(err.split())
    assert (code, out) == (0, "")
    assert "small: 4 runs, 0 of them on record in runs/paper/small; about" in said
    assert "lost is left out: " in said
    assert "All together: about" in said
    assert not (tmp_path / "runs/paper").exists()
    code, out, err = cli("paper", "--run", "quick", "--jobs", 1, "--json")
    assert code == 0
    assert set(json.loads(out)) == {"states", "tables"}  # nothing of the studies
    made = json.loads((tmp_path / "runs/paper/small/results.json").read_text())
    assert made["command"] == f"minqkv study {TINY} --out runs/paper/small --jobs 1"
    assert len(made["runs"]) == 4
    plan = json.loads(cli("paper", "--run", "quick", "--dry-run", "--jobs", 1, "--json")[1])
    assert plan["studies"]["small"]["recorded"] == 4
    assert set(plan["studies"]) == {"small"}
    code, _, err = cli("paper", "--run", "quick", "--jobs", 1, "--out", "runs/paper")
    assert code == 0
    assert "4 runs, 4 of them on record" in " ".join(err.split())


def test_an_unknown_table_stops_before_anything_is_run(tiny, cli, tmp_path):
    assert cli("paper", "--run", "quick", "--table", "nix")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_interrupted_it_says_how_to_continue(tiny, cli, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_command, "_run", stop)
    code, out, err = cli("paper", "--run", "quick", "--jobs", 1)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert "finished runs are kept in runs/paper/small: repeat the command to continue" in err


def test_the_command_of_a_study_is_its_own(cli, monkeypatch):
    """Only another command may say what a study is called."""
    from minqkv.cli import options

    @click.command()
    def shown():
        click.echo(options.command_line())

    monkeypatch.setattr("sys.argv", ["minqkv", "study", "--seeds", "3"])
    from click.testing import CliRunner

    assert CliRunner().invoke(shown).output == "minqkv study --seeds 3\n"
    assert CliRunner().invoke(shown, obj=["study", "a b"]).output == "minqkv study 'a b'\n"


def test_usage_errors_are_ours():
    with pytest.raises(UsageError):
        paper.tables({}, ("nix",))


@pytest.mark.parametrize(
    ("size", "figure"),
    [
        ({"name": "images", "data": "data/CIFAR-10"}, ".663"),
        ({"name": "sets", "data": "mnist"}, ".942"),
        ({"name": "text"}, "5.11"),
        ({"name": "images", "data": "holidays"}, None),
        ({"name": "images", "data": ""}, None),
        ({"name": "segment"}, None),
        ({"task": "sort"}, None),
    ],
)
def test_what_the_paper_has_of_the_same_data(size, figure):
    _, found = paper.of_same_data(SimpleNamespace(size=size))
    assert found.get("qkv", {}).get("paper") == figure


def test_every_column_has_a_heading(tables):
    """On a page it is a button that sorts."""
    blocks = view.sections(list(tables.values()))
    while blocks:
        block = blocks.pop()
        if isinstance(block, Section):
            blocks += block.blocks
        elif isinstance(block, Table):
            assert all(heading for heading, _ in block.columns), block.title
