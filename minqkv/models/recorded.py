"""A whole token as one CUDA graph: a GPU is told once what to start for a token, then only "again".

To start a kernel takes the host longer than a small kernel runs, and a token takes hundreds. A
graph has frozen addresses, sizes and numbers. So what differs from token to token, its ids and its
position, is in two arrays on the device, and attention is given all slots up to `bound` with the
position of the newest. When `bound` is reached, a graph for twice as many is recorded.
"""

from __future__ import annotations

import warnings

import numpy as np

from ..attention import Attention
from ..cache import KVCache
from ..caches.int8 import Int8Cache
from ..runtime import backend, tracing
from ..runtime.backend import Array
from ..runtime.claims import decoding
from ..tensor import Tensor, no_grad
from .gpt import GPT

ROWS = 8  # sequences, of which gemv.cu computes the products
LEAST = 256  # slots that a first graph is for


class Unfit(Exception):
    """There is no kernel for a step."""


class Slots:
    """A layer of a cache, as it is recorded: its first `bound` slots."""

    def __init__(self, layer, bound):
        self.layer, self.bound = layer, bound

    def attend(self, attention: Attention, q: Tensor, rows: tuple, at: Array, mask=None) -> Tensor:
        """Store new rows at position `at`, an array (1,) of the device, and answer queries."""
        layer, end = self.layer, self.bound
        packed = layer.pack([row.data for row in rows], layer.dtype)
        for buffer, row in zip(layer.buffers, packed, strict=True):
            buffer[:, :, at] = row
        stored = [buffer[:, :, :end] for buffer in layer.buffers]
        z = backend.decode(attention, q.data, stored, slice(0, end), None, at, newest=at)
        if z is None:
            raise Unfit
        return Tensor(z)


class Recorded:
    """model(ids, cache=cache) for one new token of each sequence (B, 1): logits (B, 1, V), which
    the next call overwrites.
    """

    def __init__(self, model: GPT, cache: KVCache):
        self.model, self.cache, self.bound, self.fits = model, cache, 0, True
        cfg = model.config
        self.limit = min(cache.capacity, cfg.block_size) if cfg.bounded else cache.capacity
        self.ids = backend.xp.zeros((cache.batch, 1), "int64")
        self.at = backend.xp.zeros((1,), "int64")
        self.parameters, self.weights = model.parameters(), []

    def __call__(self, ids: np.ndarray) -> Tensor:
        cache, position = self.cache, self.cache.layers[-1].ends
        equal = isinstance(position, int) and position < self.limit
        if not (self.fits and equal and tracing.active() is None):
            return self.model(ids, cache=cache)
        self.ids[...] = backend.upload_ids(ids, self.model.config.vocab_size, "embedding")
        self.at[...] = position
        if self.stale(position) and not self.record(position):
            return self.model(ids, cache=cache)
        try:
            logits = self.again()
            cache.grow(1)
        except BaseException:  # a call that is interrupted changes nothing
            cache.trim(position)
            raise
        return Tensor(logits)

    def stale(self, position: int) -> bool:
        """Whether a new graph is needed: for more slots, or for weights that lie elsewhere."""
        weights = zip(self.parameters, self.weights, strict=False)
        return position >= self.bound or any(p.data is not w for p, w in weights)

    def record(self, position: int) -> bool:
        """Record a graph for positions from this one on; False if there can be none."""
        model, bound = self.model, min(self.limit, max(LEAST, 2 * position))
        model._reach(bound)
        layers = [Slots(layer, bound) for layer in self.cache.layers]
        try:
            with decoding(model), no_grad():
                self.again = backend.current.recorded(lambda: self.token(layers))
        except Unfit:
            self.fits = False
        except Exception as error:
            why = f"a token cannot be recorded as a CUDA graph, so it takes many launches: {error}"
            warnings.warn(why, RuntimeWarning, stacklevel=3)
            self.fits = False
        # A graph keeps addresses alone: what lies there must not be freed.
        self.weights, self.bound = [p.data for p in self.parameters], bound
        self.tables = model.wpe.weight, [block.attn.angles for block in model.blocks]
        return self.fits

    def token(self, layers: list[Slots]) -> Array:
        """What is recorded: from ids and position to logits."""
        x = Tensor(self.model.wte.weight.data[self.ids])  # (B, 1, C)
        if (table := self.model.wpe.weight) is not None:
            x = x + Tensor(table.data[self.at])  # (1, C)
        for block, layer in zip(self.model.blocks, layers, strict=True):
            x = block(x, None, layer, self.at)
        return self.model._logits(x, None).data


def recorded(model: GPT, cache: KVCache) -> Recorded | None:
    """A Recorded for this model and cache; None on the host, or where a token takes what no graph
    can hold: cuBLAS, or a mask that depends on the position.
    """
    gpu, cfg = backend.current, model.config
    plain = type(model) is GPT and type(cache) in (KVCache, Int8Cache) and cfg.dtype == "float32"
    if not (gpu.kernels and plain and cache.batch <= ROWS):
        return None
    for block in model.blocks:
        attn = block.attn
        own = type(attn) is not Attention or attn.spec.latent
        if own or attn.spec.plus or attn.distance is not None or cfg.window is not None:
            return None
    return Recorded(model, cache)
