"""Exercise 11: one cache for K and V, and positions that turn. Check: `minqkv lesson check 11`."""

import numpy as np


def turn(x, position, back=False):
    """Rows of x (..., d), turned by their positions: a number, or an array of them. (Given.)"""
    half = x.shape[-1] // 2
    angle = np.asarray(position)[..., None] * 10_000.0 ** (-np.arange(half) / half)  # (..., d/2)
    cos, sin = np.cos(angle), -np.sin(angle) if back else np.sin(angle)
    first, second = x[..., :half], x[..., half:]  # (..., d/2) each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def raw_step(x, wq, wk, cache):
    """Attention of the one token that comes next, with K = V, one head, and a cache of RAW keys.

    x (C,) is the token; wq and wk (C, d) make its query and its key. What is stored is also the
    value, and it is not turned.

    The cache is a dict, made before the first call, with n = 0, and passed to you at each call:
        cache["k"]   an array (P, d), room for every position; the first n rows are filled
        cache["n"]   n, how many; the new token is at position n, counted from 0
    Write the new row into this array and count it. For the scores turn the query by its position,
    and each stored key by its own; mix what is stored. Return the mixed values, an array (d,).
    Leave the other arguments as they are.
    """
    raise NotImplementedError


def unrotate_step(x, wq, wk, cache):
    """The same with a cache of TURNED keys.

    They are mixed as they are stored, so turn the answer back. Arguments and result as above. Each
    key is turned once, when it is written.
    """
    raise NotImplementedError
