"""Exercise 16: the back-rotation. Check it with `minqkv lesson check 16`."""

import numpy as np  # noqa: F401


def answer(z, at, d_rope):
    """Turn each row of z back by the position of its query.

    z (H, T, d) is what H heads have mixed for T tokens, and at (T,) holds the positions of these
    tokens. Each row that was mixed had been turned by its own position, but only in its last d_rope
    columns. Of these d_rope columns, column i and column i + d_rope/2 are pair i, for i below
    d_rope/2. At position p, pair i was turned by this angle, in radians:

        p * 10_000 ** (-2 * i / d_rope)

    Turning a pair (a, b) by an angle gives (a cos - b sin, b cos + a sin). Return the rows, turned
    back, as a new array (H, T, d). Leave z and at as they are.

    (When the check shows a case, `here` is z for a text that begins at position 0, and `later` is z
    for the same text when it begins at position `start`. The right answers to both are the same.)
    """
    raise NotImplementedError
