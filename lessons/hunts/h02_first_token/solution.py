"""Solution h2: the rows of every token are written."""

import numpy as np


def attend(q, k, v):
    """A query (d,), keys and values (n, d) -> (d,)."""
    scores = k @ q / np.sqrt(len(q))  # (n,)
    e = np.exp(scores - scores.max())
    return e / e.sum() @ v


def decode(q, k, v):
    """Attention, token by token: q, k and v (T, d) -> (T, d)."""
    keys, values = np.zeros((2, *k.shape))  # the cache
    answers = []
    for t in range(len(q)):
        keys[t], values[t] = k[t], v[t]  # the first one's too
        answers.append(attend(q[t], keys[: t + 1], values[: t + 1]))
    return np.array(answers)
