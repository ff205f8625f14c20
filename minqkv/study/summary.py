"""What the records of a study show, and what they cannot: tables, differences, results files."""

import csv
import io
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
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


_of_cell = attrgetter(*[field.name for field in fields(Cell) if field.name != "rows"])


def summarise(records: list[dict]) -> list[Cell]:
    """Records -> Cells, in the order the cells and arms first appear."""
    cells = {}
    for record in records:
        config = RunConfig(**record["config"])
        arms = cells.setdefault(_of_cell(config), {})
        arms.setdefault(arm(config), []).append((config, record))
    return [
        Cell(*of_cell, tuple(_row(runs, arms.get("qkv", ())) for runs in arms.values()))
        for of_cell, arms in cells.items()
    ]


def _row(runs, baseline):
    config, first = runs[0]
    published = published_accuracies(config)
    finished, reference = _finished(runs), _finished(baseline)  # seed -> accuracy
    return Row(
        arm=arm(config),
        formula=VariantSpec.parse(config.variant).formula,
        by_seed={c.seed: record["accuracy"] for c, record in runs},
        accuracy=stats.estimate(list(finished.values())),
        solved=sum(value >= SOLVED for value in finished.values()),
        to_qkv=stats.paired(finished, reference) if arm(config) != "qkv" else None,
        published=stats.estimate(published),
        published_spread=stats.spread(published) if published else None,
        params=first["params"],
        cache_measured=first["cache_bytes_per_token"],
        cache_formula=first["cache_bytes_per_token_formula"],
    )


def _finished(runs):
    """Accuracies by seed of the runs that did not diverge."""
    return {c.seed: record["accuracy"] for c, record in runs if record["accuracy"] is not None}


def published_accuracies(config: RunConfig) -> list[float]:
    """The authors' accuracies, one for each seed, for exactly this configuration; an empty list
    where they published none.
    """
    names = ("task", "variant", "seq_len", "n_layer", "n_head", "n_embd", "seed")
    plain = RunConfig(**{name: getattr(config, name) for name in names})
    if config.resolved() != plain.resolved():
        return []
    dims = (config.seq_len, config.n_embd, config.n_layer, config.n_head)
    return synthetic_2026().get((config.variant, config.task, *dims), [])


def unresolved(cell: Cell) -> str:
    """One line: how precisely this many seeds give the differences from qkv, and which of them
    cannot be distinguished from zero.
    """
    differences = [row for row in cell.rows if row.to_qkv]
    known = [row.to_qkv for row in differences if row.to_qkv.n > 1]
    if not differences:
        arms = [row.arm for row in cell.rows]
        alone = "qkv alone" if len(arms) == 1 else "no seed on which qkv and another finished"
        return f"{alone if 'qkv' in arms else 'no qkv among the variants'}, so no differences"
    if not known:
        return "one seed gives no interval: use --seeds 3 or more"
    n = min(difference.n for difference in known)
    halves = [difference.half for difference in known]
    precision = f"95 % half-width of the difference from qkv: {_number(halves[0])}"
    if len(halves) > 1:
        precision = "95 % half-widths of the differences from qkv: "
        precision += f"{_number(min(halves))} to {_number(max(halves))}"
        precision += " (no correction for multiple comparisons)"
    blurred = [row.arm for row in differences if not row.to_qkv.clear_of_zero]
    verdict = f"Not distinguishable from zero: {', '.join(blurred)}."
    verdict = verdict if blurred else "All are distinguishable from zero."
    line = f"{n} seeds (Student's t: {stats.t_quantile(n - 1):.3f}). {precision}. {verdict}"
    ceiling = any(row.accuracy.mean > 0.9995 for row in cell.rows if row.accuracy)
    return line + (" A mean of 1.000 is at the ceiling." if ceiling else "")


def _number(value):
    """As in the tables: .714, 1.250."""
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


def as_results(records: list[dict], command: str, wall_seconds: float) -> dict:
    """The object of results.json: versions, hyper-parameters, command, runs, and the summary.

    Where records of other code were accepted, each run says which code it came from.
    """
    runs = [_as_run(record) for record in records]
    if any(record["code"] != code_version() for record in records):
        runs = [run | {"code": record["code"]} for run, record in zip(runs, records, strict=True)]
    adam = {"optimiser": "Adam", "betas": Adam.BETAS, "eps": Adam.EPS}
    adam["schedule"] = "linear warm-up, cosine to 0"
    recipes = {
        name: {**asdict(RECIPES[name]), **adam, "blocks": asdict(PROTOCOLS[name])}
        for name in dict.fromkeys(record["config"]["protocol"] for record in records)
    }
    return {
        "command": command,
        "versions": environment(),
        "hyper_parameters": recipes,
        "wall_seconds": wall_seconds,
        "cache_itemsize": 4,
        "solved_from": SOLVED,
        "runs": runs,
        "cells": _without_nan([asdict(cell) for cell in summarise(records)]),
    }


def _as_run(record):
    """A record as an entry of results.json, and a line of results.csv."""
    config = record["config"]
    found = {name: config[name] for name in ("task", "variant")}
    found |= {"arm": arm(RunConfig(**config)), "seed": config["seed"]}
    found |= {name: record[name] for name in ("accuracy", "seconds", "loss", "diverged")}
    sizes = ("seq_len", "n_embd", "n_layer", "n_head", "form", "protocol")
    found |= {name: config[name] for name in sizes}
    costs = ("params", "cache_bytes_per_token", "cache_bytes_per_token_formula", "config")
    return found | {name: record[name] for name in costs}


def _without_nan(value):
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(out: str | Path, results: dict) -> None:
    """results.json and results.csv under `out`, each replaced whole."""
    files.write_json(Path(out) / "results.json", results)
    text = io.StringIO()
    columns = [name for name in results["runs"][0] if name != "config"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["runs"])
    files.write_text(Path(out) / "results.csv", text.getvalue())
