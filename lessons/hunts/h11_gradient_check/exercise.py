"""Hunt h11. Check your repair with `minqkv lesson check h11`."""

import numpy as np


def is_right(forward, backward, x):
    """Whether backward(x, g) is the gradient of (forward(x) * g).sum() at x
    (T, d): True or False.

    Each number of x is moved a little up and down, and what happens to the
    sum is compared with what `backward` says.
    """
    y, eps = forward(x), 1e-6
    g = np.ones_like(y)  # a weight for each output
    found = backward(x, g)  # (T, d)
    slopes = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = eps
        change = forward(x + step) - forward(x - step)
        slopes[place] = (change * g).sum() / (2 * eps)
    return bool(np.allclose(found, slopes, atol=1e-6))
