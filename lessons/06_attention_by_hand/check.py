"""Check 06: `attend` against the package's own attention."""

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask

TOLERANCE = 1e-9

HINTS = (
    "Five lines, one for each step: project (three times), compare and scale, mask, normalise, "
    "mix.",
    "The mask is np.tril(np.ones((T, T), bool)); np.where(mask, scores, -np.inf) applies it "
    "before the softmax.",
    "scores = q @ k.T / np.sqrt(d); then for each row e = np.exp(row - row.max()) and e / "
    "e.sum(), with axis=-1 and keepdims=True; then the result @ v.",
)

EXPLANATION = """
Each of your lines has its counterpart in the package. There the queries are scaled (a smaller array
than the scores), the mask is added as minus infinity, and the softmax works in place: the same
function, in fewer passes.

What you wrote computes every score, even those the mask throws away. The package stops each block
of rows at the last key that any of them may see.
"""


def cases(rng):
    """x (T, C) and three matrices (C, d), with T, C and d all different."""
    T, C, d = (int(n) for n in rng.permutation(np.arange(3, 10))[:3])
    x, wq, wk, wv = rng.standard_normal((T, C)), *rng.standard_normal((3, C, d))
    return x, wq, wk, wv


def reference(x, wq, wk, wv):
    """The middle of every variant, with one head."""
    q, k, v = (mq.Tensor((x @ w)[None, None]) for w in (wq, wk, wv))  # (1, 1, T, d) each
    steps = np.arange(len(x))
    return F.scaled_dot_product_attention(q, k, v, causal_mask(steps, steps)).data[0, 0]  # (T, d)
