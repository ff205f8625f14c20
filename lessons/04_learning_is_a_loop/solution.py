"""Solution 04: a step of Adam."""

import numpy as np


def adam(w, g, state, lr, beta1, beta2, eps):
    """(n,), (n,) and what was remembered -> the new (n,)."""
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    state.update(t=t, m=m, v=v)
    mean = m / (1 - beta1**t)  # an average again: its weights now add up to one
    square = v / (1 - beta2**t)
    return w - lr * mean / (np.sqrt(square) + eps)
