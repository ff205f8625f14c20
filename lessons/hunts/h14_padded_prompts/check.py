"""Hunt 14: `rows` of prompts that are padded on the left, against each prompt alone."""

# /// script
# [tool.minqkv.hunt]
# title = "Prompts of different lengths"
# question = """
# Prompts are filled up on the left, so that all end together. The longest one gets the answer \
# it gets alone; the shorter ones get others.\
# """
# exercise = "rows"
# reports = [
#   "https://github.com/unslothai/unsloth/issues/3699",
#   "https://github.com/ndif-team/nnsight/pull/673",
# ]
# source = [["minqkv.cache.next_positions", "np.where"]]
# ///

import numpy as np

from minqkv.cache import next_positions

TOLERANCE = 1e-9

LAW = "A prompt gets the same rows in a batch as alone."

HINTS = (
    "At which position is the first token of the shortest prompt? And alone?",
    "Positions are counted from the first token that is not padding, in each prompt for itself: an "
    "array (B, T).",
    "(ids != pad).cumsum(axis=1) - 1 counts the tokens of each prompt from 0; padding before them "
    "gives -1, and its rows are set to zero anyway.",
)

EXPLANATION = """
The column of a batch is a position only for the longest prompt. The others begin later in the
array, and so began later in the text, as if something stood before them. The model is a bit worse
for it, and nothing complains.

In the first report, one array of positions was shared by all sequences of a batch when a cache was
used; in the second, positions were left to the model, which counted columns. In this package
padding is at position -1, and each sequence has positions of its own.
"""


def cases(rng):
    """ids (B, T) with `pad` on the left, `pad`, a table of tokens and one of positions."""
    B, T, C = int(rng.integers(1, 4)), int(rng.integers(3, 6)), int(rng.integers(1, 3))
    ids = rng.integers(1, 6, (B, T))
    for row, n in zip(ids, rng.integers(0, T - 1, B), strict=True):
        row[:n] = 0
    return ids, 0, rng.standard_normal((6, C)), rng.standard_normal((T, C))


def reference(ids, pad, wte, wpe):
    """The package's positions, -1 for padding."""
    at = next_positions(0, ids.shape[1], (ids == pad).sum(axis=1))  # (B, T)
    return np.where((at < 0)[..., None], 0, wte[ids] + wpe[at])
