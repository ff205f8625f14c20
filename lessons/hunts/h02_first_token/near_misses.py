"""Near misses h2: repairs that are not."""

import numpy as np


def _attend(q, k, v):
    scores = k @ q / np.sqrt(len(q))
    e = np.exp(scores - scores.max())
    return e / e.sum() @ v


def decode__hides_it(q, k, v):
    """You leave row 0 out of the attention of later tokens. The zeros are gone, and so is the first
    token.
    """
    later = [_attend(q[t], k[1 : t + 1], v[1 : t + 1]) for t in range(1, len(q))]
    return np.array([v[0], *later])


def decode__value_only(q, k, v):
    """You write the first token's value, but not its key: its score is zero for every query."""
    k = np.concatenate([0 * k[:1], k[1:]])
    return np.array([_attend(q[t], k[: t + 1], v[: t + 1]) for t in range(len(q))])
