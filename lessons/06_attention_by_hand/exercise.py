"""Exercise 06: attention by hand. Check it with `minqkv lesson check 6`."""

import numpy as np  # noqa: F401


def attend(x, wq, wk, wv):
    """Causal attention of one sequence, with one head.

    x (T, C) holds a row for each token; wq, wk and wv (C, d) make queries, keys and values. Each
    token looks at itself and at those before it. Return the mixed values, an array (T, d). Leave
    the arguments as they are.
    """
    raise NotImplementedError
