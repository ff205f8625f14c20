"""Check 17: `absorb` against keys and values that were made, and mixed by the package."""

import numpy as np

import minqkv as mq
from minqkv import functional as F

TOLERANCE = 1e-9

HINTS = (
    "Five steps: the query through the matrix, the scores, the weights, the mix of the stored "
    "rows, and the mix through the other matrix. In the first and the last, each head has its own "
    "matrix.",
    "For head i, asked[i] = q[i] @ wk[i].T, and z[i] = mixed[i] @ wv[i]. A score is a sum of two "
    "dot products: asked[i] with a row of c, and p[i] with the small row beside it.",
    "scores = (asked @ c.T + p @ r.T) / np.sqrt(d + m), of shape (H, S); then e = np.exp(scores - "
    "scores.max(axis=1, keepdims=True)), weights = e / e.sum(axis=1, keepdims=True), and "
    "mixed = weights @ c.",
)

EXPLANATION = """
For `z` the reference used the naive form: it made all keys and values and gave them to the
package's attention. You made none of them, and your numbers are the same up to rounding.

In the package the two matrices are called `into` and `out_of`, and `into` is stored transposed, as
you used it. `Attention.query` puts `asked` and `p` side by side, and `Attention.read` does the same
with a row and its small row. Then one dot product gives both parts of a score, and what remains is
attention with one KV head, whose values are the rows.
"""


def cases(rng):
    """Queries, what is stored, and matrices; H, S, d, m, n and d + m all different."""
    H, S, d, m = (int(size) for size in rng.permutation([2, 3, 4, 5]))
    n = int(rng.choice([width for width in range(6, 10) if width != d + m]))
    q, p, c, r = (rng.standard_normal(shape) for shape in ((H, d), (H, m), (S, n), (S, m)))
    return q, p, c, r, *rng.standard_normal((2, H, n, d))


def reference(q, p, c, r, wk, wv):
    """The answers by the naive form; the mix by the package's attention with one KV head."""
    root = np.sqrt(q.shape[1] + p.shape[1])
    small = np.broadcast_to(r, (len(q), *r.shape))  # (H, S, m)
    keys = np.concatenate([c @ wk, small], axis=-1)  # (H, S, d + m)
    z = _attend(np.concatenate([q, p], axis=1), keys, c @ wv, root)  # (H, d)
    asked = np.stack([query @ matrix.T for query, matrix in zip(q, wk, strict=True)])  # (H, n)
    stored = np.concatenate([c, r], axis=1)[None]  # (1, S, n + m)
    mixed = _attend(np.concatenate([asked, p], axis=1), stored, c[None], root)  # (H, n)
    return asked, mixed, z


def _attend(q, k, v, root):
    """(H, d), (h, S, d), (h, S, d_v) -> (H, d_v)."""
    q, k, v = (mq.Tensor(a[None]) for a in (q[:, None], k, v))  # (1, H, 1, d), (1, h, S, ...)
    return F.scaled_dot_product_attention(q, k, v, scale=1 / root).data[0, :, 0]
