"""The cache of a decoder: what attention would otherwise compute again for every earlier token.

A layer's cache holds the rows that `Attention.store` gives, one buffer for each: (B, heads,
capacity, width), allocated once. Designs with K = V store one row per token and head: there is no
second buffer, and `Attention.read` makes both keys and values from it.

Every sequence of a batch has a length of its own. A token at position p lies in slot p, so shorter
sequences leave slots unused at the end, and no query sees them: their positions are ahead of it.
Other kinds of cache are in the folder caches/.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from . import blocks
from .attention import Attention, causal_mask
from .runtime import backend, tracing
from .runtime.backend import Array
from .runtime.errors import UsageError
from .tensor import Tensor, grad_wanted


def next_positions(
    ends: int | np.ndarray, n: int, pad: np.ndarray | None = None
) -> slice | np.ndarray:
    """Positions of the n tokens after `ends`, a number or (B,): a slice, or (B, n) where rows
    differ. The first pad[b] tokens of row b are padding, at -1.
    """
    if pad is None and not isinstance(ends, np.ndarray):
        return slice(ends, ends + n)
    step = np.arange(n) - np.reshape(0 if pad is None else pad, (-1, 1))  # (B, n), or (1, n)
    return np.where(step < 0, -1, np.reshape(ends, (-1, 1)) + step)  # (B, n)


def agreed(ends: int | np.ndarray) -> int | np.ndarray:
    """One number where all rows agree, else (B,)."""
    if isinstance(ends, np.ndarray) and (ends == ends[0]).all():
        return int(ends[0])
    return ends


class LayerCache:
    """The rows of one layer. `stored` is (heads, width) of each array kept of a token.

    `ends` is how many positions are stored: a number where all sequences agree, else (B,). What all
    methods ask of a buffer is its layout, (B, heads, slots, ...). So another kind of layer may hold
    other buffers: `arrays` names them, `per_row` of them for each array of `stored`, `pack` makes
    what they hold from rows, and `unpack` rows from that.
    """

    per_row = 1

    def __init__(self, batch: int, stored: list[tuple], capacity: int, dtype="float32"):
        self.buffers = [
            backend.current.empty((batch, heads, capacity, width), kept)
            for heads, width, kept in self.arrays(stored, dtype)
        ]
        self.stored, self.dtype, self.capacity, self.ends = stored, dtype, capacity, 0

    @staticmethod
    def arrays(stored: list[tuple], dtype) -> list[tuple]:
        """(heads, width, dtype) of each buffer."""
        return [(heads, width, dtype) for heads, width in stored]

    @staticmethod
    def pack(rows: Sequence[Array], dtype) -> Sequence[Array]:
        """New rows as they are stored, an array for each buffer."""
        return [row if row.dtype == dtype else row.astype(dtype) for row in rows]

    @staticmethod
    def unpack(stored: Sequence[Array], dtype) -> tuple[Array, ...]:
        """What is stored as rows, in the dtype of the computation."""
        return tuple(
            [row if row.dtype == dtype else backend.converted(row, dtype) for row in stored]
        )

    def __len__(self) -> int:
        """Positions of the longest sequence."""
        return self.ends if isinstance(self.ends, int) else int(self.ends.max())

    @property
    def lengths(self) -> np.ndarray:
        """(B,) positions of each sequence."""
        return np.full(self.buffers[0].shape[0], self.ends)

    @property
    def used(self) -> int:
        """Slots in use; what a shorter sequence has there is never seen, but finite."""
        return min(len(self), self.buffers[0].shape[2])

    @property
    def rows(self) -> tuple[Array, ...]:
        """What is stored, a view (B, heads, S, width) of each buffer."""
        used = self.used
        return tuple([buffer[:, :, :used] for buffer in self.buffers])

    @property
    def held(self) -> np.ndarray:
        """(B, S) the positions that the slots in use hold, -1 for none."""
        slots = np.arange(self.used)
        return np.where(slots < self.lengths[:, None], slots, -1)

    def next(self, n: int, pad: np.ndarray | None = None) -> slice | np.ndarray:
        """Positions of n tokens about to be appended; see `next_positions`."""
        return next_positions(self.ends, n, pad)

    def attend(
        self,
        attention: Attention,
        q: Tensor,
        rows: tuple[Tensor, ...],
        at: slice | np.ndarray,
        mask: Array | None = None,
    ) -> Tensor:
        """Append new rows, then answer queries q (B, H, T, d) with all that is stored.

        `at` are the positions of the queries and of the new rows, `next` of this cache. Each query
        sees the keys that are not ahead of it, within the window of `attention`; of these, `mask`
        (T, S + T) may hide some. What is stored is a constant: gradients reach the queries, not the
        rows.
        """
        before = self.ends
        try:
            mask = self._seen(attention, at, q.data.shape[2], mask)
            stored = self.append(*[row.data for row in rows], at=at)
            return self.read(attention, q, stored, slice(0, len(self)), mask)
        except BaseException:  # what is refused, or interrupted, changes nothing
            self.trim(before)
            raise

    def read(self, attention, q, stored, at, mask):
        """Answer queries with stored arrays at positions `at`, converted a block at a time where
        one conversion of all of them would be for a few queries only.
        """
        tracing.probe("cache.k", stored[0])
        tracing.probe("cache.v", stored[-self.per_row])
        dtype, n = q.data.dtype, stored[0].shape[2]
        one = n <= blocks.BLOCK or q.data.shape[2] > blocks.FEW or stored[0].dtype == dtype
        if one or grad_wanted(q) or tracing.active is not None:
            rows = [Tensor(row) for row in self.unpack(stored, dtype)]
            return attention.attend(q, rows, at, mask)
        return blocks.answer(self.part(attention, q.data, stored, at, mask))

    def part(self, attention, q, stored, at, mask):
        """What queries find in stored arrays; see `blocks.part`."""
        n, dtype = stored[0].shape[2], q.dtype
        step = n if stored[0].dtype == dtype else blocks.BLOCK

        def rows(piece):
            return self.unpack([array[:, :, piece] for array in stored], dtype)

        return blocks.in_blocks(attention, q, rows, at, mask, n, step)

    def _seen(self, attention, at, n, mask):
        """The mask of positions, and of these only what `mask` shows; None: everything is seen."""
        end = max(len(self), last(at) + 1)
        if mask is not None and (mask.shape != (n, end) or mask.dtype != bool):
            raise UsageError(f"attention: a mask is boolean, of shape {(n, end)}")
        window = attention.window
        if n == 1 and isinstance(at, slice) and (window is None or end <= window):
            return mask  # a single token sees everything
        seen = self.mask(at, window, attention.sinks)
        return seen if mask is None else seen & mask

    def mask(
        self, new: int | slice | np.ndarray, window: int | None = None, sinks: int = 0
    ) -> Array:
        """(T, S + T), for T new tokens about to be appended, a number or their positions: True
        where a key is not ahead; see `causal_mask`. Where rows differ, (B, 1, T, S + T).
        """
        at = new if isinstance(new, (slice, np.ndarray)) else self.next(new)
        keys = backend.xp.arange(max(len(self), last(at) + 1))
        queries = keys[at] if isinstance(at, slice) else backend.upload(at)  # (T,), or (B, T)
        return causal_mask(queries, keys, window, sinks)

    def append(self, *rows: Array, at: slice | np.ndarray | None = None) -> tuple[Array, ...]:
        """Store new rows, (B, heads, T, width) each; returns `rows` so far.

        Raises UsageError, before anything is changed, when they do not fit.
        """
        at = self.next(rows[0].shape[2]) if at is None else at
        self.check(rows, last(at) + 1)
        self.write(self.pack(rows, self.dtype), at)
        self.ends = self.after(at)
        return self.rows

    def check(self, rows: tuple[Array, ...], end: int) -> None:
        """Refuse new rows, the last at position end - 1, that do not fit. Raises UsageError."""
        if len(rows) != len(self.stored):
            n = len(self.stored)
            kept = f"{n} array{'s' if n > 1 else ''} per token"
            raise UsageError(f"the cache stores {kept}, not {len(rows)}")
        B, n_new = self.buffers[0].shape[0], rows[0].shape[2]
        for row, (h, width) in zip(rows, self.stored, strict=True):
            if row.shape != (B, h, n_new, width):
                kept = f"{B} x {h} heads of {width} numbers"
                raise UsageError(f"the cache stores {kept} per position; {row.shape} does not fit")
        if end > self.capacity:
            why = f"the cache holds {self.capacity} positions; {end} are needed"
            raise UsageError(why, "ask for a larger capacity")

    def write(self, rows: tuple[Array, ...], slots: slice | np.ndarray) -> None:
        """Put packed rows into these slots, a slice or (B, T); where a slot is -1, nothing."""
        if isinstance(slots, slice):
            for row, buffer in zip(rows, self.buffers, strict=True):
                buffer[:, :, slots] = row
            return
        fresh = slice(self.used, max(self.used, int(slots.max()) + 1))
        b, t = np.nonzero(slots >= 0)
        b, t, slot = (backend.upload(index) for index in (b, t, slots[b, t]))  # (N,) each
        for row, buffer in zip(rows, self.buffers, strict=True):
            buffer[:, :, fresh] = 0  # weights of 0 hide what is finite, but not NaN
            buffer[b, :, slot] = row[b, :, t]  # (N, heads, width)

    def after(self, at: slice | np.ndarray) -> int | np.ndarray:
        """`ends` when tokens at these positions have been appended."""
        if isinstance(at, slice):
            return at.stop
        return agreed(self.ends + (at >= 0).sum(axis=1))  # (B,)

    def trim(self, n: int | np.ndarray) -> None:
        """Keep the first n positions, a number or one for each sequence (B,)."""
        self.ends = n

    def restore(self, held: np.ndarray) -> None:
        """Let the slots in use hold these positions (B, S), as in a file. Raises UsageError where
        they cannot.
        """
        if not np.array_equal(held, self.held):
            raise UsageError("positions that this cache cannot hold")

    def take(self, other: LayerCache, rows: np.ndarray) -> None:
        """Become a copy of some rows of another cache's batch, integers on the host."""
        ids, used = backend.upload(rows), other.used
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[:, :, :used] = theirs[ids, :, :used]
        self.ends = agreed(other.lengths[rows])

    @property
    def slots(self) -> np.ndarray:
        """(B,) slots in use of each sequence, by its own length."""
        return np.minimum(self.lengths, self.buffers[0].shape[2])

    @property
    def row_nbytes(self) -> np.ndarray:
        """(B,) bytes of the slots in use of each sequence."""
        return self.slots * sum(buffer[0, :, :1].nbytes for buffer in self.buffers)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots in use."""
        return int(self.row_nbytes.sum())

    @property
    def capacity_nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self.buffers)


def last(at: slice | np.ndarray) -> int:
    """The largest of these positions."""
    return at.stop - 1 if isinstance(at, slice) else int(at.max())


class KVCache:
    """The caches of all layers, for `batch` sequences of up to `capacity` positions.

    `stored` has an entry for each layer, its `VariantSpec.stored`: (heads, width) of each array
    that is kept of a token. Bytes: positions · Σ heads · width · itemsize (paper, section 4), over
    all sequences and layers: `nbytes` for the positions in use, `capacity_nbytes` for what is
    allocated.

    Another kind of cache is a class derived from this one: `layer_kind` is the class of its layers,
    `takes` names what its constructor wants to know of a model's configuration, and
    `bytes_per_token` is its formula. `shareable` says that sequences may be shared out to several
    cores (`views`).
    """

    layer_kind, takes, shareable = LayerCache, (), True

    def __init__(
        self, stored: list[list[tuple]], batch: int, capacity: int, dtype="float32", **options
    ):
        sizes = [size for layer in stored for shape in layer for size in shape]
        if not all(stored) or min([len(stored), batch, capacity, *sizes]) < 1:
            what = f"layers of (heads, width) {list(stored)}, batch {batch}, {capacity} positions"
            raise UsageError(f"the sizes of a cache must be at least 1: {what}")
        if np.dtype(dtype).kind != "f":
            why = f"a cache stores floating-point numbers, not {np.dtype(dtype)}"
            raise UsageError(why, "float16, float32 or float64")
        self.stored, self.batch, self.capacity = tuple(stored), batch, capacity
        self.dtype, self.options = np.dtype(dtype), options
        sizes = [(batch, layer, capacity, dtype) for layer in stored]
        self.layers = [self.layer_kind(*size, **options) for size in sizes]

    def __len__(self) -> int:
        """Positions of the longest sequence. The last layer is the last to grow."""
        return len(self.layers[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(B,) positions of each sequence."""
        return self.layers[-1].lengths

    @property
    def positions(self) -> Array:
        """(S,) absolute positions of the stored keys."""
        return backend.xp.arange(len(self))

    def next(self, n: int, pad: np.ndarray | None = None) -> slice | np.ndarray:
        """Positions of n tokens about to be read; see `next_positions`."""
        return self.layers[-1].next(n, pad)

    def mask(self, n_new: int) -> Array:
        """(n_new, S + n_new), for `n_new` tokens about to be appended; see LayerCache."""
        return self.layers[0].mask(n_new)

    def trim(self, n: int | Sequence[int]) -> None:
        """Keep the first n positions, of all sequences or one number for each; the buffers stay.

        Raises UsageError, before anything is changed, where there are not as many.
        """
        ends, lengths = np.asarray(n), self.lengths
        whole = ends.dtype.kind in "iu" and ends.shape in ((), lengths.shape)
        if not whole or (ends < 0).any() or (ends > lengths).any():
            there = lengths.max() if isinstance(self.layers[-1].ends, int) else lengths.tolist()
            raise UsageError(f"trim({n}): the cache holds {there} positions")
        ends = agreed(ends.astype(np.int64)) if ends.ndim else int(ends)
        for layer in self.layers:
            layer.trim(ends)

    def clone(self, rows: Sequence[int] | None = None) -> KVCache:
        """A cache of its own with the same contents.

        `rows`: only these rows of the batch (integers on the host, repeats allowed).
        """
        rows = np.asarray(range(self.batch) if rows is None else rows)
        twin = type(self)(self.stored, len(rows), self.capacity, self.dtype, **self.options)
        backend.upload_ids(rows, self.batch, "clone")
        for mine, theirs in zip(self.layers, twin.layers, strict=True):
            theirs.take(mine, rows)
        return twin

    def once(self, n: int) -> KVCache:
        """The first of each n sequences, a cache of its own: what all n continue is read here."""
        return self.clone(range(0, self.batch, n))

    def spread(self, once: KVCache) -> None:
        """Let n sequences each hold what one sequence of the cache `once` holds."""
        rows = np.arange(self.batch) // (self.batch // once.batch)
        for mine, theirs in zip(self.layers, once.layers, strict=True):
            mine.take(theirs, rows)

    def views(self, rows: slice) -> list[LayerCache]:
        """The layer caches of some sequences of the batch, on the same memory.

        For sequences of equal length. What is appended counts here after `grow`.
        """
        layers = [copy.copy(layer) for layer in self.layers]
        for layer in layers:
            layer.buffers = [buffer[rows] for buffer in layer.buffers]
        return layers

    def grow(self, n: int) -> None:
        """Count n more positions, which views of all sequences have written."""
        for layer in self.layers:
            layer.ends += n

    @staticmethod
    def bytes_per_token(stored: list[tuple], dtype) -> int:
        """What a token takes in a layer: Σ heads · width · itemsize (paper, section 4)."""
        return sum(heads * width for heads, width in stored) * np.dtype(dtype).itemsize

    @property
    def row_nbytes(self) -> np.ndarray:
        """(B,) bytes of the positions in use of each sequence."""
        return sum(layer.row_nbytes for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions in use."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def capacity_nbytes(self) -> int:
        """Bytes allocated."""
        return sum(layer.capacity_nbytes for layer in self.layers)
