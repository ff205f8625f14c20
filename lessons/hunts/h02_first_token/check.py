"""Hunt 2: `decode`, against attention over the whole text at once."""

# /// script
# [tool.minqkv.hunt]
# title = "A shortcut for the first token"
# question = """
# A decoder with a cache. The first answer is right, and all later ones are a little off.\
# """
# exercise = "decode"
# reports = ["https://github.com/TrenTorch/TrenTorch/pull/192"]
# source = [["minqkv.cache.LayerCache.append", "self.write("]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask

TOLERANCE = 1e-9

LAW = "Token by token gives the same answers as all tokens at once."

HINTS = (
    "The first answer is right, so look at what the second token reads. Print `keys[: t + 1]`.",
    "One of the rows that every later token attends to was never computed.",
    "The shortcut for the first token returns its value, which is right, but leaves row 0 of both "
    "arrays as zeros. Write the rows of every token, the first included.",
)

EXPLANATION = """
The answer to the first token needs no attention, so somebody wrote a shortcut, and it left out the
write as well. From then on each token attended to a row of zeros in place of the first token. A
score of zero is not "hidden": it gets a fair share of the weight.

The public report calls it a fake first token. Nothing crashes, so a test must compare with the
answers without a cache.
"""


def cases(rng):
    """q, k and v (T, d)."""
    T, d = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    return tuple(rng.standard_normal((3, T, d)))


def reference(q, k, v):
    """The package's attention, all at once."""
    at = np.arange(len(q))
    q, k, v = (mq.Tensor(a[None, None]) for a in (q, k, v))  # (1, 1, T, d) each
    return F.scaled_dot_product_attention(q, k, v, causal_mask(at, at)).data[0, 0]
