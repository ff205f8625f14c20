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

if TYPE_CHECKING:
    from .models import GPTConfig

VARIANTS = {  # canonical name -> what differs from qkv; N is any number of KV heads
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
}
NAMES = tuple(VARIANTS)
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

    `own_query`: Q has a projection of its own, else Q = K. `streams`: 2 with separate K and V, 1
    with K = V. `kv_heads`: stored heads, None for all of them. `plus`: None, "full" (the paper's
    "+"), or one half of it alone, "temperature" or "bias".
    """

    own_query: bool = True
    streams: int = 2
    kv_heads: int | None = None
    plus: str | None = None

    def __post_init__(self):
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

    @classmethod
    def parse(cls, name: str | Self) -> Self:
        """The spec behind a name of VARIANTS, with a number for N; the paper's spellings (Q≠K=V,
        (Q=K-V)+, GQA-4), aliases, and the halves of "+" (q=k=v+bias) are understood too.

        Raises UsageError with the reason, or with near matches.
        """
        if isinstance(name, cls):
            return name
        text = re.sub(r"[\s()]", "", str(name).lower()).replace("≠", "-").replace("_", "-")
        text = re.sub(r"(?<=gqa)(?=\d)", "-", text)
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
            raise UsageError(f"{name!r}: how many KV heads?", f"for instance {family}-4")
        raise unknown("variant", name, NAMES)

    @property
    def name(self) -> str:
        """The canonical name. Raises UsageError for a combination that VARIANTS does not name."""
        if self.plus in ("temperature", "bias"):
            return replace(self, plus="full").name + self.plus
        # An exact entry first, so that one KV head is "mqa"; then one with N for their number.
        for wanted in (vars(self), {**vars(self), "kv_heads": "N"}):
            for name, fields in VARIANTS.items():
                if wanted == {**vars(_QKV), **fields}:
                    return name.replace("N", str(self.kv_heads))
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
            why = f"{self.name}: {n_head} heads do not fall into {self.kv_heads} equal groups"
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

    def stored(self, cfg: GPTConfig) -> list[tuple[int, int]]:
        """(heads, width) of each array that the cache keeps per token, the same in every layer."""
        return [(self.stored_heads(cfg.n_head), cfg.n_embd // cfg.n_head)] * self.streams

    def params(self, cfg: GPTConfig) -> int:
        """Numbers in a GPT of this variant. The head is tied."""
        d, f, beta = cfg.n_embd, cfg.d_ff, int(cfg.bias)
        stored = sum(heads * width for heads, width in self.stored(cfg))  # σ · h · d_h
        attention = (self.own_query + 1) * (d * d + beta * d) + d * stored + beta * stored
        attention += sum(cfg.plus_channels[:2]) if self.plus else 0
        block = attention + 2 * d * f + beta * (f + d) + 4 * d
        positions = cfg.block_size * d if cfg.position == "learned" else 0
        return cfg.n_layer * block + 2 * d + cfg.vocab_size * d + positions

    def macs(self, cfg: GPTConfig, n: int, causal: bool = False) -> int:
        """Multiply-accumulates of a prefill of n tokens.

        The full n × n scores, as the paper counts, or the causal half. Not counted: the "+" (its n
        products per row are additions to the scores), norms and softmax.
        """
        d, f = cfg.n_embd, cfg.d_ff
        stored = sum(heads * width for heads, width in self.stored(cfg))
        projections = n * d * ((self.own_query + 1) * d + stored)
        scores_and_mix = n * (n + 1) * d if causal else 2 * n * n * d
        layer = projections + scores_and_mix + 2 * n * d * f
        return cfg.n_layer * layer + n * d * cfg.vocab_size

    def cache_bytes_per_token(self, cfg: GPTConfig, itemsize: int) -> int:
        """L · σ · h · d_h · itemsize (paper, section 4)."""
        numbers = sum(heads * width for heads, width in self.stored(cfg))
        return cfg.n_layer * numbers * itemsize

    def reduction(self, n_head: int) -> float:
        """The share of qkv's cache that is saved: 1 - σh / 2H."""
        return 1 - self.streams * self.stored_heads(n_head) / (2 * n_head)


_QKV = VariantSpec()


def _fields(name):
    """What `name` changes about qkv: "gqa-4" is gqa-N with N = 4. None for an unknown name."""
    family, _, n = name.rpartition("-")
    if name not in VARIANTS and f"{family}-N" in VARIANTS and n.isdecimal():
        return VARIANTS[f"{family}-N"] | {"kv_heads": int(n)}
    return VARIANTS.get(name)


def variant_names(groups: int) -> tuple[str, ...]:
    """Every registered name, with this number of KV heads for N."""
    return tuple(name.replace("N", str(groups)) for name in VARIANTS)
