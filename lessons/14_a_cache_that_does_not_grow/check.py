"""Check 14: `positions` against the slots of the package's ring."""

import numpy as np

from minqkv.caches.ring import RingLayer
from minqkv.runtime import backend

TOLERANCE = 0

HINTS = (
    "Write one position after another into an array of -1, and let a newer one replace an older "
    "one. What remains is the answer. The only question is the slot of a position.",
    "There are two cases. Below `sinks` a position is its own slot. From there on, count from "
    "the first position after the sinks, p - sinks, and let that go around a ring of `window` "
    "slots.",
    "held = np.full(sinks + window, -1), and for each p in range(read): "
    "held[p if p < sinks else sinks + (p - sinks) % window] = p.",
)

EXPLANATION = """
The package's ring keeps such an array beside its rows, `RingLayer.at`, with a row for each sequence
of a batch, because sequences may differ in length. It is updated as tokens are written, so it never
has to be computed again.

A ring needs no more than that. The mask compares these positions with those of the queries, as it
does for keys in order, and a slot that holds -1 is never seen. Keys that are turned when they are
read (lesson 11) are turned by these positions. And before `trim` removes tokens, the ring checks
that everything the next token needs is still there.

A loop over all tokens is the simplest way. There is also a formula. Count the slots and the tokens
after the sinks from 0, and let n be the number of these tokens. Then slot i holds token
i + window · ⌊(n − 1 − i) / window⌋, or nothing if i is n or more.
"""


def cases(rng):
    """read, window and sinks, from an empty ring to several turns."""
    window, sinks = (int(n) for n in rng.permutation(np.arange(1, 8))[:2])
    sinks = 0 if rng.random() < 0.15 else sinks
    turns = rng.choice([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    read = int(rng.integers(0, 4)) + int(turns * (sinks + window))
    return read, window, sinks


def reference(read, window, sinks):
    """A real ring, one token after another."""
    layer = RingLayer(1, [(1, 1)], read + sinks + window, "float32", window, sinks)
    for _ in range(read):
        layer.append(backend.xp.zeros((1, 1, 1, 1), "float32"))
    return layer.at[0]
