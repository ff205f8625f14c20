"""Solution 17: absorb."""

import numpy as np


def absorb(q, p, c, r, wk, wv):
    """Returns asked (H, n), mixed (H, n), z (H, d)."""
    asked = (q[:, None] @ wk.swapaxes(1, 2))[:, 0]  # (H, 1, d) @ (H, d, n) -> (H, n)
    scores = asked @ c.T + p @ r.T  # (H, S)
    scores = scores / np.sqrt(q.shape[1] + p.shape[1])
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = e / e.sum(axis=1, keepdims=True)  # (H, S)
    mixed = weights @ c  # (H, n)
    return asked, mixed, (mixed[:, None] @ wv)[:, 0]  # (H, 1, n) @ (H, n, d) -> (H, d)
