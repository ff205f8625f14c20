"""Solution 10: attention with a cache."""

import numpy as np


def step(x, wq, wk, wv, wp, cache):
    """New tokens (T, C) on what the cache holds -> (T, d)."""
    start, end = cache["n"], cache["n"] + len(x)
    x = x + wp[start:end]  # (T, C), positions go on counting
    q = x @ wq  # (T, d)
    cache["k"][start:end], cache["v"][start:end] = x @ wk, x @ wv  # first written ...
    cache["n"] = end
    k, v = cache["k"][:end], cache["v"][:end]  # (S, d), ... then read
    scores = q @ k.T / np.sqrt(q.shape[-1])  # (T, S)
    seen = np.arange(end)[None, :] <= np.arange(start, end)[:, None]  # (T, S), absolute positions
    scores = np.where(seen, scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (T, S)
    return e / e.sum(axis=-1, keepdims=True) @ v  # (T, d)
