"""Exercise 02: the mirror of broadcasting. Check it with `minqkv lesson check 2`."""

import numpy as np  # noqa: F401


def unbroadcast(g, shape):
    """Sum a gradient back to the shape its input had before it was broadcast.

    g is an array, the gradient of the broadcast input, in the shape it was stretched to. `shape`, a
    tuple, is the shape it had before; it fits g by the rules of broadcasting: it may lack axes in
    front (any number of them), and may be 1 where g is longer. Return the gradient of the input, an
    array of this shape. Leave g as it is.

    Examples: from (2, 3) to (3,), to (2, 1), to (), to (2, 3); from (2, 3, 4) to (3, 1).
    """
    raise NotImplementedError
