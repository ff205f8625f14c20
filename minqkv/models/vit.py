"""ViT: an encoder whose tokens are vectors, such as the patches of an image or the items of a set.

The tokens pass through the same blocks as in the other models. Only two things are new: how vectors
become tokens, and how tokens become one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..functional import concat
from ..nn import Init, LayerNorm, Linear, Module
from ..runtime import backend
from ..runtime.errors import UsageError, unknown
from ..runtime.fields import check_types
from ..tensor import Tensor
from .block import PROTOCOLS, Block, Layered, Positions, check_config, check_end

POOLS = {
    "class": "a learned token, put before the others, from which the answer is read",
    "mean": "the mean of all tokens",
    "each": "an answer for each token",
    "choice": "a score for each token: the answer is one of them",
}


def patchify(images: np.ndarray, size: int) -> np.ndarray:
    """Images as rows of patches, (B, height, width, C) -> (B, N, size · size · C).

    Patches are squares of `size` by `size` pixels, from left to right and from top to bottom, and
    so are the pixels in a patch. Raises UsageError if they do not fill the image.
    """
    B, height, width, C = images.shape
    if size < 1 or height % size or width % size:
        raise UsageError(f"patches of {size} × {size} do not fill images of {height} × {width}")
    N = height * width // size**2
    x = images.reshape(B, height // size, size, width // size, size, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, height/size, width/size, size, size, C)
    return x.reshape(B, N, size * size * C)


def unpatchify(patches: np.ndarray, size: int, height: int, width: int) -> np.ndarray:
    """The inverse of `patchify`: (B, N, size · size · C) -> (B, height, width, C).

    Raises UsageError if these are not the patches of such an image.
    """
    B, N, numbers = patches.shape
    C, rest = divmod(numbers, size * size)
    if rest or (N * size * size, height % size, width % size) != (height * width, 0, 0):
        what = f"{N} patches of {numbers} numbers"
        raise UsageError(f"{what} do not fill {height} × {width} in squares of {size} × {size}")
    x = patches.reshape(B, height // size, width // size, size, size, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, height/size, size, width/size, size, C)
    return x.reshape(B, height, width, C)


@dataclass(frozen=True)
class ViTConfig(Layered):
    """An encoder of up to `n_token` vectors of `n_in` numbers (paper, section 4.2), in the blocks
    of protocol 2026: pre-norm, GELU, no dropout, learned positions that start with deviation 1.

    `pool` is one of POOLS. `plus_start` sets the initial temperature of "+". `head_dim` is
    n_embd / n_head unless given. `variant` may name one variant a layer: "qkv/q-k=v".
    """

    n_in: int
    n_token: int
    n_class: int
    n_layer: int
    n_head: int
    n_embd: int
    variant: str = "qkv"
    pool: str = "class"
    position: str = "learned"
    rope_value: str = "raw"
    plus_start: float | None = None
    dtype: str = "float32"
    head_dim: int | None = None

    protocol = "2026"
    sizes = ("n_in", "n_token", "n_class", "n_layer", "n_head", "n_embd")

    def __post_init__(self):
        check_types(self)
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.pool == "choice" and self.n_class != 1:
            raise UsageError(f"a choice gives a token one score: n_class {self.n_class} must be 1")
        check_config(self)

    @property
    def block_size(self) -> int:
        """Tokens that the blocks see: the class token counts."""
        return self.n_token + (self.pool == "class")


class ViT(Module):
    """An encoder of vectors (B, N, n_in) -> logits (B, n_class); with pool "each", (B, N, n_class);
    with pool "choice", (B, N).

    Every token sees every other. Without positions it does not know their order: permuted tokens
    give permuted answers. `seed` sets the start of the parameters.
    """

    def __init__(self, cfg: ViTConfig, seed: int = 0):
        self.config = cfg
        style, d = PROTOCOLS[cfg.protocol], cfg.n_embd
        init = Init(seed, cfg.dtype, "uniform")
        self.embed = Linear(cfg.n_in, d, init / "embed")
        if cfg.pool == "class":
            self.cls = (init / "cls").normal((1, 1, d), 0.02)
        self.wpe = Positions(cfg, init / "wpe", std=1.0)  # as in a Tagger
        self.blocks = [
            Block(cfg, spec, style, style.mlp_ratio * d, init / f"blocks.{i}")
            for i, spec in enumerate(cfg.specs)
        ]
        self.ln_f = LayerNorm(d, init / "ln_f")
        # What is added to all scores of a choice changes no softmax: there is no bias.
        self.head = Linear(d, cfg.n_class, init / "head", bias=cfg.pool != "choice")

    def forward(self, x: np.ndarray) -> Tensor:
        """Logits for vectors x (B, N, n_in), numbers on the host; N is at most `n_token`."""
        logits = self.head(self.features(x))  # (B, n_class), or (B, N, n_class)
        return logits[..., 0] if self.config.pool == "choice" else logits

    def features(self, x: np.ndarray) -> Tensor:
        """What the head reads: (B, n_embd), or (B, N, n_embd) where each token has an answer."""
        pool = self.config.pool
        x = self.embed(self._uploaded(x))  # (B, N, C)
        if pool == "class":
            zeros = backend.xp.zeros((x.shape[0], 1, 1), x.dtype)
            x = concat([self.cls + zeros, x], axis=1)  # (B, 1 + N, C)
        x = self.wpe(x)
        for block in self.blocks:
            x = block(x)
        if pool in ("class", "mean"):
            x = x[:, 0] if pool == "class" else x.mean(axis=1)  # (B, C)
        return self.ln_f(x)

    def _uploaded(self, x):
        """Vectors as a Tensor of this model's dtype. Raises UsageError for other shapes and kinds
        of numbers.
        """
        cfg = self.config
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise UsageError("the vectors of a batch must be equally long") from error
        if x.ndim != 3 or 0 in x.shape or x.shape[2] != cfg.n_in:
            raise UsageError(f"tokens must be (batch, tokens, {cfg.n_in}), not {x.shape}")
        if x.dtype.kind not in "fiu":
            raise UsageError(f"tokens must be vectors of numbers, not of {x.dtype}")
        check_end(x.shape[1], cfg.n_token)
        return Tensor(backend.upload(x, cfg.dtype))
