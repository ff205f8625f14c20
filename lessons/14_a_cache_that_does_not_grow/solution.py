"""Solution 14: the positions in a ring."""

import numpy as np


def positions(read, window, sinks):
    """Integers (sinks + window,): the position in each slot, -1 for none."""
    held = np.full(sinks + window, -1)
    for p in range(read):
        held[p if p < sinks else sinks + (p - sinks) % window] = p
    return held
