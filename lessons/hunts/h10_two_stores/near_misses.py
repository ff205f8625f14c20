"""Near misses h10: repairs that are not."""

import numpy as np


def _turn(x, at, base):
    a, b = np.split(x, 2, axis=1)
    angle = at[:, None] * base ** (-np.arange(a.shape[1]) / a.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def _attend(q, far, near, start, of_query, of_near, of_far):
    at = np.arange(start, start + len(far) + len(near))
    q = _turn(q[None], at[-1:], of_query)[0]
    keys = [_turn(far, at[: len(far)], of_far), _turn(near, at[len(far) :], of_near)]
    scores = np.concatenate(keys) @ q / np.sqrt(len(q))
    e = np.exp(scores - scores.max())
    return e / e.sum() @ np.concatenate([far, near])


def attend__other_base(q, far, near, start):
    """One base for all, so the answer no longer drifts. But it is the base of the other kind of
    layers: this one has a far store.
    """
    return _attend(q, far, near, start, 10_000.0, 10_000.0, 10_000.0)


def attend__query_only(q, far, near, start):
    """You gave the query the other base. Now the far rows match it, and the near ones do not."""
    return _attend(q, far, near, start, 160_000.0, 10_000.0, 160_000.0)
