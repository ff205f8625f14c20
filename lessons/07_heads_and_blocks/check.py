"""Check 07: `split` and `merge` against the package's own.

In each array the hundreds digit is the token, the rest is the column.
"""

from types import SimpleNamespace

import numpy as np

TOLERANCE = 0.0

HINTS = (
    "split: cut the last axis into two with a reshape, then bring the heads to the front. "
    "merge: the same, backwards.",
    "A reshape never moves a number past another; transpose(1, 0, 2) exchanges the first two "
    "axes. Each function needs one of each: split reshapes first, merge reshapes last.",
    "split: x.reshape(T, n_head, C // n_head).transpose(1, 0, 2). merge: z.transpose(1, 0, "
    "2).reshape(T, H * d).",
)

EXPLANATION = """
In the package a batch comes first: (B, T, C) becomes (B, H, T, d), and the transpose is (0, 2, 1,
3). Otherwise the two functions are the ones you wrote, and the products that follow run over all
sequences and heads at once.

A transpose copies nothing; it only notes in which order to walk through the same memory. A reshape
of such an array must copy, because its numbers no longer lie in the order it needs. So the package
writes the result of the attention with the tokens before the heads in memory, though it is indexed
the other way round, and merging is free.
"""

_WAITING = "merge is checked once split is right"


def cases(rng):
    """x (T, C) of whole numbers and a number of heads, with T, H and d all different."""
    T, H, d = (int(n) for n in rng.permutation(np.arange(2, 7))[:3])
    return 100 * np.arange(T)[:, None] + np.arange(H * d), H


def _split(x, n_head):
    heads = x[None].reshape(1, len(x), n_head, -1)  # (1, T, H, d)
    return heads.transpose(0, 2, 1, 3)[0]  # (H, T, d), as in F.split_heads


def _merge(z):
    rows = z[None].transpose(0, 2, 1, 3)  # (1, T, H, d)
    return rows.reshape(1, z.shape[1], -1)[0]  # (T, C), as in F.merge_heads


def reference(x, n_head):
    """The package's own moves, used as the learner's are, so that their costs are comparable."""
    return use(SimpleNamespace(split=_split, merge=_merge), x, n_head)


def use(learner, x, n_head):
    """`merge` is called on what `split` returned, so it waits until that is right."""
    heads = learner.split(x, n_head)
    right = isinstance(heads, np.ndarray) and np.array_equal(heads, _split(x, n_head))
    return {"split": heads, "merge": learner.merge(heads.copy()) if right else _WAITING}
