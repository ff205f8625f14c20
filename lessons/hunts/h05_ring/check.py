"""Hunt 5: `Last.append`, call by call, against the package's ring."""

# /// script
# [tool.minqkv.hunt]
# title = "A cache that should not grow"
# question = """
# A cache that keeps the last rows only. Token by token it works. When a draft of several \
# tokens is checked at once, it becomes too long, and stays too long.\
# """
# exercise = "Last"
# reports = [
#   "https://github.com/ml-explore/mlx-lm/issues/1914",
#   "https://github.com/awni/voxmlx/pull/3",
# ]
# source = [["minqkv.caches.ring.RingLayer.write", "passed ="]]
# ///

import numpy as np

from minqkv.caches.ring import RingLayer

TOLERANCE = 1e-9

LAW = "After each call, the cache holds the last `window` rows, however they arrived."

HINTS = (
    "How many rows must go, if the cache is full and three new rows arrive?",
    "`surplus` is computed as if one row arrived. It depends on how many there are.",
    "Put old and new rows together, then keep the last `window` of them. That also covers a call "
    "that brings more rows than the window.",
)

EXPLANATION = """
The number of surplus rows was right for decoding, where one token arrives at a time. With a prompt,
or when a draft is checked, several arrive at once; then "+ 1" is wrong.

Read the whole thread of the first report. Its author first wrote that the cache grows without
bound; a later comment corrects this, having measured that it stops at the window plus the tokens of
a call, less one. That is how much the first of several tokens needs to see its whole window. So the
surplus rows may be there on purpose, and then it is the mask that must hide them.

The package's ring lets several tokens see the old rows and each other, and only then writes.
"""


def cases(rng):
    """A window, and rows x (N, d) that arrive in calls of so many rows each."""
    calls = tuple(int(n) for n in rng.integers(1, 5, int(rng.integers(2, 4))))
    return int(rng.integers(1, 4)), rng.standard_normal((sum(calls), 2)), calls


def use(learner, window, x, calls):
    """What the cache returns in each call."""
    cache, found, ends = learner.Last(window), {}, np.cumsum(calls)
    for i, (end, n) in enumerate(zip(ends, calls, strict=True)):
        found[f"call {i}"] = cache.append(x[end - n : end].copy())
    return found


def reference(window, x, calls):
    """The package's ring, in the order of positions."""
    ring, found, end = RingLayer(1, [(1, 2)], len(x), "float64", window), {}, 0
    for i, n in enumerate(calls):
        (rows,) = ring.append(x[None, None, end : end + n])  # (1, 1, S, 2)
        found[f"call {i}"], end = rows[0, 0][np.argsort(ring.positions)], end + n
    return found
