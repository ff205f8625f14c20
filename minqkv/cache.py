"""The cache of a decoder: what attention would otherwise compute again for every earlier token.

One buffer per layer and stored stream, laid out (B, h, capacity, d_h) and allocated once. Variants with K = V store one
stream: there is no second buffer, and what is returned as values is the very array returned as keys. What is stored does
not change, it is only cut off by `trim`: processes that read a long cache together (reading.py) rely on that.
"""

from . import backend
from .errors import UsageError
from .positions import causal_mask


class KVCache:
    """Keys, and values where they are a stream of their own, of `capacity` positions for `batch` sequences.

    Bytes: n_layer · streams · batch · heads · positions · d_head · itemsize (paper, section 4): `nbytes` for the
    positions in use, `capacity_nbytes` for what is allocated. Both are summed over the arrays themselves.
    """

    def __init__(self, n_layer, batch, heads, capacity, d_head, streams=2, dtype="float32"):
        shape = (batch, heads, capacity, d_head)
        if streams not in (1, 2) or min(shape) < 1:
            raise UsageError(f"a cache has 1 or 2 streams, not {streams}, and no empty axis: {shape}")
        self.keys = [backend.current.empty(shape, dtype) for _ in range(n_layer)]
        self.values = [backend.current.empty(shape, dtype) for _ in range(n_layer)] if streams == 2 else None
        self.filled = [0] * n_layer  # per layer: within a step, upper layers lag behind lower ones
        self.capacity = capacity
        self.unchanged = 0  # positions that the workers forked last (reading.py) still see as they are

    def append(self, layer, k, v=None):
        """Store new positions k, v (B, h, T, d_h); return all so far, views (B, h, S, d_h) of the buffers.

        With K = V, `v` is not given and the two returned are one array. Raises UsageError when they do not fit.
        """
        if (v is None) != (self.values is None):
            raise UsageError(f"this cache stores {'one stream' if self.values is None else 'two streams'}; v must agree")
        batch, heads, _, d_head = self.keys[layer].shape
        if (*k.shape[:2], k.shape[3]) != (batch, heads, d_head):
            raise UsageError(
                f"the cache stores {batch} x {heads} heads of {d_head} numbers a position; keys {k.shape} do not fit"
            )
        if v is not None and v.shape != k.shape:
            raise UsageError(f"keys {k.shape} and values {v.shape} must agree")
        start = self.filled[layer]
        end = start + k.shape[2]
        if end > self.capacity:
            raise UsageError(f"the cache holds {self.capacity} positions; {end} are needed", "ask for a larger capacity")
        self.keys[layer][:, :, start:end] = k
        if v is not None:
            self.values[layer][:, :, start:end] = v
        self.filled[layer] = end
        keys = self.keys[layer][:, :, :end]  # (B, h, S, d_h)
        return keys, keys if v is None else self.values[layer][:, :, :end]

    def __len__(self):
        """Positions every layer holds: what is stored; after an interrupted step, what is stored whole."""
        return min(self.filled)

    @property
    def positions(self):
        """(S,) absolute positions of the stored keys."""
        return backend.xp.arange(len(self))

    def mask(self, n_new):
        """(n_new, S + n_new), for `n_new` tokens about to be appended: True where a key is not ahead of its query."""
        end = len(self) + n_new
        return causal_mask(backend.xp.arange(len(self), end), backend.xp.arange(end))

    def trim(self, n):
        """Keep the first n positions; the buffers stay."""
        if not 0 <= n <= len(self):
            raise UsageError(f"trim({n}): the cache holds {len(self)} positions")
        self.filled = [n] * len(self.filled)
        self.unchanged = min(self.unchanged, n)

    def clone(self, rows=None):
        """A cache of its own with the same contents, or with these rows of the batch (host integers, repeats allowed)."""
        batch, heads, _, d_head = self.keys[0].shape
        rows = range(batch) if rows is None else rows
        streams = 1 if self.values is None else 2
        twin = KVCache(len(self.keys), len(rows), heads, self.capacity, d_head, streams, self.keys[0].dtype)
        rows = backend.upload_ids(list(rows), batch, "clone")
        for mine, theirs in zip(self._buffers(), twin._buffers(), strict=True):
            theirs[:, :, : len(self)] = mine[rows, :, : len(self)]
        twin.filled = [len(self)] * len(self.filled)
        return twin

    @property
    def nbytes(self):
        """Bytes of the positions in use."""
        return sum(buffer[:, :, : len(self)].nbytes for buffer in self._buffers())

    @property
    def capacity_nbytes(self):
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self._buffers())

    def _buffers(self):
        return self.keys + (self.values or [])
