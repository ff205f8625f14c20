"""Near misses h3: repairs that are not."""

import numpy as np


def _attend(q, k, v, seen):
    scores = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ v


def attend__one_token_only(q, k, v):
    """You repaired the step of a single token. Several tokens after a first piece still get a
    triangle from the upper left corner.
    """
    T, S = len(q), len(k)
    return _attend(q, k, v, np.tril(np.ones((T, S), bool), S if T == 1 else 0))


def attend__no_mask_when_stored(q, k, v):
    """You drop the mask as soon as something is stored: tokens of the second piece now look ahead
    of themselves.
    """
    T, S = len(q), len(k)
    return _attend(q, k, v, np.tril(np.ones((T, S), bool), 0 if T == S else S))


def attend__one_far(q, k, v):
    """The triangle is in the right corner now, but one diagonal too generous: each token sees the
    one after it.
    """
    T, S = len(q), len(k)
    return _attend(q, k, v, np.tril(np.ones((T, S), bool), S - T + 1))
