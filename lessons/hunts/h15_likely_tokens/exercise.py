"""Hunt h15. Check your repair with `minqkv lesson check h15`."""

import numpy as np


def likely(p, top_p):
    """Probabilities (V,) -> those of top-p sampling (V,).

    It keeps the fewest of the likeliest tokens whose probabilities together
    reach `top_p`. The others get zero, and what is kept sums to one.
    """
    order = np.argsort(-p)  # the likeliest first
    total = np.cumsum(p[order])  # (V,)
    n = max(1, int((total <= top_p).sum()))
    kept = np.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()
