"""Solution h6: each KV head is repeated for its neighbours."""

import numpy as np


def attend(q, k, v):
    """Attention without a mask: q (H, T, d), k and v (h, T, d) -> (H, T, d).
    h divides H, and neighbouring heads share a KV head.
    """
    H, h = len(q), len(k)
    k = np.repeat(k, H // h, axis=0)  # (H, T, d): a a b b
    v = np.repeat(v, H // h, axis=0)  # (H, T, d)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])  # (H, T, T)
    e = np.exp(scores - scores.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True) @ v
