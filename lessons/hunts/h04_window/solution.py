"""Solution h4: the token itself is one of the window."""

import numpy as np


def kernel(q, k, v, left):
    """As its vendor documents it, and right: the query at i sees the keys
    from i - left to i, both included. q, k, v (T, d) -> (T, d).
    """
    i, j = np.arange(len(q))[:, None], np.arange(len(k))  # (T, 1), (T,)
    seen = (j >= i - left) & (j <= i)  # (T, T)
    scores = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ v


def attend(q, k, v, window):
    """Attention of a model that was trained with a window of `window` tokens,
    the token itself included. q, k, v (T, d) -> (T, d).
    """
    return kernel(q, k, v, left=window - 1)  # the window counts the token itself
