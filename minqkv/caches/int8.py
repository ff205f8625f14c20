"""A cache that stores numbers as 8-bit integers, and a scale for each row.

A row, the numbers of one token in one head, is stored as integers from -127 to 127 and a scale: an
integer times the scale is the number, up to scale / 2. The largest number of the row, by size, is
127 · scale. With K = V the one stored row is both key and value, so its rounding changes the scores
and also the values that they mix.
"""

from __future__ import annotations

import numpy as np

from ..cache import KVCache, LayerCache
from ..runtime import backend
from ..runtime.backend import Array
from .ring import RingCache, RingLayer


class Int8Layer(LayerCache):
    """The rows of one layer. For each entry (heads, width) of `stored` there is a buffer of
    integers, and one of scales (B, heads, capacity, 1) in float32.
    """

    per_row = 2

    @staticmethod
    def arrays(stored, dtype):
        """(heads, width, dtype) of each buffer: integers, their scales, and so on."""
        pairs = [((heads, width, "int8"), (heads, 1, "float32")) for heads, width in stored]
        return [array for pair in pairs for array in pair]

    @staticmethod
    def pack(rows, dtype):
        """New rows as integers and scales."""
        return [array for row in rows for array in rounded(row)]

    @staticmethod
    def unpack(stored, dtype):
        """Integers times scales."""
        rows = [whole.astype(dtype) for whole in stored[::2]]
        for row, scale in zip(rows, stored[1::2], strict=True):
            row *= scale
        return tuple(rows)


def rounded(row: Array) -> tuple[Array, Array]:
    """(..., width) as integers (..., width) in int8 and scales (..., 1) in float32.

    Rows whose numbers are all below 1e-36 become zeros, at scale 0.
    """
    xp = backend.xp
    scale = (xp.abs(row).max(axis=-1, keepdims=True) / 127).astype("float32")  # (..., 1)
    scale = xp.where(scale < np.finfo("float32").tiny, np.float32(0), scale)
    whole = xp.rint(row / xp.where(scale == 0, np.float32(1), scale))
    return xp.where(scale == 0, row.dtype.type(0), whole).astype("int8"), scale


class Int8Cache(KVCache):
    """A cache with 1 byte per number, and 4 per row for its scale, whatever `dtype` is."""

    layer_kind = Int8Layer

    @staticmethod
    def bytes_per_token(stored, dtype=None):
        """Bytes per token in one layer: Σ heads · (width + 4)."""
        return sum(heads * (width + 4) for heads, width in stored)


class Int8RingLayer(Int8Layer, RingLayer):
    """The rows of one layer of a ring, stored as integers."""


class Int8RingCache(Int8Cache, RingCache):
    """A ring of rows stored as 8-bit integers."""

    layer_kind = Int8RingLayer
