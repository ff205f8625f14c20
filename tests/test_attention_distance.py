"""What is added to scores by distance: "alibi" and "relative"."""

import numpy as np
import pytest
from toys import EVERY, gpt, host, tagger

import minqkv as mq
from minqkv import functional as F
from minqkv import reference
from minqkv.attention import Attention, Distance, looked_up, slopes
from minqkv.designs.layers import Sink
from minqkv.nn import Init
from minqkv.runtime.errors import UsageError
from minqkv.variants import FARTHEST

SHAPES = [(7,), (2, 1, 1, 7), (1, 4, 1, 7), (1, 4, 5, 7), (2, 4, 5, 7), (1, 1, 5, 7), (2, 1, 5, 7)]


def test_rates_of_alibi():
    """The paper's for powers of two; else what its released code gives, for 12 heads: those of 8,
    then every other one of 16.
    """
    np.testing.assert_array_equal(slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_array_equal(slopes(1), [2.0**-8])
    np.testing.assert_allclose(slopes(12)[8:], [2.0 ** -(i / 2) for i in (1, 3, 5, 7)])
    for n_head in range(1, 130):
        assert len(slopes(n_head)) == n_head == len(set(slopes(n_head)))


def test_alibi_by_hand():
    found = host(Distance("fixed", 2, 8)(slice(3, 5), slice(0, 5)))
    assert found.shape == (1, 2, 2, 5)
    distance = np.array([[3, 2, 1, 0, 1], [4, 3, 2, 1, 0]])
    np.testing.assert_array_equal(found[0, 0], -distance / 16)
    np.testing.assert_array_equal(found[0, 1] * 16, found[0, 0])  # 2^-8 and 2^-4


@pytest.mark.parametrize("ahead", [False, True])
def test_relative_by_hand(ahead):
    """Each distance has its own number; those beyond the last one share it."""
    part = Distance("learned", 2, 4, Init(0, "float64"), ahead)
    n = 7 if ahead else 4
    part.load_state_dict({"weight": np.arange(2.0 * n).reshape(n, 2)})
    found = host(part(slice(4, 6), slice(0, 7)))  # (1, 2, 2, 7)
    before = np.array([[4, 3, 2, 1, 0, -1, -2], [5, 4, 3, 2, 1, 0, -1]])
    row = np.clip(before, -3 if ahead else 0, 3) + 3 * ahead
    np.testing.assert_array_equal(found[0], [2 * row, 2 * row + 1])
    uneven = host(part(np.array([[4, 5], [1, -1]]), np.array([[0, 1, -1], [1, 0, 2]])))
    np.testing.assert_array_equal(
        uneven[1, 0, 0], 2 * (np.clip([0, 1, -1], -3 * ahead, 3) + 3 * ahead)
    )


def test_what_is_looked_up_is_an_embedding(rng):
    """Its twin: rows of a table, with the heads before the positions; and its gradient."""
    weight, rows = mq.nn.Parameter(rng.standard_normal((6, 3))), rng.integers(0, 6, (2, 4, 5))
    u, found = rng.standard_normal((2, 3, 4, 5)), []
    for looked in (looked_up, lambda w, at: F.embedding(at, w).transpose(0, 3, 1, 2)):
        out = looked(weight, rows)
        (out * u).sum().backward()
        found.append((host(out), host(weight.grad)))
        weight.zero_grad()
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    assert mq.gradcheck(lambda w: looked_up(w, rows), weight) < 1e-8


def test_how_many_numbers_are_learned():
    for block_size, ahead, rows in [(16, True, 31), (16, False, 16), (999, False, FARTHEST + 1)]:
        assert Distance("learned", 4, block_size, ahead=ahead).weight.shape == (rows, 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_of_any_shape(shape, causal, rng, monkeypatch):
    """Fused = composed, in blocks of few queries; and its gradient, against its linear part."""
    monkeypatch.setattr(F, "BLOCK", 2)
    q, k, v = (
        mq.Tensor(rng.standard_normal(s)) for s in ((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 3))
    )
    bias = mq.nn.Parameter(rng.standard_normal(shape))
    mask = np.arange(7) <= np.arange(5)[:, None] + 2 if causal else None
    u, found = rng.standard_normal((2, 4, 5, 3)), []
    for room in (F, reference):
        out = room.scaled_dot_product_attention(q, k, v, mask, bias=bias)
        (out * u).sum().backward()
        found.append((host(out), host(bias.grad)))
        bias.zero_grad()
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    attend = F.scaled_dot_product_attention
    assert mq.gradcheck(lambda b: attend(q, k, v, mask, bias=b), bias) < 1e-7


@pytest.mark.parametrize("shape", [(5,), (1, 4, 5, 6), (1, 3, 5, 7), (2, 4, 5, 1), (1, 1, 7), ()])
def test_a_bias_of_no_shape(shape):
    q, k = mq.Tensor(np.ones((2, 4, 5, 6))), mq.Tensor(np.ones((2, 2, 7, 6)))
    with pytest.raises(UsageError, match="attention: a bias"):
        F.scaled_dot_product_attention(q, k, k, bias=mq.Tensor(np.ones(shape)))


@pytest.mark.parametrize("position", ["alibi", "relative"])
@pytest.mark.parametrize("variant", [name for name in EVERY if "+" not in name])
def test_only_distances_count(variant, position, rng):
    """Wherever a text begins, its output is the same. (A "+" has positions of its own.)"""
    model = gpt(variant, position=position)
    layer, x = model.blocks[0].attn, mq.Tensor(rng.standard_normal((2, 5, 16)))
    mask = np.tri(5, dtype=bool)
    far = np.arange(700, 705)[None].repeat(2, axis=0)
    np.testing.assert_allclose(host(layer(x, mask, at=far)), host(layer(x, mask)), atol=1e-12)


@pytest.mark.parametrize("variant", ["q=k-v", "q=k=v"])
def test_what_is_symmetric(variant, rng):
    """With Q = K, a query scores a key as that key scores it, unless distances are signed."""
    for position, symmetric in [("learned", True), ("alibi", True), ("rope", True),
                                ("relative", False), ("learned+relative", False)]:  # fmt: skip
        with mq.trace() as trace:
            tagger(variant, position=position)(rng.integers(0, 7, (1, 6)))
        added = "relative" in position or position == "alibi"
        found = trace["blocks.0.attn.plus" if added else "blocks.0.attn.scores"]
        assert np.allclose(found, found.swapaxes(-1, -2), atol=1e-12) is symmetric, position


def test_a_text_longer_than_in_training():
    """Beyond the last distance, all count as that."""
    model = gpt("q-k=v", position="relative", block_size=6)
    cache, ids = model.new_cache(1, 30), np.arange(30)[None] % 11
    found = np.concatenate([host(model(ids[:, i : i + 1], cache=cache)) for i in range(30)], axis=1)
    longer = gpt("q-k=v", position="relative", block_size=30)
    state = model.state_dict()
    for name, array in state.items():
        if "distance" in name:  # (6, H) -> (30, H)
            state[name] = np.concatenate([array, array[-1:].repeat(24, axis=0)])
    longer.load_state_dict(state)
    np.testing.assert_allclose(found, host(longer(ids)), atol=1e-12)


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_a_sink_is_at_no_distance(position, rng):
    """Its score is what it is, and its value 0: weights of the others, times what they keep."""
    layer = Sink("qkv", 8, 2, 6, Init(1, "float64", "uniform"), position=position)
    plain = Attention("qkv", 8, 2, 6, Init(1, "float64", "uniform"), position=position)
    layer.sink.data[...] = [[[0.3]], [[-1.0]]]
    x, mask = mq.Tensor(rng.standard_normal((1, 5, 8))), np.tri(5, dtype=bool)
    with mq.trace() as trace:
        plain(x, mask)
    with mq.trace() as found:
        layer(x, mask)
    (scores,) = (trace[name] for name in trace if name.endswith("plus"))
    total = np.where(mask, np.exp(scores), 0).sum(-1, keepdims=True)  # (1, 2, 5, 1)
    kept = total / (total + np.exp(host(layer.sink)))
    (z,), (expected,) = ([t[n] for n in t if n.split(".")[-1] == "z"] for t in (found, trace))
    np.testing.assert_allclose(z, expected * kept, atol=1e-12)


def test_a_sink_has_no_plus():
    with pytest.raises(UsageError, match="a sink beside"):
        Sink("q=k-v+", 8, 2, 6)


def test_positions_of_queries_are_needed():
    """An own cache that forgets them gets one clear line."""
    layer = Attention("qkv", 8, 2, 6, position="alibi")
    x = mq.Tensor(np.ones((1, 5, 8), "f4"))
    rows, q = layer.store(x, slice(0, 5)), layer.query(x[:, 3:], (), slice(3, 5))
    with pytest.raises(UsageError, match="2 queries, 5 keys"):
        layer.attend(q, rows, slice(0, 5))
    assert layer.attend(q, rows, slice(0, 5), asked=slice(3, 5)).shape == (1, 2, 2, 4)
