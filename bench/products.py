"""The matrix products of a training step on their own, and the rate of the machine's sgemm: what a step could cost at best."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

import minqkv as mq

from . import threads


def step_products(size, variant="qkv"):
    """[(shape of a, shape of b, how often)] of a forward pass; backward does g @ bᵀ and aᵀ @ g for each."""
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
    """A function without arguments that runs exactly those products, forward and backward, into buffers made beforehand.

    Shared out as the engine shares them: `threads.workers()` Python threads, each a part of the batch.
    """
    workers = min(threads.workers(), size.B)
    part = size._replace(B=size.B // workers)
    shards = [[_buffers(a, b, times) for a, b, times in step_products(part, variant)] for _ in range(workers)]
    return _over_threads([lambda shard=shard: _run(shard) for shard in shards])


def _buffers(a_shape, b_shape, times):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in (a_shape, b_shape))
    return a, b, a @ b, np.empty_like(a), np.empty_like(b), times


def _run(shard):
    for a, b, y, da, db, times in shard:
        for _ in range(times):
            np.matmul(a, b, out=y)
            np.matmul(y, b.swapaxes(-1, -2), out=da)
            np.matmul(a.swapaxes(-1, -2), y, out=db)


def sgemm(n=1024):
    """(function, FLOP a call): square products of float32 that keep all threads busy."""
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal((3, n, n), dtype=np.float32) for _ in range(threads.workers())]
    work = [lambda abc=abc: np.matmul(abc[0], abc[1], out=abc[2]) for abc in operands]
    return _over_threads(work), 2 * n**3 * len(work)


def _over_threads(work):
    if len(work) == 1:
        return work[0]
    pool = ThreadPoolExecutor(len(work))
    return lambda: [future.result() for future in [pool.submit(function) for function in work]]
