"""Learning rates are chosen on seeds and a split that are never reported."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from records import TINY, record_of

import minqkv
from minqkv.models import GPTConfig
from minqkv.runs import configure
from minqkv.runtime.errors import UsageError
from minqkv.study.execute import run_one
from minqkv.study.plan import Part, Plan, plan
from minqkv.study.rates import arm_of, candidates, choose, with_rates

RATES = (1e-3, 3e-3, 6e-3)


def tiny(variant="qkv", **changes):
    return configure("pairs", variant, **{**TINY, "steps": 2, **changes})


def chosen(scores, config=None):
    """The Choice for rate -> [(metric, loss), or None, of each seed]."""
    config = config or tiny()
    runs = []
    for rate, found in scores.items():
        for seed, score in enumerate(found, 100):
            run = replace(config, seed=seed, split="validation").change(lr=rate)
            runs.append((run, record_of(run, *(score or (None,)))))
    (choice,) = choose(runs).values()
    return choice


# ---- which rate


def test_the_best_mean_wins_not_the_best_seed():
    choice = chosen({1e-3: [(0.5, 1), (0.6, 1)], 3e-3: [(0.9, 1), (0.1, 1)]})
    assert choice.lr == 1e-3
    assert choice.scores == pytest.approx({1e-3: 0.55, 3e-3: 0.5})


def test_among_equal_means_the_lower_mean_loss():
    scores = {1e-3: [(1, 0.3), (1, 0.5)], 3e-3: [(1, 0.7), (1, 0)], 6e-3: [(1, 0.4), (1, 0.5)]}
    assert chosen(scores).lr == 3e-3
    assert chosen(dict(reversed(scores.items()))).lr == 3e-3


def test_a_loss_never_outweighs_the_metric():
    assert chosen({1e-3: [(0.5, 0.0)], 3e-3: [(0.501, 9.0)]}).lr == 3e-3


def test_where_less_is_better_the_lowest_mean_wins():
    task = Counted("t:Counted", n_embd=16, n_head=1, n_layer=1)
    config = replace(tiny(), task=task)
    choice = chosen({1e-3: [(4, 1), (2, 1)], 3e-3: [(1, 1), (1, 1)], 6e-3: [(7, 1)] * 2}, config)
    assert (choice.lr, choice.at_the_edge) == (3e-3, False)


def test_a_rate_at_which_a_run_diverged_comes_last():
    choice = chosen({1e-3: [(0.1, 2), (0.1, 2)], 3e-3: [(1, 0), None]})
    assert choice.lr == 1e-3
    assert choice.scores == pytest.approx({1e-3: 0.1, 3e-3: None})


def test_of_rates_that_all_diverged_the_smallest_is_taken():
    for order in (RATES, RATES[::-1]):
        choice = chosen({rate: [None, (1, 0)] for rate in order})
        assert (choice.lr, set(choice.scores.values())) == (1e-3, {None})


@pytest.mark.parametrize(("best", "edge"), [(1e-3, True), (3e-3, False), (6e-3, True)])
def test_the_edge_of_the_list(best, edge):
    choice = chosen({rate: [(1.0 if rate == best else 0.5, 1)] for rate in RATES[::-1]})
    assert (choice.lr, choice.at_the_edge) == (best, edge)


def test_one_rate_has_no_edge():
    choice = chosen({3e-3: [(0.5, 1)]})
    assert (choice.lr, choice.at_the_edge) == (3e-3, False)


def test_each_arm_has_a_rate_of_its_own():
    runs = []
    for variant, best in (("qkv", 1e-3), ("q-k=v", 6e-3)):
        for run in candidates([tiny(variant)], RATES, 2):
            runs.append((run, record_of(run, 0.9 if run.recipe.lr == best else 0.3)))
    found = choose(runs)
    assert {arm.variant: choice.lr for arm, choice in found.items()} == {
        "qkv": 1e-3,
        "q-k=v": 6e-3,
    }
    configs = [tiny(variant, seed=seed) for variant in ("qkv", "q-k=v", "q=k-v") for seed in (0, 1)]
    rated = with_rates(configs, found)
    assert [c.recipe.lr for c in rated] == [1e-3] * 2 + [6e-3] * 2 + [3e-3] * 2
    assert [c.change(lr=3e-3) for c in rated] == configs  # nothing else was changed
    assert all(c.split == "test" for c in rated)


def test_candidates_are_of_selection_seeds_and_the_validation_split():
    configs = [tiny(variant, seed=seed) for variant in ("qkv", "q-k=v") for seed in range(5)]
    found = candidates(configs, RATES, 3)
    assert len(found) == len(set(found)) == 2 * 3 * 3
    assert {c.split for c in found} == {"validation"}
    assert {c.seed for c in found} == {100, 101, 102}
    assert {c.recipe.lr for c in found} == set(RATES)
    assert {arm_of(c) for c in found} == set(map(arm_of, configs))


def test_an_arm_is_a_run_without_its_seed_and_rate():
    config = tiny()
    same = replace(config, seed=7, split="validation").change(lr=0.5)
    assert arm_of(same) == arm_of(config)
    for change in ({"steps": 3}, {"head_dim": 4}, {"variant": "q-k=v"}, {"clip": 0.5}):
        assert arm_of(config.change(**change)) != arm_of(config)


# ---- a plan


BLOCK = {"tasks": ("pairs",), "variants": ("qkv", "q-k=v"), "seeds": (0, 1), "steps": 2, **TINY}


def best_is(rate, executed):
    """An executor whose runs score best at `rate`; it notes what it was given."""

    def execute(configs):
        executed.append(configs)
        return [record_of(c, 0.9 if c.recipe.lr == rate else 0.2) for c in configs]

    return execute


def test_what_is_reported_carries_the_chosen_rate():
    found, executed = plan([{**BLOCK, "lr": (1e-3, 2e-3, 6e-3)}]), []
    records, selection = found.run(best_is(2e-3, executed))
    deciding, reported = executed
    assert (len(deciding), len(reported)) == (2 * 3 * 3, 4)
    assert {c.recipe.lr for c in reported} == {2e-3}
    assert {r["config"]["recipe"]["lr"] for r in records} == {2e-3}
    assert {c.split for c in deciding} == {"validation"}
    assert {c.split for c in reported} == {"test"}
    assert not {c.seed for c in deciding} & {c.seed for c in reported}
    assert len(selection) == len(deciding)
    (cell,) = found.cells(records)
    assert all(row.lr_was_chosen and row.lr == 2e-3 and not row.at_the_edge for row in cell.rows)


def test_with_one_rate_nothing_is_chosen():
    found, executed = plan([{**BLOCK, "lr": (5e-3,)}]), []
    records, selection = found.run(best_is(3e-3, executed))
    assert selection == []
    (reported,) = executed
    assert {c.recipe.lr for c in reported} == {5e-3}
    (cell,) = found.cells(records)
    assert not any(row.lr_was_chosen or row.at_the_edge for row in cell.rows)


def test_how_many_seeds_decide_is_a_matter_of_each_block():
    blocks = [{**BLOCK, "lr": RATES, "selection_seeds": 1}, {**BLOCK, "lr": RATES, "steps": 3}]
    seeds = {}
    for config in plan(blocks).candidates:
        seeds.setdefault(config.recipe.steps, set()).add(config.seed)
    assert seeds == {2: {100}, 3: {100, 101, 102}}


@pytest.mark.parametrize("seeds", [(100,), (0, 101), (5, 99, 1000)])
def test_seeds_that_choose_rates_are_not_reported(seeds):
    with pytest.raises(UsageError, match="seeds from 100 up choose the learning rates") as caught:
        plan([{**BLOCK, "seeds": seeds, "lr": RATES}])
    assert "--seeds" in caught.value.hint
    assert plan([{**BLOCK, "seeds": seeds, "lr": (1e-3,)}]).candidates == []  # nothing is chosen


def test_the_identity_of_a_study_does_not_depend_on_its_rates():
    found = plan([{**BLOCK, "lr": RATES}])
    before = found.identity
    found.run(best_is(6e-3, []))
    other = plan([{**BLOCK, "lr": (1e-3, 9e-3)}])
    fixed = plan([{**BLOCK, "lr": (9e-3,)}])
    assert found.identity == before == other.identity == fixed.identity == plan([BLOCK]).identity
    for change in ({"seeds": (0, 2)}, {"steps": 3}, {"variants": ("qkv", "q=k-v")}):
        assert plan([{**BLOCK, **change}]).identity != before


# ---- the test split, through the real run


LOG = []  # (split, seed) of every draw


@dataclass(frozen=True)
class Guarded(minqkv.Task):
    """Copies its input. The test split cannot be drawn before all rates are chosen."""

    n_head: int = 1
    n_layer: int = 1
    n_embd: int = 16
    n_test: int = 4
    allowed: ClassVar[bool] = False

    def examples(self, rng, n):
        x = rng.integers(0, 5, (n, 4))
        return x, x.copy()

    def config(self, variant):
        sizes = {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd}
        return GPTConfig(5, 4, **sizes, head_dim=self.head_dim, variant=variant, d_ff=0)

    def draw(self, seed, split, n):
        LOG.append((split, seed))
        if split == "test" and not type(self).allowed:
            raise UsageError("the test split was drawn before the rates were chosen")
        return super().draw(seed, split, n)


@dataclass(frozen=True)
class Counted(Guarded):
    """A task whose score is better the lower it is."""

    metric: ClassVar[str] = "mistakes"
    better: ClassVar[str] = "lower"


@pytest.fixture
def guarded(monkeypatch):
    LOG.clear()
    monkeypatch.setattr(Guarded, "allowed", False)
    return plan(
        [
            {"tasks": ("t:Guarded",), "variants": ("qkv", "q-k=v"), "seeds": (0, 1), "steps": 2}
            | {"batch": 4, "watch": 1, "lr": (1e-3, 1e-2), "selection_seeds": 2}
        ],
        {"t:Guarded": Guarded},
    )


def test_selection_never_sees_the_test_split(guarded, monkeypatch):
    def execute(configs):
        if configs[0].split == "test":  # all rates are chosen by now
            assert len(guarded.choices) == 2
            assert {split for split, _ in LOG} == {"validation"}
            assert {seed for _, seed in LOG} == {100, 101}
            monkeypatch.setattr(Guarded, "allowed", True)
        return [run_one(config) for config in configs]

    records, selection = guarded.run(execute)
    assert (len(selection), len(records)) == (2 * 2 * 2, 4)
    assert all(record["lifted"] for record in selection if record["config"]["variant"] == "qkv")
    assert {seed for split, seed in LOG if split == "test"} == {0, 1}
    (cell,) = guarded.cells(records)
    assert [len(row.by_seed) for row in cell.rows] == [2, 2]


def test_the_guard_would_notice(guarded):
    """The test above can fail: a candidate that scored the test split would raise."""
    candidate = guarded.candidates[0]
    run_one(candidate)
    with pytest.raises(UsageError, match="before the rates were chosen"):
        run_one(replace(candidate, split="test"))


def test_scoring_draws_from_the_named_split_alone(guarded):
    config = guarded.candidates[0]
    x, _ = config.task.draw(100, "validation", 4)
    y, _ = config.task.draw(101, "validation", 4)
    assert not np.array_equal(x, y)
    LOG.clear()
    run_one(config)
    assert set(LOG) == {("validation", 100)}


# ---- parts by hand


def test_a_plan_without_rates_runs_once():
    configs, executed = [tiny(seed=seed) for seed in (0, 1)], []
    records, selection = Plan([Part(configs)]).run(best_is(3e-3, executed))
    assert executed == [configs]
    assert (len(records), selection) == (2, [])


def test_runs_of_two_parts_are_run_once():
    configs = [tiny(seed=seed) for seed in (0, 1)]
    found = Plan([Part(configs, RATES), Part(configs[:1], RATES)])
    assert found.configs == configs
    assert len(found.candidates) == 9
