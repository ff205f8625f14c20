"""The paper's table as data: what a variant projects, what it stores, and what that costs.

"-" and "=" in a name read "separate" and "shared": `q-k=v` has its own Q, and one projection for K
and V. It is no subtraction, so every table prints the formula too. Everything below is derived from
four fields.
"""

import re
from dataclasses import dataclass, replace

from .runtime.errors import UsageError, unknown

NAMES = ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+", "gqa-N", "mqa", "q-gqa-N", "q-mqa")
_SHARING = {"qkv": (True, 2), "q=k-v": (False, 2), "q-k=v": (True, 1), "q=k=v": (False, 1)}
_ALIASES = {"mha": "qkv", "q-k-v": "qkv", "q=k": "q=k-v", "k=v": "q-k=v"}
_PLUS = {"": None, "+": "full", "+temperature": "temperature", "+bias": "bias"}


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
            why = "there would be more queries than projections of them"
            raise UsageError(f"Q = K with fewer KV heads is undefined: {why}")
        if self.plus not in _PLUS.values():
            raise unknown("plus", self.plus, [p for p in _PLUS.values() if p])
        if self.plus and self.own_query:
            why = '"+" is defined for Q = K only: it was made to tell queries from keys again'
            raise UsageError(why, "q=k-v+ or q=k=v+")

    @classmethod
    def parse(cls, name):
        """The spec behind a name: the ten of `NAMES`, the paper's spellings (Q≠K=V, (Q=K-V)+,
        GQA-4) and aliases.

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
        if plus + kind not in _PLUS:
            raise unknown("variant", name, NAMES)
        plus = _PLUS[plus + kind]
        if base in _SHARING:
            return cls(*_SHARING[base], plus=plus)
        match = re.fullmatch(r"(q-|q=k-|q=k=v-)?(?:gqa-(\d+)|mqa)", base)
        if match:
            prefix, heads = match[1] or "", int(match[2]) if match[2] else 1
            return cls(
                own_query="=" not in prefix,
                streams=2 if prefix in ("", "q=k-") else 1,
                kv_heads=heads,
                plus=plus,
            )
        if re.fullmatch(r"(q-)?gqa(-n?)?", base):
            raise UsageError(f"{name!r}: how many KV heads?", f"for instance {base.rstrip('-n')}-4")
        raise unknown("variant", name, NAMES)

    @property
    def name(self):
        """The canonical name."""
        plus = next(suffix for suffix, kind in _PLUS.items() if kind == self.plus)
        if self.kv_heads is None:
            return (
                next(n for n, s in _SHARING.items() if s == (self.own_query, self.streams)) + plus
            )
        return ("" if self.streams == 2 else "q-") + (
            "mqa" if self.kv_heads == 1 else f"gqa-{self.kv_heads}"
        )

    def for_heads(self, n_head):
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

    def stored_heads(self, n_head):
        """h, the heads whose keys (and values) are computed and stored."""
        return self.for_heads(n_head).kv_heads or n_head

    @property
    def formula(self):
        """Scores and output, in the paper's letters; α = 1/√d_h, and head i of a group of G reads
        KV head ⌊i/G⌋.
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

    def stored(self, cfg):
        """(heads, width) of each array that the cache keeps of a token, in every layer."""
        return [(self.stored_heads(cfg.n_head), cfg.n_embd // cfg.n_head)] * self.streams

    def params(self, cfg):
        """Numbers in a GPT of this variant; `cfg` has the fields of GPTConfig. The head is tied."""
        d, f, beta = cfg.n_embd, cfg.d_ff, int(cfg.bias)
        stored = sum(heads * width for heads, width in self.stored(cfg))  # σ · h · d_h
        attention = (self.own_query + 1) * (d * d + beta * d) + d * stored + beta * stored
        attention += sum(cfg.plus_channels[:2]) if self.plus else 0
        block = attention + 2 * d * f + beta * (f + d) + 4 * d
        positions = cfg.block_size * d if cfg.position == "learned" else 0
        return cfg.n_layer * block + 2 * d + cfg.vocab_size * d + positions

    def macs(self, cfg, n, causal=False):
        """Multiply-accumulates of a prefill of n tokens.

        The full n × n scores, as the paper counts, or the causal half. Not counted: the "+" (its n
        products a row are additions to the scores), norms and softmax.
        """
        d, f = cfg.n_embd, cfg.d_ff
        stored = sum(heads * width for heads, width in self.stored(cfg))
        projections = n * d * ((self.own_query + 1) * d + stored)
        scores_and_mix = n * (n + 1) * d if causal else 2 * n * n * d
        layer = projections + scores_and_mix + 2 * n * d * f
        return cfg.n_layer * layer + n * d * cfg.vocab_size

    def cache_bytes_per_token(self, cfg, itemsize):
        """L · σ · h · d_h · itemsize (paper, section 4)."""
        numbers = sum(heads * width for heads, width in self.stored(cfg))
        return cfg.n_layer * numbers * itemsize

    def reduction(self, n_head):
        """The share of qkv's cache that is saved: 1 - σh / 2H."""
        return 1 - self.streams * self.stored_heads(n_head) / (2 * n_head)
