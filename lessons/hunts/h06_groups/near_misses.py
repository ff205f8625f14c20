"""Near misses h6: repairs that are not."""

import numpy as np


def _attend(q, k, v):
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])
    e = np.exp(scores - scores.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True) @ v


def attend__keys_only(q, k, v):
    """Your keys are dealt out in blocks, but your values still in turn."""
    n = len(q) // len(k)
    return _attend(q, np.repeat(k, n, axis=0), np.tile(v, (n, 1, 1)))


def attend__values_only(q, k, v):
    """Your values are dealt out in blocks, but your keys still in turn."""
    n = len(q) // len(k)
    return _attend(q, np.tile(k, (n, 1, 1)), np.repeat(v, n, axis=0))
