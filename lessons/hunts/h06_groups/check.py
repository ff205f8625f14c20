"""Hunt 6: `attend` with fewer KV heads, against the package."""

# /// script
# [tool.minqkv.hunt]
# title = "Fewer KV heads than heads"
# question = """
# Grouped attention. With one KV head, or with one for each head, it is right. A model that \
# was trained elsewhere with two KV heads answers nonsense.\
# """
# exercise = "attend"
# reports = ["https://github.com/onnx/onnx/pull/7274"]
# source = [["minqkv.functional._Attention.fold"]]
# ///

import minqkv as mq
from minqkv import functional as F

TOLERANCE = 1e-9

LAW = "Head i reads KV head i // (H / h): neighbours share."

HINTS = (
    "With four heads and two KV heads, which KV head does each head read? Try it on "
    "np.array([[0], [1]]).",
    "`np.tile` repeats the whole list: a b a b. Neighbours that share need a a b b.",
    "np.repeat(k, H // h, axis=0), and the same for v.",
)

EXPLANATION = """
There are two ways to deal out h KV heads to H heads: in blocks, a a b b, or in turn, a b a b. Each
is a fine design, and they differ only in the order of the heads. But weights are trained with one
of them, and released models use blocks. With one KV head, or with H of them, the two are the same,
so tests of these two cases find nothing.

The report is about the specification of the operation in a widely used format, which said "tile".
This package repeats nothing: it folds the heads of a group into the rows of the query.
"""


def cases(rng):
    """q (H, T, d), k and v (h, T, d), where h divides H."""
    h, group, T = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(2, 4))
    return rng.standard_normal((h * group, T, 1)), *rng.standard_normal((2, h, T, 1))


def reference(q, k, v):
    """The package's grouped attention."""
    q, k, v = (mq.Tensor(a[None]) for a in (q, k, v))  # (1, H or h, T, d)
    return F.scaled_dot_product_attention(q, k, v).data[0]
