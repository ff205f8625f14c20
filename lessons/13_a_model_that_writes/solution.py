"""Solution 13: top-p."""

import numpy as np


def top_p(probabilities, p):
    """(B, V) -> (B, V): the fewest of the likeliest tokens that reach p, divided by their sum."""
    order = (-probabilities).argsort(axis=1, kind="stable")  # (B, V), ties in the order of ids
    falling = np.take_along_axis(probabilities, order, axis=1)  # (B, V)
    before = falling.cumsum(axis=1) - falling  # (B, V), what those before it reach
    kept = np.where(before < p, falling, 0.0)  # (B, V)
    found = np.zeros_like(probabilities)
    np.put_along_axis(found, order, kept, axis=1)
    return found / found.sum(axis=1, keepdims=True)
