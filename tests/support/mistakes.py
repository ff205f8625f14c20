"""Mistakes in attention, each a part of `Other` that is wrong. KNOWN: (name, how it is made) ->
function; these have a name. UNKNOWN have none.
"""

import numpy as np
from other_attention import Other

M = Other  # its methods are what a wrong part starts from


def told(**changes):
    """A function that believes other facts: name -> what it takes for it."""
    return lambda given, about: Other()(given, about | {n: f(about) for n, f in changes.items()})


def fed(change):
    """A function that is given other arrays."""
    return lambda given, about: Other()(given | change(given, about), about)


def returns(change):
    """A function that changes what comes out."""

    def function(given, about):
        found = Other()(given, about)
        return found and found | change(found, about)

    return function


def scaled(f, **more):
    return Other(scale=lambda about: f(about), **more)


def masked(f, **more):
    """f(i, j, about, seen): which keys are seen, where the mask is causal."""
    right = Other()

    def seen(i, j, about):
        found = right.seen(i, j, about)
        return f(i, j, about, found) if about["causal"] else found

    return Other(seen=seen, **more)


def window(i, j, about):
    w = about["window"]
    return ((i - j < w) | (j < about["sinks"])) if w else (j == j) & (i == i)


def times(n, query=True, key=True):
    def turned(x, at, about):
        for _ in range(n):
            x = M.turn(Other(), x, at, about)
        return x

    parts = {"turn_query": turned} if query else {}
    return Other(**parts | ({"turn_key": turned} if key else {}))


def alone(i):
    return len(np.ravel(i)) == 1


def doubled(given, about, name):
    return {name: 2 * given[name]} if name in given else {}


def transposed(given, about):
    return {n: a.T.reshape(a.shape) for n, a in given.items() if n == "wo.weight"}


def rows_of(given, about):
    return {n: a[..., ::-1].copy() for n, a in given.items() if n == "v"}


UNKNOWN = {
    "scale 1/sqrt(H d)": scaled(lambda a: (a["n_head"] * a["query_width"]) ** -0.5),
    "scale 1/sqrt(h d)": scaled(lambda a: (a["kv_heads"] * a["query_width"]) ** -0.5),
    "no scale": scaled(lambda a: 1.0),
    "scale d ** -0.25": scaled(lambda a: a["scale"] ** 0.5),
    "softmax base 2": Other(exp=np.exp2),
    "turned three times": times(3),
    "query turned three times": times(3, key=False),
    "key turned three times": times(3, query=False),
    "neither turned": times(0),
    "turned backwards": Other(turn_key=lambda x, at, about: M.turn(Other(), x, at, about, -1)),
    "positions from 1 in queries": Other(
        turn_query=lambda x, at, about: M.turn(Other(), x, np.asarray(at) + 1, about)
    ),
    "half the positions": Other(place=lambda at, about: np.asarray(at) / 2),
    "positions without the past": Other(place=lambda at, about: np.asarray(at) - np.min(at)),
    "base 500": told(rope_base=lambda a: 500.0),
    "base 1e6": told(rope_base=lambda a: 1e6),
    "frequencies of 2i/m": Other(frequency=lambda a: M.frequency(Other(), a) ** 2),
    "frequencies from i = 1": Other(
        frequency=lambda a: (
            a["rope_base"] ** (-(1 + np.arange(a["d_rope"] // 2)) / (a["d_rope"] // 2))
        )
    ),
    "frequencies in reverse": Other(frequency=lambda a: M.frequency(Other(), a)[::-1]),
    "first channels turn": Other(
        turn=lambda x, at, about, sign=1: M.turn(
            Other(), x[..., ::-1].copy(), at, about, sign)[..., ::-1]
    ),
    "mask two keys ahead": masked(lambda i, j, a, s: (j <= i + 2) & window(i, j, a)),
    "mask strict by two keys": masked(lambda i, j, a, s: (j < i - 1) & window(i, j, a)),
    "mask of the future": masked(lambda i, j, a, s: j >= i),
    "no mask": masked(lambda i, j, a, s: (j == j) & (i == i)),
    "no window": masked(lambda i, j, a, s: j <= i),
    "window two wider": masked(
        lambda i, j, a, s: s | (j <= i) & (i - j < a["window"] + 2) if a["window"] else s
    ),
    "window twice": masked(
        lambda i, j, a, s: (j <= i) & ((i - j < 2 * a["window"]) | (j < a["sinks"]))
        if a["window"] else s
    ),
    "no sinks": masked(
        lambda i, j, a, s: (j <= i) & (i - j < a["window"]) if a["window"] else s
    ),
    "another sink": told(sinks=lambda a: a["sinks"] + (a["window"] is not None)),
    "first key unseen": masked(lambda i, j, a, s: s & ((j > 0) | (i == 0))),
    "the last key is seen": masked(lambda i, j, a, s: s | (j == j.max())),
    "heads in reverse": Other(
        stored_head=lambda i, a: a["kv_heads"] - 1 - M.stored_head(Other(), i, a)
    ),
    "stored head 0": Other(stored_head=lambda i, a: 0),
    "next stored head": Other(
        stored_head=lambda i, a: (M.stored_head(Other(), i, a) + 1) % a["kv_heads"]
    ),
    "slopes from 2^0": Other(slope=lambda a: [2 * s for s in M.slope(Other(), a)]),
    "slopes in reverse": Other(slope=lambda a: M.slope(Other(), a)[::-1]),
    "slopes of twice the heads": Other(slope=lambda a: [s**0.5 for s in M.slope(Other(), a)]),
    "no slopes": Other(slope=lambda a: [0.0] * a["n_head"]),
    "slopes with another sign": Other(slope=lambda a: [-s for s in M.slope(Other(), a)]),
    "padding is a text": Other(text=lambda s: s[:, :, None] == s[:, None]),
    "texts are not kept apart": Other(text=lambda s: np.ones((*s.shape, s.shape[1]), bool)),
    "values in reverse": fed(rows_of),
    "values doubled": fed(lambda g, a: doubled(g, a, "v")),
    "W_O transposed": fed(transposed),
    "a query's answer comes late": returns(
        lambda f, a: {n: np.roll(f[n], 1, -2) for n in f if n in ("z", "out")}
    ),
    "heads side by side in another order": returns(
        lambda f, a: {"z": f["z"][:, ::-1]} if "z" in f else {}
    ),
}  # fmt: skip

KNOWN = {
    ("scaled by d", "1/d of the head"): scaled(lambda a: 1 / a["query_width"]),
    ("scaled by d", "only z returned"): scaled(
        lambda a: 1 / a["query_width"], returned=("z", "out")
    ),
    ("head map i mod g", "mod"): Other(stored_head=lambda i, a: i % a["kv_heads"]),
    ("rotated twice", "q and k"): times(2),
    ("rotated twice", "q"): times(2, key=False),
    ("rotated twice", "k"): times(2, query=False),
    ("pairing swapped", "pairs"): told(
        pairing=lambda a: {"halves": "interleaved", "interleaved": "halves"}[a["pairing"]]
    ),
    ("rotated key used as value", "key"): Other(value=lambda row, key, about: key),
    ("back-rotation missing", "z"): Other(turn_answer=lambda z, at, about: z),
    ("mask off by one", "strict"): masked(lambda i, j, a, s: (j < i) & window(i, j, a)),
    ("mask off by one", "ahead"): masked(lambda i, j, a, s: (j <= i + 1) & window(i, j, a)),
    ("mask off by one", "window wider"): masked(
        lambda i, j, a, s: s | (j <= i) & (i - j < a["window"] + 1) if a["window"] else s
    ),
    ("mask off by one", "window narrower"): masked(
        lambda i, j, a, s: s & ((i - j < a["window"] - 1) | (j < a["sinks"])) if a["window"] else s
    ),
    ("current token missing", "one query"): masked(
        lambda i, j, a, s: s & (j < i) if alone(i) or a["task"] != "forward" else s
    ),
    ("mask from the upper left", "corner"): masked(
        lambda i, j, a, s: M.seen(Other(), i - i.min(), j, a)
    ),
}  # fmt: skip
