"""Solution 18: the overlap of two spaces."""

import numpy as np


def alike(wk, wv):
    """The mean of the squared cosines of the principal angles, from 0 to 1."""
    k = np.linalg.qr(wk)[0]  # (C, d), an orthonormal basis of what keys read
    v = np.linalg.qr(wv)[0]  # (C, d)
    return ((k.T @ v) ** 2).sum() / wk.shape[1]
