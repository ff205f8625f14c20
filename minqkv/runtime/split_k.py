"""A long cache read in parts (split-K): each core reads its part of the keys and values.

A softmax over many positions can be left unfinished, part by part, and put together at the end:
softmax(s) v = Σ_j e^(s_j - m) v_j / Σ_j e^(s_j - m), with m the largest score of all.
"""

import itertools
import math

import numpy as np

LEAST = 3 << 20  # bytes of keys and values below which one thread is as fast
PIECE = 1 << 20  # bytes of rows that are both key and value, to be near when they are read again


def attend(backend, q, k, v, bias=None):
    """softmax(q kᵀ + bias) v: q (B, H, 1, d_k), k, v (B, h, S, d), bias (S,) -> (B, H, 1, d_v).

    None where a single pass is as fast.
    """
    B, h, S, d_k = k.shape
    nbytes = k.nbytes if v is k else k.nbytes + v.nbytes
    threads = min(backend.threads, S) if nbytes >= LEAST else 1
    pieces = math.ceil(nbytes / (PIECE * threads)) if v is k else 1  # for each thread
    if threads * pieces == 1:
        return None
    rows = q.reshape(B, h, -1, d_k)  # (B, h, G, d_k): queries that share a stored head
    ends = [S * i // (threads * pieces) for i in range(threads * pieces + 1)]

    def read(thread):
        found = []
        for i in range(thread * pieces, (thread + 1) * pieces):
            keys = k[:, :, ends[i] : ends[i + 1]]  # (B, h, s, d_k)
            values = keys if v is k else v[:, :, ends[i] : ends[i + 1]]
            some_bias = None if bias is None else bias[ends[i] : ends[i + 1]]
            found.append(unfinished(rows, keys, values, some_bias))
        return found

    parts = itertools.chain.from_iterable(backend.each(read, range(threads)))
    return join(list(parts)).reshape(*q.shape[:3], -1)


def unfinished(q, k, v, bias=None):
    """Σ_j e^(s_j - m) v_j, Σ_j e^(s_j - m), and m = max_j s_j over these positions.

    q (B, h, G, d_k), k, v (B, h, s, d), bias (s,) -> (B, h, G, d_v), (B, h, G, 1), (B, h, G, 1).
    """
    scores = np.matmul(q, k.swapaxes(-1, -2))  # (B, h, G, s)
    if bias is not None:
        scores += bias
    top = scores.max(axis=-1, keepdims=True)  # (B, h, G, 1)
    scores -= top
    weights = np.exp(scores, out=scores)
    return np.matmul(weights, v), weights.sum(axis=-1, keepdims=True), top


def join(parts):
    """Parts of a softmax put together, and finished: each counts by e^(its m - the largest)."""
    mix, total, top = map(np.stack, zip(*parts, strict=True))  # (parts, B, h, G, d_v or 1)
    share = np.exp(top - top.max(axis=0))
    return (mix * share).sum(axis=0) / (total * share).sum(axis=0)
