"""Hunt 10: `attend` over rows of two stores, at two places of a text."""

# /// script
# [tool.minqkv.hunt]
# title = "Near rows and far rows"
# question = """
# A query looks at a window of near rows and at a store of far ones, in one softmax. Short \
# texts are fine; on long ones the balance between near and far drifts.\
# """
# exercise = "attend"
# reports = [
#   "https://github.com/huggingface/transformers/issues/45910",
#   "https://github.com/ml-explore/mlx-lm/pull/1189",
# ]
# source = [["minqkv.attention.rope_table", "base **"]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import rope_table

TOLERANCE = 1e-9

LAW = "Moved to another position, query and rows give the same answer: all turn with one base."

HINTS = (
    "Move everything by the same number of positions. Which scores change: those of near rows, or "
    "those of far rows?",
    "A score depends on the distance alone if query and key turn with the same speeds. The speeds "
    "come from the base.",
    "There is one query, so it has one base: that of the layer, FAR, since this layer has a far "
    "store. Near rows must turn with it too.",
)

EXPLANATION = """
The model has two bases, one for each kind of layer: layers with a window only, and layers that also
have a far store. Read as "one base for each store", it puts two bases into one softmax. The
query can match only one of them, and scores of the other kind of rows depend on where in the text
they are.

Both reports compare a port of DeepSeek-V4 with the reference. One asks whether such a mixture is
meant; the other found the wrong base in most layers, from answers that fell apart as the text grew.
A table of angles belongs to a layer; in this package, too, each layer has one.
"""


def cases(rng):
    """A query (d,), far and near rows, d even, and how far all of it is moved."""
    F, N, d = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.choice([4, 6]))
    rows = rng.standard_normal((F, d)), rng.standard_normal((N, d))
    return rng.standard_normal(d), *rows, int(rng.integers(50, 1000))


def use(learner, q, far, near, move):
    """The answer at the beginning of a text, and `move` positions later."""
    first = learner.attend(q.copy(), far.copy(), near.copy(), 0)
    return {"at the beginning": first, "moved": learner.attend(q, far, near, move)}


def reference(q, far, near, move):
    """The package's rotation with one base, and its attention; the same answer twice."""
    rows = np.concatenate([far, near])  # (S, d)
    cos, sin = rope_table(len(rows), len(q), "float64", 160_000.0)
    k = F.rotate(mq.Tensor(rows[None, None]), cos, sin)  # (1, 1, S, d)
    turned = F.rotate(mq.Tensor(q[None, None, None]), cos[-1:], sin[-1:])  # (1, 1, 1, d)
    v = mq.Tensor(rows[None, None])
    z = F.scaled_dot_product_attention(turned, k, v).data[0, 0, 0]
    return {"at the beginning": z, "moved": z}
