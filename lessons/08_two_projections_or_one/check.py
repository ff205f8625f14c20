"""Check 08: `tied_gradient` against the package's backward through one matrix used three times."""

import numpy as np

import minqkv as mq
from minqkv import functional as F

TOLERANCE = 1e-9

HINTS = (
    "First keep the three uses apart: k as queries, k as keys, k as values. Find the gradient "
    "of each, then add the three, and go through x @ w once.",
    "Forward: k = x @ w, the pattern, z = pattern @ k. As values: pattern.T @ g. The gradient "
    "of the pattern is g @ k.T; the softmax's backward of lesson 03, row by row, makes it that "
    "of the scores, d. Scores are q @ k.T, scaled: from d come the queries' and the keys' part. "
    "To see which part is off, let the package make them one by one. Let q, k and v each be "
    "mq.Tensor((x @ w)[None, None], requires_grad=True) and call "
    "mq.functional.scaled_dot_product_attention(q, k, v).backward(g[None, None]). The parts are "
    "then in q.grad, k.grad and v.grad.",
    "With scores = k @ k.T / np.sqrt(w.shape[1]) and their softmax, pattern: dp = g @ k.T; ds = "
    "pattern * (dp - (dp * pattern).sum(axis=-1, keepdims=True)) / np.sqrt(w.shape[1]); return "
    "x.T @ (pattern.T @ g + ds @ k + ds.T @ k).",
)

EXPLANATION = """
The package has no special line that adds the gradients of a shared projection. With Q = K = V the
attention gets one Tensor three times; its backward returns three gradients, and the backward loop
of lesson 01 adds them where they meet.

You added before the product with `x.T`, and so does the package: one product for the weight, where
three matrices need three. Taking a mean instead of the sum is a mistake that training hardly shows,
because Adam divides a gradient by its own size. A check like this one shows it.
"""


def cases(rng):
    """x (T, C), w (C, d) and the gradient g (T, d) of the result, with T, C and d all different."""
    T, C, d = (int(n) for n in rng.permutation(np.arange(3, 10))[:3])
    x, w = rng.standard_normal((T, C)), rng.standard_normal((C, d)) / np.sqrt(C)
    return x, w, rng.standard_normal((T, d))


def reference(x, w, g):
    """One leaf, one projection, one Tensor in three places; backward does the rest."""
    weight = mq.Tensor(w, requires_grad=True)
    k = (mq.Tensor(x) @ weight).reshape(1, 1, *g.shape)  # (1, 1, T, d)
    F.scaled_dot_product_attention(k, k, k).backward(mq.Tensor(g[None, None]))
    return mq.Tensor(weight.grad).numpy()  # (C, d)
