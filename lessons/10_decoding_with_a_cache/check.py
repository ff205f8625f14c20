"""Check 10: `step`, called for a sequence in chunks, against the package's cache."""

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.cache import LayerCache

TOLERANCE = 1e-9

HINTS = (
    'The new tokens are at positions cache["n"] to cache["n"] + T: call these start and end. '
    "Use them three times: for the rows of wp, for the places where keys and values are "
    "written, and for the mask.",
    "Write first, then read: the keys to compare with are the first `end` rows of the array, the "
    "new ones included. The mask has T rows and `end` columns; row i belongs to position start + "
    "i.",
    "seen = np.arange(end)[None, :] <= np.arange(start, end)[:, None]. And at some point "
    'cache["n"] = end.',
)

EXPLANATION = """
The package does the same in two places. `LayerCache.append` writes the new rows and returns views
of all rows so far, so nothing is copied; `LayerCache.mask` compares absolute positions. A single
new token needs no mask at all, and gets none.

Each layer counts its own rows, because within a step the upper layers lag behind the lower ones;
the length of the whole cache is the smallest of these counts. So a step that is interrupted can be
undone completely.

Yours stores one sequence and one head; the package stores (B, h, positions, d) for a batch, and one
array instead of two where keys and values are one.
"""


def cases(rng):
    """x (T, C), three matrices (C, d), positions wp (P, C), how many tokens come in each call."""
    C, d = (int(n) for n in rng.permutation(np.arange(2, 6))[:2])
    calls = np.array([rng.integers(2, 4), 1, rng.integers(2, 4), *[1] * rng.integers(0, 3)])
    x = rng.standard_normal((calls.sum(), C))
    wq, wk, wv = rng.standard_normal((3, C, d))
    return x, wq, wk, wv, rng.standard_normal((2 * len(x) + 1, C)), calls


def use(learner, x, wq, wk, wv, wp, calls):
    """The calls, one after another, on one cache: what they return, and what it then holds."""
    room = (len(wp), wk.shape[1])
    cache = {"k": np.zeros(room), "v": np.zeros(room), "n": 0}
    chunks = np.split(x, np.cumsum(calls)[:-1])  # (T, C) each
    found = {}
    for i, chunk in enumerate(chunks):
        try:
            found[f"call {i}"] = learner.step(chunk, wq, wk, wv, wp, cache)
        except ValueError as error:
            if "zero-size" not in str(error):
                raise
            text = "a softmax over no keys: at the first call nothing is stored yet. "
            text += "Write first, then read"
            raise ValueError(text).with_traceback(error.__traceback__) from None
        for name in ("k", "v"):
            now = np.shape(cache[name])
            if now != room:
                text = f'cache["{name}"] had the shape {room} and is {now} now: write into it'
                raise ValueError(text)
    held = {f'cache["{name}"]': cache[name][: len(x)] for name in ("k", "v")}
    return {**found, 'cache["n"]': cache["n"], **held}


def reference(x, wq, wk, wv, wp, calls):
    """The package's cache, mask and attention."""
    row = 1, wk.shape[1]  # heads and width of what is stored of a token, twice
    cache, found, start = LayerCache(1, [row, row], len(wp), "float64"), {}, 0
    for i, n in enumerate(calls):
        rows = x[start : start + n] + wp[start : start + n]  # (T, C)
        q, k, v = ((rows @ w)[None, None] for w in (wq, wk, wv))  # (1, 1, T, d) each
        mask = cache.mask(n)
        keys, values = cache.append(k, v)  # (1, 1, S, d)
        tensors = (mq.Tensor(array) for array in (q, keys, values))
        z = F.scaled_dot_product_attention(*tensors, mask)  # (1, 1, T, d)
        found[f"call {i}"] = z.data[0, 0]
        start += n
    held = {'cache["k"]': keys[0, 0], 'cache["v"]': values[0, 0]}
    return {**found, 'cache["n"]': len(cache), **held}
