"""A cache of your own: the new rows are concatenated to the old ones, into new arrays.

python examples/own_cache.py
cd examples && minqkv check-cache own_cache:Concatenating --variants qkv,q-k=v
"""

import numpy as np

import minqkv as mq
from minqkv.cache import LayerCache


class Layer(LayerCache):
    """The rows of one layer, (B, heads, positions so far, width)."""

    def __init__(self, batch, stored, capacity, dtype):
        super().__init__(batch, stored, 0, dtype)  # arrays without positions, which grow
        self.capacity = capacity

    def write(self, rows, at):
        """Add the rows of tokens at these positions, (T,) or (B, T), after those already stored."""
        at = np.arange(at.stop)[at] if isinstance(at, slice) else at
        at = np.broadcast_to(at, (len(self.held), rows[0].shape[2]))  # (B, T), padding at -1
        at = np.concatenate([self.held, at], axis=1)  # (B, S + T); -1: nothing
        order = np.argsort(np.where(at < 0, at.max() + 1, at), axis=1)[:, None, :, None]
        both = [np.concatenate(pair, axis=2) for pair in zip(self.rows, rows, strict=True)]
        both = [np.take_along_axis(array, order, axis=2) for array in both]
        self.buffers = [array[:, :, : at.max() + 1] for array in both]

    def trim(self, n):
        super().trim(n)
        self.buffers = list(self.rows)

    def take(self, other, rows):
        self.buffers = [array[rows] for array in other.rows]
        super().take(other, rows)


class Concatenating(mq.KVCache):
    """The caches of all layers."""

    layer_kind = Layer


if __name__ == "__main__":
    model = mq.GPT(mq.GPTConfig(11, 16, 2, 4, 32, variant="q-k=v", dtype="float64"))
    for kind in (mq.KVCache, Concatenating):
        cache = model.new_cache(kind=kind)
        written = mq.generate(model, [[3, 1, 4]], 6, cache=cache)[0]
        print(f"{kind.__name__:13} {written}, {cache.nbytes} bytes")
