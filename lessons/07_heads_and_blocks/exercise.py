"""Exercise 07: split into heads, and merge them. Check it with `minqkv lesson check 7`.

The check uses arrays in which the hundreds digit is the token and the rest is the column, so that
you can see where each number went. It looks at `merge` once `split` is right.
"""

import numpy as np  # noqa: F401


def split(x, n_head):
    """Cut the columns of x (T, C) into n_head groups of neighbours, d = C / n_head columns each.

    Return an array (n_head, T, d): for each head, a row for each token.
    """
    raise NotImplementedError


def merge(z):
    """Put heads back side by side: z (H, T, d) becomes (T, C), with C = H * d, head 0 leftmost.

    `merge(split(x, n_head))` is x again.
    """
    raise NotImplementedError
