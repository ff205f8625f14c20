"""Hunt h3. Check your repair with `minqkv lesson check h3`."""

import numpy as np


def attend(q, k, v):
    """Causal attention of the newest T of S tokens: q (T, d), k and v (S, d)
    -> (T, d).
    """
    T, S = len(q), len(k)
    seen = np.tril(np.ones((T, S), bool))  # (T, S), True: may be seen
    scores = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ v
