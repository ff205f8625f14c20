"""What the records of a study show, and what they cannot: tables, differences, results files."""

import csv
import io
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..models import PROTOCOLS
from ..optim import Adam
from ..runs import RunConfig
from ..runtime import backend, files
from ..runtime.version import __version__, code_version
from ..tasks.synthetic import RECIPES
from ..variants import VariantSpec
from . import stats
from .grid import arm
from .published import synthetic_2026

SOLVED = 0.99  # token accuracy from which a run counts as solved


@dataclass(frozen=True)
class Row:
    """One arm on one task in one cell, over its seeds."""

    arm: str
    formula: str
    by_seed: dict  # seed -> accuracy; None where the run diverged
    accuracy: stats.Estimate | None
    solved: int
    to_qkv: stats.Estimate | None  # paired by seed; None for qkv itself, or without it
    published: stats.Estimate | None
    published_spread: float | None
    params: int
    cache_measured: int
    cache_formula: int


@dataclass(frozen=True)
class Cell:
    """One task at one size."""

    task: str
    protocol: str
    form: str
    seq_len: int
    n_embd: int
    n_layer: int
    n_head: int
    rows: tuple

    @property
    def title(self):
        """Task and size, as a heading."""
        size = f"T {self.seq_len}  d {self.n_embd}  L {self.n_layer}  H {self.n_head}"
        return f"{self.task}  {size}  {self.form}, protocol {self.protocol}"


def summarise(records):
    """Records -> Cells, in the order the cells and arms first appear."""
    cells = {}
    for record in records:
        config = RunConfig(**record["config"])
        key = (
            config.task,
            config.protocol,
            config.form,
            config.seq_len,
            config.n_embd,
            config.n_layer,
            config.n_head,
        )
        cells.setdefault(key, {}).setdefault(arm(config), []).append((config, record))
    return [
        Cell(*key, tuple(_row(runs, arms.get("qkv", ())) for runs in arms.values()))
        for key, arms in cells.items()
    ]


def _row(runs, baseline):
    config, first = runs[0]
    by_seed = {c.seed: record["accuracy"] for c, record in runs}
    finished = {seed: value for seed, value in by_seed.items() if value is not None}
    reference = {
        c.seed: record["accuracy"] for c, record in baseline if record["accuracy"] is not None
    }
    published = published_accuracies(config)
    return Row(
        arm=arm(config),
        formula=VariantSpec.parse(config.variant).formula,
        by_seed=by_seed,
        accuracy=stats.estimate(list(finished.values())),
        solved=sum(value >= SOLVED for value in finished.values()),
        to_qkv=stats.paired(finished, reference) if arm(config) != "qkv" else None,
        published=stats.estimate(published),
        published_spread=stats.spread(published) if published else None,
        params=first["params"],
        cache_measured=first["cache_bytes_per_token"],
        cache_formula=first["cache_bytes_per_token_formula"],
    )


def published_accuracies(config):
    """The authors' accuracies, one per seed, for exactly this configuration; an empty list where
    they published none.
    """
    names = ("task", "variant", "seq_len", "n_layer", "n_head", "n_embd", "seed")
    plain = RunConfig(**{name: getattr(config, name) for name in names})
    if config.resolved() != plain.resolved():
        return []
    dims = (config.seq_len, config.n_embd, config.n_layer, config.n_head)
    return synthetic_2026().get((config.variant, config.task, *dims), [])


def unresolved(cell):
    """One line: how well this many seeds know the differences to qkv, and which they cannot tell
    from zero.
    """
    differences = [row for row in cell.rows if row.to_qkv]
    known = [row.to_qkv for row in differences if row.to_qkv.n > 1]
    if not differences:
        arms = [row.arm for row in cell.rows]
        alone = "qkv alone" if len(arms) == 1 else "no seed on which qkv and another finished"
        return f"{alone if 'qkv' in arms else 'no qkv among the variants'}, so no differences"
    if not known:
        return "one seed resolves nothing: no interval, no difference; use --seeds 3 or more"
    n, halves = (
        min(difference.n for difference in known),
        sorted(difference.half for difference in known),
    )
    blurred = [row.arm for row in differences if not row.to_qkv.clear_of_zero]
    line = f"n = {n} seeds, t = {stats.t_quantile(n - 1):.3f}: differences to qkv are known to ± {halves[0]:.3f}"
    line += f" to ± {halves[-1]:.3f}, each by itself" if len(halves) > 1 else ""
    line += (
        f". Not told from zero: {', '.join(blurred)}." if blurred else ". All are clear of zero."
    )
    ceiling = any(row.accuracy.mean > 0.9995 for row in cell.rows if row.accuracy)
    return line + (" What is at 1.000 has reached the ceiling." if ceiling else "")


def environment():
    """Versions and machine, for results.json."""
    machine = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    threads = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE")
        if name in os.environ
    }
    return {
        "minqkv": __version__,
        "code": code_version(),
        "backend": backend.current.describe(),
        **machine,
        "threads": threads,
    }


def as_results(records, command, wall_seconds):
    """The object of results.json: versions, hyper-parameters, command, runs, and the summary."""
    runs = []
    for record in records:
        config = record["config"]
        size = {
            name: config[name]
            for name in ("seq_len", "n_embd", "n_layer", "n_head", "form", "protocol")
        }
        runs.append({
            "task": config["task"], "variant": config["variant"], "arm": arm(RunConfig(**config)), "seed": config["seed"],
            "accuracy": record["accuracy"], "seconds": record["seconds"], "loss": record["loss"], "diverged": record["diverged"],
            **size, "params": record["params"], "cache_bytes_per_token": record["cache_bytes_per_token"],
            "cache_bytes_per_token_formula": record["cache_bytes_per_token_formula"], "config": config,
        })  # fmt: skip
    protocols = dict.fromkeys(record["config"]["protocol"] for record in records)
    adam = {
        "optimiser": "Adam",
        "betas": Adam.BETAS,
        "eps": Adam.EPS,
        "schedule": "linear warm-up, cosine to 0",
    }
    recipes = {
        name: {**asdict(RECIPES[name]), **adam, "blocks": asdict(PROTOCOLS[name])}
        for name in protocols
    }
    summary = _without_nan([asdict(cell) for cell in summarise(records)])
    return {"command": command, "versions": environment(), "hyper_parameters": recipes, "wall_seconds": wall_seconds,
            "cache_itemsize": 4, "solved_from": SOLVED, "runs": runs, "cells": summary}  # fmt: skip


def _without_nan(value):
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(out, results):
    """results.json and results.csv under `out`, each replaced whole."""
    files.write_json(Path(out) / "results.json", results)
    text = io.StringIO()
    columns = [name for name in results["runs"][0] if name != "config"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["runs"])
    files.write_text(Path(out) / "results.csv", text.getvalue())
