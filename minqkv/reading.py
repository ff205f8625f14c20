"""Attention of a token being decoded: the whole cache is read and little is computed, so reading it sets the pace.

Memory is read faster by two cores than by one, so where weights or cache are large there are workers (mq.set_threads):

* A softmax over many positions can be left unfinished, part by part, and put together at the end. So a long cache is read
  by all at once, each its part. Workers are forked and see the cache as it was then, without a copy; what is stored later
  they do not see, and need not: positions once stored do not change, and the last part is the decoder's own.
* The rest of the time they read the weights that the decoder needs next, only so that these are near when it comes: in
  the cache the cores share. No number depends on that, so it does no harm that they see weights as they were at the fork.
"""

import math

import numpy as np

from . import backend, tracing, workers
from .tensor import Tensor

FAR = 1 << 19  # bytes of one stored head beyond which the last one read has driven the first out of a core's own cache
LEAST = 3 << 20  # bytes: of a model, below which its weights stay near anyway; of a layer's positions, to be shared out
REACH = 1 << 24  # bytes of weights that are read ahead: more would drive out what is wanted first
CHUNK = 1 << 18  # bytes of them between two looks for a question


def possible(cache):
    """Whether a token that attends to all of this cache can be read here: on the host, where nobody looks inside."""
    return cache is not None and backend.current.on_host and tracing.active is None


def begin(model, cache):
    """A token is about to be decoded: tell the workers, after forking them where they are wanted."""
    n = workers.threads - 1
    if n and workers.CAN_FORK and possible(cache) and max(_weight_bytes(model), _layer_bytes(cache)) >= LEAST:
        with workers.lock:
            workers.hire(cache, Readers, model, n).tell(-1)


def attend(q, k, v, cache, layer, temperature=None, bias=None):
    """softmax(temperature · q kᵀ / √d_h + bias) v without a mask or a graph: fused.scaled_dot_product_attention's result.

    q (B, H, T, d_h); k, v (B, h, S, d_h) are all that `cache` holds in this layer. Returns (B, H, T, d_h).
    """
    B, h, _, d_h = k.shape
    strength = 1 / math.sqrt(d_h) if temperature is None else temperature.data * (1 / math.sqrt(d_h))
    scaled = (q.data * strength).reshape(B, h, -1, d_h)  # (B, h, G·T, d_h): queries that share a stored head
    keys, values, bias = k.data, v.data, None if bias is None else bias.data
    z = None
    if workers.threads > 1:
        with workers.lock:
            readers = workers.crew_of(cache)
            z = readers and readers.attend(scaled, keys, values, bias, cache, layer)
    if z is None:
        mix, total, _ = part(scaled, keys, values, bias)
        z = mix / total
    return Tensor(z.reshape(q.shape))


def part(scaled, keys, values, bias=None):
    """Attention to some positions, unfinished: Σ_j e^(s_j - top) v_j, Σ_j e^(s_j - top) and top = max_j s_j.

    scaled (..., n, d_h); keys, values (..., s, d_h); bias (s,) -> (..., n, d_h), (..., n, 1), (..., n, 1).
    """
    if values is keys and keys.ndim == 4 and keys.nbytes > FAR * keys.shape[0] * keys.shape[1]:
        mix, total, top = np.empty_like(scaled), *np.empty((2, *scaled.shape[:3], 1), scaled.dtype)
        for place in np.ndindex(keys.shape[:2]):  # a head is still near when it is read again as values
            head = keys[place]  # (s, d_h)
            mix[place], total[place], top[place] = part(scaled[place], head, head, bias)
        return mix, total, top
    scores = backend.bmm(scaled, keys.swapaxes(-1, -2))  # (..., n, s)
    if bias is not None:
        scores += bias
    top = scores.max(axis=-1, keepdims=True)  # (..., n, 1)
    scores -= top
    weights = np.exp(scores, out=scores)
    return backend.bmm(weights, values), backend.row_sum(weights), top


def join(mix, total, top):
    """Parts of a softmax, along the first axis, put together and finished: each counts by e^(its top - the highest)."""
    share = np.exp(top - top.max(axis=0))
    return (mix * share).sum(axis=0) / (total * share).sum(axis=0)


class Readers(workers.Crew):
    """Workers for one model and one cache, of which they know the positions it held when they were forked."""

    def __init__(self, cache, model, n):
        B, h, _, d_h = cache.keys[0].shape
        shape, dtype = (B, h, model.config.n_head // h, d_h), model.wte.weight.dtype
        cache.unchanged = len(cache)
        self.paced = _weight_bytes(model) > REACH
        self.scaled, self.bias = workers.shared(shape, dtype), workers.shared((cache.capacity,), dtype)
        single = (*shape[:-1], 1)
        self.parts = [workers.shared((1 + n, *s), dtype) for s in (shape, single, single)]  # the decoder's, then theirs
        super().__init__([Reader(i, n, model, cache, (self.scaled, self.bias, self.parts)) for i in range(n)])

    def fits(self, cache, model, n):
        """Whether it has so many workers, who know most of the positions that are theirs to read."""
        return len(self.pids) == n and cache.unchanged >= 0.75 * _theirs(cache, n)

    def tell(self, layer):
        """How far the decoder has come: to the attention of this layer; -1 is before the first."""
        self.ask([(layer, 0, 0, False)] * len(self.pids), answered=False)

    def attend(self, scaled, keys, values, bias, cache, layer):
        """Attention by all together, (B, h, n, d_h); None if there is too little to read."""
        n, stop = len(self.pids), min(_theirs(cache, len(self.pids)), cache.unchanged)
        if stop < n:
            if self.paced:
                self.tell(layer)
            return None
        self.scaled[...] = scaled
        if bias is not None:
            self.bias[:stop] = bias[:stop]
        self.ask([(layer, stop * i // n, stop * (i + 1) // n, bias is not None) for i in range(n)])
        mine = keys[:, :, stop:]  # (B, h, S - stop, d_h)
        found = part(scaled, mine, mine if values is keys else values[:, :, stop:], bias if bias is None else bias[stop:])
        _keep(self.parts, 0, found)
        self.answers()
        return join(*self.parts)


class Reader:
    """What one worker does."""

    def __init__(self, i, n, model, cache, desk):
        self.i, self.n, self.model, self.cache, self.desk = i, n, model, cache, desk
        self.chunks, self.places, self.layer = None, {-1: 0}, -1

    def __call__(self, layer, start, stop, biased):
        """The attention to these positions, written where it belongs; no answer to a question about none."""
        self.layer = layer
        if start == stop:
            return None
        scaled, bias, parts = self.desk
        keys = self.cache.keys[layer][:, :, start:stop].astype(scaled.dtype, copy=False)  # (B, h, s, d_h)
        values = keys
        if self.cache.values is not None:
            values = self.cache.values[layer][:, :, start:stop].astype(scaled.dtype, copy=False)
        _keep(parts, 1 + self.i, part(scaled, keys, values, bias[start:stop] if biased else None))
        return True

    def rest(self, line):
        """Until the next question, read the weights that follow this layer's attention, every n-th chunk."""
        if self.chunks is None:
            self.find_weights()
        first = self.places[self.layer]
        for chunk in self.chunks[first + self.i : first + REACH // CHUNK : self.n]:
            chunk.max()
            if line.news.poll(0):
                return

    def find_weights(self):
        """Chunks of the matrices, in the order in which decoding needs them, and where each layer is in its attention."""
        self.chunks = []
        for layer, block in enumerate(self.model.blocks):
            for name, p in block.named_parameters():
                if name == "attn.wo.weight":
                    self.places[layer] = len(self.chunks)
                if p.ndim == 2:
                    self.chunks += np.array_split(p.data.reshape(-1), -(-p.data.nbytes // CHUNK))


def _keep(parts, i, found):
    for array, numbers in zip(parts, found, strict=True):
        array[i] = numbers


def _weight_bytes(model):
    """About: the matrices of the blocks."""
    c = model.config
    return c.n_layer * c.n_embd * (4 * c.n_embd + 2 * c.d_ff) * model.wte.weight.dtype.itemsize


def _layer_bytes(cache):
    """Bytes of what one layer holds."""
    return cache.keys[0][:, :, : len(cache)].nbytes * (1 if cache.values is None else 2)


def _theirs(cache, n):
    """Positions that are for n workers to read: all but one share; none where that does not pay."""
    return len(cache) * n // (n + 1) if _layer_bytes(cache) >= LEAST else 0
