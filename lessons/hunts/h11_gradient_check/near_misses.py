"""Near misses h11: repairs that are not."""

import numpy as np


def _is_right(forward, backward, x, g):
    eps, slopes = 1e-6, np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = eps
        slopes[place] = ((forward(x + step) - forward(x - step)) * g).sum() / (2 * eps)
    return bool(np.allclose(backward(x, g), slopes, atol=1e-6))


def is_right__one_weight_for_all(forward, backward, x):
    """Your weight is no longer one, but it is the same for all outputs, and the sum of a softmax is
    still a constant.
    """
    return _is_right(forward, backward, x, np.full(x.shape, 0.37))


def is_right__one_output(forward, backward, x):
    """You look at a single output. That finds more, but nothing that is wrong in the other rows."""
    g = np.zeros(x.shape)
    g[0, 0] = 1
    return _is_right(forward, backward, x, g)


def is_right__one_weight_per_column(forward, backward, x):
    """Your weights differ within a row, but all rows have the same ones. A backward that mixes up
    the rows goes unnoticed.
    """
    return _is_right(forward, backward, x, np.arange(1.0, x.shape[1] + 1) + 0 * x)
