"""Attention of a token being decoded: the whole cache is read and little is computed, so reading it sets the pace.

Two cores read faster than one. With mq.set_threads(n), where the weights or one layer's positions are some megabytes:

* A softmax over many positions can be left unfinished, part by part, and put together at the end. So a long cache is read
  in n parts, all but the last by workers. These are forked and see the cache as it was then, without a copy. What is
  stored later they do not see; before it would be theirs to read, others are forked.
* The rest of the time workers read the weights that come next, only so that these are near when the decoder needs them,
  in the cache that cores share. No number depends on that, and weights may have changed since the fork.
"""

import itertools
import math
import weakref

import numpy as np

from . import backend, tracing, workers
from .tensor import Tensor, grad_wanted

FAR = 1 << 19  # bytes of one stored head beyond which the last one read has driven the first out of a core's own cache
LEAST = 3 << 20  # bytes: of a model, below which its weights stay near anyway; of a layer's positions, to be shared out
REACH = 1 << 24  # bytes of weights that are read ahead: more would drive out what is wanted first
CHUNK = 1 << 18  # bytes of them between two looks for a question


def possible(cache, *inputs):
    """Whether a token that attends to all of a cache can be read here: on the host, untraced, without a gradient."""
    here = cache is not None and backend.current.on_host and tracing.active is None
    return here and not any(x is not None and grad_wanted(x) for x in inputs)


def begin(model, cache):
    """A token is about to be decoded: tell the workers, after forking them where they are wanted."""
    can = workers.threads > 1 and workers.CAN_FORK and possible(cache)
    if can and max(_weight_bytes(model), _bytes(cache, len(cache))) >= LEAST:
        with workers.hire(cache, Readers, model, workers.threads - 1, only_idle=True) as readers:
            if readers is not None:
                readers.tell(-1)


def attend(q, k, v, cache, layer, temperature=None, bias=None):
    """softmax(temperature · q kᵀ / √d_h + bias) v without a mask or a graph: fused.scaled_dot_product_attention's result.

    q (B, H, T, d_h); k, v (B, h, S, d_h) are all that `cache` holds in this layer. Returns (B, H, T, d_h).
    """
    B, h, S, d_h = k.shape
    strength = 1 / math.sqrt(d_h) if temperature is None else temperature.data * (1 / math.sqrt(d_h))
    scaled = (q.data * strength).reshape(B, h, -1, d_h)  # (B, h, G·T, d_h): queries that share a stored head
    keys, values, bias = k.data, v.data, None if bias is None else bias.data
    cuts, found = [0, S], None
    if workers.threads > 1:
        cuts, readers = _cuts(cache, S), workers.crew_of(cache)
        found = readers and readers.read(scaled, keys, values, bias, layer, cuts)
    if not found:
        found = [_some(scaled, keys, values, bias, *cut) for cut in itertools.pairwise(cuts)]
    return Tensor(join(found).reshape(q.shape))


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


def join(parts):
    """Parts of a softmax put together, and finished: each counts by e^(its top - the highest)."""
    if len(parts) == 1:
        mix, total, _ = parts[0]
        return mix / total
    mix, total, top = map(np.stack, zip(*parts, strict=True))  # (parts, B, h, n, d_h or 1)
    share = np.exp(top - top.max(axis=0))
    return (mix * share).sum(axis=0) / (total * share).sum(axis=0)


class Readers(workers.Crew):
    """Workers for one model and one cache, of which they know the positions it held when they were forked."""

    def __init__(self, cache, model, n):
        B, h, _, d_h = cache.keys[0].shape
        shape, dtype = (B, h, model.config.n_head // h, d_h), model.wte.weight.dtype
        cache.unchanged = len(cache)
        self.model, self.every_layer = weakref.ref(model), _weight_bytes(model) > REACH
        self.scaled, self.bias = workers.shared(shape, dtype), workers.shared((cache.capacity,), dtype)
        shapes = shape, (*shape[:-1], 1), (*shape[:-1], 1)
        self.parts = [[workers.shared(s, dtype) for s in shapes] for _ in range(n)]
        super().__init__([Reader(i, n, model, cache, self.scaled, self.bias, mine) for i, mine in enumerate(self.parts)])

    def fits(self, cache, model, n):
        """Whether it is for this model, and its workers know all the positions that are theirs to read."""
        return self.model() is model and len(self.pids) == n and cache.unchanged >= _cuts(cache, len(cache) + 1)[-2]

    def tell(self, layer):
        """How far the decoder has come: to the attention of this layer; -1 is before the first."""
        self.ask([(layer, 0, 0, False)] * len(self.pids), answered=False)

    def read(self, scaled, keys, values, bias, layer, cuts):
        """All parts, the last by this process; None if one is enough, or the workers cannot."""
        with self.lock:
            if self.busy or not self.end.alive or (scaled.shape, scaled.dtype) != (self.scaled.shape, self.scaled.dtype):
                return None
            if len(cuts) != len(self.pids) + 2:
                if self.every_layer:
                    self.tell(layer)
                return None
            self.scaled[...] = scaled
            if bias is not None:
                self.bias[: len(bias)] = bias
            self.ask([(layer, *cut, bias is not None) for cut in itertools.pairwise(cuts[:-1])])
            mine = _some(scaled, keys, values, bias, *cuts[-2:])
            self.answers()
            return [*self.parts, mine]


class Reader:
    """What worker i of n does."""

    def __init__(self, i, n, model, cache, scaled, bias, answer):
        self.i, self.n, self.model, self.cache = i, n, model, cache
        self.scaled, self.bias, self.answer = scaled, bias, answer
        self.layer, self.chunks, self.after = -1, None, {}  # layer -> where in the chunks its attention is done

    def __call__(self, layer, start, stop, biased):
        """Attention to these positions, written where it belongs; no answer to a question about none."""
        self.layer = layer
        if start == stop:
            return None
        dtype = self.scaled.dtype
        keys = self.cache.keys[layer][:, :, start:stop].astype(dtype, copy=False)  # (B, h, s, d_h)
        values = keys if self.cache.values is None else self.cache.values[layer][:, :, start:stop].astype(dtype, copy=False)
        found = part(self.scaled, keys, values, self.bias[start:stop] if biased else None)
        for array, numbers in zip(self.answer, found, strict=True):
            array[...] = numbers
        return True

    def rest(self, line):
        """Until the next question, read the weights that follow this layer's attention: every n-th chunk, up to a bound."""
        if self.chunks is None:
            self.find_weights()
        first = self.after.get(self.layer, 0)
        for chunk in self.chunks[first + self.i : first + REACH // CHUNK : self.n]:
            chunk.max()
            if line.news.poll(0):
                return

    def find_weights(self):
        """Chunks of the matrices, in the order in which decoding needs them."""
        self.chunks, blocks = [], enumerate(self.model.blocks)
        used = [(layer, *named) for layer, block in blocks for named in block.named_parameters()]
        for layer, name, p in [*used, (None, "the head", self.model.wte.weight)]:
            if not name.startswith(("ln_1.", "attn.wq.", "attn.wk.", "attn.wv.")):
                self.after.setdefault(layer, len(self.chunks))
            if p.ndim == 2:
                self.chunks += np.array_split(p.data.reshape(-1), -(-p.data.nbytes // CHUNK))
        self.chunks *= 2  # the next token begins where this one did


def _some(scaled, keys, values, bias, start, stop):
    """The part from start to stop; with K = V one array stays one."""
    some = keys[:, :, start:stop]  # (B, h, s, d_h)
    return part(scaled, some, some if values is keys else values[:, :, start:stop], bias if bias is None else bias[start:stop])


def _weight_bytes(model):
    """About: the matrices of the blocks."""
    c = model.config
    return c.n_layer * c.n_embd * (4 * c.n_embd + 2 * c.d_ff) * model.wte.weight.dtype.itemsize


def _bytes(cache, n):
    """Bytes of n positions in one layer."""
    whole = cache.keys[0]
    return whole.nbytes // whole.shape[2] * n * (1 if cache.values is None else 2)


def _cuts(cache, n):
    """Where the parts of n positions begin and end: as many as there are threads, if they are large enough."""
    parts = workers.threads if _bytes(cache, n) >= LEAST and n >= workers.threads else 1
    return [n * i // parts for i in range(parts + 1)]
