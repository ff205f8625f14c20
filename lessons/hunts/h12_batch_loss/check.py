"""Hunt 12: `loss` of a batch of texts of different lengths, against the package."""

# /// script
# [tool.minqkv.hunt]
# title = "One long text in a batch"
# question = """
# The mean loss of a batch of texts of different lengths. When one long text joins the batch, the \
# others seem to become easier."""
# exercise = "loss"
# reports = [
#   "https://github.com/EleutherAI/gpt-neo/pull/45",
#   "https://github.com/01-ai/Yi/issues/110",
# ]
# source = [["minqkv.functional.cross_entropy", "kept ="]]
# ///

import numpy as np

import minqkv as mq
from minqkv import functional as F

TOLERANCE = 1e-9

LAW = "The loss is the mean over the tokens of the texts; padding changes nothing."

HINTS = (
    "A short text is filled up with the token `pad`. For how many targets is the loss computed, "
    "and over how many is the mean taken?",
    "Predicting one more `pad` after a `pad` is easy, and not what the model is for. These targets "
    "must count neither in the sum nor in the number it is divided by.",
    "kept = targets != pad; then nll[kept].mean().",
)

EXPLANATION = """
Padding is as much a token as any other for the softmax, and soon the easiest one to predict. In the
mean it makes the loss smaller, the more the shorter the other texts are; in training, part of every
step is spent on it. A perplexity computed in this way cannot be compared with anyone else's.

It comes back in each new training script; the two reports are a fix of one, and a question about
another. In this package a target that does not count has a number of its own, `ignore_index`.
"""


def cases(rng):
    """logits (B, T, V), targets (B, T) filled up with the token `pad`, and `pad`."""
    B, T, V = int(rng.integers(1, 4)), int(rng.integers(2, 5)), int(rng.integers(3, 5))
    pad, targets = int(rng.integers(0, V)), rng.integers(0, V - 1, (B, T))
    targets += targets >= pad  # any token but `pad`
    for row, n in zip(targets, rng.integers(1, T + 1, B), strict=True):
        row[n:] = pad
    return rng.standard_normal((B, T, V)), targets, pad


def reference(logits, targets, pad):
    """The package's cross-entropy, which leaves out targets of -100."""
    counted = np.where(targets == pad, -100, targets)
    return float(F.cross_entropy(mq.Tensor(logits), counted).data)
