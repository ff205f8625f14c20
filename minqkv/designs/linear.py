"""Linear attention with Q = K = V, in parallel and as a recurrence (paper, appendix A.1).

The weight of token j for token i is λ^|i - j| φ(z_i)·φ(z_j), divided by the sum of all that i sees.
No softmax stands between the two factors, so a sum over earlier tokens can be kept in place of the
tokens: a state of one size, however many have been read.

In the paper's formula λ acts on the sum of values, but not on the sum that divides it, so weights
do not add up to 1 unless λ = 1. Here λ acts on both. φ(x) = elu(x) + 1 comes from Katharopoulos et
al. (2020, arXiv 2006.16236).
"""

from __future__ import annotations

import numpy as np

from ..attention import Attention, on_device
from ..cache import KVCache, LayerCache
from ..functional import transpose
from ..models import GPT, GPTConfig
from ..nn import Init
from ..runtime import backend, tracing
from ..runtime.backend import Array
from ..runtime.errors import UsageError
from ..tensor import Tensor, exp, where

FORMULA = "φ(K)φ(K)ᵀK, each row divided by its sum of weights"
ADDED = "none", "learned", "sinusoidal"  # positions that leave keys and scores as they are


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1: x + 1 above 0, and exp(x) below, so it is always positive."""
    above = x.data > 0
    return where(above, x + 1.0, exp(where(above, 0.0, x)))


def beside_one(z: Array) -> Array:
    """Values (..., d), and a 1 beside each: (..., d + 1). Sums of the ones are the divisors."""
    return backend.xp.concatenate([z, backend.xp.ones_like(z[..., :1])], axis=-1)


def recurrence(z: Tensor, state: Array, decay: float, real: Array | None = None) -> tuple:
    """One token after another: z (B, H, T, d) and a state -> answers (B, H, T, d) and the new
    state. Where `real` (B, T) is False, a token is padding, which leaves the state as it is.

    State t is S_t = λ S_(t-1) + φ(z_t) [z_t, 1]ᵀ, (B, H, d, d + 1). Of φ(z_t)ᵀ S_t, the last number
    divides the others.
    """
    f, values, xp = phi(z.detach()).data, beside_one(z.data), backend.xp
    sums = xp.empty_like(values)  # (B, H, T, d + 1)
    for t in range(z.shape[2]):
        # An outer product is added: (B, H, d, 1) * (B, H, 1, d + 1) -> (B, H, d, d + 1)
        new = decay * state + f[:, :, t, :, None] * values[:, :, t, None]
        sums[:, :, t] = backend.bmm(f[:, :, t, None], new)[:, :, 0]  # (B, H, d + 1)
        state = new if real is None else xp.where(real[:, t, None, None, None], new, state)
    return sums[..., :-1] / sums[..., -1:], state


class LinearAttention(Attention):
    """`q=k=v` with φ(q)·φ(k) in place of the softmax of scores: (B, T, C) -> (B, T, C).

    Parameters and their start are as in `Attention`. `decay` is λ, above 0 and at most 1. Without a
    cache this is the parallel form; with a StateLayer, the recurrence.
    """

    def __init__(self, n_embd, n_head, block_size, init=None, bias=True, head_dim=None, decay=1.0):
        super().__init__("q=k=v", n_embd, n_head, block_size, init, bias=bias, head_dim=head_dim)
        if not 0 < decay <= 1:
            raise UsageError(f"decay must be above 0 and at most 1, not {decay}")
        self.decay = float(decay)  # NumPy's own would make the state float64

    def attend(self, q, rows, at, mask=None, asked=None):
        """Queries against rows, all at once: (B, H, T, d). Each query must see some key."""
        k, v = self.read(rows, at)
        xp, asked = backend.xp, at if asked is None else asked
        i, j = (xp.atleast_2d(on_device(positions)) for positions in (asked, at))
        # λ to the power of the distance, (B, 1, T, S), or (1, 1, T, S) if all sequences agree
        fade = (self.decay ** abs(i[:, :, None] - j[:, None])).astype(q.dtype)[:, None]
        fade = fade if mask is None else fade * mask
        weights = phi(q) @ transpose(phi(k), 0, 1, 3, 2) * fade  # (B, H, T, S)
        pattern = weights / weights.sum(axis=-1, keepdims=True)
        tracing.probe("pattern", pattern)
        return pattern @ v  # (B, H, T, d)


class StateLayer(LayerCache):
    """The state of one layer, (B, H, d, d + 1), in a single slot that all tokens share.

    `last` is the state before the last step, and its `ends`, so that a step can be undone.
    """

    def __init__(self, batch, stored, capacity, dtype="float32"):
        heads, width = stored[0]
        super().__init__(batch, [(heads, width * (width + 1))], 1, dtype)
        self.stored, self.capacity = stored, capacity
        self.buffers[0][...] = 0.0
        self.last = self.buffers[0], 0

    @property
    def capacity_nbytes(self):
        """Bytes allocated: two states, the second for a step to be undone."""
        return 2 * super().capacity_nbytes

    def attend(self, attention, q, rows, at, mask=None):
        """Take new rows in, one after another, and answer the queries, which are the same rows."""
        if mask is not None or not isinstance(attention, LinearAttention):
            raise UsageError("a state is for linear attention, and a mask cannot hide parts of it")
        self.check(rows, at)
        B, H, _, d = rows[0].shape
        real = None if isinstance(at, slice) else backend.shared(at >= 0)
        state = self.buffers[0].reshape(B, H, d, d + 1)
        z, state = recurrence(rows[0], state, attention.decay, real)
        tracing.probe("cache.state", state)
        self.last, self.buffers = (self.buffers[0], self.ends), [state.reshape(B, H, 1, -1)]
        self.ends = self.after(at)
        return Tensor(z)

    def trim(self, n):
        """Undo the last step, or forget everything, for all sequences or some. Raises UsageError
        for other lengths: what has been added up cannot be taken apart.
        """
        (state, before), now = self.last, self.lengths
        ends = np.full(now.shape, n)  # (B,)
        if not ((ends == now) | (ends == before) | (ends == 0)).all():
            why = f"trim({n}): a state is a sum, of which only the last step can be undone"
            raise UsageError(why, "trim(0), and read again")
        stay, back = (backend.upload(ends == m)[:, None, None, None] for m in (now, before))
        self.buffers = [backend.xp.where(stay, self.buffers[0], backend.xp.where(back, state, 0.0))]
        self.ends, self.last = n, (self.buffers[0], n)

    def take(self, other, rows):
        """Become a copy of some sequences of another layer, without its `last`."""
        super().take(other, rows)
        self.last = self.buffers[0], self.ends


class StateCache(KVCache):
    """The states of all layers. Of the laws of caches, two do not hold: bytes do not grow with the
    text, and `trim` goes back one step or to the start. `capacity` is only a limit of positions.
    """

    layer_kind, shareable = StateLayer, False  # what a step replaced must come back if it fails

    @staticmethod
    def bytes_per_token(stored, dtype):
        """0: a token adds to the state, which stays as large as it is."""
        return 0

    def _shown_line(self):
        return super()._shown_line().partition("; ")[0] + "; a token stores nothing of its own"


class LinearGPT(GPT):
    """A GPT whose attention is linear; it starts with the parameters of its twin with softmax."""

    def __init__(self, cfg: GPTConfig, seed: int = 0, decay: float = 1.0):
        check_config(cfg)
        super().__init__(cfg, seed)
        for i, block in enumerate(self.blocks):
            init = Init(seed, cfg.dtype) / f"blocks.{i}.attn"
            options = {"bias": cfg.bias, "head_dim": cfg.head_dim, "decay": decay}
            block.attn = LinearAttention(cfg.n_embd, cfg.n_head, cfg.block_size, init, **options)

    def new_cache(self, batch=1, capacity=None, dtype=None, kind=StateCache, **options):
        """An empty StateCache. Another kind or dtype is refused when it is used."""
        return super().new_cache(batch, capacity, dtype, kind, **options)

    def _check(self, cache, ids):
        if type(cache) is not StateCache or cache.dtype != self.config.dtype:
            found = f"{type(cache).__name__} in {cache.dtype}"
            raise UsageError(f"linear attention cannot use a {found}", "model.new_cache()")
        super()._check(cache, ids)


def check_config(cfg: GPTConfig) -> None:
    """Raises UsageError for what linear attention is not written for."""
    if cfg.variant != "q=k=v" or cfg.position not in ADDED or cfg.window or cfg.norm:
        why = f"linear attention is for q=k=v, positions {', '.join(ADDED)}, no window and no norm"
        raise UsageError(why, f"--variant q=k=v --position {ADDED[1]}")


def state_space(layer: LinearAttention, x: Tensor) -> tuple[np.ndarray, ...]:
    """What a layer makes of x (B, T, C), as a state-space model for each sequence and head:

        S_t = A S_(t-1) + B_t u_t      y_t = C_t S_t

    A (d, d), B (B, H, T, d, 1), C (B, H, T, 1, d), u (B, H, T, 1, d + 1). The answer is y_t
    without its last number, divided by that number.
    """
    (z,) = layer.store(x, slice(0, x.shape[1]))  # (B, H, T, d)
    f, u = (backend.to_host(array) for array in (phi(z).data, beside_one(z.data)))
    return layer.decay * np.eye(f.shape[3]), f[..., None], f[..., None, :], u[..., None, :]
