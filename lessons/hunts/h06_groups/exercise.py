"""Hunt h6. Check your repair with `minqkv lesson check h6`."""

import numpy as np


def attend(q, k, v):
    """Attention without a mask: q (H, T, d), k and v (h, T, d) -> (H, T, d).
    h divides H, and neighbouring heads share a KV head.
    """
    H, h = len(q), len(k)
    k = np.tile(k, (H // h, 1, 1))  # (H, T, d)
    v = np.tile(v, (H // h, 1, 1))  # (H, T, d)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])  # (H, T, T)
    e = np.exp(scores - scores.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True) @ v
