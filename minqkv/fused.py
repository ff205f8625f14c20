"""The operations a transformer spends its time in, each one node with its backward written by hand.

Every function here has a twin in composed.py: the same thing in a few lines of small operations. Read the twin first.
A vjp may overwrite only scratch: arrays made here that nobody else can reach. It runs once.
"""

import math

import numpy as np

from . import backend, tracing
from .errors import UsageError
from .tensor import grad_wanted, make


def linear(x, w, b=None):
    """x @ w + b over the last axis: (..., n) @ (n, m) + (m,) -> (..., m)."""
    flat = x.data.reshape(-1, x.shape[-1])  # (N, n)
    weight = w.data
    y = flat @ weight  # (N, m)
    if b is not None:
        y += b.data
    need_x, need_w, need_b = x.node is not None, w.node is not None, b is not None and b.node is not None
    shape = x.data.shape

    def vjp(g):
        g = g.reshape(-1, g.shape[-1])  # (N, m)
        dx = (g @ weight.T).reshape(shape) if need_x else None  # (..., n)
        dw = flat.T @ g if need_w else None  # (n, m)
        return dx, dw, backend.column_sum(g) if need_b else None

    return make(y.reshape(*shape[:-1], -1), (x, w, b), vjp)


def embedding(ids, w):
    """Rows of w (n, d) by integer host ids (...) -> (..., d). Raises UsageError for an id outside 0..n-1."""
    n, d = w.shape
    ids = backend.upload_ids(ids, n, "embedding")

    def vjp(g):
        return (backend.add_rows(ids.reshape(-1), g.reshape(-1, d), n),)

    return make(w.data[ids], (w,), vjp)


def layer_norm(x, w, b, eps=1e-5):
    """Each row to mean 0 and variance 1, then times w plus b: (..., d), (d,), (d,) -> (..., d)."""
    shape, d = x.shape, x.shape[-1]
    weight = w.data
    flat = x.data.reshape(-1, d)  # (N, d)
    unit = flat - backend.row_sum(flat) * (1 / d)
    inv_std = math.sqrt(d) / backend.xp.sqrt(backend.row_dot(unit, unit) + d * eps)  # (N, 1)
    unit *= inv_std

    need_x, need_w, need_b = x.node is not None, w.node is not None, b.node is not None

    def vjp(g):
        g = g.reshape(-1, d)  # (N, d)
        scratch = g * unit
        dw = backend.column_sum(scratch) if need_w else None
        db = backend.column_sum(g) if need_b else None
        if not need_x:
            return None, dw, db
        column = weight.reshape(d, 1) * (1 / d)
        shared = g @ column  # (N, 1): the part that would move the mean ...
        along = scratch @ column  # ... and the part that would change the variance are taken out
        dx = g * weight
        dx -= shared
        dx -= backend.xp.multiply(unit, along, out=scratch)
        dx *= inv_std
        return dx.reshape(shape), dw, db

    y = unit * weight
    y += b.data
    return make(y.reshape(shape), (x, w, b), vjp)


def relu(x):
    """max(x, 0)."""
    positive = x.data > 0
    return make(x.data * positive, (x,), lambda g: (g * positive,))


def gelu(x):
    """x Φ(x) in its tanh form (Hendrycks and Gimpel, 2016): within 1e-3 of the exact one, which NumPy cannot compute."""
    data, a, c = x.data, 0.044715, math.sqrt(2 / math.pi)
    square = data * data
    y = square * (a * c)
    y += c
    y *= data  # u = c (x + a x³)
    backend.xp.tanh(y, out=y)
    y += 1
    y *= 0.5  # Φ = (1 + tanh u) / 2, of which the derivative by u is 2 Φ (1 - Φ)
    if not grad_wanted(x):
        y *= data
        return make(y, (x,), None)
    slope = square  # becomes Φ + x Φ' = Φ + 2 x u' Φ (1 - Φ), so that backward is one product
    slope *= 6 * a * c
    slope += 2 * c
    slope *= 1 - y
    slope *= y
    slope *= data
    slope += y
    y *= data
    return make(y, (x,), lambda g: (g * slope,))


def softmax(x):
    """exp(x) over its sum, along the last axis, shifted by the row maximum so that nothing overflows."""
    y = x.data - x.data.max(axis=-1, keepdims=True)
    backend.xp.exp(y, out=y)
    y /= backend.row_sum(y)  # (..., n) / (..., 1)

    def vjp(g):
        dx = g - backend.row_dot(g, y)
        dx *= y
        return (dx,)

    return make(y, (x,), vjp)


def dropout(x, rate, rng):
    """Each element kept with probability 1 - rate and scaled by 1 / (1 - rate); `rng` is a host generator."""
    if not 0 <= rate < 1:
        raise UsageError(f"dropout rate {rate} is outside [0, 1)")
    kept = backend.upload(rng.random(x.shape, dtype=np.float32) >= rate)
    scale = 1 / (1 - float(rate))
    return make(x.data * kept * scale, (x,), lambda g: (g * kept * scale,))


def rotate(x, cos, sin):
    """Turn pairs (x_i, x_{i + n/2}) of the last axis: (..., T, n) by angles whose cos and sin are (T, n/2).

    Rotary positions in the "halves" convention. The gradient turns back.
    """

    def turn(a, sin):
        half = a.shape[-1] // 2
        first, second = a[..., :half], a[..., half:]  # (..., T, n/2) each
        out = backend.xp.empty(a.shape, a.dtype)
        out[..., :half] = first * cos - second * sin
        out[..., half:] = second * cos + first * sin
        return out

    return make(turn(x.data, sin), (x,), lambda g: (turn(g, -sin),))


def split_heads(x, n):
    """A row of n heads as n rows: (B, T, n·d_h) -> (B, n, T, d_h)."""
    B, T, C = x.shape
    y = x.data.reshape(B, T, n, -1).transpose(0, 2, 1, 3)  # (B, n, T, d_h)
    return make(y, (x,), lambda g: (g.transpose(0, 2, 1, 3).reshape(B, T, C),))


def merge_heads(x):
    """The other way: (B, n, T, d_h) -> (B, T, n·d_h)."""
    B, n, T, _ = x.shape
    y = x.data.transpose(0, 2, 1, 3).reshape(B, T, -1)  # (B, T, n·d_h)
    return make(y, (x,), lambda g: (g.reshape(B, T, n, -1).transpose(0, 2, 1, 3),))


BLOCK = 128  # rows of queries whose scores are held at once; a shorter sequence is one block
KEEP = 1 << 18  # scores a head, T·S, up to which backward finds the patterns kept; beyond, it computes each block again


def scaled_dot_product_attention(q, k, v, mask=None, *, scale=None, temperature=None, bias=None):
    """softmax(temperature · scale · q kᵀ + bias, masked) v: the middle of every variant (paper, section 3).

    q (B, H, T, d_h); k, v (B, h, S, d_h) with h dividing H: query head i reads stored head ⌊i / (H/h)⌋. q, k and v
    may be the same Tensor. `mask` is a boolean array (T, S), True where a key may be seen; each query must see one at
    least. `scale` is 1/√d_h unless given. `temperature` () and `bias` (S,), Tensors, are the two things that are left
    of the paper's "+" after the softmax. Returns (B, H, T, d_h). Raises UsageError for shapes that do not fit.

    Queries come in blocks of rows, and a block ends at the last key that any of its rows may see: a causal mask halves
    the work, and for long sequences no (T, S) array of all heads exists, forward or backward.
    """
    xp, bmm = backend.xp, backend.bmm
    B, H, T, d_h = q.shape
    h, S = k.shape[1:3]
    if H % h or v.shape != k.shape or k.shape[0] != B or k.shape[3] != d_h:
        raise UsageError(f"attention: q {q.shape} does not fit k {k.shape} and v {v.shape}")
    if not q.size or not k.size or (mask is not None and (mask.shape != (T, S) or mask.dtype != bool)):
        raise UsageError(f"attention: batch and sequences must not be empty, and a mask is boolean, of shape {(T, S)}")
    scale = 1 / math.sqrt(d_h) if scale is None else float(scale)
    strength = scale if temperature is None else temperature.data * scale
    scaled, keys, values = q.data * strength, k.data, v.data
    wanted = any(grad_wanted(x) for x in (q, k, v, temperature, bias) if x is not None)
    column_bias = None if bias is None else bias.data  # (S,)
    whole = tracing.active is not None  # then the arrays are shown in one piece
    step = T if whole else BLOCK
    blocks = [slice(i, min(i + step, T)) for i in range(0, T, step)]
    ends = [S if mask is None else backend.visible(mask[rows]) for rows in blocks]
    # scores that cannot overflow need no shift by their maximum; to find out costs a query as much as d_h scores do
    small = bias is None and d_h <= T and backend.bounded(scaled, keys)

    def fold(a):  # (B, H, t, n) -> (B, h, G·t, n): the queries that share a stored head are more rows of one product
        return a.reshape(B, h, -1, a.shape[-1])

    def pattern_of(rows, end):
        """Scores, (+), mask and softmax of one block of queries: its weights (B, H, t, end), and 1 over their row sums.

        The pattern is the product of the two; it is cheaper to scale what the rows are multiplied with.
        """
        scores = bmm(fold(scaled[:, :, rows]), keys[:, :, :end].swapaxes(-1, -2))  # (B, h, G·t, end)
        scores = scores.reshape(B, H, -1, end)
        tracing.probe("scores", scores)
        if column_bias is not None:
            scores += column_bias[:end]  # the "+": its temperature is already in the queries
            tracing.probe("plus", scores)
        if mask is not None:
            number = scores.dtype.type  # Python's numbers would make a float64 mask
            scores += xp.where(mask[rows, :end], number(0), number(-math.inf))
        if not small:
            scores -= scores.max(axis=-1, keepdims=True)
        weights = xp.exp(scores, out=scores)
        inv_sum = 1 / backend.row_sum(weights)  # (B, H, t, 1)
        if whole:
            tracing.probe("pattern", weights * inv_sum)
        return weights, inv_sum

    keep = whole or (T * S <= KEEP and wanted)
    kept, out = [], _merged(q)  # (B, H, T, d_h)
    for rows, end in zip(blocks, ends, strict=True):
        weights, inv_sum = pattern_of(rows, end)
        xp.multiply(bmm(fold(weights), values[:, :, :end]).reshape(B, H, -1, d_h), inv_sum, out=out[:, :, rows])
        kept.append((weights, inv_sum) if keep else None)
    prefix, need_k, need_v = tracing.here(), k.requires_grad, v.requires_grad
    unscaled, has_bias = None if temperature is None else q.data, bias is not None

    def vjp(g):
        dq, dk, dv, db = _merged(out), None, None, None
        dt = None if unscaled is None else xp.zeros((), out.dtype)
        for rows, end in zip(reversed(blocks), reversed(ends), strict=True):
            weights, inv_sum = kept.pop() if keep else pattern_of(rows, end)  # (B, H, t, end), (B, H, t, 1)
            g_scaled = g[:, :, rows] * inv_sum  # (B, H, t, d_h)
            g_rows = fold(g_scaled)  # (B, h, G·t, d_h)
            if need_v:
                dv = _add_head(dv, bmm(fold(weights).swapaxes(-1, -2), g_rows), S)  # (B, h, S, d_h)
            d = bmm(g_rows, values[:, :, :end].swapaxes(-1, -2)).reshape(weights.shape)  # inv_sum · gradient of the pattern ...
            if whole:
                tracing.probe("grad.pattern", d / inv_sum, prefix)
            d -= backend.row_dot(g_scaled, out[:, :, rows])  # its row sums Σ_j d_ij p_ij, taken where rows are short
            d *= weights  # ... now the gradient of the scores
            if whole:
                tracing.probe("grad.scores", d, prefix)
            if has_bias:
                db = _add_head(db, backend.column_sum(d), S, axis=0)  # (S,)
            d = fold(d)  # (B, h, G·t, end)
            if need_k:
                dk = _add_head(dk, bmm(d.swapaxes(-1, -2), fold(scaled[:, :, rows])), S)  # (B, h, S, d_h)
            d = bmm(d, keys[:, :, :end]).reshape(B, H, -1, d_h)  # of the scaled queries
            if unscaled is not None:
                dt += (d * unscaled[:, :, rows]).sum() * scale  # Σ d·S without keeping S
            xp.multiply(d, strength, out=dq[:, :, rows])
        return dq, dk, dv, dt, db

    return make(out, (q, k, v, temperature, bias), vjp)


def _merged(x):
    """An empty array in the shape of x (B, H, T, d_h), laid out as (B, T, H, d_h): to merge its heads copies nothing."""
    B, H, T, d_h = x.shape
    return backend.xp.empty((B, T, H, d_h), x.dtype).swapaxes(1, 2)


def _add_head(total, part, n, axis=2):
    """Add `part` to the first places of a total with n along `axis`; the first part may be the whole of it."""
    if total is None and part.shape[axis] == n:
        return part
    if total is None:
        total = backend.xp.zeros((*part.shape[:axis], n, *part.shape[axis + 1 :]), part.dtype)
    head = total[(slice(None),) * axis + (slice(part.shape[axis]),)]
    head += part
    return total


def cross_entropy(logits, targets, ignore_index=-100):
    """Mean of -log softmax(logits)[target] over the positions whose target is not `ignore_index`.

    logits (..., V); targets (...) integers on the host. Raises UsageError for a target outside 0..V-1, or when all
    are ignored: the mean of nothing is no number.
    """
    vocab = logits.shape[-1]
    targets = np.asarray(targets)
    if targets.shape != logits.shape[:-1]:
        raise UsageError(f"cross_entropy: targets {targets.shape} do not fit logits {logits.shape}")
    targets = targets.reshape(-1)
    kept = np.flatnonzero(targets != ignore_index)
    if not len(kept):
        raise UsageError("cross_entropy: every target is ignored")
    rows, columns = backend.upload(kept), backend.upload_ids(targets[kept], vocab, "targets")
    flat = logits.data.reshape(-1, vocab)  # (N, V)
    if len(kept) < len(targets):
        flat = flat[rows]  # (n, V)
    p = flat - flat.max(axis=-1, keepdims=True)  # (n, V)
    index = (backend.xp.arange(len(kept)), columns)
    hit = p[index]  # (n,)
    backend.xp.exp(p, out=p)
    total = backend.row_sum(p)  # (n, 1)
    p /= total
    loss = (backend.xp.log(total[:, 0]) - hit).sum() * (1 / len(kept))
    shape = logits.shape

    def vjp(g):
        p[index] -= 1
        d = p
        d *= g * (1 / len(kept))
        if len(kept) < len(targets):
            d = backend.xp.zeros((len(targets), vocab), p.dtype)  # (N, V)
            d[rows] = p
        return (d.reshape(shape),)

    return make(loss, (logits,), vjp)
