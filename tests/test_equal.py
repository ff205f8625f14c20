"""Cells at equal bytes and at equal parameters: widths that are right by count, and the blocks of a
preset.
"""

import re
from collections import Counter
from itertools import product

import pytest
from records import TINY

from minqkv.runs import configure
from minqkv.runtime.errors import UsageError
from minqkv.study.execute import measured_cache, run_one
from minqkv.study.grid import arm, blocks, grid
from minqkv.study.plan import plan
from minqkv.study.presets import PRESETS
from minqkv.study.rates import FIRST_SEED
from minqkv.study.summary import summarise

BYTES = (8, 12, 24, 40)
STORED = {  # variant -> numbers of a token in a layer, from heads H and width d
    "qkv": lambda H, d: 2 * H * d,
    "q-k=v": lambda H, d: H * d,
    "q=k-v": lambda H, d: 2 * H * d,
    "q=k=v": lambda H, d: H * d,
    "q=k-v+": lambda H, d: 2 * H * d,
    "q=k=v+": lambda H, d: H * d,
    "mqa": lambda H, d: 2 * d,
    "q-mqa": lambda H, d: d,
    "gqa-2": lambda H, d: 4 * d,
    "q-gqa-2": lambda H, d: 2 * d,
    "thin-1": lambda H, d: H * (d + 1),
    "thin-2": lambda H, d: H * (d + 2),
    "thin-4": lambda H, d: H * (d + 4),
}
LAYERED = ("qkv/q-k=v", "q-k=v/qkv", "mqa/q-mqa", "q=k=v/qkv", "gqa-2/q-k=v", "thin-2/q-mqa")
NAMES = (*STORED, *LAYERED)


def by_hand(variant, n_head, width):
    """Bytes of a token in a layer, on average over two layers."""
    parts = variant.split("/")
    return 4 * sum(STORED[part](n_head, width) for part in parts) / len(parts)


def sense(variant, n_head):
    """Whether this is a variant of its own with so many heads: gqa-H is qkv, and so on."""
    groups = 2 if "gqa-2" in variant else 1
    return n_head % groups == 0 and not ("gqa" in variant and n_head == 2)


def turned(variant, widths):
    """How many numbers of a key are turned in pairs under rope, in each layer."""
    parts = variant.split("/")
    return [int(p[5:]) if p.startswith("thin") else d for p in parts for d in widths]


def filled(config):
    """Bytes of a token and layer in a cache that the built model has filled."""
    model = config.build()
    cache = model.new_cache()
    x, _ = config.task.draw(0, "validation", 1)
    model(x, cache=cache)
    assert len(cache) == x.shape[1]
    return cache.nbytes / len(cache) / config.task.n_layer


@pytest.mark.parametrize("n_head", [1, 2, 4])
@pytest.mark.parametrize(("task", "position"), [("pairs", "learned"), ("mqar", "rope")])
def test_equal_bytes_are_those_of_a_filled_cache(task, position, n_head):
    lists = {**TINY, "n_head": n_head, "n_layer": 2, "position": position}
    names = [name for name in NAMES if sense(name, n_head)]
    if position == "rope":
        names.remove("thin-1")  # keys of one number cannot be turned, and all widths are tried
    left_out = []
    found = grid([task], names, [0], equal_bytes=BYTES, impossible=left_out, **lists)
    chosen = {}
    for config in found:
        per_token = filled(config)
        chosen[config.variant, per_token] = config.task.head_dim
        assert by_hand(config.variant, n_head, config.task.head_dim) == per_token
    assert len(chosen) == len(found)  # no arm twice
    for variant, size in product(names, BYTES):
        widths = [d for d in range(1, 17) if by_hand(variant, n_head, d) == size]
        thin = any(f"thin-{d}" in variant for d in widths)  # with this width it is qkv
        odd = position == "rope" and any(d % 2 for d in turned(variant, widths))
        name = variant if n_head > 1 else variant.replace("mqa", "qkv")
        name = name.replace("q-qkv", "q-k=v")  # with one head they are the same
        if widths and not thin and not odd:
            assert chosen.pop((name, size), widths[0]) == widths[0]
        else:
            s = "s" if n_head > 1 else ""
            why = f"{task} {variant} with {n_head} head{s}: "
            reasons = f"no head width gives {size} B per token", f"at {size} B per token its thin"
            told = [one for one in left_out if one.startswith(tuple(why + r for r in reasons))]
            assert len(told) == 1
    assert not chosen


def test_several_lists_of_heads_and_bytes_make_each_arm_once():
    lists = {**TINY, "n_head": (1, 2, 4), "n_layer": 2}
    found = grid(["pairs"], ["qkv", "mha", "gqa-2", "mqa"], [0, 1], equal_bytes=(16, 32), **lists)
    assert max(Counter(found).values()) == 1
    arms = Counter((arm(config, equal=True), config.seed) for config in found)
    assert max(arms.values()) == 1
    assert {config.seed for config in found} == {0, 1}


@pytest.mark.parametrize("n_head", [1, 2])
def test_thin_keys_as_wide_as_the_values_are_left_out(n_head):
    left_out, size = [], 16 * n_head  # width 2: K and V of two numbers each
    lists = {**TINY, "n_head": n_head, "equal_bytes": (size,), "impossible": left_out}
    found = grid(["pairs"], ["qkv", "thin-2", "thin-1"], [0], **lists)
    assert [(c.variant, c.task.head_dim) for c in found] == [("qkv", 2), ("thin-1", 3)]
    (reason,) = left_out
    assert reason.startswith("pairs thin-2")


@pytest.mark.parametrize("n_head", [1, 2])
def test_no_width_at_all_is_an_error_with_the_reason(n_head):
    with pytest.raises(UsageError, match=r"nothing to run: pairs qkv .*no head width gives 4"):
        grid(["pairs"], ["qkv"], [0], equal_bytes=(4,), n_head=n_head, **TINY)


PARAMS = ("qkv", "q-mqa", "thin-2", "qkv/q-k=v")


@pytest.mark.parametrize(("task", "n_head", "target"), [("pairs", 1, 4000), ("mqar", 2, 1700)])
def test_equal_parameters(task, n_head, target):
    """Within 2 % of what was asked for, and no other width is nearer."""
    lists, left_out = {**TINY, "n_head": n_head, "n_layer": 2}, []
    names = [name for name in PARAMS if n_head > 1 or "mqa" not in name]
    found = grid([task], names, [0], equal_params=(target,), impossible=left_out, **lists)
    assert len({config.variant for config in found}) == len(found)

    def n_params(variant, width):
        try:
            return configure(task, variant, **lists, head_dim=width).build().n_params
        except UsageError:
            return 0

    for variant in names:
        off = {d: abs(n_params(variant, d) - target) / target for d in range(1, 60)}
        chosen = [c.task.head_dim for c in found if c.variant == variant]
        if chosen:
            assert off[chosen[0]] == min(off.values()) <= 0.02
        else:
            assert min(off.values()) > 0.02
            reason = f"{task} {variant}: no head width gives about {target:,} parameters"
            assert reason in left_out
    assert len(found) + len(left_out) == len(names)


# ---- blocks


def test_a_list_replaces_that_of_every_block_whose_tasks_have_such_a_field():
    quick = PRESETS["quick"]
    given = {"seeds": (7,), "alphabet": (5,), "keys": (16,)}
    mqar, sort = blocks("quick", given)
    assert mqar == {**quick[0], "seeds": (7,), "keys": (16,)}
    assert sort == {**quick[1], "seeds": (7,), "alphabet": (5,)}


def test_what_is_replaced_leaves_the_preset_as_it_was():
    before = repr(PRESETS)
    blocks("quick", {"tasks": ("pairs", "sort"), "equal_params": (5000,), "seeds": (1,)})
    assert repr(PRESETS) == before


def test_tasks_choose_among_the_blocks_and_others_get_their_own():
    sort, pairs = blocks("quick", {"tasks": ("pairs", "sort")})
    assert sort == PRESETS["quick"][1]
    assert (pairs["tasks"], pairs["seeds"]) == (("pairs",), (0, 1, 2))
    assert "equal_bytes" not in pairs
    assert "gqa-2" not in pairs["variants"]  # one head has no two groups
    assert {"qkv", "q-k=v"} <= set(pairs["variants"])
    (mqar,) = blocks("quick", {"tasks": ("mqar",)})
    assert mqar == PRESETS["quick"][0]
    assert len(blocks("recall-full", {"tasks": ("pairs",)})) == 5


def test_equal_lists_replace_those_of_the_preset():
    for block in blocks("quick", {"equal_params": (5000,)}):
        assert block["equal_params"] == (5000,)
        assert "equal_bytes" not in block
    for block in blocks("quick", {"equal_bytes": (64,)}):
        assert block["equal_bytes"] == (64,)
    with pytest.raises(UsageError, match="not both"):
        blocks("quick", {"equal_bytes": (16,), "equal_params": (5000,)})


def test_variants_given_are_not_thinned_out():
    found = blocks("quick", {"variants": ("gqa-2",)})
    assert [block["variants"] for block in found] == [("gqa-2",)] * 2


@pytest.mark.parametrize(
    ("given", "near"),
    [({"kees": (8,)}, "keys"), ({"alphabeth": (5,)}, "alphabet"), ({"stepz": (5,)}, "steps")],
)
def test_a_name_that_no_task_has_is_refused_with_the_nearest(given, near):
    with pytest.raises(UsageError, match="setting of these tasks") as caught:
        blocks("quick", given)
    assert near in f"{caught.value} {caught.value.hint}"


def test_a_field_of_tasks_that_are_not_there_is_refused():
    with pytest.raises(UsageError, match="alphabet"):
        blocks("quick", {"tasks": ("mqar",), "alphabet": (5,)})


# ---- presets


FULL = {  # (task, bytes) -> arms, from docs/recall-plan.md
    ("pairs", 8): {
        *(("qkv", 1, 1), ("q-k=v", 1, 2), ("q-k=v", 2, 1), ("q=k-v", 1, 1)),
        *(("mqa", 4, 1), ("q-mqa", 4, 2), ("q-gqa-2", 4, 1)),
    },
    ("pairs", 16): {
        *(("qkv", 1, 2), ("qkv", 2, 1), ("q-k=v", 1, 4), ("q-k=v", 2, 2), ("q=k-v", 1, 2)),
        *(("thin-1", 1, 3), ("mqa", 4, 2), ("q-mqa", 4, 4), ("gqa-2", 4, 1), ("q-gqa-2", 4, 2)),
    },
    ("pairs", 24): {
        *(("qkv", 1, 3), ("q-k=v", 1, 6), ("q-k=v", 2, 3), ("q=k-v", 1, 3), ("thin-1", 1, 5)),
        *(("thin-2", 1, 4), ("mqa", 4, 3), ("q-mqa", 4, 6), ("q-gqa-2", 4, 3)),
    },
    ("pairs", 32): {("qkv", 1, 4), ("q-k=v", 1, 8), ("mqa", 4, 4), ("q-mqa", 4, 8)},
}
MQAR = {  # bytes -> (variant, width, positions, what K = V stores)
    32: {("qkv", 4, "rope", "raw"), *(("q-k=v", 8, "rope", v) for v in ("raw", "unrotate"))},
    48: {
        *(("qkv", 6, "rope", "raw"), ("qkv/q-k=v", 8, "rope", "raw")),
        *(("q-k=v", 12, "rope", v) for v in ("raw", "unrotate")),
        *(("q-k=v/qkv", 8, "rope", "raw"), ("qkv", 6, "learned", "raw")),
        ("q-k=v", 12, "learned", "raw"),
    },
    64: {
        *(("qkv", 8, "rope", "raw"), ("qkv", 8, "learned", "raw")),
        *(("q-k=v", 16, "rope", v) for v in ("raw", "unrotate")),
        ("q-k=v", 16, "learned", "raw"),
    },
}


def test_recall_full_is_the_plan():
    found = plan(blocks("recall-full", {}))
    seeds = {}
    for config in found.configs:
        task = config.task
        size = by_hand(config.variant, task.n_head, task.head_dim)
        name = (config.variant, task.n_head, task.head_dim)
        if task.name == "mqar":
            assert task.n_head == 1
            name = (config.variant, task.head_dim, task.position, task.rope_value)
        seeds.setdefault((task.name, size), {}).setdefault(name, []).append(config.seed)
    expected = FULL | {("mqar", size): arms for size, arms in MQAR.items()}
    assert {key: set(arms) for key, arms in seeds.items()} == expected
    for (task, _), arms in seeds.items():
        assert all(mine == list(range(10 if task == "pairs" else 8)) for mine in arms.values())
    assert len(found.configs) == 30 * 10 + 15 * 8
    deciding = {}
    for config in found.candidates:
        deciding.setdefault(config.task.name, set()).add((config.seed, config.recipe.lr))
    rates = (0.001, 0.003, 0.006)
    assert deciding["pairs"] == set(product((100, 101, 102), rates))
    assert deciding["mqar"] == set(product((100, 101), rates))
    assert len(found.candidates) == 30 * 9 + 15 * 6
    steps = {(c.task.name, c.recipe.steps, c.recipe.warmup, c.recipe.clip) for c in found.configs}
    assert steps == {("pairs", 800, 200, 1.0), ("mqar", 3000, 200, 1.0)}
    assert {(c.recipe.batch, c.recipe.watch) for c in found.configs} == {(64, 50)}


def test_what_recall_full_leaves_out_is_what_no_width_gives():
    reasons = plan(blocks("recall-full", {})).impossible
    pattern = r"pairs (\S+) with (\d) heads?: (?:no head width gives|at) (\d+) B per token.*"
    assert {re.fullmatch(pattern, reason).groups() for reason in reasons} == {
        *(("thin-1", "1", "8"), ("thin-2", "1", "8"), ("thin-2", "1", "16")),
        *(("qkv", "2", "8"), ("qkv", "2", "24"), ("gqa-2", "4", "8"), ("gqa-2", "4", "24")),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_reports_a_seed_that_chooses_rates(name):
    for block in PRESETS[name]:
        assert 0 <= min(block["seeds"]) <= max(block["seeds"]) < FIRST_SEED


def test_the_default_preset_has_few_seeds_and_one_rate():
    found = plan(blocks("quick", {}))
    assert found.candidates == []
    assert {(c.task.name, c.seed) for c in found.configs} == {
        *(("mqar", seed) for seed in range(4)),
        *(("sort", seed) for seed in range(3)),
    }
    assert {c.recipe.lr for c in found.configs if c.task.name == "mqar"} == {6e-3}


# ---- a trained model that stores only K


def small_mqar(variant, **given):
    given = {"pairs": 2, "keys": 4, "n_embd": 16, "n_test": 8, "batch": 4, "steps": 2} | given
    return configure("mqar", variant, **given)


def test_only_k_is_stored_of_a_trained_model():
    """It scores what it scored, at half the bytes, as an arm among those of these bytes."""
    whole, narrow = small_mqar("qkv", n_head=2), small_mqar("qkv", n_head=2, head_dim=4)
    records = [run_one(config) for config in (whole, narrow)]
    slim = records[0]["slim"]
    assert slim["score"] == pytest.approx(records[0]["score"], rel=1e-4)
    assert slim["cache_bytes_per_token"] == records[0]["cache_bytes_per_token"] / 2 == 2 * 16 * 4
    assert records[1]["slim"] is None  # W_K is not square: K does not give V back
    cells = {cell.equal["bytes"]: cell for cell in summarise(records, "bytes")}
    assert [row.arm for row in cells[128].rows if not row.lifted] == ["qkv (H 2 d 8, rope)"]
    other, kept = (row for row in cells[64].rows if not row.lifted)
    assert kept.arm == "qkv (H 2 d 8, rope), only K stored"
    assert (kept.cache_measured, kept.cache_formula, other.cache_measured) == (128, 128, 128)
    assert kept.by_seed == {0: slim["score"]["accuracy"]}
    assert other.arm == "qkv (H 2 d 4, rope)"
    arms = [row.arm for cell in summarise(records) for row in cell.rows]  # in no other table
    assert arms == ["qkv", "qkv (d_h 4)"]


@pytest.mark.parametrize("variant", ["q-k=v", "gqa-1", "q=k-v", "mla", "thin-2"])
def test_other_variants_store_what_they_store(variant):
    assert run_one(small_mqar(variant, n_head=2))["slim"] is None


def test_a_row_beside_of_a_chosen_width():
    """d_rope is part of an arm, not of a table; the bytes are those of a filled cache."""
    lists = {"variants": ("mla", "gta-1"), "n_head": (4,), "d_rope": (4,), "equal_bytes": (48,)}
    configs = grid(("mqar",), seeds=(0,), **lists)
    assert [(c.variant, c.task.head_dim) for c in configs] == [("mla", 2), ("gta-1", 8)]
    for config in configs:
        assert measured_cache(config) == (96, 96)  # of two layers


def test_what_turns_apart_is_one_arm():
    """For a row that is not both key and value, "raw" and "unrotate" are one model."""
    lists = {"variants": ("qkv", "q-k=v", "mla"), "rope_value": ("raw", "unrotate")}
    configs = grid(("mqar",), seeds=(0,), **lists)
    found = [(c.variant, c.task.rope_value) for c in configs]
    assert found == [("qkv", "raw"), ("q-k=v", "raw"), ("mla", "raw"), ("q-k=v", "unrotate")]
