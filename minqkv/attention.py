"""Every variant of attention in one forward method, preceded by positions, the mask and the "+".

What differs between variants is which projections exist and which array is used as key and value.
With K = V the same array *is* both: in training, where the gradients of its two uses add up, and
in the cache. (With rotary positions and "raw", the key is that array, turned when it is read.)
"""

from __future__ import annotations

import math

import numpy as np

from .functional import (
    concat,
    merge_heads,
    rms_norm,
    rotate,
    scaled_dot_product_attention,
    split_heads,
)
from .nn import Init, Linear, Module
from .runtime import backend, tracing
from .runtime.backend import Array
from .runtime.errors import UsageError, unknown
from .runtime.fields import whole
from .tensor import Tensor, make
from .variants import FARTHEST, POSITIONS, ROPE_VALUES, VariantSpec


def sinusoids(n: int, channels: int, width: int | None = None, dtype="float32") -> np.ndarray:
    """(n, channels) fixed channels: sin, cos interleaved, pair k at frequency 10000^(-2k/width).

    `width` is `channels` unless given.
    """
    pair = np.arange(channels) // 2
    angle = np.arange(n)[:, None] * 10000.0 ** (-2 * pair / (width or channels))  # (n, channels)
    return np.where(np.arange(channels) % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)


def rope_table(n: int, d_head: int, dtype="float32", base: float = 10_000.0) -> tuple[Array, Array]:
    """cos and sin of position · base^(-2i/d_head), i < d_head/2: two (n, d_head/2) arrays."""
    frequency = base ** (-2 * np.arange(d_head // 2) / d_head)
    angle = np.arange(n)[:, None] * frequency  # (n, d_head/2)
    return backend.upload(np.cos(angle).astype(dtype)), backend.upload(np.sin(angle).astype(dtype))


def within(at: slice | np.ndarray, n: int) -> slice | np.ndarray:
    """Positions `at`. Raises UsageError if a table of n positions does not have all of them. Those
    of a recorded token, which lie on a GPU, cannot be looked at.
    """
    if not isinstance(at, (slice, np.ndarray)):
        return at
    first, end = (
        (at.start, at.stop) if isinstance(at, slice) else (int(at.min()), int(at.max()) + 1)
    )
    if first < -isinstance(at, np.ndarray) or end > n:  # -1 is padding: any row will do
        raise UsageError(f"positions {first} to {end - 1}, but the tables hold 0 to {n - 1}")
    return at


def as_array(at: slice | np.ndarray) -> np.ndarray:
    """Positions, a slice or (..., T), as an array (T,) or (..., T)."""
    return np.arange(at.start, at.stop) if isinstance(at, slice) else at


def on_device(at: slice | np.ndarray) -> Array:
    """Positions, a slice or (..., T), as an array of the backend, (T,) or (..., T)."""
    return backend.xp.arange(at.start, at.stop) if isinstance(at, slice) else backend.shared(at)


def lengthened(tables: tuple[Array, ...], end: int, make) -> tuple[Array, ...]:
    """Tables (n, ...) for positions 0 to n - 1, made longer if n is less than `end`.

    `make(n)` computes longer tables. Only their additional rows are used, so the old rows keep
    their bits.
    """
    n = len(tables[0])
    if end <= n:
        return tables
    pairs = zip(tables, make(2 * end), strict=True)  # twice, so the next tokens fit too
    return tuple(backend.xp.concatenate([old, backend.upload(new[n:])]) for old, new in pairs)


def reach_sinusoids(table: Tensor, end: int, width: int | None = None) -> None:
    """Make a table of `sinusoids` with this `width` longer if it has fewer than `end` positions."""
    channels, dtype = table.shape[1], table.dtype
    (table.data,) = lengthened((table.data,), end, lambda n: [sinusoids(n, channels, width, dtype)])


def causal_mask(queries: Array, keys: Array, window: int | None = None, sinks: int = 0) -> Array:
    """(T,), (S,) absolute positions -> (T, S), True where a key is not ahead of its query.

    With a `window`, a query sees itself, the window - 1 positions before it, and the first `sinks`
    positions. If positions differ between the sequences of a batch, (B, T) or (B, S), the mask is
    (B, 1, T, S), one for all heads. A key at -1 is padding or an empty slot; no query sees it. A
    query at -1 is padding; it sees everything, only to keep its softmax finite.
    """
    q, k = queries[..., None], keys[..., None, :]  # (T, 1), (1, S)
    seen = (k >= 0) & (k <= q)  # (T, S), or (B, T, S)
    if window is not None:
        seen &= (k > q - window) | (k < sinks)
    return seen if seen.ndim == 2 else (seen | (q < 0))[:, None]  # (B, 1, T, S)


class Plus(Module):
    """What survives the softmax of the paper's "+": a temperature, and a bias per key position.

    The temperature is s = Σw, the bias g_j = Σ_c w_c P_jc. The literal form
    (reference.literal_plus; paper, section 3.3) adds a row part and a constant too; both are equal
    for all keys of a query and cancel. All m weights stay parameters: under Adam, s = Σw moves m
    steps at once. `channels` is (row channels, column channels, width that sets the frequencies).
    """

    def __init__(self, kind, block_size, init=None, channels=(5, 5, 5), start=None):
        init = init or Init()
        self.kind, (self.m_row, m_column, self.width) = kind, channels
        m = self.m_row + m_column
        columns = sinusoids(block_size, m_column, self.width, init.dtype)  # (block_size, m_column)
        self.columns = Tensor(backend.upload(columns))
        weight = init / "weight"
        if start is not None:
            self.weight = weight.constant((m,), start / m)
        elif init.scheme == "xavier":
            self.weight = weight.uniform((m,), (6 / (m + 1)) ** 0.5)
        else:
            self.weight = weight.normal((m,), 0.02)

    def forward(self, at: slice | np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        """(temperature (), bias (S,)) for keys at these positions; the bias is (B, 1, 1, S) if
        sequences differ. None for the half that an ablation leaves out.
        """
        temperature = None if self.kind == "bias" else self.weight.sum()
        if self.kind == "temperature":
            return temperature, None
        column_weights = self.weight[self.m_row :].reshape(-1, 1)  # (m_column, 1)
        bias = self.columns[within(at, len(self.columns))] @ column_weights  # (S, 1), or (B, S, 1)
        shape = (-1,) if bias.ndim == 2 else (len(bias), 1, 1, -1)
        return temperature, bias.reshape(shape)


def slopes(n_head: int) -> np.ndarray:
    """The rates of ALiBi, (H,): 2^(-8/n), 2^(-16/n) ... 2^-8, where n, a power of two, is the
    number of heads. Otherwise n is the next lower one, and the exponents of the other heads lie in
    the middle between these (arXiv 2108.12409, and its released code).
    """
    n = 1 << n_head.bit_length() - 1
    return 2.0 ** (-8 / n * np.r_[1 : n + 1, np.arange(n_head - n) + 0.5])


class Distance(Module):
    """What is added to a score, by head and by how far the key lies before the query.

    "fixed": minus the distance, either way, times a rate for each head (`slopes`). "learned": a
    number for each head and distance (arXiv 1910.10683, without its buckets); all distances from
    FARTHEST on share one. If queries see keys `ahead` of them, distances are signed, so that the
    two directions can differ. What is added has as many numbers as the scores of one sequence.
    """

    def __init__(self, kind, n_head, block_size, init=None, ahead=True):
        init = init or Init()
        self.far = min(block_size - 1, FARTHEST)
        self.first = -self.far if ahead else 0
        self.slopes = self.weight = None
        if kind == "fixed":
            self.slopes = backend.upload(slopes(n_head)[:, None, None].astype(init.dtype))
        else:
            self.weight = (init / "weight").normal((self.far - self.first + 1, n_head), 0.02)

    def forward(self, queries: slice | np.ndarray, keys: slice | np.ndarray) -> Tensor:
        """(1, H, T, S) for positions (T,) and (S,); (B, H, T, S) if sequences differ."""
        i, j = (backend.xp.atleast_2d(on_device(at)) for at in (queries, keys))
        before = i[:, :, None] - j[:, None, :]  # (B, T, S)
        if self.slopes is not None:
            away = abs(before[:, None]).astype(self.slopes.dtype)  # (B, 1, T, S)
            return Tensor(-self.slopes * away)  # (B, H, T, S)
        return looked_up(self.weight, before.clip(self.first, self.far) - self.first)


def looked_up(weight: Tensor, rows: Array) -> Tensor:
    """Row rows[b, t, s] of weight (n, H), as numbers of the heads: (B, T, S) -> (B, H, T, S)."""
    n, H = weight.shape

    def vjp(g, wanted):
        flat = rows.reshape(-1)
        heads = [backend.add_numbers(flat, g[:, h].reshape(-1), n) for h in range(H)]  # (n,) each
        return (backend.xp.stack(heads, axis=1).astype(g.dtype),)

    return make(weight.data.T[:, rows].swapaxes(0, 1), (weight,), vjp)


class Attention(Module):
    """Multi-head attention of any VariantSpec (paper, section 3): (B, T, C) -> (B, T, C).

    Four methods make a design: what is stored of a token, what a query asks, how keys and values
    are read from what is stored, and what is done to the answer. Positions are below `block_size`
    unless `reach` makes room for more. `head_dim`, the head width, is n_embd / n_head unless
    given. Under rotary positions the last `d_rope` channels of a query and of a key turn, all
    unless given, at frequencies that `rope_base` sets. `rope_value`, for K = V: "raw" stores values
    and turns them into keys when they are read; "unrotate" stores turned keys and turns the answer
    back. With `norm`, queries and keys are scaled to mean square 1, then by a learned gain for each
    channel. With K = V the stored row is scaled so, and a value that is stored "raw" is without the
    gain. `ahead` says whether queries see later keys: a learned distance has to know, and if they
    do not, those scores are not computed. `window` and `sinks` are for a cache, which makes its own
    mask (`causal_mask`); without a cache, `mask` says what is seen.

    Positions `at` are a slice if all sequences of a batch agree, else an array (B, T) on the host.
    """

    sink = None  # in some designs, a score for each head of one more key, whose value is 0
    distance = None  # in some schemes, what is added to a score by distance

    def __init__(
        self,
        spec: str | VariantSpec,
        n_embd: int,
        n_head: int,
        block_size: int,
        init: Init | None = None,
        *,
        bias: bool = True,
        head_dim: int | None = None,
        position: str = "none",
        rope_value: str = "raw",
        d_rope: int | None = None,
        rope_base: float = 10_000.0,
        norm: bool = False,
        plus_channels: tuple[int, int, int] = (5, 5, 5),
        plus_start: float | None = None,
        window: int | None = None,
        sinks: int = 0,
        ahead: bool = True,
    ):
        init = init or Init()
        window, sinks = check_window(window, sinks)
        spec = VariantSpec.parse(spec).for_heads(n_head)
        head_dim = checked_head_dim(n_embd, n_head, head_dim)
        check_positions([spec], head_dim, position, rope_value, d_rope, rope_base)
        self.spec, self.name, rope = spec, init.name, POSITIONS[position].turns
        self.norm, self.rope_base, self.ahead = norm, rope_base, ahead
        self.d_rope = spec.turning(head_dim, d_rope) if rope else 0
        d_query, d_row = spec.widths(head_dim, self.d_rope)
        self.n_head, self.kv_heads = n_head, spec.stored_heads(n_head)
        self.window, self.sinks = window, sinks
        self.root = math.sqrt(d_query)  # scores are divided by it
        # All projections as one matrix would be this wide: it sets the bound of "xavier".
        stored = spec.rows(n_head, head_dim, self.d_rope)
        fused = spec.own_query * n_head * d_query + sum(heads * width for heads, width in stored)
        if spec.own_query:
            self.wq = Linear(n_embd, n_head * d_query, init / "wq", bias, fused)
        self.wk = Linear(n_embd, self.kv_heads * d_row, init / "wk", bias, fused)  # and its sharers
        if spec.streams == 2:
            self.wv = Linear(n_embd, self.kv_heads * head_dim, init / "wv", bias, fused)
        if spec.apart and rope:
            self.wr = Linear(n_embd, self.d_rope, init / "wr", bias, fused)
        if spec.latent:
            self.into = (init / "into").weight(head_dim, d_row, heads=n_head)
            self.out_of = (init / "out_of").weight(d_row, head_dim, heads=n_head)
        if norm and spec.own_query:
            self.q_gain = (init / "q_gain").constant((d_query,), 1.0)
        if norm and not spec.latent:  # there, it would only scale two matrices
            self.k_gain = (init / "k_gain").constant((d_row,), 1.0)
        self.wo = Linear(n_head * head_dim, n_embd, init / "wo", bias)
        if spec.plus:
            self.plus = Plus(spec.plus, block_size, init / "plus", plus_channels, plus_start)
        if kind := POSITIONS[position].distance:
            self.distance = Distance(kind, n_head, block_size, init / "distance", ahead)
        self.angles = rope_table(block_size, self.d_rope, init.dtype, rope_base) if rope else None
        one_row = spec.streams == 1 and not spec.apart
        self.turn_late = (rope or norm) and one_row and rope_value == "raw"
        self.turn_back = rope and one_row and rope_value == "unrotate"

    def forward(
        self,
        x: Tensor,
        mask: Array | None = None,
        cache=None,
        at: slice | np.ndarray | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        `mask` (T, S) or (B, 1, T, S) booleans, True where a key may be seen; without one, each
        token sees all of them. With `cache`, that of this layer, its rows come before those of x,
        and attention is causal, whatever `mask` says. `at`, a slice or (B, T), are the positions of
        x, -1 for padding; unless given, they are the next ones.
        """
        with tracing.scope(self.name):
            if at is None:
                at = slice(0, x.shape[1]) if cache is None else cache.next(x.shape[1])
            rows = self.store(x, at)  # of each new token, one or two arrays (B, h, T, d_h)
            q = self.query(x, rows, at)  # (B, H, T, d_h)
            if cache is None:
                z = self.attend(q, rows, at, mask)  # (B, H, T, d_h)
            else:
                z = cache.attend(self, q, rows, at, mask)  # (B, H, T, d_h)
            z = self.answer(z, at)
            tracing.probe("z", z)
            out = self.wo(merge_heads(z))  # (B, T, C)
            tracing.probe("out", out)
            return out

    def reach(self, end: int) -> None:
        """Make the tables of positions longer if they have fewer than `end` positions."""
        if self.spec.plus:
            reach_sinusoids(self.plus.columns, end, self.plus.width)
        if self.angles is not None:
            pairs, dtype = self.angles[0].shape[1], self.angles[0].dtype
            about = 2 * pairs, dtype, self.rope_base
            self.angles = lengthened(self.angles, end, lambda n: rope_table(n, *about))

    def store(self, x: Tensor, at: slice | np.ndarray) -> tuple[Tensor, ...]:
        """What is kept of new tokens: keys and values; or the one row that is both; or such a row
        and, beside it, what turns.
        """
        k = split_heads(self.wk(x), self.kv_heads)  # (B, h, T, d_row)
        k = rms_norm(k) if self.norm or self.spec.latent else k
        k = k if self.turn_late else self.key(k, at)
        if self.spec.streams == 2:
            return k, split_heads(self.wv(x), self.kv_heads)  # (B, h, T, d_h)
        if self.spec.apart and self.d_rope:
            return k, self.turn(split_heads(self.wr(x), 1), at)  # (B, 1, T, d_rope)
        return (k,)

    def key(self, k: Tensor, at: slice | np.ndarray) -> Tensor:
        """Rows (B, h, T, d_row) as keys: with the gain of `norm`, and turned, unless what turns
        stands apart.
        """
        k = k * self.k_gain if self.norm and not self.spec.latent else k
        return k if self.spec.apart else self.turn(k, at)

    def query(self, x: Tensor, rows: tuple[Tensor, ...], at: slice | np.ndarray) -> Tensor:
        """What new tokens look for; with Q = K, the keys they are found by."""
        if not self.spec.own_query:
            return self.read(rows, at)[0]
        q = split_heads(self.wq(x), self.n_head)  # (B, H, T, d_query)
        q = self.turn(rms_norm(q) * self.q_gain if self.norm else q, at)
        if not self.spec.latent:
            return q
        d_head = self.into.shape[1]
        # What a head asks, asked of a latent row, and what turns: (B, H, T, d_row + d_rope)
        return concat([q[..., :d_head] @ self.into, q[..., d_head:]], axis=-1)

    def read(
        self, rows: tuple[Tensor, ...], at: slice | np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, S, d_h) of the rows stored at positions `at`: 0, 1, ... S - 1
        unless given.
        """
        row = rows[0]
        if self.spec.apart and self.d_rope:
            still = row if self.spec.latent else row[..., : row.shape[-1] - self.d_rope]
            return concat([still, concat([rows[1]] * self.kv_heads, axis=1)], axis=-1), row
        if self.turn_late:
            at = slice(0, row.shape[2]) if at is None else at
            return self.key(row, at), row  # the key is a temporary; the value stays raw
        return row, rows[-1]  # with K = V, the same row twice

    def answer(self, z: Tensor, at: slice | np.ndarray) -> Tensor:
        """The mixed values, turned back from the query's position if `turn_back`; of latent rows,
        what each head takes out of them.
        """
        z = self.turn(z, at, back=True) if self.turn_back else z
        return z @ self.out_of if self.spec.latent else z  # (B, H, T, d_row) -> (B, H, T, d_h)

    def attend(
        self,
        q: Tensor,
        rows: tuple[Tensor, ...],
        at: slice | np.ndarray,
        mask: Array | None = None,
        asked: slice | np.ndarray | None = None,
    ) -> Tensor:
        """Queries (B, H, T, d_h) at positions `asked` against rows stored at positions `at`:
        (B, H, T, d_h). Unless given, `asked` is `at`.
        """
        n, S = q.shape[2], rows[0].shape[2]
        if self.distance is not None and asked is None and n != S:
            why = f"{n} queries, {S} keys: their distances are not known"
            raise UsageError(why, "attend(..., asked=POSITIONS)")
        k, v = self.read(rows, at)
        for name, value in (("q", q), ("k", k), ("v", v)):
            tracing.probe(name, value)
        temperature, bias = self.shifts(at if asked is None else asked, at)
        causal = not self.ahead and asked is None and isinstance(at, slice)  # keys in order
        return self.mix(q, k, v, mask, temperature=temperature, bias=bias, causal=causal)

    def shifts(
        self, asked: slice | np.ndarray, at: slice | np.ndarray
    ) -> tuple[Tensor | None, Tensor | None]:
        """The temperature and the bias of scores between queries at positions `asked` and keys at
        positions `at`; see `scaled_dot_product_attention`.
        """
        temperature, bias = self.plus(at) if self.spec.plus else (None, None)
        if self.distance is None:
            return temperature, bias
        away = self.distance(asked, at)  # (B, H, T, S)
        return temperature, away if bias is None else away + bias

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Array | None, **plus) -> Tensor:
        """Values (B, h, S, d_v), mixed by the softmax of the scores: (B, H, T, d_v)."""
        return scaled_dot_product_attention(q, k, v, mask, scale=1 / self.root, **plus)

    def turn(self, x: Tensor, at: slice | np.ndarray, back: bool = False) -> Tensor:
        """Rotary positions `at` on the last d_rope channels of (B, h, T, d_h)."""
        if self.angles is None:
            return x
        at = within(at, len(self.angles[0]))
        at = backend.shared(at) if isinstance(at, np.ndarray) else at
        cos, sin = (table[at] for table in self.angles)  # (T, d_rope/2), or (B, T, ...)
        if cos.ndim == 3:
            cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, d_rope/2)
        return rotate(x, cos, -sin if back else sin)


def checked_head_dim(n_embd: int, n_head: int, head_dim: int | None) -> int:
    """The head width, n_embd / n_head unless given. Raises UsageError if that is
    impossible.
    """
    if head_dim is None and n_embd % n_head:
        why = f"n_embd {n_embd} is not divisible by n_head {n_head}"
        raise UsageError(why, "to set the head width independently: --head-dim")
    return n_embd // n_head if head_dim is None else whole("head_dim", head_dim, 1)


def check_window(window: int | None, sinks: int) -> tuple[int | None, int]:
    """The two as Python's numbers. Raises UsageError if there can be no such window."""
    window, sinks = window if window is None else whole("window", window, 1), whole("sinks", sinks)
    if sinks and window is None:
        raise UsageError(f"{sinks} sinks without a window: every token sees them anyway")
    return window, sinks


def check_positions(
    specs,
    head_dim: int,
    position: str,
    rope_value: str,
    d_rope: int | None = None,
    rope_base: float = 10_000.0,
) -> None:
    """Refuse positions that these designs cannot have. Raises UsageError."""
    if rope_value not in ROPE_VALUES:
        raise unknown("rope_value", rope_value, ROPE_VALUES)
    if position not in POSITIONS:
        raise unknown("position scheme", position, POSITIONS)
    turns = POSITIONS[position].turns
    if d_rope is not None and not turns:
        raise UsageError(f"d_rope {d_rope}: only rotary positions turn channels", "--position rope")
    if not 0 < rope_base < math.inf:
        raise UsageError(f"rope_base {rope_base} must be above 0 and finite")
    for spec in specs:
        if turns:
            spec.turning(head_dim, d_rope)
        elif spec.apart and not spec.latent:
            why = f"{spec.name} stores what turns apart, and only rotary positions turn"
            raise UsageError(why, "--position rope")
