"""Hunt 3: `attend` for the newest T of S tokens, against the package's mask."""

# /// script
# [tool.minqkv.hunt]
# title = "A text in two pieces"
# question = """
# Causal attention. It is right when a text is read in one piece. When a second piece is read \
# after a first one, its tokens seem to know almost nothing.\
# """
# exercise = "attend"
# reports = [
#   "https://github.com/pytorch/pytorch/issues/103082",
#   "https://github.com/pytorch/pytorch/issues/144858",
# ]
# source = [["minqkv.attention.causal_mask", "(k <= q)"]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask

TOLERANCE = 1e-9

LAW = "The newest tokens get the same answers, whether a text is read in one piece or in two."

HINTS = (
    "Print `seen` for two new tokens after three stored ones. Which keys should each of them see?",
    "`np.tril` starts its triangle in the upper left corner. The queries are the last tokens of "
    "the text: row i belongs to position S - T + i.",
    "`np.tril` takes the diagonal as a second argument: `np.tril(np.ones((T, S), bool), S - T)`.",
)

EXPLANATION = """
A triangle in the upper left corner is right only if queries and keys are the same tokens. With a
cache the queries are the last T of S, and the triangle belongs in the lower right corner. A single
new token is the worst case: it sees the first token of the text and nothing else.

In PyTorch, `is_causal=True` means the upper left corner, and says so; several public threads come
from people who met it while decoding. This package builds the mask from absolute positions, so
there is no corner to choose.
"""


def cases(rng):
    """q (T, d), k and v (S, d), with T at most S."""
    d, T, S = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(4, 7))
    S = T if rng.random() < 0.2 else S
    return rng.standard_normal((T, d)), *rng.standard_normal((2, S, d))


def reference(q, k, v):
    """The package's mask, of absolute positions."""
    at = np.arange(len(k))
    mask = causal_mask(at[-len(q) :], at)  # (T, S)
    q, k, v = (mq.Tensor(a[None, None]) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).data[0, 0]
