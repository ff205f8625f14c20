"""Solution 16: the back-rotation."""

import numpy as np


def answer(z, at, d_rope):
    """(H, T, d), (T,) -> (H, T, d): the last d_rope columns, turned back by the positions."""
    half = d_rope // 2
    angle = -at[:, None] * 10_000.0 ** (-2 * np.arange(half) / d_rope)  # (T, d_rope/2)
    cos, sin = np.cos(angle), np.sin(angle)
    still, a, b = np.split(z, [-d_rope, -half], axis=-1)  # (H, T, ...) each
    return np.concatenate([still, a * cos - b * sin, b * cos + a * sin], axis=-1)
