"""Hunt 9: `attend` with one turned row as key and value, at two places of a text."""

# /// script
# [tool.minqkv.hunt]
# title = "One row that is key and value"
# question = """
# One array serves as keys and as values, with rotary positions. The patterns are right, and \
# the model still answers differently when the same text begins later.\
# """
# exercise = "attend"
# reports = [
#   "https://github.com/Avarok-Cybersecurity/atlas/pull/186",
#   "https://github.com/ggml-org/llama.cpp/pull/24162",
# ]
# source = [["minqkv.attention.Attention.answer", "self.turn_back"]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask, rope_table

TOLERANCE = 1e-9

LAW = "A text that begins later gets the same answers: each value is turned by its distance only."

HINTS = (
    "Take a text of one token. Its answer is its own row. What should that be, wherever it is?",
    "The rows are turned, which is right for keys. As values they carry their positions into the "
    "answer. What undoes that, without storing a second array?",
    "Turn the answer back by the position of the query: turn(mixed, -at). What remains of row j is "
    "a turn by j - i, the distance.",
)

EXPLANATION = """
With K = V the stored row is turned because it is a key, so the mix of rows is turned too, each part
by its own position. Turned back by the query's position, part j keeps a turn by j - i. DeepSeek-V4
reads its rows like this.

It is easy to leave out, because nothing fails: shapes fit, patterns are right, short texts read
well. The first report lists it among what a port was missing; in the second, a reviewer asks why
the turn back is there, and is told. Lesson 11 has the same trap.
"""


def cases(rng):
    """q and row (T, d), d even, and where the text begins the second time."""
    T, d = int(rng.integers(1, 5)), int(rng.choice([2, 4]))
    return *rng.standard_normal((2, T, d)), int(rng.integers(1, 6))


def use(learner, q, row, start):
    """The same text at position 0, and at `start`."""
    at_zero = learner.attend(q.copy(), row.copy(), 0)
    return {"at position 0": at_zero, "begun later": learner.attend(q, row, start)}


def reference(q, row, start):
    """The package's rotation and attention; the same answers twice."""
    at, (cos, sin) = np.arange(len(q)), rope_table(*q.shape, "float64")
    q, row = (F.rotate(mq.Tensor(a[None, None]), cos, sin) for a in (q, row))
    mixed = F.scaled_dot_product_attention(q, row, row, causal_mask(at, at))  # (1, 1, T, d)
    z = F.rotate(mixed, cos, -sin).data[0, 0]
    return {"at position 0": z, "begun later": z}
