"""Exercise 08: the gradient of a tied weight. Check it with `minqkv lesson check 8`."""

import numpy as np  # noqa: F401


def tied_gradient(x, w, g):
    """The gradient of the one matrix of `q=k=v`, with one head and no mask.

    x (T, C) holds a row for each token, and w (C, d) makes the queries, the keys and the values:
    q = k = v = x @ w. The layer mixes them into z = pattern @ v (T, d). The pattern is the softmax
    of the scores q @ k.T, divided by √d. g (T, d) is the gradient of z. Return the gradient of w,
    an array (C, d). Leave the arguments as they are.
    """
    raise NotImplementedError
