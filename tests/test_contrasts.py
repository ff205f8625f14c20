"""What may be claimed of planned contrasts: on tables made by hand, and in the committed results,
whose figures are computed again from their runs.
"""

import json
import math
from collections import defaultdict
from functools import reduce
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import pytest
from records import TINY, record_of

from minqkv.runs import configure
from minqkv.study.claims import CONTRASTS, UNTOLD, Contrast, as_data, findings
from minqkv.study.grid import blocks
from minqkv.study.plan import plan
from minqkv.study.rates import arm_of
from minqkv.study.summary import summarise

RESULTS = Path(__file__).resolve().parents[1] / "bench/results"
ONE = (1, "learned", "raw")
PAIRS = {"task": "pairs", "per_token": 16, "arm": ("q-k=v", *ONE)}
HIGH = [0.9, 0.91, 0.88, 0.93, 0.9, 0.92, 0.89, 0.94]


def arm(variant, head_dim, values, **changes):
    """Records of an arm, seed by seed; None: diverged; a missing seed is ...."""
    given = {**TINY, "head_dim": head_dim, "n_head": 1, **changes}
    seeds = [(seed, value) for seed, value in enumerate(values) if value is not ...]
    return [record_of(configure("pairs", variant, **given, seed=s), v) for s, v in seeds]


def table(*arms):
    """The one table at 16 bytes."""
    (cell,) = summarise([record for one in arms for record in one], "bytes")
    assert cell.equal == {"bytes": 16}
    return cell


def shifted(values, by):
    return [value + by for value in values]


# ---- made by hand


def test_without_another_arm_the_baseline_is_compared():
    other = [0.1, 0.2, 0.15, 0.3, 0.2, 0.1, 0.25, 0.2]
    cell = table(arm("q-k=v", 4, other), arm("qkv", 2, HIGH), arm("q=k-v", 2, HIGH))
    (found,) = findings([Contrast("f", **PAIRS)], [cell])
    assert (found.arm, found.against) == ("q-k=v (H 1 d 4)", "qkv (H 1 d 2)")
    assert found.cell == "pairs, 16 B"
    assert found.difference.mean == pytest.approx(mean(other) - mean(HIGH))
    assert (found.difference.n, found.p, found.p_adjusted) == (8, 2 / 256, 2 / 256)
    assert found.verdict == "different"


def test_another_arm_is_found_by_all_that_names_it():
    cell = table(
        arm("qkv", 2, HIGH),
        arm("q-k=v", 4, shifted(HIGH, -0.5)),
        arm("q-k=v", 4, shifted(HIGH, -0.25), position="rope"),
        arm("q-k=v", 4, shifted(HIGH, -0.125), position="rope", rope_value="unrotate"),
        arm("q-k=v", 2, shifted(HIGH, -0.75), n_head=2),
    )
    wanted = [(1, "learned", "raw"), (1, "rope", "raw"), (1, "rope", "unrotate")]
    wanted.append((2, "learned", "raw"))
    contrasts = [
        Contrast("f", "pairs", 16, ("q-k=v", *one), ("q-k=v", *other))
        for one, other in product(wanted, wanted)
    ]
    shift = dict(zip(wanted, (-0.5, -0.25, -0.125, -0.75), strict=True))
    found = iter(findings(contrasts, [cell]))
    for one, other in product(wanted, wanted):
        assert next(found).difference.mean == pytest.approx(shift[one] - shift[other])


def test_a_contrast_is_of_its_own_task_and_bytes():
    cells = [
        table(arm("qkv", 2, HIGH), arm("q-k=v", 4, shifted(HIGH, -0.5))),
        *summarise([*arm("qkv", 1, HIGH), *arm("q-k=v", 2, shifted(HIGH, -0.25))], "bytes"),
    ]
    assert [cell.equal["bytes"] for cell in cells] == [16, 8]
    contrasts = [Contrast("f", "pairs", size, ("q-k=v", *ONE)) for size in (8, 16)]
    found = findings(contrasts, cells)
    assert [f.difference.mean for f in found] == pytest.approx([-0.25, -0.5])


def test_seeds_are_paired_by_number_not_by_place():
    """The same values, the seeds of one arm in another order: all differences are zero."""
    reverse = arm("q-k=v", 4, HIGH)[::-1]
    (found,) = findings([Contrast("f", **PAIRS)], [table(arm("qkv", 2, HIGH), reverse)])
    assert (found.difference.mean, found.difference.half, found.p) == (0, 0, 1)
    assert found.verdict == "the same"


def verdict(shift, n=8, base=HIGH):
    other = [value + by for value, by in zip(base, shift, strict=True)]
    cell = table(arm("qkv", 2, base[:n]), arm("q-k=v", 4, other[:n]))
    (found,) = findings([Contrast("f", **PAIRS)], [cell])
    return found


def test_a_certain_difference_within_the_margin_is_the_same():
    found = verdict([-0.01 - i / 1e4 for i in range(8)])
    assert found.p_adjusted == 2 / 256
    assert found.difference.clear_of_zero
    assert found.verdict == "the same"


def test_an_interval_that_leaves_the_margin_is_not_the_same():
    found = verdict([0.03, -0.03] * 4)
    assert abs(found.difference.mean) < 0.02 < found.difference.half
    assert found.verdict == "cannot be told"


def test_the_margin_is_two_hundredths():
    """Differences that are all alike have an interval without width."""
    assert verdict([0.0195] * 8).verdict == "the same"
    assert verdict([0.0205] * 8).verdict == "different"


def test_fewer_than_eight_seeds_claim_nothing():
    far, near = [-0.5 - i / 100 for i in range(8)], [0.0] * 8
    assert verdict(far).verdict == "different"
    assert verdict(far, 7).verdict == "cannot be told"
    assert verdict(far, 7).p_adjusted == 2 / 128
    assert verdict(near).verdict == "the same"
    assert verdict(near, 7).verdict == "cannot be told"


@pytest.mark.parametrize("lost", [None, ...])
@pytest.mark.parametrize("side", [0, 1])
def test_where_a_seed_is_lost_nothing_is_claimed(lost, side):
    """Nine seeds remain, and they agree: yet the one that is missing might be the bad one."""
    values = [[*HIGH, 0.9, 0.9], shifted([*HIGH, 0.9, 0.9], -0.5)]
    values[side][4] = lost
    cell = table(arm("qkv", 2, values[0]), arm("q-k=v", 4, values[1]))
    (found,) = findings([Contrast("f", **PAIRS)], [cell])
    assert (found.difference.n, found.p) == (9, 2 / 512)
    assert found.verdict == UNTOLD


def test_where_all_seeds_are_lost_nothing_is_claimed():
    cell = table(arm("qkv", 2, HIGH), arm("q-k=v", 4, [None] * 8))
    (found,) = findings([Contrast("f", **PAIRS)], [cell])
    assert (found.difference, found.p, found.verdict) == (None, 1.0, UNTOLD)


def test_holm_corrects_within_a_family_alone():
    """Three contrasts with p 2/256 and one with p 1 in one family, a fifth alone in another."""
    cell = table(
        arm("qkv", 2, HIGH),
        arm("q-k=v", 4, shifted(HIGH, -0.5)),
        arm("q=k-v", 2, HIGH),
    )
    sure, none = Contrast("a", **PAIRS), Contrast("a", **{**PAIRS, "arm": ("q=k-v", *ONE)})
    alone = Contrast("b", **PAIRS)
    found = findings([alone, sure, none, sure, sure], [cell])
    by_family = defaultdict(list)
    for one in found:
        by_family[one.family].append((one.p, one.p_adjusted, one.verdict))
    p = 2 / 256
    assert by_family["b"] == [(p, p, "different")]
    assert sorted(by_family["a"]) == [(p, 4 * p, "different")] * 3 + [(1, 1, "the same")]


def test_ever_more_contrasts_make_a_claim_impossible():
    cell = table(arm("qkv", 2, HIGH), arm("q-k=v", 4, shifted(HIGH, -0.5)))
    for n, said in ((6, "different"), (7, "cannot be told")):  # 6 · 2/256 = .047, 7 · 2/256 = .055
        found = findings([Contrast("f", **PAIRS)] * n, [cell])
        assert {one.verdict for one in found} == {said}


def test_the_lifted_control_is_no_arm_of_a_contrast():
    lifted = {"score": 0.0, "params": 1, "variant": "q-k=v", "head_dim": 4}
    control = [record | {"lifted": lifted} for record in arm("qkv", 2, HIGH)]
    cell = table(arm("q-k=v", 4, shifted(HIGH, -0.5)), control)
    assert sum(row.lifted for row in cell.rows) == 1
    (found,) = findings([Contrast("f", **PAIRS)], [cell])
    assert found.difference.mean == pytest.approx(-0.5)


def test_arms_of_two_tables_are_compared():
    """Where each position scheme has a table, and no bytes are equal."""
    arms = []
    for variant, position, values in [
        ("qkv", "rope", HIGH),
        ("q=k-v", "rope", shifted(HIGH, -0.5)),
        ("qkv", "relative", HIGH),
        ("q=k-v", "relative", shifted(HIGH, -0.25)),
    ]:
        arms += arm(variant, 4, values, position=position)
    cells = summarise(arms)
    assert len(cells) == 2
    shared = "q=k-v", "relative"
    pairs = [(shared, ("q=k-v", "rope")), (shared, ("qkv", "relative"))]
    helps, reaches = findings([Contrast("f", "pairs", None, *pair) for pair in pairs], cells)
    assert helps.difference.mean == pytest.approx(0.25)
    assert reaches.difference.mean == pytest.approx(-0.25)
    assert (helps.arm, helps.against) == ("q=k-v (relative)", "q=k-v (rope)")
    assert helps.cell == "pairs"


@pytest.mark.parametrize("preset", ["recall-full", "positions", "designs"])
def test_every_planned_contrast_is_between_planned_arms(preset):
    configs = plan(blocks(preset, {})).configs
    arms = {(c.task.name, c.variant, c.task.position) for c in configs}
    for contrast in CONTRASTS[preset]:
        for side in filter(None, (contrast.arm, contrast.against)):
            position = side[2 if contrast.per_token else 1]
            assert (contrast.task, side[0], position) in arms


def test_findings_are_kept_as_plain_data():
    (found,) = as_data([verdict([-0.5] * 8)])
    assert json.loads(json.dumps(found)) == found
    assert found["difference"].keys() == {"mean", "half", "n"}
    assert findings([], []) == []


# ---- the committed results


def read(name):
    return json.loads((RESULTS / name / "results.json").read_text("utf-8"))


FULL = read("recall-full")
SIZE = ("variant", "n_head", "head_dim", "position", "rope_value", "n_layer")


def per_layer(run):
    return run["cache_bytes_per_token"] // run["n_layer"]


def scores(results):
    """(task, bytes, variant, heads, positions, what K = V stores) -> seed -> accuracy."""
    found = defaultdict(dict)
    for run in results["runs"]:
        key = (run["task"], per_layer(run), run["variant"])
        key += (run["n_head"], run["position"], run["rope_value"])
        assert run["seed"] not in found[key]
        found[key][run["seed"]] = run["accuracy"]
    return found


def brute_force(differences):
    """The share of all choices of signs whose sum is at least as far from zero as the one seen."""
    whole = [round(4000 * d) for d in differences]  # answers that were right: whole numbers
    assert differences == pytest.approx([n / 4000 for n in whole], abs=1e-9)
    signs = product((1, -1), repeat=len(whole))
    sums = [abs(sum(s * d for s, d in zip(sign, whole, strict=True))) for sign in signs]
    return sum(s >= abs(sum(whole)) for s in sums) / len(sums)


def corrected(p_values):
    """Holm: the largest over all smaller p of how many are not smaller than it, times it."""
    order = sorted(p_values)
    steps = [min(1, (len(order) - i) * p) for i, p in enumerate(order)]
    return [max(steps[: order.index(p) + 1]) for p in p_values]


T_975 = {7: 2.364624, 9: 2.262157}  # of a printed table


def test_the_contrasts_of_the_study_from_its_runs():
    by_arm, kept = scores(FULL), FULL["contrasts"]
    assert len(kept) == len(CONTRASTS["recall-full"]) == 7
    baselines = {(c["task"], c["equal"]["bytes"]): c["baseline"] for c in FULL["cells"]}
    families = defaultdict(list)
    for contrast, found in zip(CONTRASTS["recall-full"], kept, strict=True):
        place = (contrast.task, contrast.per_token)
        mine = by_arm[(*place, *contrast.arm)]
        if contrast.against:
            other = by_arm[(*place, *contrast.against)]
        else:
            assert found["against"] == baselines[place]
            heads = int(baselines[place].split("H ")[1].split()[0])
            position = "rope" if "rope" in baselines[place] else "learned"
            other = by_arm[(*place, "qkv", heads, position, "raw")]
        assert mine.keys() == other.keys()
        assert found["cell"] == f"{contrast.task}, {contrast.per_token} B"
        differences = [mine[seed] - other[seed] for seed in mine]
        families[contrast.family].append((found, differences))
    assert {name: len(found) for name, found in families.items()} == {"pairs": 3, "mqar": 4}
    for found in families.values():
        p_values = [brute_force(differences) for _, differences in found]
        for (kept, differences), p, adjusted in zip(
            found, p_values, corrected(p_values), strict=True
        ):
            n = len(differences)
            half = T_975[n - 1] * stdev(differences) / math.sqrt(n)
            assert kept["difference"]["mean"] == pytest.approx(mean(differences), abs=1e-12)
            assert kept["difference"]["half"] == pytest.approx(half, rel=1e-6)
            assert kept["difference"]["n"] == n == (10 if kept["family"] == "pairs" else 8)
            assert kept["p"] == p
            assert kept["p_adjusted"] == pytest.approx(adjusted, rel=1e-12)
            same = abs(mean(differences)) + half < 0.02
            said = "the same" if same else "different" if adjusted <= 0.05 else "cannot be told"
            assert kept["verdict"] == said


def test_every_arm_of_the_plan_has_all_its_seeds():
    wanted = defaultdict(set)
    for config in plan(blocks("recall-full", {})).configs:
        arm = (config.task.name, config.variant, *(getattr(config.task, n) for n in SIZE[1:]))
        wanted[arm].add(config.seed)
    found = defaultdict(set)
    for run in FULL["runs"]:
        assert run["diverged"] is None
        assert run["split"] == "test"
        found[run["task"], *(run[name] for name in SIZE)].add(run["seed"])
    assert found == wanted
    assert {seed for seeds in found.values() for seed in seeds} == set(range(10))
    today = ("no width of a head stores", "no head width gives"), ("B a token", "B per token")
    left_out = [reduce(lambda text, new: text.replace(*new), today, r) for r in FULL["left_out"]]
    assert left_out == plan(blocks("recall-full", {})).impossible


def test_the_rates_are_the_best_of_those_tried():
    tried = defaultdict(lambda: defaultdict(list))
    for run in FULL["selection"]:
        assert run["split"] == "validation"
        assert run["seed"] in ((100, 101, 102) if run["task"] == "pairs" else (100, 101))
        arm = (run["task"], *(run[name] for name in SIZE))
        tried[arm][run["lr"]].append((run["accuracy"], run["loss"]))
    best = {}
    for arm, by_rate in tried.items():
        assert set(by_rate) == {0.001, 0.003, 0.006}
        assert {len(found) for found in by_rate.values()} == {3 if arm[0] == "pairs" else 2}
        means = {}
        for rate, found in by_rate.items():
            right = sum(round(4000 * accuracy) for accuracy, _ in found)
            means[rate] = (right, -mean(loss for _, loss in found))
        best[arm] = max(means, key=means.get)
    used = defaultdict(set)
    for run in FULL["runs"]:
        used[run["task"], *(run[name] for name in SIZE)].add(run["lr"])
    assert used == {arm: {rate} for arm, rate in best.items()}


def test_the_baseline_is_the_best_qkv_of_the_selection():
    tried = defaultdict(lambda: defaultdict(list))
    for run in FULL["selection"]:
        if run["variant"] == "qkv":
            arm = (run["n_head"], run["head_dim"], run["position"])
            tried[run["task"], per_layer(run)][(*arm, run["lr"])].append(run["accuracy"])
    for cell in FULL["cells"]:
        means = {arm: mean(v) for arm, v in tried[cell["task"], cell["equal"]["bytes"]].items()}
        best = [arm for arm, value in means.items() if value > max(means.values()) - 1e-9]
        names = [
            f"qkv (H {n} d {d}{', rope' if position == 'rope' else ''})"
            for n, d, position, _ in best
        ]
        assert cell["baseline"] in names


@pytest.mark.parametrize("name", ["recall-full", "study-default", "study-default-again"])
def test_a_lifted_model_scores_what_it_scored(name):
    controls = 0
    for cell in (cell for cell in read(name)["cells"] if cell["equal"]):
        trained = {row["arm"]: row["by_seed"] for row in cell["rows"]}
        for row in (row for row in cell["rows"] if row["lifted"]):
            original = trained[row["arm"].split(", lifted")[0]]
            assert row["by_seed"].keys() == original.keys()
            assert row["by_seed"] == pytest.approx(original, abs=0.001)
            controls += 1
        qkv = [row for row in cell["rows"] if row["variant"] == "qkv"]
        lifted = [row["arm"] for row in cell["rows"] if row["lifted"]]
        assert {f"{row['arm']}, lifted to q-k=v" for row in qkv} <= set(lifted)
    assert controls


@pytest.mark.parametrize("name", ["recall-full", "study-default", "study-default-again"])
def test_bytes_that_were_measured_are_those_of_the_formula(name):
    results = read(name)
    for run in (*results["runs"], *results["selection"]):
        assert run["cache_bytes_per_token"] == run["cache_bytes_per_token_formula"] > 0
    for cell in (cell for cell in results["cells"] if cell["equal"]):
        for row in cell["rows"]:
            assert row["cache_measured"] == cell["equal"]["bytes"] * cell["size"]["n_layer"]


@pytest.mark.parametrize("name", ["recall-full", "study-default", "study-default-again"])
def test_a_table_says_what_its_runs_say(name):
    """Means, counts and each seed of every trained row."""
    results, by_arm = read(name), scores(read(name))
    for cell in (cell for cell in results["cells"] if cell["equal"]):
        for row in (row for row in cell["rows"] if not row["lifted"]):
            s = row["settings"]
            key = (cell["task"], cell["equal"]["bytes"], row["variant"])
            mine = by_arm[(*key, s["n_head"], s["position"], s["rope_value"])]
            assert {int(seed): value for seed, value in row["by_seed"].items()} == mine
            assert row["score"]["mean"] == pytest.approx(mean(mine.values()), abs=1e-12)
            assert row["solved"] == sum(value >= 0.99 for value in mine.values())


def test_the_default_study_tells_a_difference_and_tells_it_again():
    seeds = []
    for name in ("study-default", "study-default-again"):
        results = read(name)
        place = ("mqar", 48)
        by_arm = scores(results)
        mine = by_arm[(*place, "q-k=v", 1, "rope", "raw")]
        base = by_arm[(*place, "qkv", 1, "rope", "raw")]
        assert mine.keys() == base.keys()
        differences = [mine[seed] - base[seed] for seed in mine]
        half = 3.182446 * stdev(differences) / math.sqrt(len(differences))
        assert len(differences) == 4
        assert mean(differences) + half < 0
        (row,) = [
            row
            for cell in results["cells"]
            for row in cell["rows"]
            if row["variant"] == "q-k=v" and not row["lifted"] and cell["task"] == "mqar"
        ]
        assert row["to_baseline"]["mean"] == pytest.approx(mean(differences), abs=1e-12)
        assert row["to_baseline"]["half"] == pytest.approx(half, rel=1e-6)
        seeds.append(set(mine))
    assert not seeds[0] & seeds[1]
    assert not any(seed >= 100 for seed in seeds[0] | seeds[1])


def test_the_runs_of_the_default_study_are_those_of_its_preset():
    wanted = {(arm_of(c), c.seed) for c in plan(blocks("quick", {})).configs}
    found = set()
    for run in read("study-default")["runs"]:
        names = ("n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value", "n_test")
        names += ("pairs", "keys") if run["task"] == "mqar" else ("seq_len", "alphabet", "form")
        given = {name: run[name] for name in names}
        steps = run["config"]["recipe"]["steps"]
        config = configure(run["task"], run["variant"], **given, steps=steps, lr=run["lr"])
        found.add((arm_of(config), run["seed"]))
        assert run["task"] == "sort" or run["lr"] == 6e-3
    assert found == wanted
