"""All cases: kernels, and a layer of every variant under every position scheme."""

from __future__ import annotations

from collections.abc import Iterator

from ...variants import POSITIONS, ROPE_VALUES, SHIPPED, VariantSpec, variant_names
from .case import LARGE, SUMS, Case, Sizes


def kernels(s: Sizes) -> Iterator[Case]:
    """Attention from queries, keys and values on."""
    T, w, rope = s.length, s.window, {"position": "rope"}
    part = {"position": "rope", "d_rope": 4}
    thin, groups = f"thin-{s.head_dim - 2}", f"gqa-{s.kv_heads}"
    short = {"head_dim": 4}
    for name, options in {
        "full": {"causal": False},
        "causal": {"batch": 2},
        "scale": {"scale": 0.3125},
        "large scores": {"scale": LARGE},
        "past": {"past": 3, "length": 4},
        "one query": {"past": T, "length": 1},
        "sees nothing": {"past": -2},
        "window": {"window": w},
        "window, sinks, past": {"window": w, "sinks": 1, "past": 3},
        "packed": {"packed": True, "batch": 2},
        "groups": {"variant": groups, "batch": 2},
        "groups, one query": {"variant": groups, "past": T, "length": 1},
        "one KV head": {"variant": "mqa"},
        "thin keys": {"variant": thin},
        "K = V": {"variant": "q-k=v"},
        "alibi": {"layer_options": {"position": "alibi"}},
        "alibi, one query": {"layer_options": {"position": "alibi"}, "past": T, "length": 1},
        "rope, halves": {"layer_options": rope},
        "rope, interleaved": {"layer_options": rope, "pairing": "interleaved"},
        "rope, part": {"layer_options": part},
        "rope, part, interleaved": {"layer_options": part, "pairing": "interleaved"},
        "rope, past": {"layer_options": rope, "past": 3, "length": 4, "variant": groups},
        "rope, K = V raw": {"layer_options": rope, "variant": "q-k=v"},
        "rope, K = V unrotate": {"layer_options": rope | {"rope_value": "unrotate"},
                                 "variant": "q-k=v"},
        "long sum": {"past": SUMS - 2, "length": 2, "variant": "mqa", "layer_options": short,
                     "only": ("z",), "causal": False},
        "wide sum": {"past": 1, "length": 2, "variant": f"gqa-1-thin-{SUMS}",
                     "layer_options": short, "only": ("scores", "pattern", "z"), "causal": False},
    }.items():  # fmt: skip
        yield Case(f"kernel/{name}", s, **{"length": T} | options)


def layers(s: Sizes) -> Iterator[Case]:
    """A layer of every variant under every position scheme, and those of models that ship."""
    size = {"level": "layer", "length": s.length}
    for name in variant_names(s.kv_heads, s.head_dim - 2):
        spec = VariantSpec.parse(name)
        for position in POSITIONS:
            if position != "rope" and spec.apart and not spec.latent:
                continue
            own = {"position": position}
            if position == "rope" and spec.apart:
                own["d_rope"] = 4
            both = position == "rope" and spec.streams == 1 and not spec.apart
            for value in [*ROPE_VALUES][: 1 + both]:
                options = own | ({"rope_value": value} if both else {})
                yield Case(
                    "/".join([name, *options.values()][: 2 + both]), s, name, options, **size
                )
    narrow = {"head_dim": s.head_dim, "d_rope": 4}
    for name, about in SHIPPED.items():
        options = dict(narrow) if "d_rope" in about else {"head_dim": s.head_dim}
        if "N" in about["variant"]:
            options["kv_heads"] = s.kv_heads
        if name == "deepseek-v4":
            groups = next(n for n in range(2, s.n_head + 1) if s.n_head % n == 0)
            options |= {"query_rank": 3, "groups": groups, "out_rank": 3}
        yield Case(f"shipped/{name}", s, name, options, **size)


def cases(sizes: Sizes | None = None) -> list[Case]:
    """All of them."""
    sizes = sizes or Sizes()
    return [*kernels(sizes), *layers(sizes)]
