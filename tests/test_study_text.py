"""Studies of texts: the preset, one rate for all arms, what is prepared before the runs, and tables
of perplexities.
"""

import io
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from records import record_of
from rich.console import Console

from minqkv.render.study import cell_tables, claims_table, curves, figure
from minqkv.runs import configure
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study.claims import CONTRASTS, Contrast, as_data, findings
from minqkv.study.execute import run_one
from minqkv.study.grid import arm, blocks, grid
from minqkv.study.plan import plan
from minqkv.study.published import printed as published
from minqkv.study.rates import candidates, choose, choose_one
from minqkv.study.stats import Estimate
from minqkv.study.summary import as_results, summarise, unresolved
from minqkv.tasks import corpus
from minqkv.tasks.text import Text

ARMS = [("qkv", None), ("q-k=v", None), ("q=k-v", None), ("q=k=v", None), ("mqa", None)]
ARMS += [("q-mqa", None), ("gqa-2", None), ("qkv", 16)]
RATES = (2e-3, 4e-3, 8e-3)
VERSE = "If music be the food of love, play on;\nGive me excess of it, that, surfeiting,\n"


@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    """A stand-in for the download: a file of that name, here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare").write_text(VERSE * 40)
    return tmp_path


def written_out(variant, head_dim, seed, lr=4e-3):
    """A run of the study as its plan says it."""
    return configure("text", variant, text="shakespeare", head_dim=head_dim, seed=seed, lr=lr)


def record(config, perplexity, loss=None, **changes):
    """A record of a language model that nobody trained."""
    loss = loss or (math.log(perplexity) if perplexity else None)
    found = record_of(config, perplexity, loss, **changes)
    if perplexity:
        found["score"]["bits_per_byte"] = math.log2(perplexity)
    return found


# ---- the preset


def test_the_preset_is_what_the_plan_says(shakespeare):
    found = plan(blocks("nano", {}))
    arms = [written_out(variant, width, 0) for variant, width in ARMS]
    wanted = {config.hash for config in candidates(arms, RATES, 1)}
    assert {config.hash for config in found.candidates} == wanted
    assert (len(wanted), {config.seed for config in found.candidates}) == (24, {100})
    for rate in RATES:
        reported = {written_out(*one, seed, rate).hash for seed in range(8) for one in ARMS}
        assert {config.change(lr=rate).hash for config in found.configs} == reported
        assert len(reported) == 64
    assert {config.split for config in found.configs} == {"test"}


def test_sizes_and_recipe_of_the_preset(shakespeare):
    for config in plan(blocks("nano", {})).configs:
        task, recipe = config.task, config.recipe
        assert (task.n_layer, task.n_head, task.n_embd, task.seq_len) == (3, 4, 128, 64)
        assert (recipe.steps, recipe.batch, recipe.warmup, recipe.floor) == (2500, 12, 125, 0.1)
        assert (task.tokenizer, task.padded, task.dropout) == ("chars", False, 0.0)


def test_each_planned_contrast_is_of_arms_that_run(shakespeare):
    records = [record(config, 5.0) for config in plan(blocks("nano", {})).configs]
    (cell,) = summarise(records)
    found = findings(CONTRASTS["nano"], [cell])
    assert Counter(one.family for one in found) == {"sharing": 5, "equal bytes": 2}
    assert {one.against for one in found if one.family == "sharing"} == {"qkv"}
    rows = {row.arm: row for row in cell.rows}
    for one in (one for one in found if one.family == "equal bytes"):
        assert rows[one.arm].cache_measured == rows[one.against].cache_measured == 1536


def test_without_the_download_the_command_says_how_to_get_it(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MINQKV_CACHE", str(tmp_path / "empty"))
    code, _, err = cli("study", "--preset", "nano", "--dry-run")
    assert code == 3
    assert "minqkv data fetch shakespeare" in " ".join(err.split())


# ---- one rate for all arms


def decided(by_arm):
    """(configuration, record) of candidates: variant -> rate -> (perplexity, loss), or None."""
    found = []
    for variant, by_rate in by_arm.items():
        for rate, score in by_rate.items():
            config = written_out(variant, None, 100, rate)
            run = replace(config, split="validation")
            found.append((run, record(run, *(score or (None,)))))
    return found


def test_one_rate_has_the_lowest_mean_loss_of_all_arms(shakespeare):
    """Each arm prefers another rate, and the perplexities another than the losses."""
    runs = decided({
        "qkv": {2e-3: (5.0, 1.0), 4e-3: (6.0, 1.2), 8e-3: (7.0, 3.0)},
        "q-k=v": {2e-3: (6.0, 3.0), 4e-3: (9.0, 1.4), 8e-3: (5.0, 1.0)},
    })  # fmt: skip
    assert [choice.lr for choice in choose(runs).values()] == [2e-3, 8e-3]
    one = choose_one(runs)
    assert [choice.lr for choice in one.values()] == [4e-3, 4e-3]
    assert [choice.scores[4e-3] for choice in one.values()] == [6.0, 9.0]
    assert not any(choice.at_the_edge for choice in one.values())


def test_a_run_that_diverged_rules_out_its_rate_for_all(shakespeare):
    runs = decided({
        "qkv": {2e-3: (9.0, 3.0), 4e-3: (5.0, 1.0)},
        "q-k=v": {2e-3: (9.0, 3.0), 4e-3: None},
    })  # fmt: skip
    assert {choice.lr for choice in choose_one(runs).values()} == {2e-3}


def test_arms_of_several_blocks_get_one_rate_and_other_arms_their_own(shakespeare):
    block = {"tasks": ("text",), "text": ("shakespeare",), "seeds": (0, 1), "lr": RATES[:2]}
    block |= {"selection_seeds": 1}
    found = plan([
        {**block, "variants": ("qkv",), "one_rate": True},
        {**block, "variants": ("q-k=v",), "head_dim": (16,), "one_rate": True},
        {**block, "variants": ("mqa",)},
    ])  # fmt: skip
    losses = {("qkv", 2e-3): 1.0, ("qkv", 4e-3): 1.5, ("q-k=v", 2e-3): 3.0, ("q-k=v", 4e-3): 2.0}
    losses |= {("mqa", 2e-3): 1.0, ("mqa", 4e-3): 2.0}

    def execute(configs):
        return [record(c, math.exp(loss := losses[c.variant, c.recipe.lr]), loss) for c in configs]

    records, selection = found.run(execute)
    assert (len(records), len(selection)) == (6, 6)
    rates = {config.variant: config.recipe.lr for config in found.configs}
    assert rates == {"qkv": 4e-3, "q-k=v": 4e-3, "mqa": 2e-3}


# ---- a text is prepared once


@pytest.mark.parametrize("name", ["text", "tokenizer"])
def test_a_study_is_of_one_text_and_one_tokenizer(name):
    values = {"text": ("a.txt", "b.txt"), "tokenizer": ("chars", "bytes")}[name]
    with pytest.raises(UsageError, match=f"a study takes one {name}, not 2"):
        plan(blocks("quick", {"tasks": ("text",), name: values}))


def test_a_text_is_read_once_for_all_runs(shakespeare, monkeypatch):
    calls, prepare = [], corpus.prepare
    monkeypatch.setattr(corpus, "prepare", lambda *a, **k: calls.append(a) or prepare(*a, **k))
    given = {"tasks": ("text",), "text": ("shakespeare",), "tokenizer": ("bpe-260",)}
    found = plan(blocks("quick", given | {"variants": ("qkv", "mqa"), "seeds": (0, 1)}))
    assert len(calls) == 1
    assert {config.task.tokenizer for config in found.configs} == {"bpe-260"}
    assert {config.task.vocab_size for config in found.configs} == {260}
    assert len({config.task.digest for config in found.configs}) == 1


def test_a_machine_without_the_corpus_says_what_to_do(shakespeare, monkeypatch):
    config = written_out("qkv", None, 0)
    monkeypatch.setenv("MINQKV_CACHE", str(shakespeare / "elsewhere"))
    with pytest.raises(EnvironmentFault) as caught:
        run_one(config)
    assert "minqkv data prepare" in caught.value.hint


SMALL = ("study", "--tasks", "text", "--text", "shakespeare", "--tokenizer", "bytes",
         "--variants", "qkv,q-k=v", "--seeds", 2, "--seq-len", 8, "--n-layer", 1, "--n-embd", 8,
         "--n-head", 2, "--steps", 3, "--set", "n_test=4", "--set", "n_validation=2",
         "--out", "here")  # fmt: skip


def test_the_study_on_the_command_line(shakespeare, cli):
    code, text, _ = cli(*SMALL, "--jobs", 1)
    assert code == 0
    for part in (
        "perplexity",
        "against qkv,",
        "bits per",
        "tokens/s",
        "Table 4",
        "published change",
    ):
        assert part in text
    assert "steps to" not in text
    found = json.loads((shakespeare / "here/results.json").read_text("utf-8"))
    (cell,) = found["cells"]
    for row in cell["rows"]:
        assert row["cache_measured"] == row["cache_formula"]
        runs = [run for run in found["runs"] if run["arm"] == row["arm"]]
        mean = sum(run["bits_per_byte"] for run in runs) / 2
        assert row["bits_per_byte"]["mean"] == pytest.approx(mean)
    of_optimiser = {"optimiser": "AdamW", "betas": [0.9, 0.95], "weight_decay": 0.1}
    of_optimiser["schedule"] = "linear warm-up, cosine to 0.1 of the rate"
    assert found["hyper_parameters"]["text"].items() >= of_optimiser.items()


@pytest.mark.slow
def test_worker_processes_find_the_text(shakespeare, cli):
    assert cli(*SMALL, "--jobs", 2)[0] == 0
    assert len(list((shakespeare / "here/runs").iterdir())) == 4


# ---- tables


def runs_of(variant, perplexities, head_dim=None, **changes):
    configs = [written_out(variant, head_dim, seed) for seed in range(len(perplexities))]
    return [record(c, value, **changes) for c, value in zip(configs, perplexities, strict=True)]


BASE = [5.0, 5.2, 4.9, 5.1, 5.05, 4.95, 5.3, 5.15]


def times(factor, jitter=0.0):
    return [value * (factor + jitter * (-1) ** i) for i, value in enumerate(BASE)]


def table(*arms):
    (cell,) = summarise([one for records in arms for one in records])
    return cell


def printed(draw, *args):
    console = Console(file=io.StringIO(), width=200)
    draw(console, *args)
    return console.file.getvalue()


def test_differences_are_of_the_ratio_and_in_per_cent(shakespeare):
    cell = table(runs_of("qkv", [5.0, 10.0]), runs_of("q-k=v", [5.5, 10.4]))
    (_, shared) = cell.rows
    assert shared.to_baseline.mean == pytest.approx((0.10 + 0.04) / 2)
    text = printed(cell_tables, cell, unresolved(cell))
    line = next(line for line in text.splitlines() if line.startswith("q-k=v"))
    assert "+7.00 ± 38.12 %" in line
    assert "7.95 ± 31.13" in line
    assert "5.50 10.40" in line
    assert "half-width of the difference from qkv: 38.12 %" in " ".join(text.split())


def test_accuracies_are_still_differences():
    made = [configure("sort", v, seq_len=4, n_embd=8) for v in ("qkv", "q-k=v")]
    cell = table([record_of(made[0], 0.5)], [record_of(made[1], 0.25)])
    assert cell.rows[1].to_baseline.mean == -0.25
    assert (cell.rows[0].bits_per_byte, cell.rows[0].tokens_per_second) == (None, None)


@pytest.mark.parametrize("language", [True, False])
def test_the_speed_of_training_is_shown_of_language_models_alone(
    language, shakespeare, monkeypatch
):
    """Whatever the name of the metric."""
    monkeypatch.setattr(Text, "language", language)
    cell = table(runs_of("qkv", BASE))
    assert (cell.rows[0].tokens_per_second is not None) == language


def test_heads_of_another_width_are_another_arm(shakespeare):
    cell = table(runs_of("qkv", BASE), runs_of("q-k=v", BASE), runs_of("qkv", BASE, 16))
    assert [row.arm for row in cell.rows] == ["qkv", "q-k=v", "qkv (d_h 16)"]
    assert [row.cache_measured for row in cell.rows] == [3072, 1536, 1536]
    assert cell.baseline == "qkv"
    assert "d_h" not in cell.title
    runs = as_results(runs_of("qkv", BASE[:1]) + runs_of("qkv", BASE[:1], 16), "", 0)["runs"]
    assert [run["arm"] for run in runs] == ["qkv", "qkv (d_h 16)"]


def test_widths_that_no_run_leaves_to_the_task_are_sizes():
    """As of --head-dim 4,8: a table for each."""
    size = {"seq_len": 4, "n_embd": 8, "head_dim": (4, 8)}
    cells = summarise([record_of(c, 0.5) for c in grid(["sort"], ["qkv", "mqa"], [0], **size)])
    assert [[row.arm for row in cell.rows] for cell in cells] == [["qkv", "mqa"]] * 2
    assert [cell.size["head_dim"] for cell in cells] == [4, 8]
    assert arm(configure("sort", "qkv", **{**size, "head_dim": 4})) == "qkv"


def test_tokens_per_second_are_of_the_median_run(shakespeare):
    records = runs_of("qkv", [5.0] * 3)
    for one, seconds in zip(records, (300.0, 100.0, 200.0), strict=True):
        one["seconds"] = seconds
    (row,) = table(records).rows
    assert row.tokens_per_second == 2500 * 12 * 64 / 200
    assert row.bits_per_byte == Estimate(pytest.approx(math.log2(5)), 0, 3)


def test_the_published_figures_are_the_papers():
    found = published()["lm-300m"]["perplexity"]
    changes = {name: f"{100 * (float(v['paper']) / 5.11 - 1):.1f}" for name, v in found.items()}
    assert changes == {
        "qkv": "0.0", "q-k=v": "3.1", "q=k-v": "4.9", "q=k=v": "25.4", "gqa-4": "0.8",
        "mqa": "1.6", "q-gqa-4": "4.1", "q-mqa": "4.9",
    }  # fmt: skip
    assert [name for name, v in found.items() if "later" in v] == ["qkv", "q-k=v"]


def test_a_column_of_published_changes(shakespeare):
    """Of plain variants: not of the baseline, nor of an arm whose heads are of another width."""
    runs = [runs_of(name, BASE) for name in ("qkv", "q-k=v", "mqa", "gqa-2")]
    text = printed(cell_tables, table(*runs, runs_of("q-k=v", BASE, 16)), "")
    assert "published change" in text
    assert "paper / later" in text
    shown = {line.split("  ")[0]: line for line in reversed(text.splitlines())}
    assert "+3.1 % / +2.2 %" in shown["q-k=v"]
    assert "+1.6 % / –" in shown["mqa"]
    for name in ("qkv", "gqa-2", "q-k=v (d_h 16)"):
        assert " / " not in shown[name]
    assert "padding scored as if it were text" in text
    cell = table([record_of(configure("sort", "qkv"), 0.5)])
    assert "Published" not in printed(cell_tables, cell, "")


# ---- contrasts


def finding(factor, jitter=0.0, against=None):
    cell = table(runs_of("qkv", BASE), runs_of("q-k=v", times(factor, jitter)),
                 runs_of("gqa-2", times(2)))  # fmt: skip
    (found,) = findings([Contrast("f", "text", None, "q-k=v", against)], [cell])
    return found


def test_the_margin_is_one_per_cent_of_perplexity(shakespeare):
    assert finding(1.0095).verdict == "the same"
    assert finding(1.0105).verdict == "different"
    assert finding(0.9895).verdict == "different"
    assert finding(1.0095, 0.002).verdict == "different"  # the interval leaves the margin
    assert finding(1.0, 0.02).verdict == "cannot be told"


def test_a_contrast_names_the_rows_of_the_table(shakespeare):
    found = finding(1.0, against="gqa-2")
    assert (found.cell, found.arm, found.against) == ("text", "q-k=v", "gqa-2")
    assert found.difference.mean == pytest.approx(-0.5)
    text = printed(claims_table, [found])
    assert "text: q-k=v against gqa-2" in text
    assert "−50.00 ± .00 %" in text
    assert as_data([found])[0]["relative"] is True


# ---- figures


def test_a_point_for_each_arm_and_a_curve_for_each_run(shakespeare):
    curve = {"curve": [[250, 9.0], [500, 6.0]]}
    arms = [runs_of("qkv", BASE, **curve), runs_of("qkv", BASE, 16, **curve)]
    arms.append(runs_of("q-mqa", times(1.1), **curve))
    cell, records = table(*arms), [one for records in arms for one in records]
    drawn = figure([cell])
    for name, x, mean in (("qkv", "3,072", 5.081), ("qkv (d_h 16)", "1,536", 5.081),
                          ("q-mqa", "384", 5.589)):  # fmt: skip
        assert f"<title>{name}, {x}: {mean:.4g} ±" in drawn
    hashes = [name for row in cell.rows for name in row.runs]
    learned = curves([cell], dict(zip(hashes, records, strict=True)))
    assert "validation perplexity" in learned
    assert learned.count('class="run"') == 24
