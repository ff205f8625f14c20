"""A cache of several continuations of one text, which is stored once.

The prefix is copied when the branches begin, so later changes of the original cache do not affect
them. The prefix itself never changes, so all branches and their clones read the same arrays. Each
branch stores only its own tail.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from .. import online
from ..attention import as_array, causal_mask
from ..cache import KVCache, LayerCache, agreed, chosen
from ..runtime import backend
from ..runtime.errors import UsageError
from ..runtime.fields import plain, whole
from .ring import RingCache


class BranchLayer(LayerCache):
    """The rows of one layer: `prefix`, those of B prompts, and tails of n branches for each.

    Branch i of prompt b is sequence b·n + i. Slot j of its tail holds position start + j, where
    `start` (B·n,) is the length of its prompt.
    """

    def __init__(self, prefix: LayerCache, n: int, stored: list[tuple], capacity: int):
        self.prefix, self.start = prefix, np.repeat(prefix.lengths, n)
        self.arrays, self.pack, self.unpack = prefix.arrays, prefix.pack, prefix.unpack
        tail = max(1, capacity - int(self.start.min()))
        super().__init__(len(self.start), stored, tail, prefix.dtype)
        self.capacity, self.ends = capacity, agreed(self.start)

    @property
    def used(self):
        """Slots in use of the longest tail."""
        return int((self.lengths - self.start).max())

    @property
    def held(self):
        """(B·n, S): the position that each slot in use holds, -1 for none."""
        at = self.start[:, None] + np.arange(self.used)  # (B·n, S)
        return np.where(at < self.lengths[:, None], at, -1)

    def attend(self, attention, q, rows, at, mask=None):
        """Like LayerCache.attend, without gradients. The queries of all branches of a prompt read
        its prefix in one product, as if they were more queries of one sequence.
        """
        if mask is not None:
            raise UsageError("branches make their own mask")
        before = self.ends
        try:
            stored = self.append(*[row.data for row in rows], at=at)
            at = np.broadcast_to(as_array(at), (len(self.start), q.data.shape[2]))  # (B·n, T)
            seen = _mask(attention, at, self.held)
            own = self.part(attention, q.data, stored, self.held, seen, at)
            if not len(self.prefix):
                return online.answer(own, attention.sink)
            found = online.merge(self._shared(attention, q.data, at), own)
            return online.answer(found, attention.sink)
        except BaseException:  # a call that is refused or interrupted changes nothing
            self.trim(before)
            raise

    def _shared(self, attention, q, at):
        """The part of the answers to queries (B·n, H, T, d) that comes from the prefix."""
        (N, H, T, d), B = q.shape, len(self.prefix.lengths)
        together = q.reshape(B, -1, H, T, d).swapaxes(1, 2).reshape(B, H, -1, d)  # (B, H, n·T, d)
        keys = self.prefix.held  # (B, S)
        at = at.reshape(B, -1)  # (B, n·T)
        mask = _mask(attention, at, keys)  # (B, 1, n·T, S)
        found = self.prefix.part(attention, together, self.prefix.rows, keys, mask, at)
        return tuple(
            array.reshape(B, H, -1, T, array.shape[3]).swapaxes(1, 2).reshape(N, H, T, -1)
            for array in found
        )

    def write(self, rows, at):
        """Write the rows of tokens at these positions to the tails."""
        at = np.broadcast_to(as_array(at), (len(self.start), rows[0].shape[2]))  # (B·n, T)
        super().write(rows, np.where(at < 0, -1, at - self.start[:, None]))

    @property
    def slots(self):
        """(B·n,): slots in use of each tail; those of a prefix are added to its first branch."""
        slots = self.lengths - self.start
        slots[:: len(slots) // len(self.prefix.lengths)] += self.prefix.slots
        return slots

    @property
    def capacity_nbytes(self):
        """Bytes allocated, counting the prefix once."""
        return self.prefix.capacity_nbytes + super().capacity_nbytes


def _mask(attention, at, keys):
    at, keys = backend.shared(at), backend.shared(keys)
    return causal_mask(at, keys, attention.window, attention.sinks)


class BranchCache(KVCache):
    """n branches of each sequence of `cache`, with `capacity` positions (its own unless given).

    It counts the bytes of the prefix once, and the bytes of the tails. `cache` may be plain or
    int8, but not a ring, whose positions are overwritten. Raises UsageError if one of its sequences
    is longer than `capacity`. Branches can be trimmed back to the prefix, but no further.

    As long as no branch has begun, the prefix can be continued: `once` is a cache of the prefixes
    alone. After more has been read into it, `spread` lets the branches begin there.
    """

    shareable = False  # branches of one prompt are read together

    def __init__(self, cache: KVCache, n: int, capacity: int | None = None):
        if isinstance(cache, (RingCache, BranchCache)):
            raise UsageError(f"a {type(cache).__name__} cannot have branches", "cache.clone(rows)")
        n, capacity = whole("branches of a sequence", n, 1), plain(capacity)
        if capacity is not None and capacity < len(cache):
            raise UsageError(f"a capacity of {capacity} is less than the prefix of {len(cache)}")
        self.kind, self.bytes_per_token = type(cache), cache.bytes_per_token
        self.stored, self.batch, self.dtype = cache.stored, cache.batch * n, cache.dtype
        self.capacity, self.options = capacity or cache.capacity, cache.options
        sizes = [(cache.batch, stored, len(cache), self.dtype) for stored in self.stored]
        prefixes = [cache.layer_kind(*size, **self.options) for size in sizes]
        for mine, theirs in zip(prefixes, cache.layers, strict=True):
            mine.take(theirs, np.arange(cache.batch))
        self.layers = self._layers(prefixes, n)

    def _layers(self, prefixes, n):
        pairs = zip(prefixes, self.stored, strict=True)
        return [BranchLayer(prefix, n, stored, self.capacity) for prefix, stored in pairs]

    def trim(self, n):
        """See KVCache. Raises UsageError below the prefix."""
        start, ends = self.layers[-1].start, np.asarray(n)
        if ends.dtype.kind in "iu" and ends.shape in ((), start.shape) and (ends < start).any():
            why = f"trim({n}): branches begin after a shared prefix of {agreed(start)} positions"
            raise UsageError(why, "the prefix cannot be trimmed")
        super().trim(n)

    def clone(self, rows: Sequence[int] | None = None):
        """See KVCache; the prefix stays shared. With several prompts, `rows` must be all rows."""
        rows = chosen(rows, self.batch)
        prefixes = [layer.prefix for layer in self.layers]
        prompts = len(prefixes[0].lengths)
        if not len(rows) or (prompts > 1 and not np.array_equal(rows, np.arange(self.batch))):
            why = f"clone({rows.tolist()}): branches of {prompts} prompts are cloned all together"
            raise UsageError(why)
        twin = copy.copy(self)
        twin.batch, twin.layers = len(rows), twin._layers(prefixes, len(rows) // prompts)
        for mine, theirs in zip(self.layers, twin.layers, strict=True):
            theirs.take(mine, rows)
        return twin

    def once(self, n):
        """See KVCache. Raises UsageError if branches have begun, or are not n of each prefix."""
        rows = np.arange(len(self.layers[0].prefix.lengths))
        if self.layers[-1].used or n * len(rows) != self.batch:
            why = f"{n} branches of each prefix: it can be continued only before they begin"
            raise UsageError(why)
        whole = self.kind(self.stored, len(rows), self.capacity, self.dtype, **self.options)
        for mine, theirs in zip(whole.layers, self.layers, strict=True):
            mine.take(theirs.prefix, rows)
        return whole

    def spread(self, once):
        """See KVCache. The branches begin after what `once` holds."""
        self.layers = BranchCache(once, self.batch // once.batch, self.capacity).layers


def branches(cache: KVCache, n: int) -> KVCache:
    """A cache for n continuations of each sequence: branches if the kind of cache can have them,
    else copies, as of a ring or a state, which change what they have stored.
    """
    if n == 1:
        return cache
    if cache.shareable or isinstance(cache, BranchCache):
        return BranchCache(cache, n)
    return cache.clone(np.repeat(np.arange(cache.batch), n))
