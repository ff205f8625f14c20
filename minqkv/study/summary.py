"""What the records of a study show, and what they cannot: tables, differences, results files."""

import csv
import io
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ..analysis.memory import training_memory
from ..designs.linear import FORMULA
from ..models import GPT, Tagger, ViT
from ..optim import Adam
from ..runs import RunConfig, config_from, configure
from ..runtime import backend, files
from ..runtime.errors import MinqkvError
from ..runtime.version import __version__, code_version
from ..tasks.base import Task
from ..variants import formula
from . import stats
from .grid import ITEMSIZE, OF_AN_ARM, ONLY_K, apart, arm, cell, mixing_widths, of_an_arm
from .published import synthetic_2026
from .rates import Choice, arm_of


@dataclass(frozen=True)
class Row:
    """One arm in one cell, over its seeds."""

    arm: str
    variant: str
    formula: str
    lr: float
    lr_was_chosen: bool
    at_the_edge: bool  # of the rates it was chosen from
    by_seed: dict  # seed -> score; None where the run diverged
    score: stats.Estimate | None
    solved: int | None  # how many seeds; None where the task has no threshold
    reached: dict  # seed -> steps until the task was learned; None: not within the run
    to_baseline: stats.Estimate | None  # paired by seed; None for the baseline, or without it
    published: stats.Estimate | None
    published_spread: float | None
    bits_per_byte: stats.Estimate | None  # where the score has them
    tokens_per_second: float | None  # of language models: of the median run, scoring included
    params: int
    cache_measured: int
    cache_formula: int
    memory: dict | None  # bytes of a training step; None if loss or model are the task's own
    settings: dict  # of OF_AN_ARM
    runs: tuple  # hashes of their configurations
    lifted: bool = False  # not trained: a qkv model in the form of K = V


@dataclass(frozen=True)
class Cell:
    """One task at one size; or at equal bytes or parameters, whatever the sizes."""

    task: str
    title: str
    metric: str
    better: str
    solved_from: float | None
    chance: float
    relative: bool  # differences from the baseline are ratios minus 1
    size: dict
    equal: dict | None  # {"bytes": of a token in a layer} or {"params": numbers in the model}
    baseline: str | None  # the arm that the others are compared with
    rows: tuple
    apart: str | None = None  # where others have the same name: in what this one differs


def summarise(
    records: list[dict],
    equal: str | None = None,
    targets: tuple[int, ...] = (),
    choices: dict[RunConfig, Choice] | None = None,
    own: dict[str, type] | None = None,
) -> list[Cell]:
    """Records -> Cells, in the order the cells and arms first appear.

    `equal` is "bytes" or "params": then cells are made of runs with the same bytes per token and
    layer, or of those whose parameters are nearest to one of `targets`. At equal bytes, a trained
    qkv that can store K alone (designs.layers.Slim) is also an arm at half its bytes. `choices`:
    where each arm's learning rate comes from.
    """
    cells, configs = {}, [config_from(record["config"], own) for record in records]
    mixing = mixing_widths(configs)
    for config, record in zip(configs, records, strict=True):
        group = _equal(record, config, equal, targets)
        of = bool(equal), config.task.name in mixing
        arms = cells.setdefault((tuple(cell(config, *of).items()), group, of), {})
        arms.setdefault(arm(config, *of), []).append((config, record))
    for (size, group, of), arms in list(cells.items() if equal == "bytes" else ()):
        for name, runs in arms.items():
            if any(record["slim"] for _, record in runs):
                half = cells.setdefault((size, group // 2, of), {})
                half[f"{name}, {ONLY_K}"] = [(c, _only_k(record)) for c, record in runs]
    return [
        _cell(dict(size), equal and {equal: group}, arms, choices or {}, of_an_arm(*of))
        for (size, group, of), arms in cells.items()
    ]


def _only_k(record):
    """The record of a trained qkv, as one that stores K alone; without a score where it cannot."""
    costs = ("cache_bytes_per_token", "cache_bytes_per_token_formula")
    stored = {name: record[name] // 2 for name in costs}
    stored |= {"score": None, "lifted": None, "slim": None}
    return record | stored | (record["slim"] or {})


def told_apart(cells: list[Cell]) -> list[Cell]:
    """The tables of a study. Where several have one title, or one task and the same bytes, each
    title says what the others do not share.
    """
    names = [f"{one.task} {one.equal}" if one.equal else one.title for one in cells]
    found = []
    for one, name in zip(cells, names, strict=True):
        others = [cell.size for cell, other in zip(cells, names, strict=True) if other == name]
        parts = apart(one.size, others)
        new = [part for part in parts if part not in one.title.split("  ")]
        title = "  ".join([one.title, *new])
        found.append(replace(one, title=title, apart="  ".join(parts) or None))
    return found


def _equal(record, config, equal, targets):
    if equal == "bytes":
        return record["cache_bytes_per_token"] // config.task.n_layer
    if equal == "params":
        return min(targets, key=lambda target: abs(record["params"] - target))
    return None


def _cell(size, equal, arms, choices, varied):
    config = next(iter(arms.values()))[0][0]
    task = config.task
    baseline = _baseline(arms, equal, choices)
    rows = []
    for name, runs in arms.items():
        rows.append(_row(name, runs, arms, baseline, choices))
        if equal and any(record["lifted"] for _, record in runs):
            rows.append(_lifted_row(rows[-1], runs))
    about = (task.metric, task.better, task.solved, task.chance, task.relative)
    title = _title(config, equal, varied)
    return Cell(task.name, title, *about, size, equal, baseline, tuple(rows))


def _title(config, equal, varied):
    """The task and its size without what is varied, the bytes, and what differs from the task's own
    recipe.
    """
    task, parts = config.task, []
    if equal:
        ((what, n),) = equal.items()
        parts.append(f"{n:,} B a token and layer" if what == "bytes" else f"about {n:,} parameters")
    usual, recipe = asdict(task.recipe()), asdict(config.recipe)
    if recipe["steps"] != usual["steps"]:
        parts.append(f"{recipe['steps']:,} steps")
    usual = asdict(task.recipe(recipe["steps"]))
    for name in ("batch", "warmup", "clip"):
        parts += [f"{name} {recipe[name]}"] if recipe[name] != usual[name] else []
    return "  ".join([task.title(without=varied), *parts])


def _baseline(arms, equal, choices):
    """The arm of qkv. At equal bytes there may be several, with more or fewer heads: the best one
    on the seeds that the rates were chosen on, which are not reported; without them, the first.
    """
    qkv = [name for name, runs in arms.items() if runs[0][0].variant == "qkv"]
    found = [name for name in qkv if not name.endswith(ONLY_K)]
    if not equal:
        return "qkv" if "qkv" in found else None

    def selected(name):
        config = arms[name][0][0]
        choice = choices.get(arm_of(config))
        score = choice and choice.scores[choice.lr]
        sign = 1 if config.task.better == "higher" else -1
        return -math.inf if score is None else sign * score

    return max(found, key=selected, default=None)


def _row(name, runs, arms, baseline, choices):
    config, first = runs[0]
    published = published_accuracies(config)
    finished, reference = _finished(runs), _finished(arms.get(baseline, ()))  # seed -> score
    choice, solved = choices.get(arm_of(config)), config.task.solved
    sign, relative = 1 if config.task.better == "higher" else -1, config.task.relative
    bits = [r["score"]["bits_per_byte"] for _, r in runs if "bits_per_byte" in (r["score"] or {})]
    watched = config.recipe.watch and config.task.learned is not None
    linear = getattr(config.task, "attention", "") == "linear"
    good = [solved is not None and sign * v >= sign * solved for v in finished.values()]
    return Row(
        arm=name,
        variant=config.variant,
        formula=FORMULA if linear else formula(config.variant),
        lr=config.recipe.lr,
        lr_was_chosen=choice is not None,
        at_the_edge=bool(choice and choice.at_the_edge),
        by_seed={c.seed: _score(record) for c, record in runs},
        score=stats.estimate(list(finished.values())),
        solved=None if solved is None else sum(good),
        reached={c.seed: record["reached"] for c, record in runs} if watched else {},
        to_baseline=None if name == baseline else stats.paired(finished, reference, relative),
        published=stats.estimate(published),
        published_spread=stats.spread(published) if published else None,
        bits_per_byte=stats.estimate(bits),
        tokens_per_second=_speed(runs) if config.task.language and finished else None,
        params=first["params"],
        cache_measured=first["cache_bytes_per_token"],
        cache_formula=first["cache_bytes_per_token_formula"],
        runs=tuple(c.hash for c, _ in runs),
        memory=_memory(config),
        settings={name: getattr(config.task, name) for name in OF_AN_ARM},
    )


def _speed(runs):
    """Tokens trained on per second, of the median run."""
    recipe, length = runs[0][0].recipe, runs[0][0].task.seq_len
    seconds = median(record["seconds"] for _, record in runs if record["score"])
    return recipe.steps * recipe.batch * length / seconds


def _lifted_row(row, runs):
    """The control: qkv models as the q-k=v models that compute the same."""
    by_seed = {c.seed: r["lifted"] and r["lifted"]["score"] for c, r in runs}
    found = [score for score in by_seed.values() if score is not None]
    first = next(record["lifted"] for _, record in runs if record["lifted"])
    about = {"arm": f"{row.arm}, lifted to {first['variant']}", "variant": first["variant"]}
    about |= {"formula": formula(first["variant"]), "params": first["params"]}
    about |= {"settings": row.settings | {"head_dim": first["head_dim"]}, "lifted": True}
    none = ("to_baseline", "published", "published_spread", "solved", "memory")
    none += ("bits_per_byte", "tokens_per_second")
    score = stats.estimate(found)
    return replace(row, **about, by_seed=by_seed, score=score, reached={}, **dict.fromkeys(none))


def _memory(config):
    task = config.task
    if type(task).loss is not Task.loss or type(config.build()) not in (GPT, Tagger, ViT):
        return None
    try:
        x, y = task.batch(config.seed, 0, config.recipe.batch)
    except MinqkvError:  # the data is gone: tables are made from the records alone
        return None
    return training_memory(config.build(), x, y, task.sparse)


def _score(record):
    return record["score"] and record["score"][record["metric"]]


def _finished(runs):
    """Scores by seed of the runs that did not diverge."""
    return {c.seed: _score(record) for c, record in runs if record["score"] is not None}


def published_accuracies(config: RunConfig) -> list[float]:
    """The authors' accuracies, one for each seed, for exactly this configuration; an empty list
    where they published none.
    """
    task, names = config.task, ("seq_len", "n_embd", "n_layer", "n_head")
    size = {name: getattr(task, name, None) for name in names}
    found = synthetic_2026().get((config.variant, task.name, *size.values()), [])
    if not found:
        return []
    plain = configure(task.name, config.variant, **size, seed=config.seed, threads=config.threads)
    return found if plain == config else []


def unresolved(cell: Cell) -> str:
    """One line: how precisely this many seeds give the differences from the baseline, and which of
    them cannot be distinguished from zero.
    """
    differences = [row for row in cell.rows if row.to_baseline]
    known = [row.to_baseline for row in differences if row.to_baseline.n > 1]
    name, trained = cell.baseline, [row for row in cell.rows if not row.lifted]
    if not name:
        return "no qkv among the variants, so no differences"
    if len(trained) == 1:
        return f"{name} alone, so no differences"
    if not differences:
        return f"no seed on which {name} and another finished, so no differences"
    if not known:
        return "one seed gives no interval: use --seeds 3 or more"
    n = min(difference.n for difference in known)
    halves = [difference.half for difference in known]
    least, most = (_number(of(halves), cell.relative) for of in (min, max))
    precision = f"95 % half-width of the difference from {name}: {most}"
    if len(halves) > 1:
        precision = f"95 % half-widths of the differences from {name}: "
        precision += f"{least} to {most}"
        precision += " (no correction for multiple comparisons)"
    blurred = [row.arm for row in differences if not row.to_baseline.clear_of_zero]
    verdict = f"Not distinguishable from zero: {', '.join(blurred)}."
    verdict = verdict if blurred else "All are distinguishable from zero."
    line = f"{n} seeds (Student's t: {stats.t_quantile(n - 1):.3f}). {precision}. {verdict}"
    best = any(row.score.mean > 0.9995 for row in cell.rows if row.score)
    ceiling = cell.metric == "accuracy" and best
    lost = sum(score is None for row in trained for score in row.by_seed.values())
    line += " A mean of 1.000 is at the ceiling." if ceiling else ""
    return line + (f" Runs that diverged are in no mean or interval: {lost}." if lost else "")


def _number(value, relative):
    """As in the tables: .714, 1.250; or .31 %."""
    if relative:
        return f"{100 * value:.2f} %".removeprefix("0")
    return f"{value:.3f}".removeprefix("0")


# ---- what is kept


def environment() -> dict:
    """Versions and machine, for results.json."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE")
    return {
        "minqkv": __version__,
        "code": code_version(),
        "backend": backend.current.describe(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ[name] for name in variables if name in os.environ},
    }


def as_results(
    records: list[dict],
    command: str,
    wall_seconds: float,
    cells: list[Cell] | None = None,
    selection: list[dict] = (),
    impossible: list[str] = (),
    own: dict[str, type] | None = None,
) -> dict:
    """The object of results.json: versions, hyper-parameters, command, runs, and the summary.

    `selection`: the records that decided the learning rates; `impossible`: arms that no width fits.
    Where records of other code were accepted, each run says which code it came from.
    """
    recipes = {}
    for record in records:  # each run has its own rate
        recipe = {name: v for name, v in record["config"]["recipe"].items() if name != "lr"}
        recipes.setdefault(record["config"]["task"]["name"], recipe | _optimiser(recipe))
    return {
        "command": command,
        "versions": environment(),
        "hyper_parameters": recipes,
        "wall_seconds": wall_seconds,
        "cache_itemsize": ITEMSIZE,
        "left_out": list(impossible),
        "selection": _as_runs(selection, own),
        "runs": _as_runs(records, own),
        "cells": without_nan([asdict(cell) for cell in cells or summarise(records, own=own)]),
    }


def _optimiser(recipe):
    """What a recipe says about the optimiser, in words."""
    name = "AdamW" if recipe["weight_decay"] else "Adam"
    found = {"optimiser": name, "betas": (Adam.BETAS[0], recipe["beta2"]), "eps": Adam.EPS}
    end = f"{recipe['floor']:g} of the rate" if recipe["floor"] else "0"
    return found | {"schedule": f"linear warm-up, cosine to {end}"}


def _as_runs(records, own):
    configs = [config_from(record["config"], own) for record in records]
    mixing = mixing_widths(configs)
    runs = [
        _as_run(record, config, config.task.name in mixing)
        for record, config in zip(records, configs, strict=True)
    ]
    if any(record["code"] != code_version() for record in records):
        runs = [run | {"code": record["code"]} for run, record in zip(runs, records, strict=True)]
    return runs


def _as_run(record, config, width):
    """A record as an entry of results.json, and a line of results.csv."""
    name = arm(config, width=width)
    found = {"task": config.task.name, "variant": config.variant, "arm": name}
    found |= {"seed": config.seed, "lr": config.recipe.lr, "split": config.split}
    found |= record["score"] or {config.task.metric: None}
    size = {name: value for name, value in asdict(config.task).items() if name != "name"}
    costs = ("params", "cache_bytes_per_token", "cache_bytes_per_token_formula")
    more = ("seconds", "diverged", "reached", *costs, "losses", "curve", "config")
    losses = [float(f"{loss:.4g}") for loss in record["losses"]]
    return found | size | {name: record[name] for name in more} | {"losses": losses}


def _lines(value):
    """JSON, each item of a list on a separate line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def without_nan(value: object) -> object:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(out: str | Path, results: dict) -> None:
    """results.json and results.csv under `out`, each replaced whole. In the first, each run is a
    line.
    """
    parts = [f'"{name}": {_lines(value)}' for name, value in files.sealed(results).items()]
    files.write_text(Path(out) / "results.json", "{\n" + ",\n".join(parts) + "\n}\n")
    text, columns = io.StringIO(), {}
    for run in results["runs"]:  # tasks differ in their sizes
        columns |= {name: None for name, value in run.items() if not isinstance(value, list | dict)}
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["runs"])
    files.write_text(Path(out) / "results.csv", text.getvalue())
