"""The operations a transformer spends its time in, each one node with its backward written by hand.

Every function here has a twin in reference.py: the same in a few lines of small operations. Read
the twin first. A vjp runs once, and may overwrite only scratch: arrays made here that nothing else
refers to. Usually imported as F; the small operations of tensor.py are available here too.
"""

from __future__ import annotations

import math

import numpy as np

from .runtime import backend, tracing
from .runtime import rng as streams
from .runtime.backend import Array
from .runtime.errors import UsageError
from .tensor import Tensor, array_of, grad_wanted, make

# isort: off
# fmt: off
# So that F.exp and the like work; `max`, `pow` and `sum` are these below, not Python's own.
from .tensor import add, concat, div, exp, getitem, log, matmul, max, mean, mul  # noqa: F401
from .tensor import neg, pow, reshape, sqrt, sub, sum, tanh, transpose, where  # noqa: F401
# fmt: on
# isort: on


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x @ w + b over the last axis: (..., n) @ (n, m) + (m,) -> (..., m)."""
    shape, weight = x.shape, array_of(w)
    flat = array_of(x).reshape(-1, shape[-1])  # (N, n)
    bias = None if b is None else _of_shape(b, weight.shape[1:], "linear: a bias")
    y = None if grad_wanted(x, w, b) else backend.gemv(flat, weight, bias)  # (N, m)
    if y is None:
        y = backend.bmm(flat, weight)
        if bias is not None:
            y += bias

    def vjp(g, wanted):
        g = g.reshape(-1, g.shape[-1])  # (N, m)
        dx = backend.bmm(g, weight.T).reshape(shape) if wanted[0] else None  # (..., n)
        dw = backend.bmm(flat.T, g) if wanted[1] else None  # (n, m)
        return dx, dw, backend.column_sum(g) if wanted[2] else None

    return make(y.reshape(*shape[:-1], weight.shape[1]), (x, w, b), vjp)


def _of_shape(x, shape, what):
    """The array behind x; UsageError for a shape that would be stretched, its gradient with it."""
    array = array_of(x)
    if array.shape != shape:
        raise UsageError(f"{what} has shape {shape}, not {array.shape}")
    return array


def embedding(ids: np.ndarray, w: Tensor) -> Tensor:
    """Rows of w (n, d) by integer host ids (...) -> (..., d). Raises UsageError for an id outside
    0..n-1.
    """
    n, d = w.shape
    ids = backend.upload_ids(ids, n, "embedding")

    def vjp(g, wanted):
        return (backend.add_rows(ids.reshape(-1), g.reshape(-1, d), n),)

    return make(array_of(w)[ids], (w,), vjp)


def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float = 1e-5) -> Tensor:
    """Each row to mean 0 and variance 1, then times w plus b: (..., d), (d,), (d,) -> (..., d)."""
    data, d = array_of(x), x.shape[-1]
    weight, bias = (_of_shape(p, (d,), "layer_norm: a weight or bias") for p in (w, b))
    if (made := backend.norm(data, weight, bias, eps)) is not None:
        return make(made[0], (x, w, b), made[1])
    unit = data - backend.row_sum(data) * (1 / d)  # (..., d), of mean 0 ...
    # 1 / √(variance + eps), the variance being row_dot / d; √d is taken out of the root.
    inv_std = math.sqrt(d) / backend.xp.sqrt(backend.row_dot(unit, unit) + d * eps)  # (..., 1)
    unit *= inv_std  # ... and of variance 1

    def vjp(g, wanted):
        g, rows = g.reshape(-1, d), unit.reshape(-1, d)  # (N, d)
        scratch = g * rows
        dw = backend.column_sum(scratch) if wanted[1] else None
        db = backend.column_sum(g) if wanted[2] else None
        if not wanted[0]:
            return None, dw, db
        column = weight.reshape(d, 1) * (1 / d)
        shared = g @ column  # (N, 1): the part that would move the mean ...
        along = scratch @ column  # ... and the part that would change the variance are taken out
        dx = g * weight
        dx -= shared
        dx -= backend.xp.multiply(rows, along, out=scratch)
        dx *= inv_std.reshape(-1, 1)
        return dx.reshape(unit.shape), dw, db

    y = unit * weight
    y += bias
    return make(y, (x, w, b), vjp)


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Each row to mean square 1: (..., d) -> (..., d). `eps`, inside the root, is in the units of
    the mean square.
    """
    data, d = array_of(x), x.shape[-1]
    if (made := backend.norm(data, None, None, eps)) is not None:
        return make(made[0], (x,), made[1])
    inv = 1 / backend.xp.sqrt(backend.row_dot(data, data) * (1 / d) + float(eps))  # (..., 1)
    unit = data * inv

    def vjp(g, wanted):
        dx = unit * (backend.row_dot(g, unit) * (-1 / d))  # what would change the mean square
        dx += g
        dx *= inv
        return (dx,)

    return make(unit, (x,), vjp)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    on = ~(array_of(x) <= 0)  # also what is not a number, which stays that
    y = backend.xp.maximum(array_of(x), 0)
    return make(y, (x,), lambda g, wanted: (backend.masked(g, on),))


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) in its tanh form (Hendrycks and Gimpel, 2016): within 1e-3 of the exact one, which
    NumPy cannot compute.

    In place, y goes from u = c (x + a x³) to tanh u, Φ = (1 + tanh u) / 2 and x Φ. Likewise slope
    goes from x² to 2 u' and Φ + 2 x u' Φ (1 - Φ), the derivative. All these passes are made over
    one piece of the array at a time, which stays in the processor's cache.
    """
    data = array_of(x)
    y, slope = backend.xp.empty(data.shape, data.dtype), None
    if grad_wanted(x):  # computed now, so that backward is one product
        slope = backend.xp.empty(data.shape, data.dtype)
    if backend.gelu(data, y, slope) is None:
        backend.in_pieces(_gelu, data, y, slope)
    return make(y, (x,), lambda g, wanted: (g * slope,))


def _gelu(data, y, slope):
    a, c = 0.044715, math.sqrt(2 / math.pi)
    whole, data = data, backend.xp.clip(data, -1e4, 1e4)  # Φ is 0 or 1 beyond; squares overflow
    square = backend.xp.multiply(data, data, out=slope)
    backend.xp.multiply(square, a * c, out=y)
    y += c
    y *= data  # u
    backend.xp.tanh(y, out=y)
    y += 1
    y *= 0.5  # Φ; its derivative with respect to u is 2 Φ (1 - Φ)
    if slope is not None:
        slope *= 6 * a * c
        slope += 2 * c  # 2 u'
        slope *= 1 - y
        slope *= y
        slope *= data
        slope += y
    y *= backend.xp.clip(whole, -1e4, math.inf, out=data)  # 0 times -∞ is not a number


def softmax(x: Tensor) -> Tensor:
    """exp(x) over its sum, along the last axis, shifted by the row maximum so that nothing
    overflows.
    """
    y = array_of(x) - array_of(x).max(axis=-1, keepdims=True)
    backend.xp.exp(y, out=y)
    y /= backend.row_sum(y)  # (..., n) / (..., 1)

    def vjp(g, wanted):
        dx = g - backend.row_dot(g, y)
        dx *= y
        return (dx,)

    return make(y, (x,), vjp)


def dropout(x: Tensor, rate: float, rng: np.random.Generator, begin: int = 0) -> Tensor:
    """Each element kept with probability 1 - rate and scaled by 1 / (1 - rate).

    `rng` is a host generator, of whose float32 numbers the first `begin` belong to rows before
    these. A GPU's kernel takes only a key from it, and its mask is another.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"dropout rate {rate} is outside [0, 1)")
    if (drawn := backend.dropout(array_of(x), rate, rng, begin)) is not None:
        y, again = drawn
        return make(y, (x,), lambda g, wanted: (again(g),))
    streams.skip(rng, begin)
    kept = backend.upload(rng.random(x.shape, dtype=np.float32) >= rate)
    scale = 1 / (1 - float(rate))

    y = backend.masked(array_of(x), kept) * scale
    return make(y, (x,), lambda g, wanted: (backend.masked(g, kept) * scale,))


def rotate(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Turn pairs (x_i, x_{i + m}) of the last 2m channels: (B, h, T, n) by angles whose cos and sin
    are (T, m), or (B, 1, T, m). The channels before them stay as they are.

    Rotary positions in the "halves" convention. The gradient turns back.
    """

    half, still = cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]
    for table in (cos, sin):
        if table.shape[-2:] != (x.shape[-2], half) or still < 0:
            raise UsageError(f"rotate: angles {table.shape} do not fit {x.shape}")

    def turn(a, sin):
        first, second = a[..., still : still + half], a[..., still + half :]  # (..., T, m) each
        out = backend.xp.empty(a.shape, a.dtype)
        out[..., :still] = a[..., :still]
        out[..., still : still + half] = first * cos - second * sin
        out[..., still + half :] = second * cos + first * sin
        return out

    return make(turn(array_of(x), sin), (x,), lambda g, wanted: (turn(g, -sin),))


def split_heads(x: Tensor, n: int) -> Tensor:
    """A row of n heads as n rows: (B, T, n·d_h) -> (B, n, T, d_h)."""
    B, T, C = x.shape
    y = array_of(x).reshape(B, T, n, -1).transpose(0, 2, 1, 3)  # (B, n, T, d_h)
    return make(y, (x,), lambda g, wanted: (g.transpose(0, 2, 1, 3).reshape(B, T, C),))


def merge_heads(x: Tensor) -> Tensor:
    """The other way: (B, n, T, d_h) -> (B, T, n·d_h)."""
    B, n, T, _ = x.shape
    y = array_of(x).transpose(0, 2, 1, 3).reshape(B, T, -1)  # (B, T, n·d_h)
    return make(y, (x,), lambda g, wanted: (g.reshape(B, T, n, -1).transpose(0, 2, 1, 3),))


BLOCK = 128  # rows of queries whose scores are held at once; a shorter sequence is one block
KEEP = 1 << 18  # scores per head, T·S, up to which the weights are kept for backward


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(temperature · scale · q kᵀ + bias, masked) v: the middle of every variant.

    q (B, H, T, d_k), k (B, h, S, d_k), v (B, h, S, d_v) with h dividing H: query head i reads
    stored head ⌊i / (H/h)⌋. q, k and v may be the same Tensor. `mask` is a boolean array (T, S),
    or (B, 1, T, S) where the rows of a batch differ, True where a key may be seen; a query that
    sees none gets zeros. `scale` is 1/√d_k unless given. `temperature` () and `bias`, Tensors: what
    survives the softmax of the paper's "+", and what depends on distance. A bias is (S,), or has
    four axes, each as long as that of the scores (B, H, T, S) or 1, the last S. `causal` promises
    that the mask hides all keys after a query's own, the last key being that of the last query.
    Returns (B, H, T, d_v). Raises UsageError for shapes that do not fit. (Paper, section 3.)

    Queries come in blocks of rows, and a block ends at the last key that any of its rows may see: a
    causal mask halves the work. (For a mask on a GPU, only `causal` tells.) Beyond KEEP, backward
    computes the weights of each block again, so that no (T, S) array of all heads exists at any
    time, unless a bias is one.
    """
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    _check_attention(q_shape, k_shape, v_shape, mask, temperature, bias)
    T, S = q_shape[2], k_shape[2]
    scale = 1 / math.sqrt(q_shape[3]) if scale is None else float(scale)
    strength = scale if temperature is None else array_of(temperature) * scale
    traced, needed = tracing.active() is not None, grad_wanted(q, k, v, temperature, bias)
    call = _Attention(array_of(q) * strength, array_of(k), array_of(v), mask, bias)
    step = T if traced else BLOCK  # traced arrays are shown in one piece
    blocks = _blocks(T, S, mask, step, causal)
    keep = needed and (traced or T * S <= KEEP)
    kept, out = [], _heads_last(call.q, v_shape[3])  # (B, H, T, d_v)
    for rows, end in blocks:
        weights, inv_sum = call.weights(rows, end)
        call.mix(weights, inv_sum, end, out[:, :, rows])
        kept.append((weights, inv_sum) if keep else None)
    unscaled = None if temperature is None else array_of(q)
    prefix = tracing.here() if traced else None

    def vjp(g, wanted):
        dk = dv = None
        db = backend.xp.zeros_like(call.bias) if wanted[4] else None
        dq = _heads_last(call.q, q_shape[3]) if wanted[0] else None
        dt = backend.xp.zeros((), out.dtype) if wanted[3] else None
        for rows, end in reversed(blocks):  # under a causal mask, the last block reaches all keys
            saved = kept.pop() if keep else call.weights(rows, end)
            mine = g[:, :, rows], out[:, :, rows]
            d_scaled, *parts = call.gradients(rows, end, *saved, *mine, wanted, prefix)
            if wanted[0]:
                backend.xp.multiply(d_scaled, strength, out=dq[:, :, rows])
            if wanted[3]:  # Σ dS · scale q kᵀ = scale Σ q · (dS k): the scores are not needed
                dt += (d_scaled * unscaled[:, :, rows]).sum() * scale
            dk, dv = _add_first(dk, parts[0], S), _add_first(dv, parts[1], S)  # (B, h, S, d)
            if wanted[4]:
                call.of_block(db, rows, end)[...] += parts[2]
        return dq, dk, dv, dt, db

    return make(out, (q, k, v, temperature, bias), vjp)


class _Attention:
    """The arrays of one call, its queries already scaled: forward and backward of a block of them.

    A block is `rows`, a slice of the queries, against the keys up to `end`.
    """

    def __init__(self, q, k, v, mask, bias):
        self.q, self.k, self.v, self.mask = q, k, v, mask
        self.bias = None if bias is None else array_of(bias)  # (S,), or four axes
        # Scores that cannot overflow need no shift by their maximum. To find out, each query and
        # key is read once, which pays where there are more queries than numbers in a key.
        few = q.shape[2] < q.shape[3]
        self.shift = bias is not None or few or not backend.bounded(q, k)

    def fold(self, a):
        """(B, H, t, n) -> (B, h, G·t, n): queries of one stored head are rows of one product."""
        h = self.k.shape[1]
        return a if a.shape[1] == h else a.reshape(a.shape[0], h, -1, a.shape[-1])

    def unfold(self, a):
        """The other way: (B, h, G·t, n) -> (B, H, t, n)."""
        H = self.q.shape[1]
        return a if a.shape[1] == H else a.reshape(a.shape[0], H, -1, a.shape[-1])

    def weights(self, rows, end):
        """Scores, (+), mask and softmax: the weights (B, H, t, end), and 1 over their row sums.

        The pattern is the product of the two; it is cheaper to scale the output rows.
        """
        q = self.fold(self.q[:, :, rows])  # (B, h, G·t, d_k)
        scores = backend.bmm(q, self.k[:, :, :end].swapaxes(-1, -2))  # (B, h, G·t, end)
        scores = self.unfold(scores)  # (B, H, t, end)
        tracing.probe("scores", scores)
        bias = None if self.bias is None else self.of_block(self.bias, rows, end)
        mask = None if self.mask is None else self.mask[..., rows, :end]  # (t, end), or four axes
        if tracing.active() is None:
            inv_sum = backend.weigh(scores, bias, mask)
            if inv_sum is not None:
                return scores, inv_sum
        if bias is not None:
            scores += bias  # a temperature is already in the queries
            tracing.probe("plus", scores)
        if mask is not None:
            number = scores.dtype.type  # Python's numbers would make a float64 mask
            scores += backend.xp.where(mask, number(0), number(-math.inf))
        if self.shift:
            peak = scores.max(axis=-1, keepdims=True)
            # Of a query that sees nothing it is -∞, and -∞ - (-∞) is not a number.
            scores -= backend.xp.maximum(peak, np.finfo(scores.dtype).min)
        weights = backend.xp.exp(scores, out=scores)
        total = backend.row_sum(weights)  # (B, H, t, 1)
        total += total == 0  # a query that sees nothing: all weights are 0
        inv_sum = 1 / total
        if tracing.active() is not None:
            tracing.probe("pattern", weights * inv_sum)
        return weights, inv_sum

    def mix(self, weights, inv_sum, end, out):
        """The values, mixed by the pattern, into `out` (B, H, t, d_v)."""
        mixed = backend.bmm(self.fold(weights), self.v[:, :, :end])  # (B, h, G·t, d_v)
        backend.xp.multiply(self.unfold(mixed), inv_sum, out=out)

    def gradients(self, rows, end, weights, inv_sum, g, out, wanted, prefix):
        """Gradients of a block's scaled queries, and of keys, values and bias up to `end`.

        g, out (B, H, t, d_v). `prefix` is where a trace shows what it sees; None: nowhere.

        With p = weights · inv_sum, the gradient of the pattern is dP = g vᵀ, and that of the scores
        dS = p (dP - rowsum(dP p)), as in `softmax`. Here rowsum(dP p) = rowsum(g out), which has
        d_v terms instead of `end`.
        """
        fold, bmm, dk, dv, db = self.fold, backend.bmm, None, None, None
        g_scaled = g * inv_sum  # (B, H, t, d_v)
        g_rows = fold(g_scaled)  # (B, h, G·t, d_v)
        if wanted[2]:
            dv = bmm(fold(weights).swapaxes(-1, -2), g_rows)  # (B, h, end, d_v)
        if not (wanted[0] or wanted[1] or wanted[3] or wanted[4]):
            return None, None, dv, None
        d = bmm(g_rows, self.v[:, :, :end].swapaxes(-1, -2))  # inv_sum · dP: (B, h, G·t, end)
        d_scores = self.unfold(d)  # (B, H, t, end), to become dS in place
        if prefix is not None:
            tracing.probe("grad.pattern", d_scores / inv_sum, prefix)
        if backend.unweigh(d_scores, weights, inv_sum) is None:
            d_scores -= backend.row_dot(g_scaled, out)
            d_scores *= weights
        if prefix is not None:
            tracing.probe("grad.scores", d_scores, prefix)
        if wanted[4]:
            db = self.bias_gradient(d_scores)  # as `of_block`
        d = fold(d_scores)  # (B, h, G·t, end)
        if wanted[1]:
            dk = bmm(d.swapaxes(-1, -2), fold(self.q[:, :, rows]))  # (B, h, end, d_k)
        d_scaled = bmm(d, self.k[:, :, :end])  # (B, h, G·t, d_k)
        return self.unfold(d_scaled), dk, dv, db

    def of_block(self, bias, rows, end):
        """The part of a bias that is added to a block: (end,), or four axes, some of length 1."""
        own = bias.ndim == 4 and bias.shape[2] > 1  # each query has its own
        return bias[:, :, rows, :end] if own else bias[..., :end]

    def bias_gradient(self, d_scores):
        """The gradient of the scores, (B, H, t, end), summed to the shape of the bias."""
        if self.bias.ndim == 1:
            return backend.column_sum(d_scores)  # (end,)
        one = tuple(axis for axis in range(3) if self.bias.shape[axis] == 1)
        return d_scores.sum(axis=one, keepdims=True) if one else d_scores


def _check_attention(q, k, v, mask, temperature, bias):
    if len(q) != 4 or len(k) != 4 or len(v) != 4:
        raise UsageError(f"attention: q {q}, k {k} and v {v} need four axes")
    if 0 in q or 0 in k:
        raise UsageError("attention: batch and sequences must not be empty")
    if q[0] != k[0] or q[3] != k[3] or k[:3] != v[:3] or q[1] % k[1]:
        raise UsageError(f"attention: q {q} does not fit k {k} and v {v}")
    shapes = (q[2], k[2]), (q[0], 1, q[2], k[2])
    if mask is not None and (getattr(mask, "dtype", None) != "bool" or mask.shape not in shapes):
        raise UsageError(f"attention: a mask is boolean, of shape {shapes[0]} or {shapes[1]}")
    if temperature is not None:
        _of_shape(temperature, (), "attention: a temperature")
    if bias is not None and bias.ndim != 4:
        _of_shape(bias, (k[2],), "attention: a bias that all queries share")
    elif bias is not None:
        full = *q[:3], k[2]
        own = [n if n > 1 else m for n, m in zip(bias.shape[:3], full, strict=False)]
        if (*own, bias.shape[3]) != full:
            why = f"attention: a bias of four axes is {full}, some of the first three being 1"
            raise UsageError(f"{why}, not {bias.shape}")


def _blocks(T, S, mask, step, causal):
    """(slice of the queries, end of the keys that they may see) of each block."""
    if mask is None and step >= T:
        return [(slice(0, T), S)]
    blocks = [slice(i, i + step) for i in range(0, T, step)]
    if mask is None:
        return [(rows, S) for rows in blocks]
    if causal:
        return [(rows, S - T + min(rows.stop, T)) for rows in blocks]
    seen = (mask[..., rows, :].reshape(-1, S) for rows in blocks)  # (t, S), or (B·t, S)
    return [(rows, backend.visible(any_of)) for rows, any_of in zip(blocks, seen, strict=True)]


def _heads_last(x, width):
    """An empty (B, H, T, width) for x (B, H, T, d), laid out (B, T, H, width): merging is free."""
    B, H, T, _ = x.shape
    return backend.xp.empty((B, T, H, width), x.dtype).swapaxes(1, 2)


def _add_first(total, part, n):
    """Add `part` (B, h, end, d) to the first rows of `total` (B, h, n, d).

    A first part that is full-length becomes the total.
    """
    if part is None or (total is None and part.shape[2] == n):
        return part
    if total is None:
        total = backend.xp.zeros((*part.shape[:2], n, part.shape[3]), part.dtype)
    total[:, :, : part.shape[2]] += part
    return total


def cross_entropy(logits: Tensor, targets: np.ndarray, ignore_index: int = -100) -> Tensor:
    """Mean of -log softmax(logits)[target] over the positions whose target is not `ignore_index`.

    logits (..., V); targets (...) integers on the host. Raises UsageError for a target outside
    0..V-1, or when all are ignored: the mean of nothing is undefined.
    """
    vocab = logits.shape[-1]
    targets = np.asarray(targets)
    if targets.shape != logits.shape[:-1]:
        raise UsageError(f"cross_entropy: targets {targets.shape} do not fit logits {logits.shape}")
    targets = targets.reshape(-1)
    kept = np.flatnonzero(targets != ignore_index)
    if not len(kept):
        raise UsageError("cross_entropy: every target is ignored")
    rows = backend.upload(kept) if len(kept) < len(targets) else None  # None: all of them
    asked = targets if rows is None else targets[kept]  # (n,)
    columns = backend.upload_ids(asked, vocab, "targets")
    if (made := backend.cross_entropy(array_of(logits), rows, columns)) is not None:
        return make(made[0], (logits,), made[1])
    flat = array_of(logits).reshape(-1, vocab)  # (N, V)
    flat = flat if rows is None else flat[rows]  # (n, V)
    p = flat - flat.max(axis=-1, keepdims=True)  # (n, V)
    index = (backend.xp.arange(len(kept)), columns)
    hit = p[index]  # (n,)
    backend.xp.exp(p, out=p)
    total = backend.row_sum(p)  # (n, 1)
    p /= total
    loss = (backend.xp.log(total[:, 0]) - hit).sum() * (1 / len(kept))
    shape = logits.shape

    def vjp(g, wanted):
        p[index] -= 1
        d = p
        d *= g * (1 / len(kept))
        if rows is not None:
            d = backend.xp.zeros((len(targets), vocab), p.dtype)  # (N, V)
            d[rows] = p
        return (d.reshape(shape),)

    return make(loss, (logits,), vjp)
