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
from collections.abc import Iterable
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
NAMES = tuple(VARIANTS)  # the paper's, and thin keys: lessons teach every one of these
VARIANTS |= {  # what others have published since
    "gqa-N-thin-M": {"kv_heads": "N", "key_width": "M"},
    "gta-N": {"streams": 1, "kv_heads": "N", "apart": True},
    "gla-N": {"streams": 1, "kv_heads": "N", "apart": True, "latent": 2},
    "mla": {"streams": 1, "kv_heads": 1, "apart": True, "latent": 4},
}
WIDEST_KEY = 1 << 16
DEEPEST = 10_000  # layers
_ALIASES = {"mha": "qkv", "q-k-v": "qkv", "q=k": "q=k-v", "k=v": "q-k=v"}
PLUS = {"": None, "+": "full", "+temperature": "temperature", "+bias": "bias"}

SHIPPED = {  # layers of models that ship: a variant, and options of Attention (minqkv/designs)
    "qwen3": {"variant": "gqa-N", "norm": True, "rope_base": 1e6},
    "gemma3": {"variant": "gqa-N", "norm": True, "rope_base": 1e6},
    "gemma4-global": {"variant": "q-gqa-N", "norm": True, "head_dim": 512, "d_rope": 128,
                      "rope_base": 1e6**0.25},
    "deepseek-v3": {"variant": "mla", "head_dim": 128, "d_rope": 64},
    "deepseek-v4": {"variant": "q-mqa", "norm": True, "head_dim": 512, "d_rope": 64,
                    "rope_value": "unrotate"},
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """How a model knows positions. `added` to the embeddings: "table" or "sinusoids". `turns`:
    queries and keys are turned. `distance`, which is added to the scores: "fixed" or "learned".
    """

    about: str
    added: str | None = None
    turns: bool = False
    distance: str | None = None


POSITIONS = {
    "learned": Scheme("a table, added to the embeddings", added="table"),
    "sinusoidal": Scheme("fixed sines and cosines, added to the embeddings", added="sinusoids"),
    "none": Scheme("no positions"),
    "rope": Scheme("queries and keys are turned, further at later positions", turns=True),
    "alibi": Scheme("scores fall with distance, in each head at its own rate", distance="fixed"),
    "relative": Scheme("a number is learned for each head and distance", distance="learned"),
    "learned+relative": Scheme("a table, and a number for each head and distance",
                               added="table", distance="learned"),
}  # fmt: skip
FARTHEST = 128  # distances that "relative" tells apart; those beyond count as this
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
    keys where it is not that of the values (thin keys). For K = V, `apart`: what turns under rotary
    positions is a small row beside the others, one for all heads, and these never turn. `latent`: a
    stored row is as wide as so many heads, and each query head reads it through two matrices.
    """

    own_query: bool = True
    streams: int = 2
    kv_heads: int | None = None
    plus: str | None = None
    key_width: int | None = None
    apart: bool = False
    latent: int | None = None

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
        if self.apart and not (self.own_query and self.streams == 1):
            why = "what turns stands apart from a row that is K and V, and Q has its own projection"
            raise UsageError(f"{why}: elsewhere the keys themselves can turn", "use gta-2 or mla")
        if self.latent is not None and (self.latent < 1 or not self.apart):
            why = "a latent row is one stream, K = V, at least a head wide, and what turns is apart"
            raise UsageError(why, "use mla or gla-2")

    @classmethod
    def parse(cls, name: str | Self) -> Self:
        """The spec behind a name of VARIANTS, with a number for N; the paper's spellings (Q≠K=V,
        (Q=K-V)+, GQA-4), aliases, and the halves of "+" (q=k=v+bias) are understood too.

        Raises UsageError with the reason, or with near matches.
        """
        if isinstance(name, cls):
            return name
        text = re.sub(r"[\s()]", "", str(name).lower()).replace("≠", "-").replace("_", "-")
        text = re.sub(r"(?<=gqa|gta|gla|hin)(?=\d)", "-", text)
        base, plus, kind = text.partition("+")
        base = _ALIASES.get(base, base)
        if base == "kv":
            cure = "say q=k-v (shared Q and K, as in the 2023 paper) or q-k=v (shared K and V)"
            raise UsageError(f"{name!r} has two meanings", cure)
        if plus + kind not in PLUS:
            raise unknown("variant", name, [*VARIANTS, *SHIPPED])
        fields = _fields(base)
        if fields is not None:
            return cls(**fields | ({"plus": PLUS[plus + kind]} if plus else {}))
        if tied := re.fullmatch(r"q=k(?:=v)?-(gqa-\d+|mqa)", base):
            return cls(**_fields(tied[1]) | {"own_query": False})  # refused, with the reason
        if base in SHIPPED:
            why = f"{name} is a layer: the variant {SHIPPED[base]['variant']}, and options"
            raise UsageError(why, f"mq.shipped_layer({base!r}, ...)")
        family = re.sub("-n?$", "", base)
        if f"{family}-N" in VARIANTS:
            what = "how wide are its keys" if family == "thin" else "how many KV heads"
            raise UsageError(f"{name!r}: {what}?", f"for instance {family}-4")
        raise unknown("variant", name, [*VARIANTS, *SHIPPED])

    @property
    def name(self) -> str:
        """The canonical name. Raises UsageError for a combination that VARIANTS does not name."""
        if self.plus in ("temperature", "bias"):
            return replace(self, plus="full").name + self.plus
        for name in sorted(VARIANTS, key=lambda name: "N" in name):  # so that one head is "mqa"
            numbers = {letter: vars(self)[field] for field, letter in _letters(name).items()}
            if vars(self) == {**vars(_QKV), **_numbered(name, numbers)}:
                return _written(name, numbers)
        raise UsageError(f"{self} has no name in minqkv.variants.VARIANTS")

    def for_heads(self, n_head: int) -> Self:
        """The same variant among models of n_head heads: gqa-H is qkv. Raises UsageError where H
        does not divide.
        """
        if self.kv_heads is None:
            return self
        if self.kv_heads == n_head and not self.apart:
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
        """Scores and output, in the paper's letters: α is 1 / √width of a query.

        Query heads share in groups of G: head i reads KV head ⌊i/G⌋. P and R are what turns in a
        query and in a key where that stands apart; U and W are the matrices of a latent row.
        """
        q = "K" if not self.own_query else "Q"
        value = "V" if self.streams == 2 else "K"
        k = "K"
        if self.kv_heads is not None:
            q, k, value = "Qᵢ", "K⌊i/G⌋", f"{value}⌊i/G⌋"
        if self.latent:
            q, value = "QᵢUᵢ", f"{value}Wᵢ"
        if self.apart:
            q, k = f"[{q},Pᵢ]", f"[{k},R]"
        scores = f"α{q}{k}ᵀ"
        inside = {
            None: scores,
            "full": f"s·{scores}+1gᵀ",
            "temperature": f"s·{scores}",
            "bias": f"{scores}+1gᵀ",
        }[self.plus]
        return f"softmax({inside}){value}"

    def widths(self, head_dim: int, d_rope: int = 0) -> tuple[int, int]:
        """Numbers in a query, as it is projected, and in a stored row, of one head. Of separate K
        and V, that is a row of K; V has head_dim numbers.
        """
        row = self.key_width or (self.latent or 1) * head_dim
        return (head_dim + d_rope if self.latent else row), row

    def turning(self, head_dim: int, d_rope: int | None = None) -> int:
        """How many channels of a query and a key turn under rotary positions: `d_rope`, or all, or
        about half a head where they stand apart. Raises UsageError where these are not pairs.
        """
        width, _ = self.widths(head_dim)
        turning = width if d_rope is None else d_rope
        if d_rope is None and self.apart:
            turning = max(2, head_dim // 4 * 2)
        if type(turning) is not int or turning % 2 or turning < 2:
            what = f"the width of a key, {turning}," if d_rope is None else f"d_rope {d_rope}"
            why = f"rotary positions turn pairs: {what} must be even, and 2 or more"
            raise UsageError(f"{why} ({self.name}, head_dim {head_dim})")
        if turning > width and not self.latent:
            raise UsageError(f"d_rope {turning}: a key has {width} numbers ({self.name})")
        return turning

    def rows(self, n_head: int, head_dim: int, d_rope: int = 0) -> list[tuple[int, int]]:
        """(heads, width) of each array that is stored per token: K and V; or one row that is both;
        or such a row and, beside it, what turns, `d_rope` numbers.
        """
        h, (_, row) = self.stored_heads(n_head), self.widths(head_dim)
        second = (h, head_dim) if self.streams == 2 else (1, d_rope if self.apart else 0)
        return [(h, row), *([second] if second[1] else [])]

    def sizes(self, cfg: GPTConfig) -> tuple[int, int, int]:
        """Heads, their width, and how many of its channels turn, in this layer of a model."""
        rope = POSITIONS[cfg.position].turns
        return cfg.n_head, cfg.head_dim, self.turning(cfg.head_dim, cfg.d_rope) if rope else 0

    def stored(self, cfg: GPTConfig) -> list[tuple[int, int]]:
        """(heads, width) of each array that the cache keeps per token in a layer."""
        return self.rows(*self.sizes(cfg))

    def projections(self, n_embd: int, n_head: int, head_dim: int, d_rope: int = 0) -> int:
        """Numbers in the matrices of one layer's attention: into queries and stored rows, into and
        out of latent rows, and back to width n_embd.
        """
        query, row = self.widths(head_dim, d_rope)
        projected = self.own_query * n_head * query + _numbers(self.rows(n_head, head_dim, d_rope))
        latent = 2 * n_head * head_dim * row if self.latent else 0
        return n_embd * (projected + n_head * head_dim) + latent

    def layer_params(self, cfg: GPTConfig) -> int:
        """Numbers in one block: attention, MLP and norms."""
        d, f, beta, (H, d_h, d_rope) = cfg.n_embd, cfg.d_ff, int(cfg.bias), self.sizes(cfg)
        query, row = self.widths(d_h, d_rope)
        attention = self.projections(d, H, d_h, d_rope)
        attention += beta * (self.own_query * H * query + _numbers(self.stored(cfg)) + d)
        attention += sum(cfg.plus_channels[:2]) if self.plus else 0
        attention += self.own_query * query + row * (not self.latent) if cfg.norm else 0
        learned = POSITIONS[cfg.position].distance == "learned"
        attention += H * min(cfg.block_size, FARTHEST + 1) if learned else 0
        mlp = 2 * d * f + beta * (f + d) + 2 * d if f else 0
        return attention + mlp + 2 * d

    def layer_macs(self, cfg: GPTConfig, n: int, causal: bool) -> int:
        """Multiply-accumulates of one block on n tokens."""
        d, (H, d_h, d_rope) = cfg.n_embd, self.sizes(cfg)
        query, row = self.widths(d_h, d_rope)
        key, value = row + d_rope if self.latent else query, d_h if self.streams == 2 else row
        pairs = n * (n + 1) // 2 if causal else n * n
        per_token = self.projections(d, H, d_h, d_rope) + 2 * d * cfg.d_ff
        return n * per_token + pairs * H * (key + value)

    def params(self, cfg: GPTConfig) -> int:
        """`params` of a GPT with this variant in every layer."""
        return params(replace(cfg, variant=self.name))

    def macs(self, cfg: GPTConfig, n: int, causal: bool = False) -> int:
        """`macs` of a GPT with this variant in every layer."""
        return macs(replace(cfg, variant=self.name), n, causal)

    def cache_bytes_per_token(self, cfg: GPTConfig, itemsize: int) -> int:
        """L · σ · h · d_h · itemsize (paper, section 4)."""
        return cfg.n_layer * _numbers(self.stored(cfg)) * itemsize

    def reduction(self, n_head: int, head_dim: int = 1, d_rope: int = 0) -> float:
        """The share of qkv's cache that is saved: 1 - σh / 2H; with thin keys, 1 - (d_qk + d_v) /
        2d_h. `d_rope` is what turns apart.
        """
        return 1 - _numbers(self.rows(n_head, head_dim, d_rope)) / (2 * n_head * head_dim)


_QKV = VariantSpec()


def _fields(name):
    """What `name` changes about qkv: "gqa-4" is gqa-N with N = 4. None for an unknown name."""
    for entry in VARIANTS:
        pattern = re.sub("[NM]", lambda letter: rf"(?P<{letter[0]}>\d+)", re.escape(entry))
        if found := re.fullmatch(pattern, name):
            return _numbered(entry, {letter: int(n) for letter, n in found.groupdict().items()})
    return None


def _letters(name):
    """The fields of an entry whose numbers are in its name, and their letters."""
    return {field: value for field, value in VARIANTS[name].items() if value in ("N", "M")}


def _written(name, numbers):
    """The name of an entry, with a number for each letter."""
    return re.sub("[NM]", lambda letter: str(numbers[letter[0]]), name)


def _numbered(name, numbers):
    return {field: numbers.get(value, value) for field, value in VARIANTS[name].items()}


def _numbers(stored):
    return sum(heads * width for heads, width in stored)


def defined(position: str) -> list[str]:
    """The entries that there are under this position scheme: what turns has to turn."""
    turns = POSITIONS[position].turns
    return [name for name in VARIANTS if turns or not name.startswith("gta")]


def variant_names(
    groups: int, key_width: int | None = None, among: Iterable[str] = VARIANTS
) -> tuple[str, ...]:
    """Every registered name, or those `among` them, with numbers: `groups` KV heads, and thin keys
    of width `key_width` (`groups`, unless given).
    """
    numbers = {"kv_heads": groups, "key_width": key_width or groups}
    letters = [{v: numbers[field] for field, v in _letters(name).items()} for name in among]
    return tuple(map(_written, among, letters))


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
    positions = cfg.block_size * cfg.n_embd if POSITIONS[cfg.position].added == "table" else 0
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
