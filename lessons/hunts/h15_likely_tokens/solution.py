"""Solution h15: the token that crosses the threshold belongs to them."""

import numpy as np


def likely(p, top_p):
    """Probabilities (V,) -> those of top-p sampling (V,).

    It keeps the fewest of the likeliest tokens whose probabilities together
    reach `top_p`. The others get zero, and what is kept sums to one.
    """
    order = np.argsort(-p)  # the likeliest first
    before = np.cumsum(p[order]) - p[order]  # (V,)
    n = int((before < top_p).sum())  # needed as long as those before it do not reach top_p
    kept = np.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()
