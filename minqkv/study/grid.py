"""Which runs a study is made of: variants × tasks × seeds × sizes."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from ..runs import RunConfig
from ..runtime.errors import UsageError
from ..tasks.rules import RULES
from ..variants import PLUS, VARIANTS, VariantSpec, variant_names
from .published import synthetic_2026

_authors = synthetic_2026()  # what the authors ran: (variant, task, and the size)
PROJECTIONS = tuple(name for name in VARIANTS if any(name == key[0] for key in _authors))
_TASKS = tuple(name for name in RULES if any(name == key[1] for key in _authors))
PRESETS = {
    "quick": {
        "tasks": ("reverse", "sort"), "variants": variant_names(groups=2), "seeds": (0, 1, 2),
        "seq_len": (16,), "n_embd": (64,), "n_layer": (2,), "n_head": (4,),
        "protocol": "2026", "form": "encoder",
    },
    "paper": {
        "tasks": _TASKS, "variants": PROJECTIONS, "seeds": (0, 1, 2),
        "seq_len": (16, 64, 128), "n_embd": (32, 64, 256), "n_layer": (2, 4), "n_head": (2, 4),
        "protocol": "2026", "form": "encoder",
    },
}  # fmt: skip


def grid(
    tasks: Iterable[str],
    variants: Iterable[str],
    seeds: Iterable[int],
    seq_len: Iterable[int],
    n_embd: Iterable[int],
    n_layer: Iterable[int],
    n_head: Iterable[int],
    protocol: str = "2026",
    form: str = "encoder",
    **other,
) -> list[RunConfig]:
    """Every RunConfig of the product, cell by cell, each once (with H heads, gqa-H is qkv).

    `other` are further fields of RunConfig. Raises UsageError.
    """
    cells = itertools.product(seq_len, n_embd, n_layer, n_head, tasks, variants, seeds)
    configs = {}
    for length, d, layers, heads, task, variant, seed in cells:
        dims = {"seq_len": length, "n_layer": layers, "n_head": heads, "n_embd": d}
        config = RunConfig(task, variant, form, protocol, **dims, seed=seed, **other)
        configs[config.resolved()] = None
    if not configs:
        raise UsageError("nothing to run: a list is empty")
    return list(configs)


def fitting(variants: Iterable[str], n_head: Iterable[int]) -> tuple[str, ...]:
    """Those of `variants` whose KV heads divide every one of these head counts."""

    def fits(name):
        heads = VariantSpec.parse(name).kv_heads or 1
        return all(n % heads == 0 for n in n_head)

    return tuple(name for name in variants if fits(name))


def ablation(tasks: Iterable[str], seeds: Iterable[int], **dims) -> list[RunConfig]:
    """What in "+" helps: each Q = K variant without it, with it, with either half, with it starting
    at temperature -1, and without it but with the diagonal masked."""
    bases = [name for name in VARIANTS if f"{name}+" in VARIANTS]
    configs = grid(tasks, [base + half for base in bases for half in PLUS], seeds, **dims)
    started = [replace(c, plus_start=-1.0) for c in configs if c.variant.endswith("+")]
    return configs + started + [replace(c, hide_self=True) for c in configs if "+" not in c.variant]


def arm(config: RunConfig) -> str:
    """What a row of a table is named after: the variant, and what was changed about it."""
    changed = [" (diagonal masked)"] if config.hide_self else []
    changed += [f" (s₀ = {config.plus_start:g})"] if config.plus_start is not None else []
    return config.variant + "".join(changed)
