"""What training needs: the formula is what is held, and what is held is what was allocated."""

import gc
import itertools
import tracemalloc

import numpy as np
import pytest

import minqkv as mq
from minqkv import functional as F
from minqkv.analysis.memory import (
    activation_bytes,
    arrays,
    layer_numbers,
    scoring_bytes,
    training_memory,
)
from minqkv.runtime.errors import UsageError
from minqkv.tasks.recall import Recall
from minqkv.train import IGNORE
from minqkv.variants import NAMES, variant_names

QKV = mq.VariantSpec()
VARIANTS = (*variant_names(2, among=NAMES), "q=k=v+temperature", "q=k=v+bias", "q=k-v+bias")
POSITIONS = [("learned", "raw"), ("none", "raw"), ("rope", "raw"), ("rope", "unrotate"),
             ("alibi", "raw"), ("relative", "raw")]  # fmt: skip
SIZES = [  # batch, length, n_layer, n_head, n_embd, d_ff, vocab_size
    (2, 5, 3, 4, 16, 48, 7),
    (3, 1, 1, 4, 8, 5, 2),
    (1, 130, 2, 4, 24, 96, 3),  # two blocks of queries
    (2, 300, 1, 4, 8, 8, 3),
    (1, 520, 1, 4, 8, 8, 3),  # a pattern that is not kept
    (2, 5, 3, 4, 16, 0, 7),  # no MLP
]


def gpt(size, variant="qkv", position="learned", **changes):
    _, length, *sizes, d_ff, vocab = size
    block = max(2, length)
    cfg = mq.GPTConfig(vocab, block, *sizes, variant, position, d_ff=d_ff, **changes)
    return mq.GPT(cfg)


def needs(size, *args, **changes):
    """training_memory of a GPT, for a batch of its size."""
    return memory(gpt(size, *args, **changes), *size[:2])


def memory(model, batch, length):
    """training_memory for a batch of zeros with a loss at every position."""
    return training_memory(model, *np.zeros((2, batch, length), int))


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_formula_is_what_the_graph_holds_to_the_byte(variant, position, rope_value):
    for size in SIZES:
        for dtype in ("float32", "float64"):
            found = needs(size, variant, position, rope_value=rope_value, dtype=dtype)
            assert found["activations"] == found["activations_formula"] > 0, (size, dtype)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("variant", "d_rope"), [("gta-2", 2), ("gla-2", 4), ("mla", None), ("gqa-2-thin-4", 2)]
)
def test_the_formula_of_designs_that_ship(variant, d_rope, norm):
    for size in SIZES[0], SIZES[2], SIZES[4]:
        given = {"norm": norm, "d_rope": d_rope, "head_dim": 6}
        found = needs(size, variant, "rope", **given)
        assert found["activations"] == found["activations_formula"] > 0, size
        if variant != "gta-2":
            found = needs(size, variant, "learned", norm=norm)
            assert found["activations"] == found["activations_formula"] > 0, size


@pytest.mark.parametrize("variant", ["qkv", "gta-2", "gla-2", "mla"])
def test_a_forward_pass_takes_no_more_than_the_formula_says(variant):
    cfg = mq.GPTConfig(11, 300, 1, 4, 32, variant, "rope", head_dim=16, d_ff=8, norm=True)
    model, ids = mq.GPT(cfg), np.zeros((4, 300), int)
    with mq.no_grad():
        F.cross_entropy(model(ids), ids)
        tracemalloc.start()
        F.cross_entropy(model(ids), ids)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= scoring_bytes(cfg, 4, 300)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "thin" not in name])
def test_the_formula_with_norms(variant, position, rope_value):
    for d_rope in (None, 2) if position == "rope" else (None,):
        found = needs(SIZES[0], variant, position, rope_value=rope_value, norm=True, d_rope=d_rope)
        assert found["activations"] == found["activations_formula"] > 0


def test_the_formula_without_biases_and_with_dropout():
    for changes in ({"bias": False}, {"dropout": 0.1}):
        for size in (SIZES[0], SIZES[5]):
            found = needs(size, "gqa-2", **changes)
            assert found["activations"] == found["activations_formula"]


@pytest.mark.parametrize("variant", ["qkv", "q=k=v+"])
def test_the_formula_with_a_window(variant):
    """A window hides keys; what is held stays the same."""
    for size in SIZES:
        for sinks in (0, 2):
            found = needs(size, variant, "rope", window=3, sinks=sinks)
            assert found["activations"] == found["activations_formula"] > 0, (size, sinks)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", [*VARIANTS, "thin-6"])
def test_the_formula_with_heads_of_a_width_of_their_own(variant, position, rope_value):
    """Of 2 numbers, half of d / H, and of 6: then thin-2 is thinner, and thin-6 is not."""
    for size, head_dim in itertools.product((SIZES[0], SIZES[2], SIZES[5]), (2, 6)):
        found = needs(size, variant, position, rope_value=rope_value, head_dim=head_dim)
        assert found["activations"] == found["activations_formula"], (size, head_dim)


@pytest.mark.parametrize(("position", "rope_value"), POSITIONS)
@pytest.mark.parametrize("variant", ["qkv/q-k=v", "q=k=v+/mqa/thin-2", "q-k=v/qkv"])
def test_the_formula_with_a_variant_for_each_layer(variant, position, rope_value):
    """Three layers: two names repeat, so that the first counts twice."""
    for size in (SIZES[0], SIZES[5]):
        found = needs(size, variant, position, rope_value=rope_value)
        assert found["activations"] == found["activations_formula"]
        one, two = (needs(size, name, position, rope_value=rope_value)["activations"]
                    for name in variant.split("/")[:2])  # fmt: skip
        assert one == two or found["activations"] not in (one, two)


def allocated():
    """Bytes in arrays, as NumPy reports them to tracemalloc."""
    gc.collect()
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([domain]).traces
    return sum(trace.size for trace in traces)


@pytest.mark.parametrize("variant", ["qkv", "q-mqa", "q=k=v+"])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_what_the_graph_holds_is_what_the_forward_pass_has_allocated(variant, position):
    size = SIZES[2]
    model = gpt(size, variant, position)

    def loss():
        return F.cross_entropy(model(np.zeros(size[:2], np.int64)), np.zeros(size[:2], np.int64))

    loss()  # what is made once and kept, like the ones of a row sum, is there now
    tracemalloc.start()
    try:
        before = allocated()
        end = loss()
        held = allocated() - before
    finally:
        tracemalloc.stop()
    scalars = held - activation_bytes(model.config, *size[:2])
    assert end.data.nbytes <= scalars <= 3 * end.data.nbytes  # the loss, and a temperature


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float64", 8)])
def test_weights_gradients_and_moments(variant, dtype, itemsize):
    found = needs(SIZES[0], variant, dtype=dtype)
    model = gpt(SIZES[0], variant, dtype=dtype)
    weights = itemsize * mq.VariantSpec.parse(variant).params(model.config)
    assert found["weights"] == weights
    assert found["gradients"] == found["moments"] == 2 * weights


def test_a_layer_counted_by_hand():
    """B 1, T 2, one head of width 2, inside the MLP 3: each array that qkv keeps for backward."""
    norm = 2 * 2 + 2 + 2 * 2  # rows, 1/σ, output
    attention = 2 * 2 + 2 * 2 + 2 * 2 + 2 * 2 + 2 + 2 * 2  # q, k, v, weights, 1/sums, answers
    mlp = 2 * 3 + 2 * 3  # slope, output
    cfg = mq.GPTConfig(5, 2, 1, 1, 2, d_ff=3)
    assert layer_numbers(cfg, QKV, 1, 2) == norm + attention + norm + mlp
    without = mq.GPTConfig(5, 2, 1, 1, 2, d_ff=0)
    assert layer_numbers(without, QKV, 1, 2) == norm + attention


@pytest.mark.parametrize("variant", [*VARIANTS, "qkv/q=k=v+/mqa"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_formula_where_blocks_are_computed_again(variant, dropout):
    """Either the head needs most, with the inputs of all blocks, or one block does."""
    for size in (*SIZES[:1], *SIZES[2:3], SIZES[5], (2, 5, 3, 4, 16, 8, 300)):
        if len(variant.split("/")) > size[2]:
            continue
        model = gpt(size, variant, dropout=dropout, recompute=True)
        ids, targets = (np.zeros(size[:2], int) for _ in range(2))
        found = training_memory(model, ids, targets)
        assert found["activations"] == found["activations_formula"] > 0, size
        asked = np.where(np.arange(size[1]) < 2, targets, IGNORE)
        found = training_memory(model, ids, asked, sparse=True)
        assert found["activations"] == found["activations_formula"] > 0, size


def test_a_block_that_is_computed_again_counted_by_hand():
    """Two layers: the input of each, and in turn the arrays of the last block, or of the head."""
    sizes = {"vocab_size": 5, "block_size": 4, "n_layer": 2, "n_head": 1, "n_embd": 2}
    cfg = mq.GPTConfig(**sizes, recompute=True)
    block, inputs = 4 * layer_numbers(cfg, QKV, 3, 4), 2 * 4 * 3 * 4 * 2
    shared = 4 * 4 + 8 * 3 * 4  # mask, ids
    assert activation_bytes(cfg, 3, 4) == shared + inputs + block
    wide = mq.GPTConfig(**sizes | {"vocab_size": 500}, recompute=True)
    head = 4 * 3 * 4 * (5 + 500) + 8 * 3 * 3 * 4  # targets, two lists of places
    assert activation_bytes(wide, 3, 4) == shared + inputs + head


# ---- what sharing saves


def test_what_one_row_less_saves():
    """A projection, its gradients and moments, and the rows of values of each layer."""
    B, T, L, _, d, *_ = SIZES[0]
    qkv, shared = needs(SIZES[0], "qkv"), needs(SIZES[0], "q-k=v")
    assert qkv["weights"] - shared["weights"] == 4 * L * (d * d + d)
    assert qkv["activations"] - shared["activations"] == 4 * L * B * T * d
    neither = needs(SIZES[0], "q=k=v")
    assert shared["weights"] - neither["weights"] == 4 * L * (d * d + d)
    assert shared["activations"] == neither["activations"]  # scaled queries are an array anyway


def test_what_fewer_heads_save():
    B, T, L, H, d, *_ = SIZES[0]
    qkv, mqa = needs(SIZES[0], "qkv"), needs(SIZES[0], "mqa")
    assert qkv["activations"] - mqa["activations"] == 4 * L * B * T * 2 * (d - d // H)


def test_rotary_positions_take_back_what_one_row_less_saves():
    _, T, L, H, d, *_ = SIZES[0]
    qkv = needs(SIZES[0], "qkv", "rope")["activations"]
    assert needs(SIZES[0], "q-k=v", "rope")["activations"] == qkv
    unrotate = needs(SIZES[0], "q-k=v", "rope", rope_value="unrotate")["activations"]
    assert unrotate == qkv + 4 * L * T * (d // H) // 2


@pytest.mark.parametrize(
    "variant", [name for name in variant_names(2, among=NAMES) if name != "qkv"]
)
def test_every_variant_needs_less_than_qkv(variant):
    qkv, found = needs(SIZES[0], "qkv"), needs(SIZES[0], variant)
    assert found["weights"] < qkv["weights"]
    assert found["activations"] <= qkv["activations"] + 4 * 3 * 5  # the bias of "+"


# ---- the rest


def test_a_pattern_grows_with_the_square_of_the_length_until_none_is_kept():
    def numbers(length):
        return layer_numbers(gpt(SIZES[0]).config, QKV, 1, length)

    assert numbers(512) > 3 * numbers(256)
    assert numbers(513) < numbers(256)
    assert numbers(1026) == 2 * numbers(513)


def test_an_encoder_is_measured():
    """At a length of one block, it keeps what a GPT of its size keeps, but for the mask."""
    size = (2, 5, 3, 4, 16, 64, 7)
    B, T, *sizes, _, vocab = size
    found = memory(mq.Tagger(mq.TaggerConfig(vocab, T, *sizes, "q-k=v")), B, T)
    expected = activation_bytes(gpt(size, "q-k=v").config, B, T) - T * T
    assert (found["activations"], found["activations_formula"]) == (expected, None)
    older = memory(mq.Tagger(mq.TaggerConfig(vocab, T, *sizes, protocol="2023")), B, T)
    assert older["activations"] > 0


def test_the_model_itself_is_left_alone():
    model = gpt(SIZES[0])
    optimizer = mq.AdamW(model.parameters())
    before = [p.data.copy() for p in model.parameters()]
    memory(model, 2, 5)
    assert all(p.grad is None for p in model.parameters())
    assert all((p.data == b).all() for p, b in zip(model.parameters(), before, strict=True))
    ids = np.zeros((2, 5), int)
    mq.train_step(model, optimizer, ids, ids)  # still the optimiser of these parameters


def test_an_array_counts_once_however_many_views_are_held():
    x = mq.Tensor(np.zeros((4, 6)), requires_grad=True)
    rows, columns = x[:2], x[:, 1:]
    out = (rows * rows).sum() + columns.sum() + (x * x.reshape(4, 6)).sum()
    assert [array.nbytes for array in arrays(out.node).values()] == [4 * 6 * 8]


def test_it_is_measured_on_numpy_whatever_the_backend(backend):
    found = memory(gpt(SIZES[3], "q-k=v", "rope"), *SIZES[3][:2])
    assert found["activations"] == found["activations_formula"]
    assert mq.runtime.backend.current is backend


def test_a_length_that_the_model_does_not_take():
    with pytest.raises(UsageError, match="9 tokens, but this model has 5 positions"):
        memory(gpt(SIZES[0]), 2, 9)


@pytest.mark.parametrize("name", ["pairs", "mqar"])
@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "thin-2", "qkv/q-k=v"])
def test_where_logits_are_asked_at_some_positions_only(name, variant):
    """And where tokens have ids of two channels."""
    if name == "pairs" and "/" in variant:
        return
    task = Recall(name, head_dim=4)
    x, y = task.batch(0, 0, 5)
    found = training_memory(task.model(variant, 0), x, y, sparse=True)
    assert found["activations"] == found["activations_formula"] > 0
    dense = training_memory(task.model(variant, 0), x, y)
    assert dense["activations"] > found["activations"]
    assert dense["activations_formula"] is None
