"""The paper's table as data: what a variant projects, what it stores, and what that costs.

"-" and "=" in a name read "separate" and "shared": `q-k=v` has its own Q, and one projection for K
and V. Because the hyphen is easily read as a minus sign, every table also prints the formula.
Formulas, parameters, MACs and bytes are derived from the fields of VariantSpec. "The paper" is "Do
Transformers Need Three Projections?", arXiv 2606.04032.

Variants and position schemes are registered here and nowhere else: help texts, suggestions, tables
and tests go through VARIANTS and POSITIONS. This file imports no NumPy, so `--help` can list them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from .runtime.errors import UsageError, unknown
from .runtime.fields import check_types

if TYPE_CHECKING:
    from .models import GPTConfig

VARIANTS = {  # canonical name -> what differs from qkv; N is a number of KV heads, or a width
    "qkv": {},
    "q=k-v": {"own_query": False},
    "q-k=v": {"streams": 1},
    "q=k=v": {"own_query": False, "streams": 1},
    "q=k-v+": {"own_query": False, "plus": "full"},
    "q=k=v+": {"own_query": False, "streams": 1, "plus": "full"},
    "gqa-N": {"kv_heads": "N"},
    "mqa": {"kv_heads": 1},
    "q-gqa-N": {"streams": 1, "kv_heads": "N"},
    "q-mqa": {"streams": 1, "kv_heads": 1},
    "thin-N": {"key_width": "N"},
}
NAMES = tuple(VARIANTS)
WIDEST_KEY = 1 << 16
DEEPEST = 10_000  # layers
_ALIASES = {"mha": "qkv", "q-k-v": "qkv", "q=k": "q=k-v", "k=v": "q-k=v"}
PLUS = {"": None, "+": "full", "+temperature": "temperature", "+bias": "bias"}

POSITIONS = {
    "learned": "a table, added to the embeddings",
    "sinusoidal": "fixed sines and cosines, added to the embeddings",
    "none": "no positions",
    "rope": "queries and keys are turned by an angle that grows with the position",
}
ROPE_VALUES = {  # with K = V under rope, two different models: what is stored, what is the value
    "raw": "unturned rows: the stored row is the value; a turned copy is the key",
    "unrotate": "turned rows: the stored row is key and value; the answer is turned back",
}


@dataclass(frozen=True)
class VariantSpec:
    """One variant of attention (paper, section 3, tables 1 and 4).

    `own_query`: Q has its own projection, else Q = K. `streams`: 2 with separate K and V, 1
    with K = V. `kv_heads`: stored heads, None for all of them. `plus`: None, "full" (the paper's
    "+"), or one half of it alone, "temperature" or "bias". `key_width`: the width of queries and
    keys where it is not that of the values (thin keys).
    """

    own_query: bool = True
    streams: int = 2
    kv_heads: int | None = None
    plus: str | None = None
    key_width: int | None = None

    def __post_init__(self):
        check_types(self)
        if self.streams not in (1, 2):
            raise UsageError(f"streams is 1 (K = V) or 2, not {self.streams}")
        if self.kv_heads is not None and self.kv_heads < 1:
            raise UsageError(f"{self.kv_heads} KV heads: there must be at least one")
        if self.kv_heads is not None and not self.own_query:
            h = self.kv_heads
            why = f"H query heads would have to share {h} projection{'s' if h > 1 else ''}"
            raise UsageError(f"Q = K with fewer KV heads is undefined: {why}")
        if self.plus not in PLUS.values():
            raise unknown("plus", self.plus, [p for p in PLUS.values() if p])
        if self.plus and self.own_query:
            why = '"+" exists to make queries differ from keys, and here they already do'
            raise UsageError(why, "use q=k-v+ or q=k=v+")
        if self.key_width is not None and self.streams == 1:
            raise UsageError(f"keys of width {self.key_width}: K = V has one width")
        if self.key_width is not None and not 1 <= self.key_width <= WIDEST_KEY:
            why = f"keys need a width of at least 1 and at most {WIDEST_KEY:,}"
            raise UsageError(f"{why}, not {self.key_width}")

    @classmethod
    def parse(cls, name: str | Self) -> Self:
        """The spec behind a name of VARIANTS, with a number for N; the paper's spellings (Q≠K=V,
        (Q=K-V)+, GQA-4), aliases, and the halves of "+" (q=k=v+bias) are understood too.

        Raises UsageError with the reason, or with near matches.
        """
        if isinstance(name, cls):
            return name
        text = re.sub(r"[\s()]", "", str(name).lower()).replace("≠", "-").replace("_", "-")
        text = re.sub(r"(?<=gqa)(?=\d)|(?<=thin)(?=\d)", "-", text)
        base, plus, kind = text.partition("+")
        base = _ALIASES.get(base, base)
        if base == "kv":
            cure = "say q=k-v (shared Q and K, as in the 2023 paper) or q-k=v (shared K and V)"
            raise UsageError(f"{name!r} has two meanings", cure)
        if plus + kind not in PLUS:
            raise unknown("variant", name, NAMES)
        fields = _fields(base)
        if fields is not None:
            return cls(**fields | ({"plus": PLUS[plus + kind]} if plus else {}))
        if tied := re.fullmatch(r"q=k(?:=v)?-(gqa-\d+|mqa)", base):
            return cls(**_fields(tied[1]) | {"own_query": False})  # refused, with the reason
        family = re.sub("-n?$", "", base)
        if f"{family}-N" in VARIANTS:
            what = "how wide are its keys" if family == "thin" else "how many KV heads"
            raise UsageError(f"{name!r}: {what}?", f"for instance {family}-4")
        raise unknown("variant", name, NAMES)

    @property
    def name(self) -> str:
        """The canonical name. Raises UsageError for a combination that VARIANTS does not name."""
        if self.plus in ("temperature", "bias"):
            return replace(self, plus="full").name + self.plus
        for name, fields in VARIANTS.items():  # an exact entry first, so that one head is "mqa"
            if vars(self) == {**vars(_QKV), **fields}:
                return name
        for n in filter(None, (self.kv_heads, self.key_width)):
            for name in VARIANTS:
                if vars(self) == {**vars(_QKV), **_numbered(name, n)}:
                    return name.replace("N", str(n))
        raise UsageError(f"{self} has no name in minqkv.variants.VARIANTS")

    def for_heads(self, n_head: int) -> Self:
        """The same variant among models of n_head heads: gqa-H is qkv. Raises UsageError where H
        does not divide.
        """
        if self.kv_heads is None:
            return self
        if self.kv_heads == n_head:
            return replace(self, kv_heads=None)
        if n_head % self.kv_heads:
            fits = ", ".join(str(g) for g in range(1, n_head + 1) if n_head % g == 0)
            heads = "1 head does" if n_head == 1 else f"{n_head} heads do"
            why = f"{self.name}: {heads} not fall into {self.kv_heads} equal groups"
            raise UsageError(why, f"KV heads that fit: {fits}")
        return self

    def stored_heads(self, n_head: int) -> int:
        """h, the heads whose keys (and values) are computed and stored."""
        return self.for_heads(n_head).kv_heads or n_head

    @property
    def formula(self) -> str:
        """Scores and output, in the paper's letters: α = 1/√d_h.

        Query heads share in groups of G: head i reads KV head ⌊i/G⌋.
        """
        q = "K" if not self.own_query else "Q"
        value = "V" if self.streams == 2 else "K"
        k = "K"
        if self.kv_heads is not None:
            q, k, value = "Qᵢ", "K⌊i/G⌋", f"{value}⌊i/G⌋"
        scores = f"α{q}{k}ᵀ"
        inside = {
            None: scores,
            "full": f"s·{scores}+1gᵀ",
            "temperature": f"s·{scores}",
            "bias": f"{scores}+1gᵀ",
        }[self.plus]
        return f"softmax({inside}){value}"

    def widths(self, head_dim: int) -> tuple[int, int]:
        """(d_qk, d_v): numbers in a key, and in a value, of one head."""
        return self.key_width or head_dim, head_dim

    def stored(self, cfg: GPTConfig) -> list[tuple[int, int]]:
        """(heads, width) of each array that the cache keeps per token in a layer."""
        widths = self.widths(cfg.head_dim)[: self.streams]
        return [(self.stored_heads(cfg.n_head), width) for width in widths]

    def layer_params(self, cfg: GPTConfig) -> int:
        """Numbers in one block: attention, MLP and norms."""
        d, f, beta = cfg.n_embd, cfg.d_ff, int(cfg.bias)
        d_qk, d_v = self.widths(cfg.head_dim)
        projected = self.own_query * cfg.n_head * d_qk + _numbers(self.stored(cfg))
        attention = (d + beta) * projected + cfg.n_head * d_v * d + beta * d
        attention += sum(cfg.plus_channels[:2]) if self.plus else 0
        mlp = 2 * d * f + beta * (f + d) + 2 * d if f else 0
        return attention + mlp + 2 * d

    def layer_macs(self, cfg: GPTConfig, n: int, causal: bool) -> int:
        """Multiply-accumulates of one block on n tokens."""
        d_qk, d_v = self.widths(cfg.head_dim)
        projected = self.own_query * cfg.n_head * d_qk + _numbers(self.stored(cfg))
        pairs = n * (n + 1) // 2 if causal else n * n
        scores_and_mix = pairs * cfg.n_head * (d_qk + d_v)
        return n * cfg.n_embd * (projected + cfg.n_head * d_v + 2 * cfg.d_ff) + scores_and_mix

    def params(self, cfg: GPTConfig) -> int:
        """`params` of a GPT with this variant in every layer."""
        return params(replace(cfg, variant=self.name))

    def macs(self, cfg: GPTConfig, n: int, causal: bool = False) -> int:
        """`macs` of a GPT with this variant in every layer."""
        return macs(replace(cfg, variant=self.name), n, causal)

    def cache_bytes_per_token(self, cfg: GPTConfig, itemsize: int) -> int:
        """L · σ · h · d_h · itemsize (paper, section 4)."""
        return cfg.n_layer * _numbers(self.stored(cfg)) * itemsize

    def reduction(self, n_head: int, head_dim: int = 1) -> float:
        """The share of qkv's cache that is saved: 1 - σh / 2H; with thin keys, 1 - (d_qk + d_v) /
        2d_h.
        """
        stored = self.stored_heads(n_head) * sum(self.widths(head_dim)[: self.streams])
        return 1 - stored / (2 * n_head * head_dim)


_QKV = VariantSpec()


def _fields(name):
    """What `name` changes about qkv: "gqa-4" is gqa-N with N = 4. None for an unknown name."""
    family, _, n = name.rpartition("-")
    if name not in VARIANTS and f"{family}-N" in VARIANTS and n.isdecimal():
        return _numbered(f"{family}-N", int(n))
    return VARIANTS.get(name)


def _numbered(name, n):
    return {field: n if value == "N" else value for field, value in VARIANTS[name].items()}


def _numbers(stored):
    return sum(heads * width for heads, width in stored)


def variant_names(groups: int, key_width: int | None = None) -> tuple[str, ...]:
    """Every registered name, with numbers for N: `groups` KV heads, and thin keys of width
    `key_width` (`groups`, unless given).
    """
    width = key_width or groups
    return tuple(
        name.replace("N", str(width if "key_width" in fields else groups))
        for name, fields in VARIANTS.items()
    )


# ---- whole models, whose layers may differ in their variants


def layer_specs(variant: str | VariantSpec, n_layer: int, n_head: int) -> tuple[VariantSpec, ...]:
    """The variant of each layer. "qkv/q-k=v" names one for each of two layers; deeper models repeat
    them. Raises UsageError where there are more names than layers.
    """
    if n_layer > DEEPEST:
        raise UsageError(f"n_layer {n_layer} is too large", f"at most {DEEPEST:,}")
    names = variant.split("/") if isinstance(variant, str) else [variant]
    specs = [VariantSpec.parse(name).for_heads(n_head) for name in names]
    if len(specs) > n_layer:
        why = f"{variant} names {len(specs)} layers, but the model has {n_layer}"
        raise UsageError(why, f"--n-layer {len(specs)}")
    return tuple(specs[i % len(specs)] for i in range(n_layer))


def layered_name(specs: tuple[VariantSpec, ...]) -> str:
    """The shortest name whose repetition gives these layers."""
    names = [spec.name for spec in specs]
    for n in range(1, len(names) + 1):
        if all(name == names[i % n] for i, name in enumerate(names)):
            return "/".join(names[:n])
    raise AssertionError("unreachable")


def formula(variant: str) -> str:
    """The formula of a variant, or of each layer where they differ."""
    return "  /  ".join(VariantSpec.parse(name).formula for name in variant.split("/"))


def params(cfg: GPTConfig) -> int:
    """Numbers in a GPT. The head is tied."""
    positions = cfg.block_size * cfg.n_embd if cfg.position == "learned" else 0
    layers = sum(spec.layer_params(cfg) for spec in cfg.specs)
    return layers + 2 * cfg.n_embd + cfg.vocab_size * cfg.n_embd + positions


def macs(cfg: GPTConfig, n: int, causal: bool = False) -> int:
    """Multiply-accumulates of a prefill of n tokens.

    The full n × n scores, as the paper counts, or the causal half. Not counted: the "+" (its n
    products per row are additions to the scores), norms and softmax.
    """
    layers = sum(spec.layer_macs(cfg, n, causal) for spec in cfg.specs)
    return layers + n * cfg.n_embd * cfg.vocab_size


def cache_bytes_per_token(cfg: GPTConfig, itemsize: int) -> int:
    """Bytes of one token in the cache, all layers together."""
    return itemsize * sum(_numbers(spec.stored(cfg)) for spec in cfg.specs)
