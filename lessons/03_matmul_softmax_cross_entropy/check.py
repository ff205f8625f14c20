"""Check 03: `softmax` and `softmax_vjp` against the package's softmax and its backward."""

import numpy as np

from minqkv import functional as F
from minqkv.teach import gradients

TOLERANCE = 1e-9

HINTS = (
    "Work row by row: whatever you subtract, add up or average belongs to one row, so use "
    "axis=-1 and keepdims=True.",
    "Forward: before the exponential, subtract from each row its own maximum. Backward: from g "
    "subtract its average, weighted by y, and multiply what is left by y.",
    "e = np.exp(x - x.max(axis=-1, keepdims=True)), then e / e.sum(axis=-1, keepdims=True). "
    "Backward: y * (g - (g * y).sum(axis=-1, keepdims=True)).",
)

EXPLANATION = """
The package does the same, and keeps only `y` for its backward, because the scores are not needed
again. It works in place on arrays that nothing else uses, and on a CPU it takes the sum of `g * y`
in one pass, without storing the product.

Your backward was tried with random cotangents. With ones in `g`, one that returns zeros, or the
wrong sign, would have passed. In the package `mq.gradcheck` tests every operation in this way;
`minqkv gradcheck` runs them all.
"""


def cases(rng):
    """x and g (T, V): small ones with ordinary scores, and larger ones of which the rows lie far
    from zero and from each other, or the scores far apart in a row."""
    kind = rng.integers(4)
    lengths = np.arange(4, 8) if kind in (1, 2) else np.arange(2, 6)
    T, V = (int(n) for n in rng.permutation(lengths)[:2])
    x, g = rng.standard_normal((2, T, V)).round(1)
    if kind == 1:
        x = x + rng.permutation(np.resize([2000.0, -2000.0], T))[:, None]
    if kind == 2:
        x = x * 2000
    return x, g


def reference(x, g):
    """The shares, and the gradient of the scores for this cotangent."""
    y, (gradient,) = gradients(F.softmax, (x,), g)
    return {"softmax": y, "softmax_vjp": gradient}


def use(learner, x, g):
    """Forward, then backward on what forward gave."""
    y = learner.softmax(x)
    dx = learner.softmax_vjp(y, g) if isinstance(y, np.ndarray) else None
    return {"softmax": y, "softmax_vjp": dx}
