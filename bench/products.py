"""The matrix products of a training step on their own, and the rate of the machine's sgemm: what a
step could cost at best.
"""

from collections import Counter
from itertools import pairwise

import numpy as np

import minqkv as mq
from minqkv.functional import BLOCK
from minqkv.runtime.parallel import SMALLEST


def step_products(size, variant="qkv"):
    """`model_products` of a training step of this size."""
    return model_products(size.config(variant), size.B, size.T)


def model_products(cfg, batch, length):
    """[(shape of a, shape of b, how often)] of a forward pass of a GPT on `batch` sequences of
    `length` tokens; backward does g @ bᵀ and aᵀ @ g for each.

    Scores come in blocks of queries, each against the keys that a causal mask lets them see.
    """
    N, d, products = batch * length, cfg.n_embd, []
    for spec, n in Counter(cfg.specs).items():
        H, d_h, d_rope = spec.sizes(cfg)
        h, (query, row) = spec.stored_heads(H), spec.widths(d_h, d_rope)
        projected = [heads * width for heads, width in spec.stored(cfg)]
        projected += [H * query] if spec.own_query else []
        products += [((N, d), (d, width), n) for width in projected]
        products += [((N, H * d_h), (H * d_h, d), n)]
        if spec.latent:  # into and out of latent rows, by matrices of each head
            products += [((H, N, d_h), (H, d_h, row), n), ((H, N, row), (H, row, d_h), n)]
        if cfg.d_ff:
            products += [((N, d), (d, cfg.d_ff), n), ((N, cfg.d_ff), (cfg.d_ff, d), n)]
        key, value = row + d_rope if spec.latent else query, d_h if spec.streams == 2 else row
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            rows = H // h * (end - start)  # G·t, the queries that share a stored head
            products += [
                ((batch, h, rows, key), (batch, h, key, end), n),  # scores
                ((batch, h, rows, end), (batch, h, end, value), n),  # mix
            ]
    return [*products, ((N, d), (d, cfg.vocab_size), 1)]


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
