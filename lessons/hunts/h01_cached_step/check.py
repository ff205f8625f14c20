"""Hunt 1: `decode`, against attention over the whole text at once."""

# /// script
# [tool.minqkv.hunt]
# title = "One token after another"
# question = """
# A decoder with a cache. Its answers are not those of the same layer without one, and the \
# answer to the first token is all zeros.\
# """
# exercise = "decode"
# reports = ["https://github.com/harvard-edge/cs249r_book/pull/1953"]
# source = [["minqkv.cache.LayerCache.attend", "self.append("]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask

TOLERANCE = 1e-9

LAW = "Token by token gives the same answers as all tokens at once."

HINTS = (
    "Which keys does the third token see? Add a print of the shapes that `cache.get` returns.",
    "`get` returns the rows that have been counted. When is a row counted, and when is it read?",
    "The new row is written, then the cache is read, then the row is counted. A token must see "
    "itself: count the row before you read.",
)

EXPLANATION = """
The new row was in the cache, but it was not counted yet, so each token attended only to those
before it. In a teaching library the same order of calls crashed on the first token; had it gone on,
all later ones would have been wrong. Comparing cached with uncached answers finds it at once.

In this package one method appends the rows and then reads, so there is no order to get wrong.
"""


def cases(rng):
    """q, k and v (T, d)."""
    T, d = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    return tuple(rng.standard_normal((3, T, d)))


def reference(q, k, v):
    """The package's attention, all at once."""
    at = np.arange(len(q))
    q, k, v = (mq.Tensor(a[None, None]) for a in (q, k, v))  # (1, 1, T, d) each
    return F.scaled_dot_product_attention(q, k, v, causal_mask(at, at)).data[0, 0]
