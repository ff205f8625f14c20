"""Near misses h4: repairs that are not."""

import numpy as np


def _attend(q, k, v, left, right):
    i, j = np.arange(len(q))[:, None], np.arange(len(k))
    seen = ((j >= i - left) & (j <= i - right)) | (i == j) & (i < right)
    scores = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ v


def attend__two_short(q, k, v, window):
    """Your window is one token too short now: `left` does not count the token itself."""
    return _attend(q, k, v, max(0, window - 2), 0)


def attend__without_itself(q, k, v, window):
    """You see as many tokens as you should, but the window has slipped: the token itself is
    missing, and one too old is there.
    """
    return _attend(q, k, v, window, 1)
