"""The matrix products of a training step on their own, and the rate of the machine's sgemm: what a
step could cost at best.
"""

import numpy as np

import minqkv as mq


def step_products(size, variant="qkv"):
    """[(shape of a, shape of b, how often)] of a forward pass; backward does g @ bᵀ and aᵀ @ g for
    each.
    """
    spec, N, S = mq.VariantSpec.parse(size.config(variant).variant), size.B * size.T, size.T
    h, d_h = spec.stored_heads(size.H), size.d // size.H
    rows = size.H // h * size.T  # G·T, the queries that share a stored head
    return [
        ((N, size.d), (size.d, size.d), size.L * (1 + spec.own_query)),  # wo, wq
        ((N, size.d), (size.d, h * d_h), size.L * spec.streams),  # wk, wv
        ((size.B, h, rows, d_h), (size.B, h, d_h, S), size.L),  # scores
        ((size.B, h, rows, S), (size.B, h, S, d_h), size.L),  # mix
        ((N, size.d), (size.d, 4 * size.d), size.L),
        ((N, 4 * size.d), (4 * size.d, size.d), size.L),
        ((N, size.d), (size.d, size.V), 1),
    ]


def alone(size, variant="qkv"):
    """A function without arguments that runs exactly those products, forward and backward, into
    buffers made beforehand.
    """
    products = [_buffers(a, b, times) for a, b, times in step_products(size, variant)]
    return lambda: _run(products)


def _buffers(a_shape, b_shape, times):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in (a_shape, b_shape))
    return a, b, a @ b, np.empty_like(a), np.empty_like(b), times


def _run(products):
    for a, b, y, da, db, times in products:
        for _ in range(times):
            np.matmul(a, b, out=y)
            np.matmul(y, b.swapaxes(-1, -2), out=da)
            np.matmul(a.swapaxes(-1, -2), y, out=db)


def sgemm(n=1024):
    """(function, FLOP a call): a square product of float32."""
    a, b, y = np.random.default_rng(0).standard_normal((3, n, n), dtype=np.float32)
    return lambda: np.matmul(a, b, out=y), 2 * n**3
