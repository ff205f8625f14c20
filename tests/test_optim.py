"""Optimisers, clipping and schedules against their formulas."""

import math

import numpy as np
import pytest
from toys import host

from minqkv import backend as backends
from minqkv import nn, optim
from minqkv.runtime.errors import UsageError


def by_hand(kind, p, grads, lr=0.1, momentum=0.9, betas=(0.8, 0.95), eps=1e-3, decay=0.1):
    """One parameter moved by the textbook's formulas, an update a line."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if kind == "SGD":
            m = momentum * m + g
            p = p - lr * m
            continue
        if kind == "AdamW" and p.ndim >= 2:
            p = p - lr * decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


OPTIMIZERS = {
    "SGD": lambda ps: optim.SGD(ps, 0.1, momentum=0.9),
    "Adam": lambda ps: optim.Adam(ps, 0.1, (0.8, 0.95), 1e-3),
    "AdamW": lambda ps: optim.AdamW(ps, 0.1, (0.8, 0.95), 1e-3, 0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimisers_follow_their_formulas(backend, rng, kind):
    """Vectors and a scalar among matrices, given in mixed order; and a state carried over to
    another optimiser.
    """
    starts = [rng.standard_normal(shape) for shape in ((3,), (2, 3), (), (4, 2), (1,))]
    grads = [[rng.standard_normal(s.shape) for s in starts] for _ in range(5)]
    parameters = [nn.Parameter(backends.upload(s.copy())) for s in starts]
    optimizer = OPTIMIZERS[kind](parameters)
    for step, gs in enumerate(grads):
        if step == 3:
            state, optimizer = optimizer.state_dict(), OPTIMIZERS[kind](parameters)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        for p, g in zip(parameters, gs, strict=True):
            p.backward(backends.upload(g))
        optimizer.step()
        for p, g in zip(parameters, gs, strict=True):
            np.testing.assert_array_equal(host(p.grad), g)  # a step leaves the gradients alone
    assert optimizer.steps == 5
    for i, (p, start) in enumerate(zip(parameters, starts, strict=True)):
        np.testing.assert_allclose(
            host(p), by_hand(kind, start, [gs[i] for gs in grads]), rtol=1e-12
        )
        assert p.shape == start.shape


def test_a_parameter_without_gradient_counts_as_zero():
    moved, still = nn.Parameter(np.ones(2)), nn.Parameter(np.ones((2, 2)))
    optimizer = optim.AdamW([moved, still], lr=0.1, weight_decay=0.5)
    moved.backward(np.ones(2))
    optimizer.step()
    np.testing.assert_allclose(moved.data, 0.9, rtol=1e-6)
    np.testing.assert_allclose(still.data, 0.95)


def test_optimiser_errors():
    with pytest.raises(UsageError, match="one dtype"):
        optim.Adam([nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2, np.float32))])
    with pytest.raises(UsageError, match="parameters"):
        optim.Adam([])
    small, large = optim.Adam([nn.Parameter(np.ones(2))]), optim.Adam([nn.Parameter(np.ones(3))])
    for state in (large.state_dict(), {"steps": 1}):
        with pytest.raises(UsageError, match="does not fit"):
            small.load_state_dict(state)


@pytest.mark.parametrize("max_norm", [0.5, 13.0, 100.0])
def test_clipping(backend, max_norm):
    a, b, without = (
        nn.Parameter(backends.upload(np.zeros(shape))) for shape in ((2, 2), (1,), (3,))
    )
    optimizer = optim.SGD([a, b, without], lr=1.0)
    a.backward(backends.upload(np.array([[3.0, 0], [0, 4]])))
    b.backward(backends.upload(np.array([12.0])))
    norm = optimizer.step(max_norm)
    assert float(host(norm)) == pytest.approx(13)
    scale = min(1, max_norm / (13 + 1e-6))
    np.testing.assert_allclose(host(a.data), -scale * np.array([[3, 0], [0, 4]]))
    np.testing.assert_allclose(host(b.data), [-scale * 12])
    np.testing.assert_array_equal(
        host(b.grad), [12]
    )  # what a parameter holds is not what it moves by
    assert not host(without.data).any()


@pytest.mark.parametrize("bound", [0, -1.0, math.nan])
def test_a_bound_that_is_none(bound):
    optimizer = optim.SGD([nn.Parameter(np.ones(2))])
    with pytest.raises(UsageError, match="positive"):
        optimizer.step(bound)
    assert optimizer.steps == 0


def test_schedules():
    assert {optim.constant(0.3)(step) for step in (0, 10, 1000)} == {0.3}
    new = optim.warmup_cosine(1e-3, 7, 158)  # protocol 2026: (step + 1) / 7, then a cosine to 0
    for s in range(7):
        assert new(s) == pytest.approx(1e-3 * (s + 1) / 7)
    for s in (7, 20, 157):
        assert new(s) == pytest.approx(1e-3 * (1 + math.cos(math.pi * (s - 7) / 151)) / 2)
    assert new(158) == new(500) == 0
    old = optim.warmup_cosine(
        1e-3, 5, 780, restart=False
    )  # protocol 2023: step / 5 times a cosine over all steps
    assert old(0) == 0
    for s in (1, 4, 5, 390, 779):
        assert old(s) == pytest.approx(1e-3 * min(1, s / 5) * (1 + math.cos(math.pi * s / 780)) / 2)
    floor = optim.warmup_cosine(1.0, 2, 10, floor=0.1)
    assert floor(10) == floor(50) == pytest.approx(0.1)
    assert floor(6) == pytest.approx(0.55)
    assert optim.warmup_cosine(1.0, 0, 10)(0) == 1.0
