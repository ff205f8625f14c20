"""What fits into a memory: a model with its weights, with each variant, kind of cache and number
type.

Bytes come from the formulas that caches give for themselves, so live caches have them. Activations,
and what the software itself needs, are not counted. Sizes are in bytes; a context is a number of
tokens, and a batch a number of sequences of that length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace

from .. import caches as kinds
from ..caches import KINDS
from ..designs.models import Published
from ..models import GPTConfig
from ..runtime.errors import UsageError, unknown
from ..variants import VariantSpec, params

WEIGHT = 2  # bytes of a weight in bf16
FARTHEST = 2**40  # tokens; what fits at this context fits at any


@dataclass(frozen=True)
class Layers:
    """`count` layers that keep a row of `row_nbytes` of each token, of the last `window`, or of
    every `ratio` tokens together.
    """

    count: int
    row_nbytes: int
    window: int | None = None
    ratio: int = 1

    def nbytes(self, context: int) -> int:
        """Bytes of one sequence in these layers."""
        rows = min(context, self.window or context) // self.ratio
        return self.count * rows * self.row_nbytes


@dataclass(frozen=True)
class Option:
    """One way to run a model. `spec` is the variant of its layers, None if they differ. `cache` is
    a name of caches.KINDS, `dtype` what it stores. A decoding step reads `read` bytes of the
    `weights`.
    """

    variant: str
    spec: VariantSpec | None
    n_head: int
    cache: str
    dtype: str
    weights: int
    read: float
    layers: tuple[Layers, ...]

    @property
    def name(self) -> str:
        """The variant, and what its cache stores."""
        kept = [] if self.cache == "plain" else [self.cache]
        told = KINDS[self.cache].rounds or self.dtype == self.cache
        return " ".join([self.variant, *kept, *([] if told else [self.dtype])])

    @property
    def per_token(self) -> float:
        """Bytes of one token in all layers that keep it."""
        total = sum(of.count * of.row_nbytes / of.ratio for of in self.layers)
        return int(total) if total == int(total) else total

    def cache_nbytes(self, context: int, batch: int = 1) -> int:
        """Bytes of the cache."""
        return batch * sum(of.nbytes(context) for of in self.layers)

    def needs(self, context: int, batch: int = 1) -> int:
        """Bytes of the weights and the cache."""
        return self.weights + self.cache_nbytes(context, batch)

    def longest(self, memory: int, batch: int = 1) -> int | None:
        """The longest context that fits; None if any does."""
        fits = bisect_right(range(FARTHEST), memory, key=lambda n: self.needs(n, batch)) - 1
        return None if fits == FARTHEST - 1 else max(0, fits)

    def largest(self, memory: int, context: int) -> int:
        """The largest batch that fits."""
        return max(0, memory - self.weights) // self.cache_nbytes(context)

    def tokens_per_second(self, bandwidth: float, context: int, batch: int = 1) -> float:
        """New tokens of the whole batch in a second, if each step reads weights and cache once, at
        this many bytes a second, and nothing else takes time. Programs are slower.
        """
        return batch * bandwidth / (self.read + self.cache_nbytes(context, batch))


def options(
    model: GPTConfig | Published,
    variants: tuple[str, ...] | None,
    caches: tuple[str, ...],
    dtypes: dict[str, int],
    window: int | None = None,
    weights: int | None = None,
) -> list[Option]:
    """The model with each of these variants (None: the usual ones), caches, and number types (name
    -> bytes). A Published model comes first as it is. A ring keeps `window` positions. `weights`:
    bytes of all weights, if not two for each.

    Raises UsageError for names and combinations that there are not, and if the number of weights is
    not known.
    """
    for cache in caches:
        if cache not in KINDS:
            raise unknown("cache", cache, KINDS)
        if KINDS[cache].windowed and window is None:
            raise UsageError(f"--cache {cache}: a ring needs a window", "--window 4k")
    if window is not None and not any(KINDS[cache].windowed for cache in caches):
        raise UsageError("--window is for a ring", f"--cache ring, not {', '.join(caches)}")
    found = {}
    for each in _models(model, usual(model) if variants is None else variants):
        key, keeps, total, read = (each.pop(name) for name in ("key", "keeps", "total", "read"))
        if total is None and weights is None:
            why = f"the weights of {model.name} are not known, so nothing can be said to fit"
            raise UsageError(why, "give their bytes: --weights 16GB")
        size = WEIGHT * total if weights is None else weights
        each |= {"weights": size, "read": size * read / total if total else size}
        for cache, dtype, stored_as in _stores(caches, dtypes):
            layers = tuple(_layers(*of, cache, stored_as, window) for of in keeps)
            option = Option(**each, cache=cache, dtype=dtype, layers=layers)
            found.setdefault((key, cache, dtype), option)
    return list(found.values())


def usual(model: GPTConfig | Published) -> tuple[str, ...]:
    """The variants that are compared unless others are asked for."""
    layers = [model] if isinstance(model, GPTConfig) else [k for k in model.kept if k.grows]
    if not layers:
        return ()
    heads = layers[0].n_head
    groups = next(g for g in range(max(1, heads // 4), 0, -1) if heads % g == 0)
    return ("qkv", "q-k=v", f"gqa-{groups}", "mqa", f"q-gqa-{groups}", "q-mqa")


def positions(model: GPTConfig | Published) -> int | None:
    """How many positions there are, where they are learned."""
    learned = isinstance(model, GPTConfig) and "learned" in model.position
    return model.block_size if learned else None


def _stores(caches, dtypes):
    """(cache, what it stores, a type of that size for NumPy). Some kinds store their own type."""
    for cache in caches:
        kind = KINDS[cache]
        if kind.dtype or kind.rounds:
            yield cache, kind.dtype or "int8", kind.dtype or "int8"
        else:
            yield from ((cache, dtype, f"f{itemsize}") for dtype, itemsize in dtypes.items())


def _layers(count, stored, own_window, ratio, cache, stored_as, window):
    """Layers with this kind of cache; a ring is for those that keep rows of single tokens."""
    row = getattr(kinds, KINDS[cache].cls).bytes_per_token(stored, stored_as)
    ring = window if KINDS[cache].windowed and ratio == 1 else None
    windows = [w for w in (own_window, ring) if w is not None]
    return Layers(count, row, min(windows, default=None), ratio)


def _models(model, variants):
    """What `options` needs of a model with each variant: its name, weights, those that a token
    uses, and (layers, what they store, window, ratio). Equal keys are the same model.
    """
    if isinstance(model, GPTConfig):
        for name in variants:
            cfg = replace(model, variant=name)
            table = (positions(cfg) or 0) * cfg.n_embd
            keeps = [(n, s.stored(cfg), cfg.window, 1) for s, n in Counter(cfg.specs).items()]
            spec = cfg.specs[0] if len(keeps) == 1 else None
            about = {"variant": cfg.variant, "spec": spec, "n_head": cfg.n_head, "keeps": keeps}
            about |= {"key": cfg.specs, "total": params(cfg)}
            yield about | {"read": params(cfg) - table}
        return
    for name in (None, *variants):
        made = model.with_variant(name) if name else model
        kept = [k for k in made.kept if not k.shared]
        keeps = [(k.layers, k.stored(), k.window, k.ratio) for k in kept]
        alike = len(made.kept) == 1 and kept[0].grows
        about = {"variant": name or "as it is", "spec": kept[0].spec if alike else None}
        about |= {"n_head": kept[0].n_head, "keeps": keeps, "key": tuple(k.spec for k in kept)}
        yield about | {"total": made.params, "read": made.active or made.params}


def check_memory(found: list[Option], memory: int) -> None:
    """Raises UsageError if not even the weights fit."""
    least = min(option.weights for option in found)
    if least > memory:
        sizes = f"{least / 1e9:,.4g} GB, and the memory is {memory / 1e9:,.4g} GB"
        cure = f"--memory {least // 10**9 + 1}GB, or --weights SIZE if they are quantised"
        raise UsageError(f"the weights alone take {sizes}", cure)


def unbeaten(points: list[tuple[float, float]]) -> list[int]:
    """Of points (bytes, loss), those to which no other is better in one and no worse in the other:
    the Pareto frontier, by index.
    """

    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return [i for i, point in enumerate(points) if not any(beats(p, point) for p in points)]
