"""Hunt 8: `decode` with rotary positions, against the package, all at once."""

# /// script
# [tool.minqkv.hunt]
# title = "Rotary positions in a cache"
# question = """
# A decoder with rotary positions and a cache. The first answer is right, and all later ones \
# are wrong: token by token is not the same as all at once.\
# """
# exercise = "decode"
# reports = [
#   "https://github.com/NeuraLegion/shainet/pull/110",
#   "https://github.com/NVIDIA/TensorRT-LLM/pull/4040",
# ]
# source = [
#   ["minqkv.attention.Attention.store", "self.turn_late"],
#   ["minqkv.attention.Attention.read", "self.turn_late"],
# ]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask, rope_table

TOLERANCE = 1e-9

LAW = "A score depends on how far apart query and key are: each is turned once, by its position."

HINTS = (
    "Which key is the first one that comes out wrong? Compare `stored[j]` with turn(k[j], j).",
    "A key is turned when it is stored. What happens to it when it is read?",
    "Turn it in one place: store turn(k[t], t) and read the keys as they are, or store k[t] and "
    "turn when you read.",
)

EXPLANATION = """
Both lines are right, each in a program that has only one of them. Turned twice, a key sits at twice
its position, and the score of two neighbours depends on where they are. At position 0 nothing
turns, so short tests look fine.

One report is a review of just this code. The other is a fix in a large engine, whose title says
that a model's rotary positions were applied twice. In this package one flag decides, when the layer
is built, whether keys turn when they are stored or when they are read.
"""


def cases(rng):
    """q, k and v (T, d), d even."""
    T, d = int(rng.integers(2, 6)), int(rng.choice([2, 4]))
    return tuple(rng.standard_normal((3, T, d)))


def reference(q, k, v):
    """The package's rotation and attention."""
    at, tables = np.arange(len(q)), rope_table(*q.shape, "float64")
    q, k, v = (mq.Tensor(a[None, None]) for a in (q, k, v))  # (1, 1, T, d) each
    q, k = F.rotate(q, *tables), F.rotate(k, *tables)
    return F.scaled_dot_product_attention(q, k, v, causal_mask(at, at)).data[0, 0]
