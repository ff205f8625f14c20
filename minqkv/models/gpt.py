"""GPT: a decoder in the style of GPT-2, with any variant of attention."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..attention import causal_mask, on_device
from ..cache import KVCache, last, next_positions
from ..functional import embedding, linear, transpose
from ..nn import Embedding, Init, LayerNorm, Module, one_step
from ..runtime import backend
from ..runtime.claims import decoding
from ..runtime.errors import UsageError
from ..runtime.fields import LARGEST, check_types, whole
from ..tensor import Tensor, no_grad, recomputed
from .block import (
    PROTOCOLS,
    Block,
    Layered,
    Positions,
    check_config,
    check_end,
    checked_ids,
    checked_pad,
)

LAST = slice(-1, None)  # `at`: only the last token of each sequence
_reaching = threading.Lock()  # several threads may decode with one model


@dataclass(frozen=True)
class GPTConfig(Layered):
    """A decoder in the style of GPT-2: pre-norm, GELU, tied head (paper, section 5).

    `d_ff`, the width inside the MLP, is 4·n_embd unless given; 0 leaves the MLP out. `head_dim`,
    the head width, is n_embd / n_head unless given. `variant` may name one variant per layer:
    "qkv/q-k=v". `d_rope`, `rope_base` and `norm` are as for Attention. With a `window`, a token
    sees itself, the window - 1 tokens before it, and the first `sinks` tokens. With `recompute`,
    training keeps only the input of each block, and backward computes the block again.
    """

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
    head_dim: int | None = None
    window: int | None = None
    sinks: int = 0
    recompute: bool = False
    d_rope: int | None = None
    rope_base: float = 10_000.0
    norm: bool = False

    ahead = False
    plus_channels = PROTOCOLS["2026"].plus_channels

    def __post_init__(self):
        check_types(self)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.n_embd)
        whole("d_ff", self.d_ff, most=4 * LARGEST)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be in [0, 1), not {self.dropout}")
        check_config(self)


class GPT(Module):
    """A decoder: ids (B, T) -> logits (B, T, V). `seed` sets the start of the parameters."""

    def __init__(self, cfg: GPTConfig, seed: int = 0):
        self.config = cfg
        init = Init(seed, cfg.dtype, "gpt2")
        style = replace(PROTOCOLS["2026"], dropout=cfg.dropout, attention_scheme="gpt2")
        self.wte = Embedding(cfg.vocab_size, cfg.n_embd, init / "wte")
        self.wpe = Positions(cfg, init / "wpe", std=0.02)
        self.blocks = [
            Block(cfg, spec, style, cfg.d_ff, init / f"blocks.{i}", cfg.bias)
            for i, spec in enumerate(cfg.specs)
        ]
        self.ln_f = LayerNorm(cfg.n_embd, init / "ln_f")

    def forward(
        self,
        ids: np.ndarray,
        cache: KVCache | None = None,
        at: np.ndarray | slice | None = None,
        pad: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for ids (B, T), integers on the host.

        The embeddings of ids (B, T, channels) are summed over the channels. `at`, booleans (B, T)
        on the host, asks for logits at some positions only: (N, V). A slice, such as LAST, asks for
        those of n tokens of each sequence: (B, n, V). With a `cache`, ids continue what it holds,
        without a graph, and `at` must be a slice. An interrupted step leaves nothing behind in any
        layer.

        `pad` (B,), integers on the host, is for prompts of different length: the first pad[b]
        tokens of sequence b are padding. They are not stored, and no token sees them. Their logits
        mean nothing.

        Without a cache, there are at most block_size tokens. With one, this holds only for learned
        positions; otherwise the capacity of the cache is the limit.
        """
        ids = checked_ids(ids, channels=True)
        pad = None if pad is None else checked_pad(pad, ids)
        if cache is None:
            check_end(ids.shape[1], self.config.block_size)
            steps = next_positions(0, ids.shape[1], pad)
            x = self._forward(ids, steps, self._mask(steps), [None] * len(self.blocks))
            return self._logits(x, at)
        if at is not None and not isinstance(at, slice):
            raise UsageError("logits at some positions only are for training: without a cache")
        self._check(cache, ids)
        before, steps = cache.layers[-1].ends, cache.next(ids.shape[1], pad)
        self._reach(last(steps) + 1)
        # Multiply-adds of the largest product: inside an MLP, the scores, or the head.
        widest = max(self.config.d_ff, last(steps) + 1, self.config.vocab_size)
        macs = ids.size * self.config.n_embd * widest
        try:
            with decoding(self), no_grad(), backend.cores_for(macs):
                return self._decode(ids, steps, cache, at)
        except BaseException:
            cache.trim(before)
            raise

    def _check(self, cache, ids):
        if len(cache.layers) != len(self.blocks):
            why = f"a cache of {len(cache.layers)} layers in a model of {len(self.blocks)}"
            raise UsageError(why, "model.new_cache()")
        if len(ids) != cache.batch:
            why = f"the cache stores a batch of {cache.batch}; one of {len(ids)} does not fit"
            raise UsageError(why, f"model.new_cache({len(ids)})")

    def _reach(self, end):
        """Prepare for positions up to end - 1. Raises UsageError if positions end before."""
        if end <= self.config.block_size:
            return
        if self.config.bounded:
            why = f"{end} tokens, but this model has {self.config.block_size} positions"
            raise UsageError(why, "train with --position rope")
        with _reaching:
            for part in (self.wpe, *[block.attn for block in self.blocks]):
                part.reach(end)

    def _mask(self, steps):
        """The mask of sequences at positions `steps`, without a cache."""
        steps = on_device(steps)
        return causal_mask(steps, steps, self.config.window, self.config.sinks)

    def _decode(self, ids, steps, cache, at):
        # Each core takes some sequences of a large batch, since they are independent. If they
        # differ in length, the batch stays in one piece.
        together = isinstance(steps, slice) and cache.shareable
        shares = backend.shares(cache) if together else None
        if shares is None:
            return self._logits(self._forward(ids, steps, None, cache.layers), at)

        def run(rows):
            x = self._forward(ids[rows], steps, None, cache.views(rows))
            return self._logits(x, at).data

        logits = backend.xp.concatenate(backend.each(run, shares))  # (B, T, V), or (B, n, V)
        cache.grow(ids.shape[1])
        return Tensor(logits)

    def _forward(self, ids, steps, mask, caches):
        x = self.wte(ids)  # (B, T, C), or (B, T, channels, C)
        x = self.wpe(x if ids.ndim == 2 else x.sum(2), steps)  # (B, T, C)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = self._block(block, x, mask, cache, steps)
        return x

    def _block(self, block, x, mask, cache, steps):
        if not self.config.recompute:
            return block(x, mask, cache, steps)
        training = block.training

        def again(x):
            if block.training != training:  # other dropout, and so the gradient of another function
                raise RuntimeError("train() or eval() was called between forward and backward")
            return block(x, mask, cache, steps)

        with one_step(block):  # so both times the same
            return recomputed(again, x)

    def _rows(self, x, at):
        if isinstance(at, slice):
            return x[:, at]  # (B, n, C)
        at = np.asarray(at)
        if at.shape != x.shape[:2]:
            raise UsageError(f"positions {at.shape} do not fit ids {x.shape[:2]}")
        return embedding(np.flatnonzero(at), x.reshape(-1, x.shape[2]))  # (N, C)

    def _logits(self, x, at):
        x = x if at is None else self._rows(x, at)
        return linear(self.ln_f(x), transpose(self.wte.weight))  # (..., V): the head is tied

    def new_cache(
        self,
        batch: int = 1,
        capacity: int | None = None,
        dtype=None,
        kind: type[KVCache] = KVCache,
        **options,
    ) -> KVCache:
        """An empty cache for this model.

        `capacity` is block_size unless given, and may be larger if positions are not learned.
        `dtype` is the model's unless given. `kind` is the class of the cache, made with (stored,
        batch, capacity, dtype, **options). The options that it `takes` come from this model's
        configuration unless given.
        """
        cfg = self.config
        stored = [block.attn.spec.stored(cfg) for block in self.blocks]
        capacity = cfg.block_size if capacity is None else capacity
        options = {name: getattr(cfg, name) for name in kind.takes} | options
        return kind(stored, batch, capacity, dtype or cfg.dtype, **options)


PRESETS = {
    "300m": GPTConfig(vocab_size=50304, block_size=2048, n_layer=20, n_head=16, n_embd=1024),
    "1.2b": GPTConfig(vocab_size=50304, block_size=2048, n_layer=22, n_head=32, n_embd=2048),
}  # the paper's language models (section 5)
