"""Check 16: `answer` on the mixes of a text at two places, against the package's rotation."""

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask, rope_table

TOLERANCE = 1e-9

HINTS = (
    "Row t of the mix is turned back by the position of its query, `at[t]`. All heads do the same. "
    "The columns before the last d_rope stay as they are.",
    "Make an array of angles (T, d_rope/2): the positions as a column, times the speeds of the "
    "pairs. Then cut the last axis of z into three parts: what stays, the first halves of the "
    "pairs, and the second halves.",
    "angle = -at[:, None] * 10_000.0 ** (-2 * np.arange(half) / d_rope), with half = d_rope // 2; "
    "the minus sign turns back. The parts are z[..., :-d_rope], z[..., -d_rope:-half] and "
    "z[..., -half:]. Put them together again with np.concatenate(..., axis=-1).",
)

EXPLANATION = """
Both texts of a case have the same tokens at the same distances, so the answers should agree. The
two mixes did not agree, because each row had been turned by its own position when it was stored.
After your turn by the position of the query, only the distances are left.

The package does the same in `Attention.answer`. It uses the function that turns queries and keys,
with the sines negated. Cosines and sines come from a table that is made once for all positions.

If the texts of a batch differ in length, the package's `at` has a row for each text.
"""


def cases(rng):
    """The mixes (H, T, d) of a text that begins at 0 and at `start`, and the columns that turn."""
    d_rope = int(rng.choice([2, 4]))
    d = d_rope + 2 * int(rng.integers(1, 3))
    H, T = (int(n) for n in rng.permutation([n for n in range(2, 6) if n not in (d, d_rope)])[:2])
    q, row, start = rng.standard_normal((H, T, d)), rng.standard_normal((T, d)), rng.integers(1, 9)
    mixes = [_mixed(q, row, begin, d_rope) for begin in (0, start)]
    return *mixes, int(start), d_rope


def _mixed(q, row, start, d_rope):
    """Queries and rows are turned, compared and mixed: (H, T, d)."""
    tables = [table[start:] for table in rope_table(start + len(row), d_rope, "float64")]
    q, row = (F.rotate(mq.Tensor(a), *tables) for a in (q[None], row[None, None]))
    steps = np.arange(len(tables[0]))
    z = F.scaled_dot_product_attention(q, row, row, causal_mask(steps, steps))  # (1, H, T, d)
    return z.data[0]


def use(learner, here, later, start, d_rope):
    """The answers to both mixes."""
    at = np.arange(here.shape[1])  # (T,)
    begun_later = learner.answer(later, at + start, d_rope)
    return {"at position 0": learner.answer(here, at, d_rope), "begun later": begun_later}


def reference(here, later, start, d_rope):
    """The package's rotation of the first mix. The answers to the second are the same."""
    cos, sin = rope_table(here.shape[1], d_rope, "float64")  # (T, d_rope/2) each
    z = F.rotate(mq.Tensor(here[None]), cos, -sin).data[0]  # (H, T, d)
    return {"at position 0": z, "begun later": z}
