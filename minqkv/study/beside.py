"""How our number beside a published one is found: from runs, or from a formula.

OURS names the ways, for published/paper.toml. Each takes what is registered of a group, what is
published of it (row -> source -> figure as printed) and our results, and gives (title, rows).
"""

import itertools
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean

import numpy as np

from ..analysis.diagnose import cycle_curl
from ..models import PRESETS, Tagger, TaggerConfig
from ..runs import configure
from ..runtime.tracing import trace
from ..tasks.base import SHORT
from ..variants import cache_bytes_per_token, macs, params
from . import stats
from .measured import Measured, Results
from .published import synthetic_2026
from .summary import published_accuracies

ITEMSIZE = 2  # bytes of a cached number in the paper: bfloat16
SIZES = ("seq_len", "n_embd", "n_layer", "n_head")  # of the authors' own runs
TESTED = 20  # seeds, the first ones: as many as the exact test takes


@dataclass(frozen=True)
class Row:
    """One published figure, usually of a variant, and ours.

    `published` has the figure as printed, by source. `ours` is measured, or computed (n = 0), and
    `difference` is ours minus the first of the published. `change` and `our_change` are changes
    from qkv, ours paired by seed. With `relative`, differences and changes are ratios minus 1.
    """

    name: str
    published: dict[str, str] = field(default_factory=dict)
    ours: stats.Estimate | None = None
    difference: stats.Estimate | None = None
    change: dict[str, float] = field(default_factory=dict)
    our_change: stats.Estimate | None = None
    relative: bool = False
    p: float | None = None  # of the sign-flip test; corrected, once the table is complete
    agrees: bool | None = None  # of a computed figure: in all digits that were printed
    smaller: dict | None = None  # the settings of a task of a smaller scale
    lost: int = 0  # runs that diverged
    folders: tuple[str, ...] = ()
    state: str = ""
    why: str = ""


# ---- from runs


def cells(spec: dict, published: dict, results: Results) -> list[tuple[str, list[Row]]]:
    """Each size that the authors ran and we ran too, by itself."""
    groups = {}
    for (variant, task, *size), theirs in synthetic_2026().items():
        config = configure(task, variant, **dict(zip(SIZES, size, strict=True)))
        if one := results.get(config):
            row = Row(variant, {"authors": f"{fmean(theirs):.3f}".removeprefix("0")})
            title = f"{task}  " + "  ".join(
                f"{SHORT[k]} {n}" for k, n in zip(SIZES, size, strict=True)
            )
            groups.setdefault(title, []).append(_measured(row, one, theirs))
    return list(groups.items()) or [(spec["title"], [])]


def sweep(spec: dict, published: dict, results: Results) -> list[tuple[str, list[Row]]]:
    """The mean over all `sizes` of a task, where every size was run; without a task, the mean over
    the tasks.
    """
    names, values = zip(*spec["sizes"].items(), strict=True)
    rows, sizes = [], [dict(zip(names, size, strict=True)) for size in itertools.product(*values)]
    for variant, figures in published.items():
        cases = itertools.product(spec["tasks"], sizes)
        configs = [configure(t, variant, **spec["settings"], **size) for t, size in cases]
        arms = [results.get(config) for config in configs]
        row = Row(variant, figures)
        if all(arms):
            seeds = set.intersection(*(set(arm.finished) for arm in arms))
            scores = {seed: fmean(arm.finished[seed] for arm in arms) for seed in sorted(seeds)}
            one = Measured(configs[0], scores, arms[0].folders)
            row = _measured(row, one, [float(figures["paper"])])
        rows.append(row)
    return [(spec["title"], rows)]


def pairs(spec: dict, published: dict, results: Results) -> list[tuple[str, list[Row]]]:
    """Differences of two variants of the same size, paired by seed, ours and the authors'."""
    rows = []
    for task, *names in spec["pairs"]:
        configs = [configure(task, name, **spec["settings"]) for name in names]
        arms = [results.get(config) for config in configs]
        row = Row(f"{task} {names[0].partition('+')[0]}")
        if all(arms):
            gains = stats.differences(*(arm.finished for arm in arms))
            row = replace(row, ours=stats.estimate(gains), folders=arms[0].folders)
            row = replace(row, lost=sum(len(arm.scores) - len(arm.finished) for arm in arms))
            both = [published_accuracies(config) for config in configs]
            theirs = [a - b for a, b in zip(*both, strict=True)] if all(both) else [0.0]
            if all(both):
                row = replace(row, published={"authors": f"{fmean(theirs):+.3f}"})
                row = replace(row, difference=stats.unpaired(gains, theirs))
            row = _tested(row, gains, fmean(theirs))
        rows.append(row)
    return [(spec["title"], rows)]


def runs(spec: dict, published: dict, results: Results) -> list[tuple[str, list[Row]]]:
    """The arms of a study, in the last size that was run. Unless its settings are the `full` ones
    of the group, a row is of a smaller scale.
    """
    rows = []
    for variant, figures in published.items():
        row, one = Row(variant, figures), _last(spec["settings"], variant, results)
        if one is None:
            rows.append(row)
            continue
        task = one.config.task
        row = _measured(row, one, [float(next(iter(figures.values())))])
        baseline = results.get(replace(one.config, variant="qkv"))
        if baseline and variant != "qkv":
            paired = stats.paired(one.finished, baseline.finished, task.relative)
            row = replace(row, our_change=paired)
        if any(getattr(task, name) != value for name, value in spec["full"].items()):
            row = replace(row, smaller=asdict(task), difference=None, p=None)
        rows.append(row)
    relative = any(row.relative for row in rows)
    return [(spec["title"], [_changed(row, published.get("qkv", {}), relative) for row in rows])]


def _last(settings, variant, results):
    """The arm of a variant with heads of the usual width, in the last configuration that fits."""
    fitting = [
        one
        for config, one in results.items()
        if (config.variant, config.task.head_dim) == (variant, None)
        and all(getattr(config.task, name, None) == value for name, value in settings.items())
    ]
    return fitting[-1] if fitting else None


def _changed(row, base, relative):
    """The row with what is published of its change from qkv."""
    figures = {s: (float(v), float(base[s])) for s, v in row.published.items() if s in base}
    if row.name != "qkv":
        change = {s: a / b - 1 if relative else a - b for s, (a, b) in figures.items()}
        row = replace(row, change=change)
    return replace(row, relative=relative)


def _measured(row, one, theirs):
    """The row with our scores, and their difference from published ones."""
    scores, relative = list(one.finished.values()), one.config.task.relative
    lost = len(one.scores) - len(scores)
    row = replace(row, ours=stats.estimate(scores), lost=lost, folders=one.folders)
    row = replace(row, relative=relative)
    if not scores:
        return row
    mean = fmean(theirs)
    if relative:
        scores, theirs, mean = [s / mean for s in scores], [t / mean for t in theirs], 1.0
    return _tested(replace(row, difference=stats.unpaired(scores, theirs)), scores, mean)


def _tested(row, values, mean):
    """The row with the p of the difference of our values from a mean, where they are enough."""
    if len(values) < stats.SEEDS:
        return row
    return replace(row, p=stats.sign_flip([value - mean for value in values[:TESTED]]))


# ---- by formula


def formula(spec: dict, published: dict, results: Results) -> list[tuple[str, list[Row]]]:
    """A figure that follows from the variant and the size of the model, or from any model of it."""
    rows = []
    for variant, figures in published.items():
        figure = next(iter(figures.values()))
        value = MEASURES[spec["measure"]](variant, spec, figure)
        ours = stats.Estimate(value, 0.0, 0)
        rows.append(Row(variant, figures, ours, agrees=agree(value, figure)))
    return [(spec["title"], rows)]


def agree(value: float, figure: str) -> bool:
    """Whether a number is what was printed, to as many decimals; "> 0" agrees with what is printed
    as more than zero.
    """
    if figure.startswith("> "):
        return round(value, 3) > float(figure[2:])
    decimals = len(figure.partition(".")[2])
    return f"{value:.{decimals}f}" == f"{float(figure):.{decimals}f}"


def _config(variant, spec):
    return replace(PRESETS[spec["model"]], variant=variant)


def _cached(variant, spec):
    return cache_bytes_per_token(_config(variant, spec), ITEMSIZE)


def _overhead(variant, spec, figure):
    """What is left of an overhead in per cent if a MAC counts as two FLOPs."""
    return 100 * ((1 + float(figure) / 100) / 2 - 1)


def _curl(variant, spec, figure):
    """The curl of the scores of an untrained model; it does not depend on what was learned."""
    model = Tagger(TaggerConfig(10, 12, 1, 4, 64, variant=variant))
    with trace() as arrays:
        model(np.arange(12)[None] % 10)
    return cycle_curl(arrays["blocks.0.attn.scores"])


MEASURES = {  # name -> value(variant, what is registered of the group, the figure as printed)
    "saved": lambda variant, spec, _: 100 * (1 - _cached(variant, spec) / _cached("qkv", spec)),
    "times": lambda variant, spec, _: _cached("qkv", spec) / _cached(variant, spec),
    "gigabytes": lambda variant, spec, _: _cached(variant, spec) * spec["tokens"] / 1e9,
    "params": lambda variant, spec, _: params(_config(variant, spec)),
    "macs": lambda variant, spec, _: macs(_config(variant, spec), spec["tokens"]),
    "overhead": _overhead,
    "curl": _curl,
}
OURS = {"cells": cells, "sweep": sweep, "pairs": pairs, "runs": runs, "formula": formula}
