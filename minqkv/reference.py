"""Each operation of functional.py in a few lines of small ones: the lesson, and the oracle.

functional.py, which is what runs, has the same operations with their backward written by hand.
Tests check that the two agree.
"""

from __future__ import annotations

import math

import numpy as np

from .runtime import backend
from .runtime.backend import Array
from .tensor import Tensor, concat, where


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x @ w + b."""
    y = x.reshape(-1, x.shape[-1]) @ w  # (N, n) @ (n, m) -> (N, m)
    y = y if b is None else y + b
    return y.reshape(*x.shape[:-1], w.shape[1])  # (..., m)


def embedding(ids: np.ndarray, w: Tensor) -> Tensor:
    """The one-hot matrix of the ids times w."""
    onehot = np.eye(w.shape[0])[np.asarray(ids).reshape(-1)]  # (N, n)
    return (Tensor(onehot, dtype=w.dtype) @ w).reshape(
        *np.shape(ids), w.shape[1]
    )  # (N, d) -> (..., d)


def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / √(variance + eps) · w + b."""
    centred = x - x.mean(-1, keepdims=True)  # (..., d) - (..., 1)
    variance = (centred * centred).mean(-1, keepdims=True)  # (..., 1)
    return centred / (variance + eps).sqrt() * w + b


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(mean of x² + eps)."""
    return x / ((x * x).mean(-1, keepdims=True) + eps).sqrt()  # (..., d) / (..., 1)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return where(x.data <= 0, 0.0, x)


def gelu(x: Tensor) -> Tensor:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    return x * 0.5 * (inner.tanh() + 1.0)


def softmax(x: Tensor) -> Tensor:
    """exp(x) / Σ exp(x), shifted by a constant that cancels."""
    e = (x - x.detach().max(-1, keepdims=True)).exp()
    return e / e.sum(-1, keepdims=True)  # (..., n) / (..., 1)


def dropout(x: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    """x times a random 0 or 1 / (1 - rate)."""
    kept = rng.random(x.shape, dtype=np.float32) >= rate
    return where(kept, x, 0.0) * (1 / (1 - rate))


def rotate(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin), a and b the two halves of the last channels."""
    m = cos.shape[-1]
    still, pairs = x[..., : x.shape[-1] - 2 * m], x[..., x.shape[-1] - 2 * m :]
    a, b = pairs[..., :m], pairs[..., m:]  # (..., T, m) each
    cos, sin = Tensor(cos), Tensor(sin)
    return concat([still, a * cos - b * sin, b * cos + a * sin], axis=-1)


def split_heads(x: Tensor, n: int) -> Tensor:
    """(B, T, n·d_h) -> (B, n, T, d_h)."""
    return x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3)


def merge_heads(x: Tensor) -> Tensor:
    """(B, n, T, d_h) -> (B, T, n·d_h)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


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
    """softmax(temperature · scale · q kᵀ + bias, masked) v, the stored heads repeated for each
    group of queries. `causal` says of the mask what it shows here anyway.
    """
    if k.shape[1] < q.shape[1]:
        stored = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
        k, v = k[:, stored], v[:, stored]  # (B, h, S, d_h) -> (B, H, S, d_h)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(0, 1, 3, 2) * scale  # (B, H, T, d_h) @ (B, H, d_h, S) -> (B, H, T, S)
    scores = scores if temperature is None else scores * temperature
    scores = scores if bias is None else scores + bias
    if mask is not None:
        sees = mask.any(-1, keepdims=True)  # (T, 1); a query that sees nothing is answered by zeros
        scores = where(mask | ~sees, scores, -math.inf)
    z = softmax(scores) @ v  # (B, H, T, d_h)
    return z if mask is None else where(sees, z, 0.0)


def literal_plus(scores, w, b, row_channels, column_channels):
    """The paper's "+" as written: a 1×1 convolution over each score and its m fixed channels
    (section 3.3).

    scores (B, H, T, S); w (m,); b (); row_channels (T, m_row) and column_channels (S, m_col)
    arrays. S'_ij = Σ_c w_c (S_ij + P_ijc) + b. `Plus` in attention.py keeps what survives the
    softmax.
    """
    (T, m_row), (S, m_col) = row_channels.shape, column_channels.shape
    rows = backend.xp.broadcast_to(row_channels[:, None, :], (T, S, m_row))
    columns = backend.xp.broadcast_to(column_channels[None, :, :], (T, S, m_col))
    channels = Tensor(backend.xp.concatenate([rows, columns], axis=-1))  # (T, S, m)
    stacked = scores.reshape(*scores.shape, 1) + channels  # (B, H, T, S, m)
    return (stacked * w).sum(-1) + b  # (B, H, T, S)


def cross_entropy(logits: Tensor, targets: np.ndarray, ignore_index: int = -100) -> Tensor:
    """Mean of log Σ exp(logits) - logits[target] over the targets that count."""
    flat, targets = logits.reshape(-1, logits.shape[-1]), np.asarray(targets).reshape(-1)
    kept = np.flatnonzero(targets != ignore_index)
    flat = flat[kept]  # (N, V) -> (n, V)
    shift = flat.detach().max(-1, keepdims=True)
    log_total = (flat - shift).exp().sum(-1, keepdims=True).log() + shift  # (n, 1)
    return (log_total.reshape(-1) - flat[np.arange(len(kept)), targets[kept]]).mean()
