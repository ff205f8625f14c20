"""A case of the reference vectors: a layer, what it is given, and facts about it.

A case of level "kernel" starts from queries, keys and values; one of level "layer" from x and
weights, for every variant and position scheme. A layer is run in two ways: forward, on all tokens
at once, and decoding, token by token with a cache of each of KINDS. All numbers come from the real
`Attention` in float64. What is given has few digits, so that even float16 holds it exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from ...attention import Attention
from ...designs.layers import shipped_layer
from ...functional import concat
from ...nn import Init
from ...runtime import backend
from ...runtime.errors import UsageError
from ...runtime.fields import whole
from ...runtime.rng import stream
from ...variants import SHIPPED

KINDS = ("plain", "ring", "int8")  # of cache
TASKS = ("forward", *KINDS)
LEAST = {"n_head": 4, "kv_heads": 2, "head_dim": 6, "n_embd": 2, "length": 5, "seed": 0}
LARGE = 64.0  # a scale of scores that lie near LARGE · 3.9375², too far for exp in float64
SUMS = 2048  # terms of a sum that float16 cannot add up one after another

# name -> axes and formula, in the order in which they are computed
ARRAYS = {
    "h": "(B, T, C): x + what the scheme adds: positions, or sin and cos as in `sinusoids`",
    "q": "(B, H, T, d_k): x W_Q by heads, with norm and gain, turned; of latent rows, times `into`",
    "k": "(B, h, S, d_k): keys, as the scores read them: x W_K by heads, with gain, turned",
    "v": "(B, h, S, d_v): values, as they are mixed",
    "cache.k": "(T, B, h, slots, width): rows of keys, or the one row, after each token",
    "cache.k.scale": "(T, B, h, slots, 1): a row of cache.k is its integers times its scale",
    "cache.v": "(T, B, h, slots, d_v): rows of values after each token; not with K = V",
    "cache.v.scale": "(T, B, h, slots, 1): as for cache.k",
    "cache.r": "(T, B, 1, slots, d_rope): what turns apart, after each token",
    "cache.r.scale": "(T, B, 1, slots, 1): as for cache.k",
    "cache.bytes": "(T,): bytes of the slots in use after each token",
    "scores": "(B, H, T, S): scale · q kᵀ, times s in + variants; head i reads stored head ⌊i h/H⌋",
    "plus": "(B, H, T, S): scores + what depends on the distance, or on the key (+)",
    "pattern": "(B, H, T, S): softmax over the keys that the query sees; 0 elsewhere",
    "z": "(B, H, T, d_v): pattern v, turned back with unrotate; of latent rows, times `out_of`",
    "out": "(B, T, C): z of all heads side by side, times W_O",
    "grad": "the gradient of Σ grad.out · out, or of Σ grad.z · z, by what is given",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of all cases. Raises UsageError where two mistakes could give the same numbers."""

    n_head: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    n_embd: int = 5
    length: int = 5
    seed: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, whole(name, value, LEAST[name], 64))
        if self.kv_heads == self.n_head or self.n_head % self.kv_heads:
            why = f"{self.n_head} heads do not fall into {self.kv_heads} groups of two or more"
            fits = [n for n in range(2, self.n_head) if self.n_head % n == 0]
            hint = f"--kv-heads {fits[0]}" if fits else f"--n-head {2 * self.kv_heads}"
            raise UsageError(f"{why}, so a wrong map of heads would not show", hint)
        if self.head_dim % 2:
            raise UsageError(f"head_dim {self.head_dim}: rotary positions turn pairs of channels")

    @property
    def window(self) -> int:
        """Keys that a query sees, its own included."""
        return self.length // 2


@dataclass(frozen=True)
class Case:
    """One layer with its input. `layer_options` go to Attention, or to `shipped_layer`."""

    name: str
    sizes: Sizes
    variant: str = "qkv"
    layer_options: dict = field(default_factory=dict)
    level: str = "kernel"
    batch: int = 1
    length: int = 0
    past: int = 0  # keys before the first query; below 0, queries before the first key
    causal: bool = True
    window: int | None = None
    sinks: int = 0
    packed: bool = False
    pairing: str = "halves"
    scale: float | None = None
    only: tuple[str, ...] = ()  # results to keep; all unless given

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is done with it."""
        return TASKS if self.level == "layer" else TASKS[:1]

    def layer(self, dtype="float64", task: str = "forward", weights: dict | None = None):
        """The Attention with these weights, or those of the case; for a ring, with a window."""
        s, options = self.sizes, dict(self.layer_options)
        init = Init(s.seed, dtype)
        size = s.n_embd, s.n_head, s.length + max(self.past, 0), init
        if self.variant in SHIPPED:
            layer = shipped_layer(self.variant, *size, **options)
        else:
            options = {"head_dim": s.head_dim, "bias": self.variant == "qkv"} | options
            layer = Attention(self.variant, *size, ahead=False, **options)
        layer.head_dim = options["head_dim"]
        ring = task == "ring"
        layer.window, layer.sinks = (s.window, 1) if ring else (self.window, self.sinks)
        layer.root = layer.root if self.scale is None else 1 / self.scale
        if self.pairing == "interleaved":
            swap_pairing(layer)
        for name, p in layer.named_parameters():
            own = self.numbers(name, p.shape, "gain" in name)
            p.data[...] = backend.upload((weights or {}).get(name, own), p.dtype)
        return layer

    def numbers(self, name: str, shape: tuple, centre: float = 0) -> np.ndarray:
        """Random multiples of 1/64 below 4, the same for a name and a shape in all cases."""
        normal = stream(self.sizes.seed, "vectors", name, *shape).standard_normal(shape)
        return np.clip(np.rint(normal * 40) / 64 + centre, -3.9375, 3.9375)

    def given(self) -> dict[str, np.ndarray]:
        """Inputs, weights and cotangents by name, in float64; segments in int64."""
        s, B, T = self.sizes, self.batch, self.length
        layer = self.layer()
        if self.level == "layer":
            given = {"x": self.numbers("x", (B, T, s.n_embd))}
            if "learned" in self.about(layer)["position"]:
                given["positions"] = self.numbers("positions", (T, s.n_embd))
            given |= layer.state_dict()
            return given | {"grad.out": self.numbers("grad.out", (B, T, s.n_embd))}
        S, H, h = self.past + T, s.n_head, layer.kv_heads
        (_, width), *second = layer.spec.rows(H, layer.head_dim)
        given = {"q": self.numbers("q", (B, H, T, width)), "k": self.numbers("k", (B, h, S, width))}
        if second:
            given["v"] = self.numbers("v", (B, h, S, second[0][1]))
        if S >= SUMS:  # nearly equal values in each channel: only how they are summed matters
            given["v"] = 8 + 2 * np.arange(layer.head_dim) + np.sign(given["v"]) / 16
        if width >= SUMS:  # the partial sums of the scores grow large, and come back
            quarters = [(1, 1, -1, -1), (-1, -1, 1, 1), (1, -1, -1, 1)]  # for each key
            sign = np.repeat(quarters, width // 4, axis=-1)  # (S, d)
            given["q"], given["k"] = 1 + given["q"] / 8, (1 + given["k"] / 8) * sign
        if self.scale == LARGE:  # all scores are near the same large number, whose exp overflows
            for name in "qk":
                given[name] = np.rint(given[name] * 8) / 64
                given[name][..., 0] = 3.9375
        if self.packed:  # two texts in a row, then padding; another cut in the second row
            at = np.arange(T)
            given["segments"] = np.stack([np.where(at < n, 0, 1) - 2 * (at > T - m)
                                          for n, m in ((2, 2), (3, 1))])  # fmt: skip
        return given | {"grad.z": self.numbers("grad.z", (B, H, T, layer.head_dim))}

    def about(self, layer: Attention | None = None, task: str = "forward") -> dict:
        """Facts of the case for whoever computes it."""
        layer = layer or self.layer(task=task)
        spec, options = layer.spec, {"position": "none"} | self.layer_options
        shipped = self.variant in SHIPPED
        if shipped:
            options = {**SHIPPED[self.variant], "position": "rope"} | self.layer_options
        return {
            "case": self.name, "level": self.level, "task": task, "variant": self.variant,
            "formula": spec.formula, "n_head": layer.n_head, "kv_heads": layer.kv_heads,
            "head_dim": layer.head_dim, "query_width": query_width(layer), "scale": 1 / layer.root,
            "one_row": spec.streams == 1, "own_query": spec.own_query, "apart": spec.apart,
            "latent": spec.latent, "norm": layer.norm, "plus": spec.plus,
            "causal": self.causal, "past": self.past,
            "window": layer.window, "sinks": layer.sinks,
            "position": options["position"], "rope_value": options.get("rope_value", "raw"),
            "rope_base": layer.rope_base, "d_rope": layer.d_rope, "pairing": self.pairing,
        }  # fmt: skip


def query_width(layer: Attention) -> int:
    """Numbers in a query, whose root divides the scores unless a scale is given."""
    return sum(layer.spec.widths(layer.head_dim, layer.d_rope)[:1])


def swap_pairing(layer: Attention) -> None:
    """Let the other channels be pairs: (0, 1), (2, 3) ... in place of (0, m), (1, m + 1) ..."""
    turn, m = layer.turn, layer.d_rope // 2

    def ordered(x, *pairs):
        still = x.shape[-1] - 2 * m
        y = x[..., still:].reshape(*x.shape[:-1], *pairs).transpose(0, 1, 2, 4, 3)
        return concat([x[..., :still], y.reshape(*x.shape[:-1], 2 * m)], axis=-1)

    def turned(x, at, back=False):
        return ordered(turn(ordered(x, m, 2), at, back), 2, m) if m else x

    layer.turn = turned
