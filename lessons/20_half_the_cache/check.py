"""Check 20: `running` on rows that can be read only once, against the package's online softmax."""

from functools import cache

import numpy as np

import minqkv as mq
from minqkv import online

TOLERANCE = 1e-9

HINTS = (
    "Keep three things from row to row: the largest score so far, the sum of exponentials, and the "
    "sum of rows times their exponentials. Divide once, at the end.",
    "If a score is larger than the largest so far, the sums were made with the old one. Multiply "
    "both by np.exp(old - new). A row whose score is -inf changes nothing: leave it out.",
    "Begin with peak, total, mix = -np.inf, 0.0, np.zeros(len(q)). For each row: new = max(peak, "
    "score); total = total * np.exp(peak - new) + np.exp(score - new), and likewise mix, with the "
    "row. At the end return mix / total, or mix where total is 0.",
)

EXPLANATION = """
You made the answer in one pass, and each row was read once for both its uses.

`online.part` takes many rows at a time, so that NumPy has large products to make. Where a query
sees none of them, it sets the peak to the lowest number that is finite, and the sums are zero.
`online.answer` then returns zeros, as you do.

The kernel `decode.cu` begins with that lowest number as well. Then it goes on as you do, with a
tile of rows instead of a single one.
"""


class Rows:
    """Rows that come one after another, all in the same place, and only once."""

    def __init__(self, rows):
        self.rows, self.read, self.begun = rows, 0, False

    def __iter__(self):
        if self.begun:
            raise RuntimeError("the rows are read a second time; they can be read only once")
        self.begun = True
        return self._each()

    def _each(self):
        place = np.empty(self.rows.shape[1])  # (d,)
        for row in self.rows:
            place[:] = row
            self.read += 1
            yield place
        place[:] = np.nan

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        raise TypeError("rows cannot be chosen; they come one after another: for row in rows")

    def __array__(self, *args, **kwargs):
        raise TypeError("rows are not an array; they come one after another: for row in rows")


def cases(rng):
    """A query (d,), rows (n, d) and a mask (n,). Some have very large scores, some hide rows at the
    start or anywhere, some hide all, and some have a single row.
    """
    d = int(rng.integers(2, 6))
    n = int(rng.choice([length for length in (1, 3, 4, 5, 6, 7) if length != d]))
    size = rng.choice([1.0, 1000.0])
    q, rows = rng.standard_normal(d), size * rng.standard_normal((n, d))
    hidden = np.zeros(n, bool)
    kind = rng.integers(5)
    if kind == 0:
        hidden[:] = True
    elif kind == 1:
        hidden[: n // 2] = True
    elif kind == 2:
        hidden = rng.random(n) < 0.5
    return q, rows, np.where(hidden, -np.inf, 0.0)


def use(learner, q, rows, mask):
    """The answer, and how many rows were read."""
    given = Rows(rows)
    return {"answer": learner.running(q, given, mask), "rows read": given.read}


@cache
def head(d):
    """A layer with one head of d numbers."""
    return mq.Attention("q-k=v", d, 1, 8, mq.nn.Init(dtype="float64"))


def reference(q, rows, mask):
    """The package's online softmax, in a layer of one head."""
    n, d = rows.shape
    about = slice(0, n), mask == 0, slice(n - 1, n)  # positions, what is seen, the query's position
    found = online.part(head(d), q[None, None, None], (rows[None, None],), *about)
    return {"answer": online.answer(found).numpy()[0, 0, 0], "rows read": n}
