"""Exercise 03: softmax, forward and backward. Check it with `minqkv lesson check 3`."""

import numpy as np  # noqa: F401


def softmax(x):
    """Shares along the last axis: each row of x (T, V) becomes positive numbers that add up to one.

    Scores may be very large, very small, or far apart; the shares must still be right.
    Return an array (T, V). Leave x as it is.
    """
    raise NotImplementedError


def softmax_vjp(y, g):
    """The backward of softmax: its vector-Jacobian product.

    y (T, V) is what `softmax` returned, g (T, V) the cotangent: the gradient of each share. Return
    the gradient of the scores, an array (T, V), without building a Jacobian. Leave y and g as they
    are.
    """
    raise NotImplementedError
