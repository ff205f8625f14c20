"""Attention over a long cache, a block of positions at a time: the online softmax.

softmax(s) v is Σ exp(s - m) v / Σ exp(s - m) for any number m, so both sums can be taken over one
block of keys after another. m is the largest score so far, which keeps exp from overflowing. When a
block raises it from m to m', the sums so far are multiplied by exp(m - m').
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np

from .attention import Attention
from .runtime import backend
from .runtime.backend import Array
from .tensor import Tensor

BLOCK = 1024  # positions of a block
FEW = 64  # with more queries than this, the scores are larger than a copy of all rows

Part = tuple[Array, Array, Array]  # (mixed, total, peak): see `part`


def part(
    attention: Attention,
    q: Array,
    rows: tuple[Array, ...],
    at: slice | np.ndarray,
    mask: Array | None,
    asked: slice | np.ndarray,
) -> Part:
    """The part of the answers to queries q (B, H, T, d) at positions `asked` that comes from rows
    stored at positions `at`; `mask` as for `Attention.attend`.

    Returns Σ exp(s - peak) v, (B, H, T, d_v), and two arrays (B, H, T, 1): Σ exp(s - peak), and
    `peak`, the largest score.
    """
    k, v = (row.data for row in attention.read([Tensor(row) for row in rows], at))
    temperature, bias = attention.shifts(asked, at)
    (B, H, T, d), h = q.shape, k.shape[1]
    q = q * ((1 if temperature is None else temperature.data) / attention.root)
    scores = backend.bmm(q.reshape(B, h, -1, d), k.swapaxes(-1, -2)).reshape(B, H, T, -1)
    if bias is not None:
        scores += bias.data
    number = scores.dtype.type  # Python's numbers would make a float64 mask
    if mask is not None:
        scores += backend.xp.where(mask, number(0), number(-math.inf))
    # Where a query sees nothing of this block, peak must be finite: -∞ - (-∞) is not a number.
    peak = backend.xp.maximum(scores.max(axis=-1, keepdims=True), np.finfo(number).min)
    scores -= peak
    weights = backend.xp.exp(scores, out=scores)
    mixed = backend.bmm(weights.reshape(B, h, -1, weights.shape[-1]), v)  # (B, h, G·T, d_v)
    return mixed.reshape(B, H, T, -1), backend.row_sum(weights), peak


def merge(a: Part, b: Part) -> Part:
    """Combine the parts that come from two sets of keys."""
    peak = backend.xp.maximum(a[2], b[2])
    x, y = backend.xp.exp(a[2] - peak), backend.xp.exp(b[2] - peak)  # (B, H, T, 1)
    return a[0] * x + b[0] * y, a[1] * x + b[1] * y, peak


def answer(found: Part, sink: Tensor | None = None) -> Tensor:
    """The output of attention from all parts, merged: (B, H, T, d_v), a constant. `sink` (H, 1, 1):
    the score of one more key, whose value is 0.
    """
    if sink is not None:
        found = merge(found, (0.0, 1.0, sink.data))
    mixed, total, _ = found
    return Tensor(mixed / (total + (total == 0)))  # zeros for a query that sees nothing


def in_blocks(
    attention: Attention,
    q: Array,
    rows: Callable[[slice], tuple[Array, ...]],
    at: slice | np.ndarray,
    mask: Array | None,
    asked: slice | np.ndarray,
    n: int,
    step: int,
) -> Part:
    """`part` of n stored rows, `step` rows at a time; `rows(slice)` gives those of a slice."""

    def block(piece):
        shown = None if mask is None else mask[..., piece]
        return part(attention, q, rows(piece), some(at, piece), shown, asked)

    return reduce(merge, (block(slice(i, min(i + step, n))) for i in range(0, n, step)))


def some(at: slice | np.ndarray, piece: slice) -> slice | np.ndarray:
    """The positions, a slice or (..., S), of some of the slots."""
    if isinstance(at, slice):
        return slice(at.start + piece.start, at.start + piece.stop)
    return at[..., piece]
