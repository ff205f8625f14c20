"""Hunt 4: `attend` in a window, against the package's mask."""

# /// script
# [tool.minqkv.hunt]
# title = "A window, passed to a kernel"
# question = """
# Attention in a window. The kernel is right, and so is the mask of the slow path; the two \
# agree on short texts and differ a little on long ones.\
# """
# exercise = "attend"
# reports = [
#   "https://github.com/huggingface/transformers/issues/39408",
#   "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/2656",
# ]
# source = [["minqkv.attention.causal_mask", "q - window"]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F
from minqkv.attention import causal_mask

TOLERANCE = 1e-9

LAW = "With a window w, a token sees w tokens, itself included."

HINTS = (
    "Take a window of one. Which tokens should the last token see, and which does it see?",
    "The two count differently: `window` counts the token itself, `left` counts only those before.",
    "The kernel sees `left` keys and the token itself, so `left` is the window less one.",
)

EXPLANATION = """
A model's window is a number of tokens; a kernel's bound is a distance, and both of its ends are
included. Whoever passes one for the other is off by one token. It raises no error, it changes
little, and it shows only on texts longer than the window, so tests on short texts pass.

Both reports are about libraries that call a kernel with inclusive bounds, and had to subtract one.
This package has one place that knows what a window is.
"""


def cases(rng):
    """q, k, v (T, d) and a window."""
    T, d = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    return *rng.standard_normal((3, T, d)), int(rng.integers(1, 5))


def reference(q, k, v, window):
    """The package's mask with a window."""
    at = np.arange(len(q))
    q, k, v = (mq.Tensor(a[None, None]) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, causal_mask(at, at, window)).data[0, 0]
