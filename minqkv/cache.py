"""The cache of a decoder: what attention would otherwise compute again for every earlier token.

A layer's cache holds the rows that `Attention.store` gives, one buffer for each: (B, heads,
capacity, width), allocated once. Designs with K = V store one row per token and head: there is no
second buffer, and `Attention.read` makes both keys and values from it.

Each sequence of a batch has its own length. The token at position p is in slot p, so a shorter
sequence leaves slots unused at the end. Its queries do not see these slots, because their positions
come after the queries. Other kinds of cache are in the folder caches/.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from . import online
from .attention import Attention, causal_mask
from .runtime import backend, shown, tracing
from .runtime.backend import Array
from .runtime.errors import UsageError
from .runtime.fields import plain, whole
from .tensor import Tensor, grad_wanted


def next_positions(
    ends: int | np.ndarray, n: int, pad: np.ndarray | None = None
) -> slice | np.ndarray:
    """Positions of the next n tokens after the first `ends`, a number or (B,): a slice, or (B, n)
    if sequences differ. The first pad[b] tokens of sequence b are padding, at position -1.
    """
    if pad is None and not isinstance(ends, np.ndarray):
        return slice(ends, ends + n)
    step = np.arange(n) - np.reshape(0 if pad is None else pad, (-1, 1))  # (B, n), or (1, n)
    return np.where(step < 0, -1, np.reshape(ends, (-1, 1)) + step)  # (B, n)


def agreed(ends: int | np.ndarray) -> int | np.ndarray:
    """One number if all sequences agree, else (B,)."""
    if isinstance(ends, np.ndarray) and (ends == ends[0]).all():
        return int(ends[0])
    return ends


class LayerCache(shown.Layer):
    """The stored rows of one layer. `stored` lists (heads, width) of each array kept per token.

    `ends` is how many positions are stored: a number if all sequences agree, else (B,). A buffer is
    (B, heads, slots, ...). Another kind of layer may have other buffers, `per_row` of them for each
    entry of `stored`: `arrays` gives their shapes, `pack` turns rows into what they hold, and
    `unpack` turns that into rows again.
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
        """New rows in the form in which they are stored: one array for each buffer."""
        return [row if row.dtype == dtype else row.astype(dtype) for row in rows]

    @staticmethod
    def unpack(stored: Sequence[Array], dtype) -> tuple[Array, ...]:
        """Stored arrays as rows again, in the dtype of the computation."""
        return tuple(
            [row if row.dtype == dtype else backend.converted(row, dtype) for row in stored]
        )

    def __len__(self) -> int:
        """The length of the longest sequence."""
        return self.ends if isinstance(self.ends, int) else int(self.ends.max())

    @property
    def lengths(self) -> np.ndarray:
        """(B,): the length of each sequence."""
        return np.full(self.buffers[0].shape[0], self.ends)

    @property
    def used(self) -> int:
        """Slots in use by the longest sequence. In a shorter one, the rest is finite but unseen."""
        return min(len(self), self.buffers[0].shape[2])

    @property
    def rows(self) -> tuple[Array, ...]:
        """What is stored, a view (B, heads, S, width) of each buffer."""
        used = self.used
        return tuple([buffer[:, :, :used] for buffer in self.buffers])

    @property
    def held(self) -> np.ndarray:
        """(B, S): the position that each slot in use holds, -1 for none."""
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

        `at` are the positions of the queries and of the new rows, as `next` gives them. Each query
        sees the keys that do not come after it, within the window of `attention`; `mask` (T, S + T)
        may hide some of them. Stored rows are constants: gradients reach only the queries.
        """
        before = self.ends
        try:
            mask = self._seen(attention, at, q.data.shape[2], mask)
            stored = self.append(*[row.data for row in rows], at=at)
            return self.read(attention, q, stored, slice(0, len(self)), mask, at)
        except BaseException:  # a call that is refused or interrupted changes nothing
            self.trim(before)
            raise

    def read(self, attention, q, stored, at, mask, asked):
        """Answer queries at positions `asked` with stored arrays at positions `at`. For a few
        queries on a long cache of another dtype, the arrays are converted one block at a time.
        """
        tracing.probe("cache.k", stored[0])
        tracing.probe("cache.r" if attention.spec.apart else "cache.v", stored[-self.per_row])
        dtype, n = q.data.dtype, stored[0].shape[2]
        shown = grad_wanted(q) or tracing.active() is not None  # no step may be skipped
        z = None if shown else backend.decode(attention, q.data, stored, at, mask, asked)
        if z is not None:
            return Tensor(z)
        one = n <= online.BLOCK or q.data.shape[2] > online.FEW or stored[0].dtype == dtype
        if one or shown:
            rows = [Tensor(row) for row in self.unpack(stored, dtype)]
            return attention.attend(q, rows, at, mask, asked)
        found = self.part(attention, q.data, stored, at, mask, asked)
        return online.answer(found, attention.sink)

    def part(self, attention, q, stored, at, mask, asked):
        """The part of the answers that comes from stored arrays; see `online.part`."""
        n, dtype = stored[0].shape[2], q.dtype
        step = n if stored[0].dtype == dtype else online.BLOCK

        def rows(piece):
            return self.unpack([array[:, :, piece] for array in stored], dtype)

        return online.in_blocks(attention, q, rows, at, mask, asked, n, step)

    def _seen(self, attention, at, n, mask):
        """What queries see, by their positions and by `mask`; None: everything."""
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
        """The mask (T, S + T) of T tokens about to be appended; `new` is their number or positions.
        True where a key does not come after the query; see `causal_mask`. If sequences differ, it
        is (B, 1, T, S + T).
        """
        at = new if isinstance(new, (slice, np.ndarray)) else self.next(new)
        keys = backend.xp.arange(max(len(self), last(at) + 1))
        queries = keys[at] if isinstance(at, slice) else backend.shared(at)  # (T,), or (B, T)
        return causal_mask(queries, keys, window, sinks)

    def append(self, *rows: Array, at: slice | np.ndarray | None = None) -> tuple[Array, ...]:
        """Store new rows, (B, heads, T, width) each; returns all stored arrays so far.

        Raises UsageError, before anything is changed, if they do not fit.
        """
        at = self.next(rows[0].shape[2]) if at is None else at
        self.check(rows, at)
        self.write(self.pack(rows, self.dtype), at)
        self.ends = self.after(at)
        return self.rows

    def check(self, rows: tuple[Array, ...], at: slice | np.ndarray) -> None:
        """Raises UsageError if new rows at positions `at` do not fit."""
        if len(rows) != len(self.stored):
            n = len(self.stored)
            kept = f"{n} array{'s' if n > 1 else ''} per token"
            raise UsageError(f"the cache stores {kept}, not {len(rows)}")
        B, n_new = self.buffers[0].shape[0], rows[0].shape[2]
        for row, (h, width) in zip(rows, self.stored, strict=True):
            if row.shape != (B, h, n_new, width):
                kept = f"{B} x {h} heads of {width} numbers"
                raise UsageError(f"the cache stores {kept} per position; {row.shape} does not fit")
        pad = None if isinstance(at, slice) else (at < 0).sum(axis=1)
        due = self.next(n_new, pad)
        if at != due if isinstance(at, slice) and isinstance(due, slice) else (at != due).any():
            raise UsageError(f"the next positions of this cache are {due}, not {at}")
        end = last(at) + 1
        if end > self.capacity:
            why = f"the cache holds {self.capacity} positions; {end} are needed"
            raise UsageError(why, "ask for a larger capacity")

    def write(self, rows: tuple[Array, ...], slots: slice | np.ndarray) -> None:
        """Write packed rows to these slots, a slice or (B, T); a row with slot -1 is left out."""
        if isinstance(slots, slice):
            for row, buffer in zip(rows, self.buffers, strict=True):
                buffer[:, :, slots] = row
            return
        fresh = slice(self.used, max(self.used, int(slots.max()) + 1))
        b, t = np.nonzero(slots >= 0)
        b, t, slot = (backend.shared(index) for index in (b, t, slots[b, t]))  # (N,) each
        for row, buffer in zip(rows, self.buffers, strict=True):
            buffer[:, :, fresh] = 0  # weights of 0 hide what is finite, but not NaN
            buffer[b, :, slot] = row[b, :, t]  # (N, heads, width)

    def after(self, at: slice | np.ndarray) -> int | np.ndarray:
        """The value of `ends` after tokens at these positions have been appended."""
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
        """Become a copy of some sequences of another layer; `rows` are integers on the host."""
        ids, used = backend.shared(rows), other.used
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[:, :, :used] = theirs[ids, :, :used]
        self.ends = agreed(other.lengths[rows])

    @property
    def slots(self) -> np.ndarray:
        """(B,): the number of slots that each sequence uses."""
        return np.minimum(self.lengths, self.buffers[0].shape[2])

    @property
    def row_nbytes(self) -> np.ndarray:
        """(B,): bytes of the slots that each sequence uses."""
        return self.slots * sum(buffer[0, :, :1].nbytes for buffer in self.buffers)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots in use, counting each sequence by its own length."""
        return int(self.row_nbytes.sum())

    @property
    def capacity_nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self.buffers)


def chosen(rows: Sequence[int] | None, batch: int) -> np.ndarray:
    """Sequences of a batch, (n,), all of them unless given. Raises UsageError for others."""
    rows = np.asarray(range(batch) if rows is None else rows)
    backend.upload_ids(rows, batch, "clone")
    if rows.ndim != 1:
        raise UsageError(f"clone: sequences are a list of numbers, not {rows.tolist()}")
    return rows


def last(at: slice | np.ndarray) -> int:
    """The largest of these positions."""
    return at.stop - 1 if isinstance(at, slice) else int(at.max())


DTYPES = "float16", "float32", "float64"  # what can hold keys and values


class KVCache(shown.Cache):
    """The caches of all layers, for `batch` sequences of up to `capacity` positions.

    `stored` has an entry for each layer, its `VariantSpec.stored`: (heads, width) of each array
    that is kept per token. Bytes: positions · Σ heads · width · itemsize (paper, section 4), over
    all sequences and layers: `nbytes` for the positions in use, `capacity_nbytes` for what is
    allocated.

    Another kind of cache is a class derived from this one: `layer_kind` is the class of its layers,
    `takes` names the fields of a model's configuration that its constructor needs, and
    `bytes_per_token` is its formula. `shareable` says whether several cores may each take some of
    the sequences (`views`).
    """

    layer_kind, takes, shareable = LayerCache, (), True

    def __init__(
        self, stored: list[list[tuple]], batch: int, capacity: int, dtype="float32", **options
    ):
        batch, capacity = plain(batch), plain(capacity)
        sizes = [batch, capacity, *(plain(n) for layer in stored for shape in layer for n in shape)]
        if not stored or not all(stored) or any(type(n) is not int or n < 1 for n in sizes):
            what = f"layers of (heads, width) {list(stored)}, batch {batch}, {capacity} positions"
            raise UsageError(f"the sizes of a cache must be at least 1, and whole numbers: {what}")
        name = getattr(dtype, "__name__", str(dtype))
        if name not in DTYPES:
            why = f"a cache stores floating-point numbers, not {name}"
            raise UsageError(why, ", ".join(DTYPES))
        self.stored, self.batch, self.capacity = tuple(stored), batch, capacity
        self.dtype = np.dtype(name)
        self.options = {option: plain(value) for option, value in options.items()}
        sizes = [(batch, layer, capacity, self.dtype) for layer in stored]
        self.layers = [self.layer_kind(*size, **self.options) for size in sizes]

    def __len__(self) -> int:
        """The length of the longest sequence. The last layer is the last to grow."""
        return len(self.layers[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(B,): the length of each sequence."""
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
        """Keep the first n positions: one number for all sequences, or one for each; buffers stay.

        Raises UsageError, before anything is changed, if a sequence has fewer positions.
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
        """A separate cache with the same contents.

        `rows`: only these sequences of the batch (integers on the host, repeats allowed).
        """
        rows = chosen(rows, self.batch)
        twin = type(self)(self.stored, len(rows), self.capacity, self.dtype, **self.options)
        for mine, theirs in zip(self.layers, twin.layers, strict=True):
            theirs.take(mine, rows)
        return twin

    def once(self, n: int) -> KVCache:
        """A separate cache of the first of each n sequences, to read what all n will continue."""
        return self.clone(range(0, self.batch, n))

    def spread(self, once: KVCache) -> None:
        """Fill n sequences each with what one sequence of the cache `once` holds."""
        rows = np.arange(self.batch) // (self.batch // once.batch)
        for mine, theirs in zip(self.layers, once.layers, strict=True):
            mine.take(theirs, rows)

    def views(self, rows: slice) -> list[LayerCache]:
        """The layers of some sequences of the batch, which share its memory.

        All sequences must have the same length. Call `grow` to count what the views have appended.
        """
        layers = [copy.copy(layer) for layer in self.layers]
        for layer in layers:
            layer.buffers = [buffer[rows] for buffer in layer.buffers]
        return layers

    def grow(self, n: int) -> None:
        """Count n more positions, after views have written them for all sequences."""
        n = whole("new positions", n, most=self.capacity - len(self))
        for layer in self.layers:
            layer.ends += n

    @staticmethod
    def bytes_per_token(stored: list[tuple], dtype) -> int:
        """Bytes per token in one layer: Σ heads · width · itemsize (paper, section 4)."""
        return sum(heads * width for heads, width in stored) * np.dtype(dtype).itemsize

    @property
    def row_nbytes(self) -> np.ndarray:
        """(B,): bytes of the positions that each sequence uses."""
        return sum(layer.row_nbytes for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions in use."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def capacity_nbytes(self) -> int:
        """Bytes allocated."""
        return sum(layer.capacity_nbytes for layer in self.layers)
