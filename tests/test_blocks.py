"""Attention in blocks of queries, patterns kept or computed again, against its composed twin; and
what it allocates.
"""

import tracemalloc

import numpy as np
import pytest

from minqkv import Tensor
from minqkv import backend as backends
from minqkv import functional as fused
from minqkv import reference as composed
from minqkv.checking import gradcheck
from minqkv.runtime.errors import UsageError


@pytest.mark.parametrize("keep", [0, 1 << 18], ids=["computed again", "kept"])
@pytest.mark.parametrize("block", [1, 3, 4, 100])
@pytest.mark.parametrize("mask", ["none", "causal", "warm cache", "ragged"])
def test_blocks_agree_with_the_twin(mask, block, keep, backend, leaf, rng, monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", block)
    monkeypatch.setattr(fused, "KEEP", keep)
    T, S = (7, 11) if mask == "warm cache" else (7, 7)
    seen = {
        "none": None,
        "causal": np.tri(T, dtype=bool),
        "warm cache": np.arange(S) <= np.arange(S - T, S)[:, None],
        "ragged": np.arange(S)
        <= np.array([2, 0, 4, 1, 5, 3, 3])[:, None],  # no query sees the last key
    }[mask]
    seen = None if seen is None else backends.upload(seen)
    inputs = leaf(2, 4, T, 3), leaf(2, 2, S, 3), leaf(2, 2, S, 3), leaf(), leaf(S)

    def run(attention):
        return lambda q, k, v, t, b: attention(q, k, v, seen, temperature=t, bias=b)

    u, results = rng.standard_normal((2, 4, T, 3)), []
    for module in (fused, composed):
        for x in inputs:
            x.zero_grad()
        out = run(module.scaled_dot_product_attention)(*inputs)
        out.backward(backends.upload(u))
        results.append([backends.to_host(out.data), *(backends.to_host(x.grad) for x in inputs)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert gradcheck(run(fused.scaled_dot_product_attention), *inputs) < 1e-7


def test_an_empty_batch_and_a_large_bias(rng):
    q = Tensor(np.ones((0, 2, 5, 4)))
    with pytest.raises(UsageError, match="must not be empty"):
        fused.scaled_dot_product_attention(q, q, q)
    q, bias = (
        Tensor(rng.standard_normal((1, 2, 5, 4)).astype("float32")),
        Tensor(np.float32([0, 500, -500, 1000, 90])),
    )
    results = [
        module.scaled_dot_product_attention(q, q, q, bias=bias).data for module in (fused, composed)
    ]
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("size", [0.1, 30.0, 3000.0], ids=["small", "large", "huge"])
def test_scores_with_and_without_a_shift(size, leaf, rng):
    """Small scores go to exp as they are, large ones after their maximum is taken off: both give
    the twin's.
    """
    q, k, v = (
        leaf(2, 2, 9, 4, dtype="float32"),
        leaf(2, 2, 9, 4, dtype="float32"),
        leaf(2, 2, 9, 4, dtype="float32"),
    )
    q.data *= size
    assert backends.bounded(q.data * 0.5, k.data) == (size == 0.1)
    g = rng.standard_normal(q.shape).astype("float32")
    results = []
    for module in (fused, composed):
        for x in (q, k, v):
            x.zero_grad()
        out = module.scaled_dot_product_attention(q, k, v, np.tri(9, dtype=bool))
        out.backward(g)
        results.append([out.data, *(x.grad for x in (q, k, v))])
    for a, b in zip(*results, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1, size))


def test_a_long_sequence_never_holds_all_its_scores(leaf):
    T = 2048
    q, k, v = (leaf(1, 4, T, 8, dtype="float32") for _ in range(3))
    mask = np.tri(T, dtype=bool)
    tracemalloc.start()
    fused.scaled_dot_product_attention(q, k, v, mask).backward(np.ones((1, 4, T, 8), "float32"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = 4 * fused.BLOCK * T * 4  # bytes of one block of scores, all heads
    assert peak < 6 * block < 4 * T * T * 4


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((4, 1), bool),
        np.ones((1, 4), bool),
        np.ones((4, 3), bool),
        np.ones(4, bool),
        np.zeros((4, 4)),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, leaf):
    q = leaf(1, 1, 4, 2)
    with pytest.raises(UsageError, match="boolean, of shape \\(4, 4\\)"):
        fused.scaled_dot_product_attention(q, q, q, mask)
