"""Tagger: the encoder of the synthetic tasks, which labels each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..functional import embedding, relu
from ..nn import Dropout, Init, LayerNorm, Linear, Module
from ..runtime import backend
from ..runtime.errors import UsageError, unknown
from ..runtime.fields import check_types
from ..tensor import Tensor
from .block import PROTOCOLS, Block, Layered, Positions, check_config, check_end, checked_ids

TOO_SHORT_TO_HIDE = (
    "hide_self needs sequences of two tokens or more: a single one would see nothing"
)


@dataclass(frozen=True)
class TaggerConfig(Layered):
    """The encoder of the synthetic tasks (paper, section 4.1), in the blocks of a protocol.

    `position` overrides the protocol's; `hide_self` masks the diagonal of the scores; `plus_start`
    sets the initial temperature of "+". `n_class` is `vocab_size` unless given, `head_dim` n_embd /
    n_head.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    variant: str = "qkv"
    protocol: str = "2026"
    position: str | None = None
    rope_value: str = "raw"
    n_class: int | None = None
    hide_self: bool = False
    plus_start: float | None = None
    dtype: str = "float32"
    head_dim: int | None = None

    def __post_init__(self):
        check_types(self)
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.position is None:
            object.__setattr__(self, "position", PROTOCOLS[self.protocol].position)
        if self.n_class is None:
            object.__setattr__(self, "n_class", self.vocab_size)
        check_config(self)
        if self.hide_self and self.block_size < 2:
            raise UsageError(TOO_SHORT_TO_HIDE)


class Tagger(Module):
    """An encoder that labels each token: ids (B, T) -> logits (B, T, n_class).

    Every token sees every other.
    """

    def __init__(self, cfg: TaggerConfig, seed: int = 0):
        self.config = cfg
        style, d = PROTOCOLS[cfg.protocol], cfg.n_embd
        init = Init(seed, cfg.dtype, "uniform")
        # Its inputs are one-hot, so it amounts to a lookup plus a bias.
        self.embed = Linear(cfg.vocab_size, d, init / "embed")
        self.wpe = Positions(cfg, init / "wpe", std=1.0)
        self.blocks = [
            Block(cfg, spec, style, style.mlp_ratio * d, init / f"blocks.{i}", True, style.dropout)
            for i, spec in enumerate(cfg.specs)
        ]
        if not style.norm_first:  # protocol 2023: a hidden layer before the last
            self.fc = Linear(d, d, init / "fc")
        self.ln_f = LayerNorm(d, init / "ln_f")
        self.drop = Dropout(style.dropout, init / "drop")
        self.head = Linear(d, cfg.n_class, init / "head")

    def forward(self, ids: np.ndarray) -> Tensor:
        """Logits for ids (B, T), integers on the host."""
        ids = checked_ids(ids)
        check_end(ids.shape[1], self.config.block_size)
        if self.config.hide_self and ids.shape[1] < 2:
            raise UsageError(TOO_SHORT_TO_HIDE)
        x = self.wpe(embedding(ids, self.embed.weight + self.embed.bias))  # (B, T, C)
        mask = ~backend.xp.eye(ids.shape[1], dtype=bool) if self.config.hide_self else None
        for block in self.blocks:
            x = block(x, mask)
        if self.config.protocol == "2023":
            return self.head(self.drop(relu(self.ln_f(self.fc(x)))))
        return self.head(self.ln_f(x))  # (B, T, n_class)
