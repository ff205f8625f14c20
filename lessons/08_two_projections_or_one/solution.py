"""Solution 08: the gradient of a tied weight."""

import numpy as np


def tied_gradient(x, w, g):
    """The gradient (C, d) of w, from g (T, d), that of z = softmax(k kᵀ / √d) k, with k = x w."""
    k, scale = x @ w, 1 / np.sqrt(w.shape[1])  # (T, d); q and v are k, too
    scores = k @ k.T * scale  # (T, T)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern = e / e.sum(axis=-1, keepdims=True)  # (T, T)

    as_value = pattern.T @ g  # (T, d)
    d = g @ k.T  # (T, T), of the pattern
    d = pattern * (d - (d * pattern).sum(axis=-1, keepdims=True))  # of the scores
    as_query = d @ k * scale  # (T, d)
    as_key = d.T @ k * scale  # (T, d), the queries being k
    return x.T @ (as_query + as_key + as_value)  # (C, d)
