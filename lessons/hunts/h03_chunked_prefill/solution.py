"""Solution h3: the mask goes by absolute positions."""

import numpy as np


def attend(q, k, v):
    """Causal attention of the newest T of S tokens: q (T, d), k and v (S, d)
    -> (T, d).
    """
    T, S = len(q), len(k)
    at = np.arange(S - T, S)  # positions of the queries
    seen = np.arange(S) <= at[:, None]  # (T, S)
    scores = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ v
