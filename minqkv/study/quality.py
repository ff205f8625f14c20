"""What a choice of variant costs in quality, where it was measured; the authors' advice for devices
with that beside it; and which arms of a study no other arm beats.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from ..analysis.plan import Option, options, unbeaten
from ..models import GPTConfig
from ..variants import VariantSpec
from . import stats
from .beside import changes
from .measured import in_short
from .published import printed
from .summary import Cell, Row

FOLDER, PAGE = "language-models", "docs/language-models.md"  # of bench/results, and about it


@dataclass(frozen=True)
class Costs:
    """Changes of perplexity from qkv, each paired by seed, by the variants of models of one size:
    `scale` says which.
    """

    changes: dict[VariantSpec, stats.Estimate]
    n_head: int
    scale: str

    def of(self, option: Option) -> stats.Estimate | None:
        """What was measured of an option: of its variant, in a cache that keeps all it is given.
        With several KV heads, they must be the same share of the heads.
        """
        spec = option.spec
        if option.cache != "plain" or spec is None:
            return None
        if (spec.kv_heads or 1) > 1:
            heads, rest = divmod(spec.kv_heads * self.n_head, option.n_head)
            if rest or heads < 2:
                return None
            spec = replace(spec, kv_heads=heads)
        return self.changes.get(spec)


def costs() -> Costs:
    """Those of the language models that docs/language-models.md describes."""
    arms = {
        config.variant: one
        for config, one in in_short().items()
        if FOLDER in one.folders and config.task.head_dim is None
    }
    task, found = arms["qkv"].config.task, {}
    for name, one in arms.items():
        spec = VariantSpec.parse(name).for_heads(task.n_head)
        found[spec] = stats.paired(one.finished, arms["qkv"].finished, relative=True)
    size = f"{task.n_layer} layers, width {task.n_embd}, {task.n_head} heads"
    return Costs(found, task.n_head, f"nano ({size}), {found[VariantSpec()].n} seeds, {PAGE}")


def plan(
    found: list[Option],
    context: int,
    batch: int = 1,
    memory: int | None = None,
    bandwidth: int | None = None,
) -> dict:
    """Options as plain data: `rows`, how many of them `fit`, the `smallest` of these, and of those
    that were measured the `unbeaten` ones: no other is better in bytes or quality and no worse in
    the other. What needs a memory or a bandwidth that is not given is None.
    """
    measured, rows = costs(), []
    for option in found:
        needs, cost = option.needs(context, batch), measured.of(option)
        row = {"name": option.name, "variant": option.variant, "cache": option.cache}
        row |= {"dtype": option.dtype, "bytes_per_token": option.per_token}
        row |= {"cache_bytes": option.cache_nbytes(context, batch), "weights": option.weights}
        row |= {"bytes": needs, "fits": memory is None or needs <= memory}
        row |= {"longest_context": None, "largest_batch": None, "tokens_per_second": None}
        if memory is not None:
            longest = option.longest(memory, batch)
            row["longest_context"] = "any" if longest is None else longest
            row["largest_batch"] = option.largest(memory, context)
        if bandwidth is not None:
            row["tokens_per_second"] = option.tokens_per_second(bandwidth, context, batch)
        rows.append(row | {"change": cost and vars(cost)})
    fit = [row for row in rows if row["fits"]]
    known = [row for row in fit if row["change"]]
    best = unbeaten([(row["bytes"], row["change"]["mean"]) for row in known])
    about = {"context": context, "batch": batch, "memory": memory, "bandwidth": bandwidth}
    about |= {"rows": rows, "fit": len(fit), "unbeaten": [known[i]["name"] for i in best]}
    smallest = min(fit, key=lambda row: row["bytes"], default=None)
    about |= {"smallest": smallest and smallest["name"], "scale": measured.scale}
    return about | {"heads": found[0].n_head, "heads_measured": measured.n_head}


# ---- the arms of a study


@dataclass(frozen=True)
class Place:
    """An arm of a study and its bytes; the best arm among those with no more bytes and a better
    score, and the difference from it, paired by seed. The last two are None on the frontier.
    """

    row: Row
    size: int
    beaten_by: Row | None = None
    difference: stats.Estimate | None = None


def places(cells: list[Cell]) -> list[Place]:
    """The trained arms of tables that may be compared: by bytes per token, or per token and layer
    where tables are at equal bytes.
    """
    rows = [(row, (cell.equal or {}).get("bytes", row.cache_measured))
            for cell in cells for row in cell.rows if row.score and not row.lifted]  # fmt: skip
    loss = -1 if cells[0].better == "higher" else 1
    rows.sort(key=lambda pair: (pair[1], loss * pair[0].score.mean))
    front = [rows[i] for i in unbeaten([(size, loss * row.score.mean) for row, size in rows])]
    found = []
    for row, size in rows:
        best = front[max(i for i, (_, other) in enumerate(front) if other <= size)][0]
        if (row, size) in front:
            found.append(Place(row, size))
        else:
            difference = stats.paired(row.by_seed, best.by_seed, cells[0].relative)
            found.append(Place(row, size, best, difference))
    return found


def as_data(title: str, cells: list[Cell]) -> dict:
    """The same as plain data."""
    arms = [
        {"arm": place.row.arm, "bytes": place.size, "score": vars(place.row.score)}
        | {"beaten_by": place.beaten_by and place.beaten_by.arm}
        | {"difference": place.difference and vars(place.difference)}
        for place in places(cells)
    ]
    return {"title": title, "metric": cells[0].metric, "better": cells[0].better, "arms": arms}


# ---- the authors' advice


def deployment(cfg: GPTConfig, context: int, batch: int, dtypes: dict[str, int]) -> dict:
    """The authors' advice as plain data: where it is from, `devices`, and `rows`, one for each
    scenario, with what is published, computed and measured.
    """
    path = Path(__file__).parent / "published" / "deployment.toml"
    about, measured = tomllib.loads(path.read_text("utf-8")), costs()
    saved, table = printed()["deployment"]["saved"], printed()["lm-300m"]["perplexity"]
    scenarios, rows = about.pop("scenarios"), []
    (qkv,) = options(cfg, ("qkv",), ("plain",), dtypes)
    for scenario in scenarios:
        (option,) = options(cfg, (scenario["variant"],), ("plain",), dtypes)
        device = about["devices"][scenario["device"]]
        memory, bandwidth = int(device["memory"]), device["bandwidth"]
        speed = option.tokens_per_second(bandwidth, context, batch)
        cost = measured.of(option)
        rows.append(scenario | {
            "saved_published": saved[scenario["variant"]]["talk"],
            "saved": 100 * (1 - option.per_token / qkv.per_token),
            "change_in_its_table": changes(scenario["variant"], table, relative=True)["paper"],
            "change_measured": cost and vars(cost),
            "bytes_per_token": option.per_token,
            "bytes": option.needs(context, batch),
            "longest_context": option.longest(memory, batch),
            "largest_batch": option.largest(memory, context),
            "tokens_per_second": speed,
        })  # fmt: skip
    return about | {"context": context, "batch": batch, "rows": rows, "scale": measured.scale}
