"""The cache of a decoder: what attention would otherwise compute again for every earlier token.

A layer's cache holds the rows that `Attention.store` gives, one buffer for each: (B, heads,
capacity, width), allocated once. Designs with K = V store one row per token and head: there is no
second buffer, and `Attention.read` makes both keys and values from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from .attention import Attention, causal_mask
from .runtime import backend, tracing
from .runtime.backend import Array
from .runtime.errors import UsageError
from .tensor import Tensor


class LayerCache:
    """The rows of one layer. `stored` is (heads, width) of each array kept of a token."""

    def __init__(self, batch: int, stored: list[tuple], capacity: int, dtype="float32"):
        shapes = [(batch, heads, capacity, width) for heads, width in stored]
        self.buffers = [backend.current.empty(shape, dtype) for shape in shapes]
        self.capacity, self.length = capacity, 0

    def __len__(self) -> int:
        """Positions stored."""
        return self.length

    @property
    def rows(self) -> tuple[Array, ...]:
        """What is stored, a view (B, heads, S, width) of each buffer."""
        return tuple([buffer[:, :, : self.length] for buffer in self.buffers])

    def attend(
        self, attention: Attention, q: Tensor, rows: tuple[Tensor, ...], mask: Array | None = None
    ) -> Tensor:
        """Append new rows, then answer queries q (B, H, T, d) with all that is stored.

        Each query sees the keys that are not ahead of it; of these, `mask` (T, S + T) may hide
        some. What is stored is a constant: gradients reach the queries, not the rows. This plain
        cache stores rows as they are and has `attention` read them; a window, or rows of fewer
        bits, would be another class with the same methods.
        """
        start = self.length
        try:
            mask = self._causal(mask, q.data.shape[2])
            stored = self.append(*[row.data for row in rows])
            tracing.probe("cache.k", stored[0])
            tracing.probe("cache.v", stored[-1])
            dtype = q.data.dtype  # of the computation, whatever the cache stores
            stored = [Tensor(row if row.dtype == dtype else row.astype(dtype)) for row in stored]
            return attention.attend(q, stored, mask)
        except BaseException:  # what is refused, or interrupted, changes nothing
            self.length = start
            raise

    def _causal(self, mask, n_new):
        """The mask of positions, and of these only what `mask` shows; None: everything is seen."""
        end = self.length + n_new
        if mask is not None and (mask.shape != (n_new, end) or mask.dtype != bool):
            raise UsageError(f"attention: a mask is boolean, of shape {(n_new, end)}")
        if n_new == 1:  # a single token sees everything
            return mask
        return self.mask(n_new) if mask is None else self.mask(n_new) & mask

    def append(self, *rows: Array) -> tuple[Array, ...]:
        """Store new positions, an array (B, heads, T, width) for each buffer; returns `rows` so
        far.

        Raises UsageError, before anything is changed, when they do not fit.
        """
        if len(rows) != len(self.buffers):
            n = len(self.buffers)
            kept = f"{n} array{'s' if n > 1 else ''} per token"
            raise UsageError(f"the cache stores {kept}, not {len(rows)}")
        start, end = self.length, self.length + rows[0].shape[2]
        for row, buffer in zip(rows, self.buffers, strict=True):
            B, h, _, width = buffer.shape
            if row.shape != (B, h, end - start, width):
                kept = f"{B} x {h} heads of {width} numbers"
                raise UsageError(f"the cache stores {kept} per position; {row.shape} does not fit")
        if end > self.capacity:
            why = f"the cache holds {self.capacity} positions; {end} are needed"
            raise UsageError(why, "ask for a larger capacity")
        for row, buffer in zip(rows, self.buffers, strict=True):
            buffer[:, :, start:end] = row
        self.length = end
        return self.rows

    def mask(self, n_new: int) -> Array:
        """(n_new, S + n_new), for tokens about to be appended: True where a key is not ahead."""
        end = self.length + n_new
        return causal_mask(backend.xp.arange(self.length, end), backend.xp.arange(end))


class KVCache:
    """The caches of all layers, for `batch` sequences of up to `capacity` positions.

    `stored` has an entry for each layer, its `VariantSpec.stored`: (heads, width) of each array
    that is kept of a token. Bytes: batch · positions · Σ heads · width · itemsize (paper, section
    4): `nbytes` for the positions in use, `capacity_nbytes` for what is allocated, both summed over
    the arrays.
    """

    def __init__(self, stored: list[list[tuple]], batch: int, capacity: int, dtype="float32"):
        sizes = [size for layer in stored for shape in layer for size in shape]
        if not all(stored) or min([len(stored), batch, capacity, *sizes]) < 1:
            what = f"layers of (heads, width) {list(stored)}, batch {batch}, {capacity} positions"
            raise UsageError(f"the sizes of a cache must be at least 1: {what}")
        if np.dtype(dtype).kind != "f":
            why = f"a cache stores floating-point numbers, not {np.dtype(dtype)}"
            raise UsageError(why, "float16, float32 or float64")
        self.stored, self.batch, self.capacity = tuple(stored), batch, capacity
        self.layers = [LayerCache(batch, layer, capacity, dtype) for layer in stored]

    def __len__(self) -> int:
        """Positions that all layers hold; an interrupted step may leave some layers ahead."""
        return min(len(layer) for layer in self.layers)

    @property
    def positions(self) -> Array:
        """(S,) absolute positions of the stored keys."""
        return backend.xp.arange(len(self))

    def mask(self, n_new: int) -> Array:
        """(n_new, S + n_new), for `n_new` tokens about to be appended; see LayerCache."""
        return self.layers[0].mask(n_new)

    def trim(self, n: int) -> None:
        """Keep the first n positions; the buffers stay."""
        whole = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
        if not whole or not 0 <= n <= len(self):
            raise UsageError(f"trim({n}): the cache holds {len(self)} positions")
        for layer in self.layers:
            layer.length = int(n)

    def clone(self, rows: Sequence[int] | None = None) -> KVCache:
        """A cache of its own with the same contents.

        `rows`: only these rows of the batch (integers on the host, repeats allowed).
        """
        rows = range(self.batch) if rows is None else rows
        dtype = self.layers[0].buffers[0].dtype
        twin = KVCache(self.stored, len(rows), self.capacity, dtype)
        rows = backend.upload_ids(list(rows), self.batch, "clone")
        for mine, theirs in zip(self.layers, twin.layers, strict=True):
            theirs.append(*[row[rows, :, : len(self)] for row in mine.rows])
        return twin

    def views(self, rows: slice) -> list[LayerCache]:
        """The layer caches of some sequences of the batch, on the same memory.

        What is appended to them counts here after `grow`.
        """
        layers = [copy.copy(layer) for layer in self.layers]
        for layer in layers:
            layer.buffers = [buffer[rows] for buffer in layer.buffers]
        return layers

    def grow(self, n: int) -> None:
        """Count n more positions, which views of all sequences have written."""
        for layer in self.layers:
            layer.length += n

    @property
    def nbytes(self) -> int:
        """Bytes of the positions in use."""
        return sum(row[:, :, : len(self)].nbytes for layer in self.layers for row in layer.rows)

    @property
    def capacity_nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)
