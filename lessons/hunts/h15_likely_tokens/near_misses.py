"""Near misses h15: repairs that are not."""

import numpy as np


def _first(p, order, n):
    kept = np.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()


def likely__one_too_many(p, top_p):
    """You keep one token more than are needed to reach top_p."""
    order = np.argsort(-p)
    return _first(p, order, int((np.cumsum(p[order]) <= top_p).sum()) + 2)


def likely__at_least_two(p, top_p):
    """You always keep two tokens; one is enough if it reaches top_p alone."""
    order = np.argsort(-p)
    n = int((np.cumsum(p[order]) - p[order] < top_p).sum())
    return _first(p, order, max(2, n))
