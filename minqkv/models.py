"""A decoder (GPT) and a per-token encoder (Tagger), both made of the same Block."""

from dataclasses import dataclass, replace

import numpy as np

from . import backend, positions, reading
from .attention import ROPE_VALUES, Attention
from .cache import KVCache
from .errors import UsageError, unknown
from .functional import embedding, linear, relu, transpose
from .nn import MLP, Dropout, Embedding, Init, LayerNorm, Linear, Module
from .tensor import Tensor, no_grad
from .variants import VariantSpec


@dataclass(frozen=True)
class Style:
    """How the blocks of a protocol are built (paper.md, section 3)."""

    norm_first: bool
    activation: str
    mlp_ratio: int
    dropout: float  # on what each sublayer adds, inside the MLP, and in the head
    attention_scheme: str  # of nn.Init
    plus_channels: tuple  # row, column, width of the frequencies
    position: str


PROTOCOLS = {
    "2023": Style(False, "relu", 2, 0.1, "xavier", (6, 4, 6), "sinusoidal"),
    "2026": Style(True, "gelu", 4, 0.0, "uniform", (5, 5, 5), "learned"),
}


@dataclass(frozen=True)
class GPTConfig:
    """A GPT-2 style decoder: pre-norm, GELU, tied head (paper, section 5). `d_ff` is 4·n_embd unless given."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    variant: str = "qkv"
    position: str = "learned"
    rope_value: str = "raw"
    d_ff: int | None = None
    bias: bool = True
    dropout: float = 0.0
    plus_start: float | None = None
    dtype: str = "float32"

    plus_channels = PROTOCOLS["2026"].plus_channels

    def __post_init__(self):
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.n_embd)
        _check(self)


@dataclass(frozen=True)
class TaggerConfig:
    """The encoder of the synthetic tasks (paper, section 4.1), in the blocks of a protocol.

    `position` overrides the protocol's; `hide_self` masks the diagonal of the scores; `plus_start` sets the initial
    temperature of "+". `n_class` is `vocab_size` unless given.
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

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.position is None:
            object.__setattr__(self, "position", PROTOCOLS[self.protocol].position)
        if self.n_class is None:
            object.__setattr__(self, "n_class", self.vocab_size)
        _check(self)
        if self.hide_self and self.block_size < 2:
            raise UsageError("hide_self needs sequences of two tokens or more: a single one would see nothing")


def _check(cfg):
    """Refuse a configuration that no model can be built from; a variant is stored under its canonical name."""
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if not isinstance(getattr(cfg, name), int) or getattr(cfg, name) < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {getattr(cfg, name)!r}")
    d_ff, bias, dropout = getattr(cfg, "d_ff", 1), getattr(cfg, "bias", True), getattr(cfg, "dropout", 0.0)  # a GPT's
    if not isinstance(d_ff, int) or d_ff < 1 or not isinstance(bias, bool):
        raise UsageError(f"d_ff must be a whole number of at least 1, bias true or false, not {d_ff!r} and {bias!r}")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UsageError(f"dropout must be in [0, 1), not {dropout!r}")
    if cfg.n_embd % cfg.n_head:
        raise UsageError(f"n_embd {cfg.n_embd} is not divisible by n_head {cfg.n_head}")
    if cfg.rope_value not in ROPE_VALUES:
        raise unknown("rope_value", cfg.rope_value, ROPE_VALUES)
    if cfg.position not in positions.SCHEMES:
        raise unknown("position scheme", cfg.position, positions.SCHEMES)
    if cfg.dtype not in ("float32", "float64"):
        raise unknown("dtype", cfg.dtype, ("float32", "float64"))
    if cfg.plus_start is not None and not VariantSpec.parse(cfg.variant).plus:
        raise UsageError(f'plus_start sets the temperature of "+", and {cfg.variant} has none')
    object.__setattr__(cfg, "variant", VariantSpec.parse(cfg.variant).for_heads(cfg.n_head).name)


class Block(Module):
    """Attention, then an MLP, each added to what came in; normalised before (pre-norm) or after (post-norm)."""

    def __init__(self, cfg, style, d_ff, init, bias=True, mlp_dropout=0.0):
        self.norm_first = style.norm_first
        self.ln_1 = LayerNorm(cfg.n_embd, init / "ln_1")
        self.attn = Attention(
            cfg.variant, cfg.n_embd, cfg.n_head, cfg.block_size, (init / "attn").using(style.attention_scheme), bias=bias,
            position=cfg.position, rope_value=cfg.rope_value, plus_channels=style.plus_channels, plus_start=cfg.plus_start,
        )  # fmt: skip
        self.ln_2 = LayerNorm(cfg.n_embd, init / "ln_2")
        self.mlp = MLP(cfg.n_embd, d_ff, init / "mlp", style.activation, mlp_dropout, bias)
        self.drop_1 = Dropout(style.dropout, init / "drop_1")
        self.drop_2 = Dropout(style.dropout, init / "drop_2")

    def forward(self, x, mask=None, cache=None, layer=0):
        if self.norm_first:
            x = x + self.drop_1(self.attn(self.ln_1(x), mask, cache, layer))
            return x + self.drop_2(self.mlp(self.ln_2(x)))
        x = self.ln_1(x + self.drop_1(self.attn(x, mask, cache, layer)))
        return self.ln_2(x + self.drop_2(self.mlp(x)))


class GPT(Module):
    """A decoder: ids (B, T) -> logits (B, T, V). `seed` sets the start of the parameters."""

    def __init__(self, cfg, seed=0):
        self.config = cfg
        init = Init(seed, cfg.dtype, "gpt2")
        style = replace(PROTOCOLS["2026"], dropout=cfg.dropout, attention_scheme="gpt2")
        self.wte = Embedding(cfg.vocab_size, cfg.n_embd, init / "wte")
        self.wpe = Positions(cfg, init / "wpe", std=0.02)
        self.blocks = [Block(cfg, style, cfg.d_ff, init / f"blocks.{i}", cfg.bias) for i in range(cfg.n_layer)]
        self.ln_f = LayerNorm(cfg.n_embd, init / "ln_f")

    def forward(self, ids, cache=None):
        """Logits for ids (B, T), integers on the host. With a `cache` they continue what it holds, without a graph."""
        if cache is not None:
            if len(cache.keys) != len(self.blocks):
                raise UsageError(f"a cache of {len(cache.keys)} layers in a model of {len(self.blocks)}", "model.new_cache()")
            start, new = len(cache), np.shape(ids)[-1]
            try:
                with no_grad():  # a single new token sees everything: no mask
                    return self._forward(ids, cache, start, cache.mask(new) if new > 1 else None)
            except BaseException:  # an interrupted step leaves nothing behind, in no layer
                cache.trim(start)
                raise
        steps = backend.xp.arange(np.shape(ids)[-1])
        return self._forward(ids, None, 0, positions.causal_mask(steps, steps))

    def _forward(self, ids, cache, start, mask):
        ids = _checked_ids(ids, self.config, start)
        if cache is not None and mask is None:
            reading.begin(self, cache)
        x = self.wpe(self.wte(ids), start)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        return linear(self.ln_f(x), transpose(self.wte.weight))  # (B, T, V), the head tied to the embedding

    def new_cache(self, batch=1, capacity=None, dtype=None):
        """An empty KVCache for this model; capacity defaults to block_size, dtype to the model's."""
        cfg = self.config
        spec = VariantSpec.parse(cfg.variant)
        heads, d_head = spec.stored_heads(cfg.n_head), cfg.n_embd // cfg.n_head
        capacity = cfg.block_size if capacity is None else capacity
        return KVCache(cfg.n_layer, batch, heads, capacity, d_head, spec.streams, dtype or cfg.dtype)


class Tagger(Module):
    """An encoder that labels each token: ids (B, T) -> logits (B, T, n_class). Every token sees every other."""

    def __init__(self, cfg, seed=0):
        self.config = cfg
        style, d = PROTOCOLS[cfg.protocol], cfg.n_embd
        init = Init(seed, cfg.dtype, "uniform")
        self.embed = Linear(cfg.vocab_size, d, init / "embed")  # on one-hot inputs, so it is a lookup plus a bias
        self.wpe = Positions(cfg, init / "wpe", std=1.0)
        self.blocks = [
            Block(cfg, style, style.mlp_ratio * d, init / f"blocks.{i}", mlp_dropout=style.dropout) for i in range(cfg.n_layer)
        ]
        if not style.norm_first:  # protocol 2023: a hidden layer before the last
            self.fc = Linear(d, d, init / "fc")
        self.ln_f = LayerNorm(d, init / "ln_f")
        self.drop = Dropout(style.dropout, init / "drop")
        self.head = Linear(d, cfg.n_class, init / "head")

    def forward(self, ids):
        """Logits for ids (B, T), integers on the host."""
        ids = _checked_ids(ids, self.config)
        if self.config.hide_self and ids.shape[1] < 2:
            raise UsageError("hide_self needs sequences of two tokens or more: a single one would see nothing")
        x = self.wpe(embedding(ids, self.embed.weight + self.embed.bias))  # (B, T, C)
        mask = ~backend.xp.eye(ids.shape[1], dtype=bool) if self.config.hide_self else None
        for block in self.blocks:
            x = block(x, mask)
        if self.config.protocol == "2023":
            return self.head(self.drop(relu(self.ln_f(self.fc(x)))))
        return self.head(self.ln_f(x))  # (B, T, n_class)


class Positions(Module):
    """Adds what tells positions apart to (B, T, C): a learned table, sinusoids, or nothing ("none", and "rope", which turns
    queries and keys instead)."""

    def __init__(self, cfg, init, std):
        shape = (cfg.block_size, cfg.n_embd)
        self.weight = None
        if cfg.position == "learned":
            self.weight = (init / "weight").normal(shape, std)
        elif cfg.position == "sinusoidal":
            self.weight = Tensor(backend.upload(positions.sinusoids(*shape, dtype=cfg.dtype)))

    def forward(self, x, start=0):
        return x if self.weight is None else x + self.weight[start : start + x.shape[1]]  # (T, C) broadcasts over B


def _checked_ids(ids, cfg, start=0):
    try:
        ids = np.asarray(ids)
    except ValueError as error:
        raise UsageError("the sequences of a batch must be equally long") from error
    if ids.ndim != 2 or 0 in ids.shape:
        raise UsageError(f"ids must be (batch, length), both at least 1, not {ids.shape}")
    if start + ids.shape[1] > cfg.block_size:
        raise UsageError(f"{start + ids.shape[1]} tokens, but this model has {cfg.block_size} positions")
    return ids


PRESETS = {
    "300m": GPTConfig(vocab_size=50304, block_size=2048, n_layer=20, n_head=16, n_embd=1024),
    "1.2b": GPTConfig(vocab_size=50304, block_size=2048, n_layer=22, n_head=32, n_embd=2048),
}  # the paper's language models (section 5)
