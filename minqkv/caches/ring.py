"""A cache that does not grow: the first few tokens, and a ring of the last ones.

With a window w and s sinks, a token sees itself, the w - 1 tokens before it, and the first s. Only
these are kept: position p < s is in slot p, and position p ≥ s in slot s + (p - s) mod w, where it
replaces position p - w. The layer records which position each slot holds.
"""

from __future__ import annotations

import numpy as np

from ..attention import as_array, causal_mask, check_window, on_device
from ..cache import KVCache, LayerCache
from ..runtime import backend
from ..runtime.errors import UsageError


class RingLayer(LayerCache):
    """The rows of one layer: sinks + window of each sequence, however many have been read.

    `at` (B, slots) are the positions that the slots hold, -1 for none. `lost` is what the last
    append replaced, if it was of several tokens, so that `trim` can undo it.
    """

    def __init__(self, batch, stored, capacity, dtype="float32", window=None, sinks=0):
        window, sinks = check_window(window, sinks)
        if window is None:
            raise UsageError("a ring needs a window", "new_cache(kind=RingCache, window=256)")
        slots = min(capacity, sinks + window)
        super().__init__(batch, stored, slots, dtype)
        self.capacity, self.window, self.sinks = capacity, window, sinks
        self.at, self.lost = np.full((batch, slots), -1), None

    @property
    def positions(self) -> np.ndarray:
        """The positions in the slots in use: (S,) if all sequences agree, else (B, S)."""
        return self.at[0, : self.used] if isinstance(self.ends, int) else self.at[:, : self.used]

    @property
    def held(self):
        """(B, S): the position that each slot in use holds, -1 for none."""
        return self.at[:, : self.used]

    def attend(self, attention, q, rows, at, mask=None):
        """Like LayerCache.attend. A single token is stored first, because what it replaces is
        outside its window. Several tokens are stored last: the first of them may still see what the
        last of them replace.
        """
        if mask is not None:
            raise UsageError("a ring makes its own mask")
        before, arrays, single = self.ends, [row.data for row in rows], q.data.shape[2] == 1
        try:
            if single:
                stored, keys = self.append(*arrays, at=at), self.positions
            else:
                self.check(arrays, at)
                stored, keys = self._beside(arrays), beside(self.positions, at)
            all_seen = single and isinstance(at, slice)
            mask = None if all_seen else self._mask(at, keys)
            z = self.read(attention, q, stored, keys, mask, at)
            if not single:
                self.append(*arrays, at=at)
            return z
        except BaseException:  # a call that is refused or interrupted changes nothing
            self.trim(before)
            raise

    def mask(self, new):
        """(T, S + T) for new tokens beside the slots in use; see LayerCache."""
        at = new if isinstance(new, (slice, np.ndarray)) else self.next(new)
        return self._mask(at, beside(self.positions, at))

    def _mask(self, at, keys):
        queries, keys = on_device(at), backend.shared(keys)
        return causal_mask(queries, keys, self.window, self.sinks)

    def _beside(self, arrays):
        """Stored rows, and new ones (B, h, T, d) as they would be stored: (B, h, S + T, d)."""
        pairs = zip(self.rows, self.pack(arrays, self.dtype), strict=True)
        return tuple(backend.xp.concatenate(pair, axis=2) for pair in pairs)

    def write(self, rows, at):
        """Write the rows of tokens at these positions to their slots."""
        if isinstance(at, slice) and at.stop - at.start == 1:
            slot = self._slots(at.start)
            super().write(rows, slice(slot, slot + 1))
            self.at[:, slot], self.lost = at.start, None
            return
        at = np.broadcast_to(as_array(at), (len(self.at), rows[0].shape[2]))  # (B, T)
        # If there are more tokens than slots, only sinks and the last tokens are kept.
        passed = (at >= self.sinks) & (at <= at.max(axis=1, keepdims=True) - self.window)
        slots = np.where(passed, -1, self._slots(at))  # (B, T)
        b, t = (slots >= 0).nonzero()
        slot = slots[b, t]  # (N,)
        row, place = backend.shared(b), backend.shared(slot)
        replaced = [buffer[row, :, place] for buffer in self.buffers]  # (N, heads, width)
        self.lost = b, slot, at[b, t], self.at[b, slot], replaced
        super().write(rows, slots)
        self.at[b, slot] = at[b, t]

    def _slots(self, at):
        """The slot of each position: every full turn of the ring subtracts `window`."""
        return at - np.maximum(at - self.sinks, 0) // self.window * self.window

    def trim(self, n):
        """Keep the first n positions. Raises UsageError if the next token would need positions that
        the ring has overwritten. The last append can always be undone, but not in a clone.
        """
        ends = np.full(len(self.at), n)  # (B,)
        at, back = self.at.copy(), None
        if self.lost is not None:
            b, slot, new, before, replaced = self.lost
            back = new >= ends[b]  # (N,) tokens to remove: what they replaced comes back
            at[b[back], slot[back]] = before[back]
        at[at >= ends[:, None]] = -1
        first = np.maximum(ends - self.window + 1, self.sinks)  # that the next token needs
        needed = np.minimum(ends, self.sinks) + np.maximum(ends - first, 0)  # (B,)
        held = ((at >= first[:, None]) | (at >= 0) & (at < self.sinks)).sum(axis=1)  # (B,)
        if (held < needed).any():
            why = f"trim({n}): the ring keeps a window of {self.window} positions"
            raise UsageError(f"{why}, and the next token would need some that are overwritten")
        if back is not None:
            back &= before >= 0
            row, place, i = (backend.upload(a) for a in (b[back], slot[back], back.nonzero()[0]))
            for buffer, old in zip(self.buffers, replaced, strict=True):
                buffer[row, :, place] = old[i]  # (N, heads, width)
        self.at, self.ends = at, n

    def restore(self, held):
        """See LayerCache. Raises UsageError if a position is in a wrong slot, or if a position that
        the next token needs is missing.
        """
        wrong = (held >= 0) & (self._slots(held) != np.arange(self.used))
        if held.shape != (len(self.at), self.used) or wrong.any() or held.min() < -1:
            raise UsageError("positions that this ring cannot hold")
        if (held >= self.lengths[:, None]).any():
            raise UsageError("positions that have not been read")
        self.at[:, : self.used] = held
        self.trim(self.ends)

    def take(self, other, rows):
        """Become a copy of some sequences of another layer, without its `lost`."""
        super().take(other, rows)
        self.at = other.at[rows]


class RingCache(KVCache):
    """A cache of `sinks` + `window` positions for each sequence, for texts of up to `capacity`.

    `window` and `sinks` are the model's unless given. A model without a window can use a ring too,
    if a window is given. `trim` can undo the last append, and go further back as long as nothing
    that is needed has been overwritten.
    """

    layer_kind, takes = RingLayer, ("window", "sinks")
    shareable = False  # what a step replaced must come back if the step fails

    @property
    def positions(self):
        """Absolute positions of stored keys: (S,), or (B, S) if sequences differ; -1 for none."""
        return backend.upload(self.layers[-1].positions)


def beside(old, new):
    """Positions (S,) or (B, S), and a slice or (B, T) -> (S + T,), or (B, S + T)."""
    new = as_array(new)
    if old.ndim != new.ndim:
        B = max(len(at) for at in (old, new) if at.ndim == 2)
        old, new = (np.broadcast_to(at, (B, at.shape[-1])) for at in (old, new))
    return np.concatenate([old, new], axis=-1)
