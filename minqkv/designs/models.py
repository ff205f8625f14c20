"""Models in use: what their layers keep of the tokens that they have read, in numbers and bytes.

The published sizes are in models.toml, with their sources. What is stored is derived from them by
the VariantSpec that attention and caches use, so real arrays have these bytes. A context is a
number of tokens, and `itemsize` the bytes of one stored number: 2 for bf16. This file imports no
NumPy.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Self

from ..runtime.errors import UsageError, unknown
from ..variants import SHIPPED, VariantSpec

MODELS = tomllib.loads((files(__package__) / "models.toml").read_text("utf-8"))
GTA = (
    "GTA's released code stores what turns once for each query head: "
    "https://github.com/Dao-AILab/grouped-latent-attention, modeling_llama_GTA.py"
)


@dataclass(frozen=True)
class Kept:
    """What the layers of one kind keep: their rows, or something they keep beside these.

    There are `layers` of them, with `n_head` query heads of width `head_dim`. `design` is a name of
    variants.SHIPPED, or that of the variant `spec`. `d_rope` channels turn. `window`: only the last
    so many positions are kept, the current one included. `ratio`: one compressed row stands for so
    many tokens; such rows are counted, but not implemented. `shared`: these layers read the rows of
    other layers and keep none. `released` is the variant whose rows the released software stores
    instead, None if they are the same.
    """

    kind: str
    layers: int
    design: str
    spec: VariantSpec
    n_head: int
    head_dim: int
    d_rope: int | None = None
    window: int | None = None
    ratio: int = 1
    shared: bool = False
    released: VariantSpec | None = None

    @property
    def grows(self) -> bool:
        """Whether a row of every token is kept."""
        return self.window is None and self.ratio == 1 and not self.shared

    def stored(self, released: bool = False) -> list[tuple[int, int]]:
        """(heads, width) of each array that one layer keeps: what the design needs, or what the
        released software stores.
        """
        if self.shared:
            return []
        spec = (released and self.released) or self.spec
        d_rope = spec.turning(self.head_dim, self.d_rope) if spec.apart else 0
        rows = spec.rows(self.n_head, self.head_dim, d_rope)
        if released and spec.apart and not spec.latent:
            return [rows[0], (self.n_head, d_rope)]  # see GTA
        return rows

    def projections(self, n_embd: int) -> int:
        """Weights in the projections of these layers, with queries of full rank."""
        d_rope = self.spec.turning(self.head_dim, self.d_rope) if self.spec.apart else 0
        return self.layers * self.spec.projections(n_embd, self.n_head, self.head_dim, d_rope)

    def rows(self, context: int) -> int:
        """How many rows one layer has kept after so many tokens."""
        if self.shared:
            return 0
        return min(context, self.window or context) // self.ratio

    def row_nbytes(self, itemsize: int, released: bool = False) -> int:
        """Bytes of one row, all its arrays, in one layer."""
        return itemsize * sum(heads * width for heads, width in self.stored(released))

    def per_token(self, itemsize: int, released: bool = False) -> int:
        """Bytes of one token in one layer; of a compressed row, the token's share."""
        return self.row_nbytes(itemsize, released) // self.ratio

    def nbytes(self, context: int, itemsize: int, released: bool = False) -> int:
        """Bytes of one sequence in all layers of this kind."""
        return self.layers * self.rows(context) * self.row_nbytes(itemsize, released)

    def adds(self, context: int, itemsize: int, released: bool = False) -> int:
        """Bytes that these layers grow by with each further token, on average over `ratio`."""
        full = self.window is not None and context >= self.window
        return 0 if full else self.layers * self.per_token(itemsize, released)


@dataclass(frozen=True)
class Published:
    """A model in use, by its published sizes: each kind of its layers, and where this is from.

    `params` counts its weights, and `active` those that a token uses: not the experts it is not
    sent to, nor tables of which it takes a row. None where they are not known. `software` is what
    stores the rows that are called released. `variant` names what stands in place of the model's
    own design, None for the model as it is.
    """

    name: str
    title: str
    n_layer: int
    n_embd: int
    kept: tuple[Kept, ...]
    software: str
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    params: int | None = None
    active: int | None = None
    variant: str | None = None

    def nbytes(self, context: int, itemsize: int, released: bool = False) -> int:
        """Bytes of the cache of one sequence."""
        return sum(kept.nbytes(context, itemsize, released) for kept in self.kept)

    def adds(self, context: int, itemsize: int, released: bool = False) -> int:
        """Bytes that the cache of one sequence grows by with each token after `context`."""
        return sum(kept.adds(context, itemsize, released) for kept in self.kept)

    def with_variant(self, variant: str | VariantSpec) -> Self:
        """The same model with this variant in the layers that keep a row of every token.

        Raises UsageError for an unknown variant, for heads that do not fit, or if there is no such
        layer.
        """
        spec = VariantSpec.parse(variant)
        if not any(kept.grows for kept in self.kept):
            why = f"{self.name}: no layer keeps a row of every token"
            raise UsageError(f"{why}, so {spec.name} has no place", "leave out --variants")
        other = {"design": spec.name, "d_rope": None, "released": None}
        kept = list(self.kept)
        for i, one in enumerate(kept):
            fitting = spec.for_heads(one.n_head)
            if one.grows and fitting != one.spec.for_heads(one.n_head):
                fitting.turning(one.head_dim)  # these models have rotary positions
                kept[i] = replace(one, spec=fitting, **other)
        notes = tuple(note for note in self.notes if note != GTA)
        notes += (GTA,) * (spec.apart and not spec.latent)
        more = sum(new.projections(self.n_embd) for new in kept)
        more -= sum(old.projections(self.n_embd) for old in self.kept)
        weights = {
            name: n and n + more for name in ("params", "active") for n in [vars(self)[name]]
        }
        return replace(self, kept=tuple(kept), variant=spec.name, notes=notes, **weights)

    def report(self, context: int, itemsize: int) -> dict:
        """All of this as plain data: the model, `kinds` with a row for each kind of layers, totals,
        notes and sources. "released_" is what the released software stores.
        """
        kinds = [
            {key: value for key, value in vars(kept).items() if key not in ("spec", "released")}
            | {"variant": kept.spec.name, "grows": kept.grows, "rows": kept.rows(context)}
            | {"stored": kept.stored(), "released_stored": kept.stored(released=True)}
            | {"bytes_per_token_and_layer": kept.per_token(itemsize)}
            | _bytes(kept, context, itemsize)
            for kept in self.kept
        ]
        about = {key: value for key, value in vars(self).items() if key != "kept"}
        return about | {"context": context, "kinds": kinds} | _bytes(self, context, itemsize)


def _bytes(of, context, itemsize):
    """What a kind of layers, or a model, keeps and how it grows: as needed, and as released."""
    return {
        "bytes": of.nbytes(context, itemsize),
        "bytes_per_further_token": of.adds(context, itemsize),
        "released_bytes": of.nbytes(context, itemsize, True),
        "released_bytes_per_further_token": of.adds(context, itemsize, True),
    }


def published(name: str) -> Published:
    """The model of this name, one of MODELS. Raises UsageError for another name."""
    key = str(name).lower().replace("_", "-")
    if key not in MODELS:
        raise unknown("model", name, MODELS)
    about = {k: tuple(v) if isinstance(v, list) else v for k, v in MODELS[key].items()}
    kept = tuple(_kept(**layers) for layers in about.pop("layers"))
    return Published(name=key, kept=kept, **about)


def _kept(design, kv_heads=None, released=None, **sizes):
    """An entry of models.toml: a design of SHIPPED comes with its variant and fixed sizes."""
    about = SHIPPED.get(design, {"variant": design})
    fixed = {key: about[key] for key in ("head_dim", "d_rope") if key in about}
    spec = VariantSpec.parse(about["variant"].replace("N", str(kv_heads)))
    released = released and VariantSpec.parse(released)
    return Kept(design=design, spec=spec, released=released, **fixed | sizes)
