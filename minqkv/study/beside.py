"""How our counterpart of a published number is found: from runs, or from a formula.

OURS names the ways, for published/paper.toml. Each takes what is registered of a group, what is
published of it (row -> source -> figure as printed) and our results, and gives rows, each with the
title of its group.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
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
    gain: bool = False  # our figure is itself a difference, of two variants
    p: float | None = None  # with eight seeds or more; corrected, once the table is complete
    agrees: bool | None = None  # of a computed figure: in all digits that were printed
    smaller: dict | None = None  # the settings of runs of a smaller scale
    lost: int = 0  # runs that diverged
    folders: tuple[str, ...] = ()
    state: str = ""
    why: str = ""


Found = Iterator[tuple[str, Row]]  # rows, each with the title of its group


# ---- from runs


def cells(spec: dict, published: dict, results: Results) -> Found:
    """Each size that the authors ran and we ran too, one at a time."""
    ours = {}
    for config, one in results.items():
        if theirs := published_accuracies(config):
            sizes = {name: getattr(config.task, name) for name in SIZES}
            ours[config.variant, config.task.name, *sizes.values()] = one, theirs, sizes
    for variant, task, *size in synthetic_2026():  # in the order of the authors
        if found := ours.get((variant, task, *size)):
            one, theirs, sizes = found
            row = Row(variant, {"re-run": f"{fmean(theirs):.3f}".removeprefix("0")})
            title = "  ".join([task, *(f"{SHORT[name]} {n}" for name, n in sizes.items())])
            yield title, _measured(row, one, theirs)


def sweep(spec: dict, published: dict, results: Results) -> Found:
    """The mean over all `sizes` of all `tasks`, where each was run."""
    names, values = zip(*spec["sizes"].items(), strict=True)
    sizes = [dict(zip(names, size, strict=True)) for size in itertools.product(*values)]
    begun = any(spec["settings"].items() <= _settings(config).items() for config in results)
    for variant, figures in published.items():
        cases = itertools.product(spec["tasks"], sizes if begun else [])
        configs = [configure(t, variant, **spec["settings"], **size) for t, size in cases]
        arms, row = [results.get(config) for config in configs], Row(variant, figures)
        if begun and all(arms):
            by_seed = {seed: [arm.scores.get(seed) for arm in arms] for seed in arms[0].scores}
            means = {k: None if None in of else fmean(of) for k, of in by_seed.items()}
            one = Measured(configs[0], means, arms[0].folders)
            row = _measured(row, one, [float(figures["paper"])])
        yield spec["title"], row


def pairs(spec: dict, published: dict, results: Results) -> Found:
    """Differences of two variants of the same size, paired by seed, ours and the authors'."""
    for task, *names in spec["pairs"]:
        configs = [configure(task, name, **spec["settings"]) for name in names]
        arms = [results.get(config) for config in configs]
        row = Row(f"{task} {names[0].partition('+')[0]}", gain=True)
        if all(arms):
            gains = stats.differences(*(arm.finished for arm in arms))
            lost = sum(len(arm.scores) - len(arm.finished) for arm in arms)
            folders = tuple(folder for arm in arms for folder in arm.folders)
            row = replace(row, ours=stats.estimate(gains), lost=lost, folders=folders)
            both = [published_accuracies(config) for config in configs]
            theirs = [a - b for a, b in zip(*both, strict=True)] if all(both) else [0.0]
            if all(both):
                row = replace(row, published={"re-run": f"{fmean(theirs):+.3f}".replace("0.", ".")})
            row = _compared(row, gains, theirs) if all(both) else _tested(row, gains)
        yield spec["title"], row


def runs(spec: dict, published: dict, results: Results) -> Found:
    """The arms of a study, in the last size that was run. With less than the `full` settings of the
    group, or where nothing is published, a row is of a smaller scale.
    """
    arms = {}
    for config, one in results.items():
        if config.task.head_dim is None and spec["settings"].items() <= _settings(config).items():
            arms[config.variant] = one
    relative = any(one.config.task.relative for one in arms.values())
    for variant, figures in (published or {name: {} for name in arms}).items():
        change = changes(variant, published, relative)
        row, one = Row(variant, figures, change=change, relative=relative), arms.get(variant)
        if one:
            settings, numbers = _settings(one.config), list(figures.values())[:1]
            row = _measured(row, one, [float(number) for number in numbers])
            baseline = results.get(replace(one.config, variant="qkv"))
            if baseline and variant != "qkv":
                paired = stats.paired(one.finished, baseline.finished, relative)
                row = replace(row, our_change=paired)
            small = any(settings.get(name, 0) < least for name, least in spec["full"].items())
            if small or not figures:
                row = replace(row, smaller=settings, difference=None, p=None)
        yield spec["title"], row


def _settings(config):
    """What a run is chosen and described by."""
    return with_source(asdict(config.task) | asdict(config.recipe))


def with_source(settings: dict) -> dict:
    """Settings of a run, and which of the known sets of images it is `of`."""
    return settings | {"of": Path(str(settings.get("data"))).name.lower().replace("-", "")}


def changes(variant: str, published: dict, relative: bool) -> dict[str, float]:
    """What is published of a variant's change from qkv, by source."""
    found, base = published.get(variant, {}), published.get("qkv", {})
    pairs = {s: (float(v), float(base[s])) for s, v in found.items() if s in base}
    pairs = {} if variant == "qkv" else pairs
    return {s: a / b - 1 if relative else a - b for s, (a, b) in pairs.items()}


def _measured(row, one, theirs):
    """The row with our scores, and their difference from published ones."""
    scores = list(one.finished.values())
    lost = len(one.scores) - len(scores)
    row = replace(row, ours=stats.estimate(scores), lost=lost, folders=one.folders)
    if not scores or not theirs:
        return row
    if row.relative:
        mean = fmean(theirs)
        scores, theirs = [s / mean for s in scores], [t / mean for t in theirs]
    return _compared(row, scores, theirs)


def _compared(row, values, theirs):
    """The row with the difference of our values from published ones. Its p is the larger of two:
    the sign-flip test takes the published mean as exact, and Welch's test does not.
    """
    difference, p = stats.unpaired(values, theirs)
    row = replace(row, difference=difference)
    return _tested(row, [value - fmean(theirs) for value in values], p)


def _tested(row, differences, p=0.0):
    """The row with the p of the sign-flip test of these differences, if they are enough; at least
    `p`.
    """
    if len(differences) < stats.SEEDS:
        return row
    return replace(row, p=max(p, stats.sign_flip(differences[:TESTED])))


# ---- by formula


def formula(spec: dict, published: dict, results: Results) -> Found:
    """A figure that follows from the variant and the size of the model, or from any model of it."""
    for variant, figures in published.items():
        figure = next(iter(figures.values()))
        value = MEASURES[spec["measure"]](variant, spec, figure)
        ours = stats.Estimate(value, 0.0, 0)
        yield spec["title"], Row(variant, figures, ours, agrees=agree(value, figure))


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
