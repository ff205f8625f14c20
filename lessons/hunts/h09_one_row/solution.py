"""Solution h9: the answer is turned back by the position of the query."""

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
    """Causal attention at positions start, start + 1, ... -> (T, d)."""
    at = np.arange(start, start + len(q))
    q, row = turn(q, at), turn(row, at)  # (T, d) each
    scores = q @ row.T / np.sqrt(q.shape[1])  # (T, T)
    scores = np.where(np.tri(len(q)), scores, -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    mixed = e / e.sum(axis=1, keepdims=True) @ row  # each part turned by its own position
    return turn(mixed, -at)  # now by its distance to the query
