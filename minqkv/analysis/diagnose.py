"""What a trained attention does: measures that do not change when the weights are
re-parametrised.
"""

import numpy as np


def cycle_curl(scores):
    """How far scores (..., T, T) are from a reversible chain: max |N_ij + N_jk + N_ki| over
    triples, N = S - Sᵀ.

    Zero for Q = K, with or without "+"; in general not zero if Q has its own projection (lesson
    08). For a non-causal pattern A give log A; for a causal model the scores before the mask.
    Memory grows with T³: meant for short sequences.
    """
    scores = np.asarray(scores, np.float64)
    n = scores - scores.swapaxes(-1, -2)  # (..., T, T)
    around = (
        n[..., :, :, None] + n[..., None, :, :] + n.swapaxes(-1, -2)[..., :, None, :]
    )  # (..., i, j, k)
    return float(np.abs(around).max())
