"""Check 02: `unbroadcast` against what the package's backward returns for a broadcast input."""

import numpy as np

import minqkv as mq

TOLERANCE = 1e-9

HINTS = (
    "Two sums, one after the other: over the axes that were added in front (they disappear), then "
    "over the axes that have length 1 in `shape` (they stay).",
    "`g.ndim - len(shape)` axes were added, and they are the first of g: sum over "
    "`axis=tuple(range(g.ndim - len(shape)))`. A sum over an empty tuple of axes changes nothing, "
    "so no case needs an `if`.",
    "After the first sum, axis i of g is axis i of `shape`. So: `stretched = tuple(i for i, n in "
    "enumerate(shape) if n == 1)`, and return `g.sum(axis=stretched, keepdims=True)`.",
)

EXPLANATION = """
The package's `unbroadcast` takes the same two steps. It first asks whether the shapes are equal,
which they nearly always are, and then returns `g` itself: no sum, no copy. A sum over no axes would
copy the whole array each time.

That is safe because a gradient that is passed on is only borrowed: `backward` never adds into an
array that it does not own. In the end each input gets its own array.
"""


def cases(rng):
    """g of one to four axes, and a shape that broadcasts to g's. Lengths differ, with a few
    exceptions.
    """
    lengths = [int(n) for n in rng.permutation([2, 3, 4, 5])[: rng.integers(1, 5)]]
    if rng.random() < 0.2:  # for those who tell axes apart by length
        lengths.insert(0, lengths[-1])
    added = int(rng.integers(0, len(lengths) + 1))
    shape = tuple(1 if rng.random() < 0.5 else n for n in lengths[added:])
    return rng.integers(-9, 10, lengths).astype(float), shape


def reference(g, shape):
    """The gradient of an input of this shape that is added to an array of g's."""
    x = mq.Tensor(np.zeros(shape), requires_grad=True)
    (mq.Tensor(np.zeros(g.shape)) + x).backward(mq.Tensor(g))
    return x.grad
