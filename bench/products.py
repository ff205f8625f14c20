"""The matrix products of a training step on their own, and the rate of the machine's sgemm: what a
step could cost at best.
"""

from itertools import pairwise

import numpy as np

import minqkv as mq
from minqkv.functional import BLOCK
from minqkv.runtime.parallel import SMALLEST


def step_products(size, variant="qkv"):
    """[(shape of a, shape of b, how often)] of a forward pass; backward does g @ bᵀ and aᵀ @ g for
    each.

    Scores come in blocks of queries, each against the keys that a causal mask lets them see.
    """
    spec, N = mq.VariantSpec.parse(size.config(variant).variant), size.B * size.T
    h, d_h = spec.stored_heads(size.H), size.d // size.H
    products = [
        ((N, size.d), (size.d, size.d), size.L * (1 + spec.own_query)),  # wo, wq
        ((N, size.d), (size.d, h * d_h), size.L * spec.streams),  # wk, wv
        ((N, size.d), (size.d, 4 * size.d), size.L),
        ((N, 4 * size.d), (4 * size.d, size.d), size.L),
        ((N, size.d), (size.d, size.V), 1),
    ]
    for start in range(0, size.T, BLOCK):
        end = min(start + BLOCK, size.T)
        rows = size.H // h * (end - start)  # G·t, the queries that share a stored head
        products += [
            ((size.B, h, rows, d_h), (size.B, h, d_h, end), size.L),  # scores
            ((size.B, h, rows, end), (size.B, h, end, d_h), size.L),  # mix
        ]
    return products


def alone(size, variant="qkv"):
    """A function without arguments that runs exactly those products, forward and backward, into
    buffers made beforehand.

    By NumPy's BLAS, on the threads that `mq.set_threads` chose, cut into shards as the step is.
    """
    work = mq.VariantSpec.parse(variant).params(size.config(variant)) * size.B * size.T
    n = max(1, min(mq.backend.current.threads, size.B, work // SMALLEST))
    ends = [size.B * i // n for i in range(n + 1)]
    shards = [_buffers(size._replace(B=end - start), variant) for start, end in pairwise(ends)]
    return lambda: mq.backend.each(lambda shard: _run(shard, np.matmul), shards)


def alone_in_torch(size, variant="qkv"):
    """The same by PyTorch's BLAS and its own threads, the batch in one piece."""
    import torch

    products = [
        (*map(torch.from_numpy, arrays), times) for *arrays, times in _buffers(size, variant)
    ]
    return lambda: _run(products, torch.matmul)


def _buffers(size, variant):
    rng = np.random.default_rng(0)
    products = []
    for a_shape, b_shape, times in step_products(size, variant):
        a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in (a_shape, b_shape))
        products.append((a, b, a @ b, np.empty_like(a), np.empty_like(b), times))
    return products


def _run(products, matmul):
    for a, b, y, da, db, times in products:
        for _ in range(times):
            matmul(a, b, out=y)
            matmul(y, b.swapaxes(-1, -2), out=da)
            matmul(a.swapaxes(-1, -2), y, out=db)


def sgemm(n=1024):
    """(function, FLOP a call): a square product of float32."""
    a, b, y = np.random.default_rng(0).standard_normal((3, n, n), dtype=np.float32)
    return lambda: np.matmul(a, b, out=y), 2 * n**3
