"""Solution 19: refit."""

import numpy as np


def refit(x, wq, wk, wv):
    """The new wq, (C + 1, d)."""
    keys, values = x @ wk, x @ wv  # (n, d) each
    keys = keys - keys.mean(axis=0)  # without means, no constant is needed
    values = values - values.mean(axis=0)
    M = np.linalg.lstsq(values, keys, rcond=None)[0]  # (d, d)
    return wq @ M.T  # (C + 1, d), the bias as well
