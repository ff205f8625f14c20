"""Where a token stands: sinusoids, rotary angles, and the mask that keeps a query from looking ahead."""

import numpy as np

from . import backend

SCHEMES = ("learned", "sinusoidal", "none", "rope")


def sinusoids(n, channels, width=None, dtype="float32"):
    """(n, channels) fixed channels: sin, cos interleaved, pair k at frequency 10000^(-2k/width); width defaults to channels."""
    pair = np.arange(channels) // 2
    angle = np.arange(n)[:, None] * 10000.0 ** (-2 * pair / (width or channels))  # (n, channels)
    return np.where(np.arange(channels) % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)


def rope_table(n, d_head, dtype="float32", base=10_000.0):
    """cos and sin of position · base^(-2i/d_head), i < d_head/2: two (n, d_head/2) arrays of the backend."""
    angle = np.arange(n)[:, None] * base ** (-2 * np.arange(d_head // 2) / d_head)  # (n, d_head/2)
    return backend.upload(np.cos(angle).astype(dtype)), backend.upload(np.sin(angle).astype(dtype))


def causal_mask(queries, keys):
    """(T,), (S,) absolute positions -> (T, S), True where a key is not ahead of its query."""
    return keys[None, :] <= queries[:, None]
