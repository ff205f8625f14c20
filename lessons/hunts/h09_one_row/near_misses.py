"""Near misses h9: repairs that are not."""

import numpy as np


def _turn(x, at):
    a, b = np.split(x, 2, axis=1)
    angle = at[:, None] * 10_000.0 ** (-np.arange(a.shape[1]) / a.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def _weights(q, row, at):
    q, row = _turn(q, at), _turn(row, at)
    scores = np.where(np.tri(len(q)), q @ row.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True), row


def attend__raw(q, row, start):
    """You mix rows that were never turned. That does not depend on where the text begins, but it is
    another function than the one this model was trained with.
    """
    weights, _ = _weights(q, row, np.arange(start, start + len(q)))
    return weights @ row


def attend__further(q, row, start):
    """You turn the answer by the position of the query, but in the same direction again: it must go
    back.
    """
    at = np.arange(start, start + len(q))
    weights, row = _weights(q, row, at)
    return _turn(weights @ row, at)


def attend__back_to_the_start(q, row, start):
    """You turn every answer back by the position of the first token. That hides where the text
    begins; but it is the position of each query that counts.
    """
    at = np.arange(start, start + len(q))
    weights, row = _weights(q, row, at)
    return _turn(weights @ row, np.full(len(q), -start))
