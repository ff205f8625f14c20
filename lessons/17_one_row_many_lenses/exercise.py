"""Exercise 17: absorb. Check it with `minqkv lesson check 17`."""

import numpy as np  # noqa: F401


def absorb(q, p, c, r, wk, wv):
    """One decode step of H heads over S stored rows, without making a key or a value.

    The new token has already been stored, so it sees all S rows, and there is no mask.

        q (H, d)       what each head looks for
        p (H, m)       the part of its query that turns, already turned
        c (S, n)       the stored rows, one for all heads
        r (S, m)       the small rows beside them, already turned
        wk (H, n, d)   the naive form would make the keys c @ wk[i] for head i, with r beside them
        wv (H, n, d)   and the values c @ wv[i]

    Return three arrays, as a tuple:

        asked (H, n)   what each head asks of a stored row: its query, with wk absorbed
        mixed (H, n)   the stored rows, mixed by the weights of each head
        z (H, d)       the answers: what the naive form would return

    The scores are divided by the same number as in the naive form. Leave all arguments as they are.
    """
    raise NotImplementedError
