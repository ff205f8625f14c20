"""Solution 12: a perplexity and an interval."""

import numpy as np

from minqkv.stats import t_quantile


def perplexity(losses, counted):
    """The exponential of the mean loss of what counts."""
    return np.exp(losses[counted].mean())


def paired(a, b):
    """Differences first; then mean ± t · s / √n."""
    d = a - b  # (n,)
    n = len(d)
    return d.mean(), t_quantile(n - 1) * d.std(ddof=1) / np.sqrt(n)
