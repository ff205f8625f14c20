"""Exercise 13: top-p. Check it with `minqkv lesson check 13`."""

import numpy as np  # noqa: F401


def top_p(probabilities, p):
    """Cut off the tail of each row of probabilities.

    probabilities (B, V) has a row for each text that is being written; a row sums to 1. p is above
    0 and at most 1. In each row keep as few tokens as possible, the likeliest ones, so that
    together they reach p: their sum is p or more. At least one is kept. Of tokens that are equally
    likely, the one with the lower id goes first.

    Return an array (B, V): 0 for the tokens that are cut off, and the others divided by their sum,
    so that each row sums to 1 again. Leave the arguments as they are.
    """
    raise NotImplementedError
