"""What the pages say of the committed results is what they hold, and each says how it was made."""

import json
import math
import re
from pathlib import Path

import pytest

from minqkv.study import stats
from minqkv.study.published import printed

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "bench/results").rglob("*.json"))
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{n}.md" for n in ("results", "recall"))]
IMAGES = (ROOT / "docs/images.md").read_text("utf-8")
LANGUAGE = ROOT / "docs/language-models.md"
LINES = [line for page in PAGES if page.exists() for line in page.read_text("utf-8").splitlines()]
TEXT = " ".join(" ".join(p.read_text("utf-8").split()) for p in PAGES if p.exists())


def rows(name):
    """(cell, row) of every row of a committed study."""
    results = json.loads((ROOT / "bench/results" / name / "results.json").read_text("utf-8"))
    return [(cell, row) for cell in results["cells"] for row in cell["rows"]]


def number(value):
    return f"{value:.3f}".removeprefix("0")


def with_half(estimate):
    return f"{number(abs(estimate['mean']))} ± {number(estimate['half'])}"


def test_agreement_with_the_authors():
    """The difference of two means of three seeds, against its 95 % interval (t with 4 degrees of
    freedom).
    """
    found = [(cell, row) for cell, row in rows("study-agreement") if row["published"]]
    outside = []
    for cell, row in found:
        spread = math.hypot(
            stats.spread(list(row["by_seed"].values())), row["published_spread"]
        ) / math.sqrt(3)
        if abs(row["accuracy"]["mean"] - row["published"]["mean"]) > max(
            stats.t_quantile(4) * spread, 5e-4
        ):
            outside.append((cell["task"], cell["n_layer"], cell["n_head"], row["arm"]))
    assert len(found) == 48
    assert outside == [("reverse", 4, 4, "q=k=v")]
    assert "of 48 configurations" in TEXT
    row = next(
        r for c, r in found if (c["task"], c["n_layer"], c["n_head"], r["arm"]) == outside[0]
    )
    assert (
        f"({number(row['accuracy']['mean'])} here, {number(row['published']['mean'])} there)"
        in TEXT
    )


def test_what_the_halves_of_plus_do():
    """Differences of arms, paired by seed."""
    found = {(c["task"], r["arm"]): r["by_seed"] for c, r in rows("study-plus")}

    def difference(task, arm, base):
        return stats.paired(found[task, arm], found[task, base])

    for base, same, worse in (("q=k-v", ".001 ± .002", "−.057 ± .044"),
                              ("q=k=v", ".000 ± .002", "−.136 ± .047")):  # fmt: skip
        halves = difference("sort", f"{base}+temperature", f"{base}+")
        start = difference("sort", f"{base}+ (s₀ = -1)", f"{base}+")
        assert f"{number(abs(halves.mean))} ± {number(halves.half)}" == same
        assert f"−{number(-start.mean)} ± {number(start.half)}" == worse
        assert same in TEXT
        assert worse in TEXT
        assert not difference("sort", f"{base}+bias", base).clear_of_zero
    differ = []
    for base in ("q=k-v", "q=k=v"):
        for end in ("+", "+temperature", "+bias", "+ (s₀ = -1)", " (diagonal masked)"):
            of_none = difference("reverse", base + end, base)
            differ += [(base + end, of_none)] if of_none.clear_of_zero else []
    assert [arm for arm, _ in differ] == ["q=k=v+ (s₀ = -1)", "q=k=v (diagonal masked)"]
    for _, of_none in differ:
        assert f"(+{number(of_none.mean)} ± {number(of_none.half)})" in TEXT


@pytest.mark.parametrize("study", ["study-quick", "study-plus"])
def test_accuracies_in_the_tables(study):
    for _, row in rows(study):
        assert f"| {with_half(row['accuracy'])} |" in TEXT, row["arm"]


def test_differences_that_are_clear_of_zero():
    clear = {}
    for cell, row in rows("study-quick"):
        if row["to_qkv"] and abs(row["to_qkv"]["mean"]) > row["to_qkv"]["half"]:
            clear[cell["task"], row["arm"]] = with_half(row["to_qkv"])
            assert clear[cell["task"], row["arm"]] in TEXT
    assert set(clear) == {("reverse", "q=k=v"), ("sort", "q=k=v"), ("sort", "q=k-v")}


def test_twelve_seeds():
    row = next(row for _, row in rows("study-12-seeds") if row["arm"] == "q=k=v")
    assert len(row["by_seed"]) == 12
    assert f"{with_half(row['accuracy'])} at L 2, H 4" in TEXT


def minus_or_plus(estimate):
    sign = "−" if estimate["mean"] < -5e-4 else "+" if estimate["mean"] > 5e-4 else ""
    return sign + with_half(estimate)


def test_the_recall_study():
    """Every arm with its interval, how many runs learned the task, and after how many steps."""
    found = rows("recall-full")
    assert len({(cell["task"], cell["equal"]["bytes"]) for cell, _ in found}) == 7
    for cell, row in found:
        if row["lifted"]:
            trained = next(r for r in cell["rows"] if row["arm"].startswith(f"{r['arm']}, "))
            assert row["by_seed"] == trained["by_seed"]
            continue
        variant, _, rest = row["arm"].partition(" (")
        label = f"| {cell['equal']['bytes']} | `{variant}`, {rest.removesuffix(')')}"
        ends = (f"{label} | ", f"{label} (baseline) | ")
        ours = [one for one in LINES if one.startswith(ends) and with_half(row["score"]) in one]
        (line,) = [one for one in ours if f"/{len(row['by_seed'])} | " in one]
        reached = list(row["reached"].values())
        median, learned = stats.median_steps(reached, cell["size"]["steps"])
        steps = f"{median:,.0f}" if median else f"> {cell['size']['steps']:,}"
        assert f" {learned}/{len(reached)} | {steps} | {row['lr']:g}" in line
        assert ("(baseline)" in line) == (row["arm"] == cell["baseline"])
        assert ("(edge)" in line) == row["at_the_edge"]
        each = [f"{v:.2f}".removeprefix("0") for v in sorted(row["by_seed"].values())]
        assert f"| {' '.join(each)} |" in line


def test_the_planned_contrasts():
    results = json.loads((ROOT / "bench/results/recall-full/results.json").read_text("utf-8"))
    assert len(results["contrasts"]) == 7
    for one in results["contrasts"]:
        numbers = f"{minus_or_plus(one['difference'])} | {one['p']:.4f} | {one['p_adjusted']:.4f}"
        lines = [line for line in LINES if line.startswith(f"| {one['cell']}: ")]
        assert any(f"| {numbers} | {one['verdict']} |" in line for line in lines)
    assert not any(run["diverged"] for run in results["runs"])


def test_the_default_study_and_again():
    """Its differences, distinguishable from zero, on the default seeds and on others."""
    default = {(c["task"], r["arm"]): r["to_baseline"] for c, r in rows("study-default")}
    again = {(c["task"], r["arm"]): r["to_baseline"] for c, r in rows("study-default-again")}
    arm = "mqar", "q-k=v (H 1 d 12, rope, raw)"
    for difference in (default[arm], again[arm], default["sort", "q=k=v"]):
        assert abs(difference["mean"]) > difference["half"]
        assert minus_or_plus(difference) in TEXT


def per_cent(estimate):
    """ "+3.10 ± .40 %", of a ratio minus 1."""
    mean, half = (f"{100 * abs(estimate[n]):.2f}".removeprefix("0") for n in ("mean", "half"))
    sign = "" if float(mean) == 0 else "−" if estimate["mean"] < 0 else "+"
    return f"{sign}{mean} ± {half} %"


def language_models():
    """The committed study of language models; None before it is complete."""
    path = ROOT / "bench/results/language-models/results.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def test_the_published_language_models():
    page = LANGUAGE.read_text("utf-8")
    for name, found in printed()["lm-300m"]["perplexity"].items():
        padded = float(found["paper"])
        more = f"+{100 * (padded / 5.11 - 1):.1f} %".replace("+0.", "+.") if padded > 5.11 else "–"
        assert f"| `{name}` | {padded:.2f} | {more} | {found.get('later', '–')} |" in page


def test_the_language_models():
    """Each arm, each seed and each contrast; without results, the page shows none."""
    results, page = language_models(), LANGUAGE.read_text("utf-8")
    if results is None:
        assert "**The study is not complete.**" in page
        assert "## What we see" not in page
        return
    assert "not complete" not in page
    ((cell,), runs) = results["cells"], results["runs"]
    assert len(cell["rows"]) == 8
    assert len(runs) == 64
    assert not any(run["diverged"] for run in runs)
    for row in cell["rows"]:
        label = f"| `{row['variant']}`{row['arm'].removeprefix(row['variant'])} | "
        mean, half = (f"{row['score'][n]:.2f}" for n in ("mean", "half"))
        change = per_cent(row["to_baseline"]) if row["to_baseline"] else "–"
        costs = (
            f"{row['bits_per_byte']['mean']:.3f} | {row['params']:,} | {row['cache_measured']:,}"
        )
        start = f"{label}{mean} ± {half.removeprefix('0')} | {change} | {costs} | "
        assert f"{start}{row['tokens_per_second']:,.0f} |" in page
        assert row["cache_measured"] == row["cache_formula"]
        assert label + " | ".join(f"{v:.2f}" for v in row["by_seed"].values()) + " |" in page
        mine = {run["seed"]: run["perplexity"] for run in runs if run["arm"] == row["arm"]}
        assert {int(seed): v for seed, v in row["by_seed"].items()} == mine
        assert set(mine) == set(range(8))


def test_the_planned_contrasts_of_the_language_models():
    results, page = language_models() or {"contrasts": []}, LANGUAGE.read_text("utf-8")
    for one in results["contrasts"]:
        numbers = f"{per_cent(one['difference'])} | {one['p']:.4f} | {one['p_adjusted']:.4f}"
        start = f"| {one['family']}: `{one['arm']}` against "
        lines = [line for line in page.splitlines() if line.startswith(start)]
        assert any(f"| {numbers} | {one['verdict']} |" in line for line in lines)
        by_arm = {row["arm"]: row["by_seed"] for row in results["cells"][0]["rows"]}
        pair = by_arm[one["arm"]], by_arm[one["against"]]
        found = stats.paired(*pair, relative=True)
        assert (found.mean, found.half) == pytest.approx(tuple(one["difference"].values())[:2])
    families = [one["family"] for one in results["contrasts"]]
    assert families == ["sharing"] * 5 + ["equal bytes"] * 2 or not families


def test_the_one_rate_of_the_language_models():
    """The lowest mean loss of all arms on the selection seed."""
    results = language_models()
    if results is None:
        return
    losses = {}
    for run in results["selection"]:
        assert (run["seed"], run["split"]) == (100, "validation")
        loss = 99.0 if run["diverged"] else run["loss"]
        losses.setdefault(run["lr"], {})[run["arm"]] = loss
    assert {len(found) for found in losses.values()} == {8}
    means = {rate: sum(found.values()) / 8 for rate, found in losses.items()}
    assert {run["lr"] for run in results["runs"]} == {min(means, key=means.get)}
    page = " ".join(LANGUAGE.read_text("utf-8").split())
    for mean in means.values():
        assert f"{mean:.3f}" in page


@pytest.mark.parametrize("study", ["mnist", "cifar10", "sets"])
def test_images(study):
    """Each variant, each seed, and its difference from qkv, none of which is clear of zero."""
    for _, row in rows(study):
        each = " ".join(number(value) for value in row["by_seed"].values())
        start = f"| `{row['variant']}` | {with_half(row['score'])} | {each} |"
        assert f"{start} {change(row['to_baseline'])} | {sizes(row)} |" in IMAGES
        assert not row["to_baseline"] or not clear(row["to_baseline"])


def change(estimate):
    return minus_or_plus(estimate) if estimate else "–"


def clear(estimate):
    """Whether the interval does not contain zero."""
    return abs(estimate["mean"]) > estimate["half"]


def sizes(row):
    return f"{row['params']:,} | {row['cache_measured']:,}"


def test_labels_of_patches():
    """Accuracy, and the mean intersection over union, which is lower with the "+"."""
    runs = json.loads((ROOT / "bench/results/dense/results.json").read_text("utf-8"))["runs"]
    unions = {}
    for run in runs:
        unions.setdefault(run["arm"], []).append(run["mean_iou"])
    for _, row in rows("dense"):
        found = unions[row["arm"]]
        union = vars(stats.estimate(found))
        moved = vars(stats.estimate([a - b for a, b in zip(found, unions["qkv"], strict=True)]))
        line = f"| `{row['variant']}` | {with_half(row['score'])} | {change(row['to_baseline'])} |"
        line += f" {with_half(union)} | {change(row['to_baseline'] and moved)} |"
        assert f"{line} {sizes(row)} |" in IMAGES
        assert not row["to_baseline"] or not clear(row["to_baseline"])
        assert clear(moved) == row["variant"].endswith("+")


def test_what_is_said_of_sets_and_patches():
    """The paper's gain from the "+" is above both intervals; elsewhere all are within .02."""
    found = {row["variant"]: row["to_baseline"] for _, row in rows("sets")}
    paper = {v: float(by["paper"]) for v, by in printed()["vision"]["anomaly"].items()}
    for variant in ("q=k-v+", "q=k=v+"):
        gain = paper[variant] - paper["qkv"]
        assert f"`{variant}`" in IMAGES
        assert f"{number(gain)}" in IMAGES
        assert found[variant]["mean"] + found[variant]["half"] < gain
    for _, row in [*rows("mnist"), *rows("dense")]:
        moved = row["to_baseline"] or {"mean": 0, "half": 0}
        assert abs(moved["mean"]) + moved["half"] < 0.02


def test_the_study_of_positions():
    """Every arm with every seed, and the planned contrasts."""
    page = (ROOT / "docs/positions.md").read_text("utf-8")
    results = json.loads((ROOT / "bench/results/positions/results.json").read_text("utf-8"))
    assert "630\nruns" in page or "630 runs" in page
    assert len(results["runs"]) + len(results["selection"]) == 630
    assert not any(run["diverged"] for run in results["runs"] + results["selection"])
    for cell, row in rows("positions"):
        section = page.partition(f"### `{cell['task']}`")[2].partition("\n#")[0]
        each = " ".join(number(value) for value in row["by_seed"].values())
        each = "1.000 each" if set(each.split()) == {"1.000"} else each
        rate = f"{row['lr']:g}{' (edge)' if row['at_the_edge'] else ''}"
        label = f"| `{row['settings']['position']}` | `{row['variant']}` | "
        score = f"{with_half(row['score'])} | {each} | {change(row['to_baseline'])}"
        assert f"{label}{score} | {rate} |" in section
    for one in results["contrasts"]:
        sides = [re.sub(r"(.+) \((.+)\)", r"`\1` with `\2`", one[n]) for n in ("arm", "against")]
        label = f"| {one['cell']}: {' minus '.join(sides)} | {minus_or_plus(one['difference'])}"
        assert f"{label} | {one['p']:.4f} | {one['p_adjusted']:.4f} | {one['verdict']} |" in page


def test_the_study_of_designs():
    """Every arm with every seed, and the planned contrasts."""
    page = (ROOT / "docs/designs-study.md").read_text("utf-8")
    results = json.loads((ROOT / "bench/results/designs/results.json").read_text("utf-8"))
    assert len(results["runs"]) + len(results["selection"]) == 336
    assert not any(run["diverged"] for run in results["runs"] + results["selection"])
    for cell, row in rows("designs"):
        if row["lifted"]:
            continue
        size = cell["equal"]["bytes"]
        section = page.partition(f"### {size} B a token and layer")[2].partition("\n#")[0]
        variant, _, rest = row["arm"].replace(", rope", "").partition(" (")
        name = f"`{variant}`, {rest.replace(')', '')}"
        name += " (baseline)" if row["arm"] == cell["baseline"] else ""
        each = " ".join(f"{v:.2f}".removeprefix("0") for v in row["by_seed"].values())
        median, learned = stats.median_steps(list(row["reached"].values()), cell["size"]["steps"])
        steps = f"{median:,.0f}" if median else f"> {cell['size']['steps']:,}"
        rate = f"{row['lr']:g}{' (edge)' if row['at_the_edge'] else ''}"
        costs = f"{learned}/8 | {steps} | {change(row['to_baseline'])} | {rate}"
        assert f"| {name} | {with_half(row['score'])} | {each} | {costs} |" in section
    for one in results["contrasts"]:
        sides = [re.sub(r"(\S+) (\(.+)", r"`\1` \2", one[n]) for n in ("arm", "against")]
        label = f"| {one['cell'].removeprefix('mqar, ')}: {' minus '.join(sides)}"
        label = f"{label.replace(', rope', '')} | {minus_or_plus(one['difference'])}"
        assert f"{label} | {one['p']:.4f} | {one['p_adjusted']:.4f} | {one['verdict']} |" in page


def test_only_k_scores_what_qkv_does():
    found = {row["arm"]: row["by_seed"] for _, row in rows("designs")}
    whole = "qkv (H 4 d 16, rope)"
    assert found[f"{whole}, only K stored"] == found[whole]


def test_cache_measured_is_the_formula():
    for _, row in rows("study-quick"):
        assert row["cache_measured"] == row["cache_formula"]


def bench(name):
    return json.loads((ROOT / "bench/results" / name).read_text("utf-8"))


def test_decoding_times():
    rows = [
        row
        for row in bench("decode-2t.json")["rows"]
        if row["kind"] == "cached" and row["batch"] == 1
    ]
    qkv = [row for row in rows if row["variant"] == "qkv"]
    times = [f"{row['us_per_token'][row['best_torch']]:,.0f}" for row in qkv]
    assert f"{', '.join(times[:-1])} and {times[-1]} µs for `qkv`" in TEXT
    means = bench("decode-2t.json")["summary"]
    of = {
        (b, v): f"{means[f'batch {b}, {v}: over PyTorch, geometric mean']:.2f}"
        for b in (1, 16)
        for v in ("qkv", "q-k=v")
    }
    assert f"is {of[1, 'qkv']} for `qkv` and {of[1, 'q-k=v']} for `q-k=v`" in TEXT
    assert f"With a batch of 16 it is {of[16, 'qkv']} and {of[16, 'q-k=v']}" in TEXT
    for variant in ("qkv", "q-k=v", "gqa-2", "mqa", "q-mqa"):
        mine = [
            f"{row['us_per_token']['minqkv']:,.0f}" for row in rows if row["variant"] == variant
        ]
        assert f"| `{variant}` | {' | '.join(mine)} |" in TEXT


def test_step_times_and_memory():
    step, memory = bench("step-2t.json"), bench("memory-2t.json")["summary"]
    for row in step["rows"]:
        if row["variant"] == "qkv":
            sizes = ", ".join(map(str, row["V T d L H B"]))
            ours, best = row["median_ms"]["minqkv"], row["median_ms"][row["best_torch"]]
            line = f"| {sizes} | {ours:.1f} ms | {best:.1f} ms | {row['ratio'][0]:.2f} |"
            line += f" {row['blas_ratio'][0]:.2f} | {row['step_over_products'][0]:.2f} |"
            assert line in TEXT
    assert f"The geometric mean is {step['summary']['geometric_mean_of_sizes']:.2f}" in TEXT
    assert f"{memory['step: over PyTorch, geometric mean']:.2f} of PyTorch's" in TEXT


def test_ratios_against_the_version_before():
    for threads, words in ((2, "two threads"), (1, "one thread")):
        for part in ("step", "decode"):
            summary = bench(f"{part}-against-{threads}t.json")["summary"]
            means = {k: v for k, v in summary.items() if "now / before, geometric" in k}
            assert means
            for name, mean in means.items():
                what = f"{part}, {words}"
                if part == "decode":
                    batch, variant = name.split(":")[0].split(", ")
                    what += f", {batch}, `{variant}`"
                assert f"| {what} | {mean:.2f} |" in TEXT


def test_figures_of_a_gpu():
    for row in bench("gpu-step.json")["rows"]:
        sizes = ", ".join(map(str, row["V T d L H B"]))
        ours, best = row["median_ms"]["minqkv"], row["median_ms"][row["best_torch"]]
        assert f"| {sizes} | {ours:.1f} | {best:.1f} | {row['ratio'][0]:.2f} |" in TEXT
    for row in bench("gpu-decode.json")["rows"]:
        variant, context = row["case"].split()
        ours, best = row["median_ms"]["minqkv"], row["median_ms"][row["best_torch"]]
        line = (
            f"| `{variant}`, {int(context):,} | {ours:.1f} | {best:.1f} | {row['ratio'][0]:.2f} |"
        )
        assert line in TEXT
    (tests,) = bench("gpu-tests.json")["rows"]
    assert f"{tests['passed']:,} GPU tests passed and {tests['failed']} failed" in TEXT
    assert len(tests["failures"]) == tests["failed"]
    mended = "tests/test_training_at_length.py::test_recomputation_keeps_every_bit[cupy-"
    assert all(mended in failure for failure in tests["failures"])


def test_figures_of_language_models():
    """Training, decoding with every kind of cache, byte pairs and recomputation."""
    rows = bench("lm-2t.json")["rows"]
    for row in (row for row in rows if row["kind"] == "training"):
        speed, (ratio, low, high) = row["tokens_per_second"], row["ratio"]
        line = f"| `{row['configuration']}` | {speed['minqkv']:,} | {speed[row['best_torch']]:,} |"
        assert f"{line} {ratio:.2f} [{low:.2f}–{high:.2f}] | {row['blas_ratio'][0]:.2f} |" in TEXT
    caches = [row for row in rows if row["kind"] == "caches"]
    for row in caches:
        assert row["bytes_per_slot"] == row["formula"]
        start = f"| `{row['variant']}`, {row['context']:,} | "
        (line,) = [one for one in LINES if one.startswith(start) and "minqkv" not in one
                   and one.count("|") == 9]  # fmt: skip
        assert f" {row['us_per_token']:,.0f} |" in line
    for row in (row for row in rows if row["kind"] == "recomputation"):
        assert f"{row['traced'] / 1e6:.0f}" in TEXT
    speeds = next(row["mb_per_s"] for row in rows if row["kind"] == "encode")
    assert f"{speeds['minqkv, first']:.1f} MB/s the first time" in TEXT


def test_there_are_results():
    """So that the next test has something to look at."""
    assert {path.parent.name for path in RESULTS} >= {"results", "study-quick"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_result_says_how_it_was_made(path):
    """The command that makes it again, and with what versions."""
    result = json.loads(path.read_text("utf-8"))
    assert result["command"].startswith(("python -m bench.", "minqkv study", "minqkv diagnose"))
    assert not re.search(r"(^|[ =])/", result["command"]), "a folder of one machine"
    assert result.get("machine") or result.get("versions")
