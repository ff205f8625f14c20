"""What every model here is made of: a block, positions, and the checks of a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..attention import (
    Attention,
    check_positions,
    check_window,
    checked_head_dim,
    reach_sinusoids,
    sinusoids,
    within,
)
from ..cache import LayerCache
from ..nn import MLP, Dropout, LayerNorm, Module
from ..runtime import backend
from ..runtime.backend import Array
from ..runtime.errors import UsageError, unknown
from ..runtime.fields import whole
from ..tensor import Tensor
from ..variants import POSITIONS, VariantSpec, layer_specs, layered_name


@dataclass(frozen=True)
class Style:
    """How the blocks of a protocol are built (paper, section 4.1)."""

    norm_first: bool
    activation: str
    mlp_ratio: int
    dropout: float  # on what each sublayer adds; in a Tagger also inside the MLP and in the head
    attention_scheme: str  # of nn.Init
    plus_channels: tuple  # row, column, width of the frequencies
    position: str


PROTOCOLS = {  # how the paper (2026) and its predecessor (arXiv 2305.19129, 2023) trained
    "2023": Style(False, "relu", 2, 0.1, "xavier", (6, 4, 6), "sinusoidal"),
    "2026": Style(True, "gelu", 4, 0.0, "uniform", (5, 5, 5), "learned"),
}


class Block(Module):
    """Attention, then an MLP, each added to what came in; with `d_ff` 0, attention alone.

    They are normalised before (pre-norm) or after (post-norm).
    """

    def __init__(self, cfg, spec, style, d_ff, init, bias=True, mlp_dropout=0.0):
        self.norm_first = style.norm_first
        self.ln_1 = LayerNorm(cfg.n_embd, init / "ln_1")
        self.attn = Attention(
            spec,
            cfg.n_embd,
            cfg.n_head,
            cfg.block_size,
            (init / "attn").using(style.attention_scheme),
            bias=bias,
            head_dim=cfg.head_dim,
            position=cfg.position,
            rope_value=cfg.rope_value,
            d_rope=cfg.d_rope,
            rope_base=cfg.rope_base,
            norm=cfg.norm,
            plus_channels=style.plus_channels,
            plus_start=cfg.plus_start,
            window=cfg.window,
            sinks=cfg.sinks,
            ahead=cfg.ahead,
        )
        self.drop_1 = Dropout(style.dropout, init / "drop_1")
        if not d_ff:
            self.mlp = None
        else:  # in this order: an optimiser's state is stored in the order of the parameters
            self.ln_2 = LayerNorm(cfg.n_embd, init / "ln_2")
            self.mlp = MLP(cfg.n_embd, d_ff, init / "mlp", style.activation, mlp_dropout, bias)
            self.drop_2 = Dropout(style.dropout, init / "drop_2")

    def forward(
        self,
        x: Tensor,
        mask: Array | None = None,
        cache: LayerCache | None = None,
        at: slice | np.ndarray | None = None,
    ) -> Tensor:
        if self.norm_first:
            x = x + self.drop_1(self.attn(self.ln_1(x), mask, cache, at))
            return x if self.mlp is None else x + self.drop_2(self.mlp(self.ln_2(x)))
        x = self.ln_1(x + self.drop_1(self.attn(x, mask, cache, at)))
        return x if self.mlp is None else self.ln_2(x + self.drop_2(self.mlp(x)))


class Positions(Module):
    """Adds position information to (B, T, C): a learned table, or sinusoids.

    The other schemes add nothing here: they act on queries and keys, or on scores.
    """

    def __init__(self, cfg, init, std):
        shape = (cfg.block_size, cfg.n_embd)
        self.weight = None
        if POSITIONS[cfg.position].added == "table":
            self.weight = (init / "weight").normal(shape, std)
        elif POSITIONS[cfg.position].added == "sinusoids":
            self.weight = Tensor(backend.upload(sinusoids(*shape, dtype=cfg.dtype)))

    def reach(self, end: int) -> None:
        """Make the table of sinusoids longer if it has fewer than `end` positions."""
        if self.weight is not None:
            reach_sinusoids(self.weight, end)

    def forward(self, x: Tensor, at: slice | np.ndarray | None = None) -> Tensor:
        if self.weight is None:
            return x
        at = within(slice(0, x.shape[1]) if at is None else at, len(self.weight))
        return x + self.weight[at]  # (T, C), which broadcasts over B, or (B, T, C)


class Layered:
    """What configurations of models have in common."""

    window, sinks = None, 0  # unless a configuration has these fields
    d_rope, rope_base, norm = None, 10_000.0, False
    ahead = True  # tokens see later ones, too
    sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")  # at least 1 each

    @property
    def bounded(self) -> bool:
        """Whether there are no positions after block_size; other schemes can compute more."""
        return POSITIONS[self.position].added not in (None, "sinusoids")

    @property
    def specs(self) -> tuple[VariantSpec, ...]:
        """The variant of each layer."""
        return layer_specs(self.variant, self.n_layer, self.n_head)


def check_config(cfg) -> None:
    """Refuse a configuration that no model can be built from.

    A variant is stored under its canonical name, and the head width as a number.
    """
    for name in cfg.sizes:
        whole(name, getattr(cfg, name), 1)
    head_dim = checked_head_dim(cfg.n_embd, cfg.n_head, cfg.head_dim)
    object.__setattr__(cfg, "head_dim", head_dim)
    object.__setattr__(cfg, "variant", layered_name(cfg.specs))
    rope = cfg.position, cfg.rope_value, cfg.d_rope, cfg.rope_base
    check_positions(cfg.specs, head_dim, *rope)
    check_window(cfg.window, cfg.sinks)
    if cfg.dtype not in ("float32", "float64"):
        raise unknown("dtype", cfg.dtype, ("float32", "float64"))
    if cfg.plus_start is not None and not math.isfinite(cfg.plus_start):
        raise UsageError(f"plus_start {cfg.plus_start} must be finite")
    if cfg.plus_start is not None and not any(spec.plus for spec in cfg.specs):
        raise UsageError(f'plus_start sets the temperature of "+", and {cfg.variant} has none')


def checked_ids(ids, channels: bool = False) -> np.ndarray:
    """Ids (B, T), with `channels` also (B, T, channels), as an array. Raises UsageError for another
    shape.
    """
    try:
        ids = np.asarray(ids)
    except ValueError as error:
        raise UsageError("the sequences of a batch must be equally long") from error
    if ids.ndim not in ((2, 3) if channels else (2,)) or 0 in ids.shape:
        raise UsageError(f"ids must be (batch, length), both at least 1, not {ids.shape}")
    return ids


def check_end(end: int, limit: int) -> None:
    """Raises UsageError if a sequence has more tokens than the model has positions."""
    if end > limit:
        raise UsageError(f"{end} tokens, but this model has {limit} positions")


def checked_pad(pad, ids: np.ndarray) -> np.ndarray | None:
    """The padding of each sequence, (B,); None if there is none. Raises UsageError for other shapes
    and numbers, or if all tokens of the batch are padding.
    """
    pad, (B, T) = np.asarray(pad), ids.shape[:2]
    if pad.shape != (B,) or pad.dtype.kind not in "iu" or (pad < 0).any() or (pad > T).any():
        raise UsageError(f"pad is {B} whole numbers from 0 to {T}, one for each row, not {pad}")
    if pad.min() == T:
        raise UsageError("every token of this batch is padding")
    return pad.astype(np.int64) if pad.any() else None
