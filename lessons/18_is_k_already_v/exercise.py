"""Exercise 18: what stays in any basis. Check it with `minqkv lesson check 18`."""

import numpy as np  # noqa: F401


def alike(wk, wv):
    """How much do the keys and the values of a head have in common?

    A token x (C,) has the key x @ wk and the value x @ wv, both (d,), and C is at least 2 d. Return
    one number. Which one is up to you, if it keeps two promises:

    1. It stays in any basis: it is the same for wk @ A and wv @ B, where A and B (d, d) are any
       matrices that have an inverse.
    2. It grows with what is in common. It is largest where keys and values read the same directions
       of a token, and smallest where these are orthogonal. Sharing half of the directions is in
       between, and directions that are nearly shared count more than those that hardly are.

    (When the check shows a case, A is called `a` and B is called `b`. It says for which changes of
    basis your number stays. And it says in which order your number puts values that share none,
    half and all of the directions of the keys, or are at a right, wide and narrow angle to them.)
    """
    raise NotImplementedError
