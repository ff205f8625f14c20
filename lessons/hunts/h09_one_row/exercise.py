"""Hunt h9. Check your repair with `minqkv lesson check h9`."""

import numpy as np


def turn(x, at):
    """x (T, d), each row turned by its position `at` (T,): pair i is x[i] and
    x[i + d/2].
    """
    a, b = np.split(x, 2, axis=1)  # (T, d/2) each
    angle = at[:, None] * 10_000.0 ** (-np.arange(a.shape[1]) / a.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def attend(q, row, start):
    """Causal attention at positions start, start + 1, ... -> (T, d).

    q and row (T, d), not turned yet. One row of each token is stored, turned,
    and is both its key and its value. The model was trained with values that
    are turned by their distance to the query.
    """
    at = np.arange(start, start + len(q))
    q, row = turn(q, at), turn(row, at)  # (T, d) each
    scores = q @ row.T / np.sqrt(q.shape[1])  # (T, T)
    scores = np.where(np.tri(len(q)), scores, -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ row
