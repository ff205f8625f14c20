"""Check 05: `mix` against the package's softmax and product."""

import numpy as np

import minqkv as mq

TOLERANCE = 1e-9

HINTS = (
    "Two steps: turn each row of scores into weights that add up to one, then one matrix product "
    "with the rows.",
    "The weights are e / e.sum(...), with e the exponential of the scores. Each row of scores has "
    "its own sum: axis=-1 runs along a row, and keepdims=True keeps the sums as a column, so "
    "that the division fits.",
    "e = np.exp(scores - scores.max(axis=-1, keepdims=True)); weights = e / e.sum(axis=-1, "
    "keepdims=True); return weights @ rows.",
)

EXPLANATION = """
The package does the same in another order. It multiplies the rows with the exponentials first, and
divides the result by their sum afterwards. The numbers come out equal, and the division touches d
columns of the result instead of S columns of weights. For a long sequence S is far larger than d.

It also skips the subtraction of the maximum where it can prove that no exponential overflows. And
it works on a block of tokens at a time, so that the whole table of pairs never exists at once.
"""


def cases(rng):
    """scores (T, S) and rows (S, d), with T, S and d all different."""
    T, S, d = (int(n) for n in rng.permutation(np.arange(2, 8))[:3])
    return 2 * rng.standard_normal((T, S)), rng.standard_normal((S, d))


def reference(scores, rows):
    """Softmax along each row, then the product."""
    weights = mq.functional.softmax(mq.Tensor(scores))  # (T, S)
    return (weights @ mq.Tensor(rows)).data  # (T, d)
