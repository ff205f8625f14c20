"""Exercise 12: a perplexity and an interval. Check it with `minqkv lesson check 12`."""

import numpy as np  # noqa: F401

# t_quantile(freedom), for 95 percent on both sides
from minqkv.study.stats import t_quantile  # noqa: F401


def perplexity(losses, counted):
    """The perplexity of a model, without the padding.

    losses (n, T) holds the loss of each target, in n documents; counted (n, T) is True where the
    target is a real one and False where it is padding. Each real target counts equally, however
    long its document is. Return a number.
    """
    raise NotImplementedError


def paired(a, b):
    """The difference a − b with its 95 percent interval: the mean and the half width.

    a and b (n,) are results of two variants; a[i] and b[i] were trained with the same seed. Use
    Student's t. Return (mean, half).
    """
    raise NotImplementedError
