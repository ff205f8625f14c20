"""Variants × tasks × seeds: run what is not yet on record, then say what it shows and what it cannot."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from . import backend, files, stats
from .errors import Diverged, EnvironmentFault, UsageError
from .models import GPT, PROTOCOLS, GPTConfig
from .optim import Adam
from .published import synthetic_2026
from .runs import train_run
from .train import RECIPES, RunConfig, train_step
from .variants import VariantSpec
from .version import __version__, code_version

SOLVED = 0.99  # token accuracy from which a run counts as solved

PROJECTIONS = ("qkv", "q=k-v", "q-k=v", "q=k=v", "q=k-v+", "q=k=v+")
PRESETS = {
    "quick": {
        "tasks": ("reverse", "sort"), "variants": (*PROJECTIONS, "gqa-2", "mqa", "q-gqa-2", "q-mqa"), "seeds": (0, 1, 2),
        "seq_len": (16,), "n_embd": (64,), "n_layer": (2,), "n_head": (4,), "protocol": "2026", "form": "encoder",
    },
    "paper": {
        "tasks": ("reverse", "sort", "sub", "swap", "copy"), "variants": PROJECTIONS, "seeds": (0, 1, 2),
        "seq_len": (16, 64, 128), "n_embd": (32, 64, 256), "n_layer": (2, 4), "n_head": (2, 4), "protocol": "2026",
        "form": "encoder",
    },
}  # fmt: skip


def grid(tasks, variants, seeds, seq_len, n_embd, n_layer, n_head, protocol="2026", form="encoder", **other):
    """Every RunConfig of the product, cell by cell, each once (with H heads, gqa-H is qkv). Raises UsageError."""
    cells = itertools.product(seq_len, n_embd, n_layer, n_head, tasks, variants, seeds)
    configs = {}
    for length, d, layers, heads, task, variant, seed in cells:
        config = RunConfig(task, variant, form, protocol, length, n_layer=layers, n_head=heads, n_embd=d, seed=seed, **other)
        configs[config] = None
    if not configs:
        raise UsageError("nothing to run: a list is empty")
    return list(configs)


def fitting(variants, n_head):
    """Those of `variants` whose KV heads divide every one of these head counts."""

    def fits(name):
        heads = VariantSpec.parse(name).kv_heads or 1
        return all(n % heads == 0 for n in n_head)

    return tuple(name for name in variants if fits(name))


def ablation(tasks, seeds, **dims):
    """What in "+" helps: each Q = K variant without it, with it, with either half, with it starting at temperature -1,
    and without it but with the diagonal masked."""
    suffixes = ("", "+", "+temperature", "+bias")
    configs = grid(tasks, [base + s for base in ("q=k-v", "q=k=v") for s in suffixes], seeds, **dims)
    started = [replace(c, plus_start=-1.0) for c in configs if c.variant.endswith("+")]
    return configs + started + [replace(c, hide_self=True) for c in configs if "+" not in c.variant]


def arm(config):
    """What a row of a table is named after: the variant, and what was changed about it."""
    changed = [" (diagonal masked)"] if config.hide_self else []
    changed += [f" (s₀ = {config.plus_start:g})"] if config.plus_start is not None else []
    return config.variant + "".join(changed)


# ---- running

FIELDS = {"kind", "code", "backend", "config", "accuracy", "loss", "params", "diverged", "cache_bytes_per_token",
          "cache_bytes_per_token_formula", "seconds"}  # fmt: skip


def run_one(config):
    """Train and score one run; a divergence is a result too. Returns its record, a JSON object."""
    record = {"kind": "minqkv study run", "code": code_version(), "backend": backend.current.name, "config": asdict(config)}
    began = time.perf_counter()
    try:
        _, result = train_run(config)
        record |= {"accuracy": result["accuracy"], "loss": result["loss"], "params": result["params"], "diverged": None}
    except Diverged as error:
        record |= {"accuracy": None, "loss": None, "params": config.build().n_params, "diverged": str(error)}
    measured, formula = cache_bytes_per_token(config)
    record |= {"cache_bytes_per_token": measured, "cache_bytes_per_token_formula": formula}
    record["seconds"] = time.perf_counter() - began
    return record


def cache_bytes_per_token(config):
    """(measured, formula): float32 bytes of the cache a decoder of this size has filled, and of the closed form.

    The decoder reads seq_len tokens. An encoder decodes nothing: its figure is that of a GPT with the same attention.
    """
    cfg = GPTConfig(config.alphabet, config.seq_len, config.n_layer, config.n_head, config.n_embd, config.variant)
    model = GPT(cfg)
    cache = model.new_cache()
    model(np.zeros((1, config.seq_len), int), cache=cache)
    return cache.nbytes // len(cache), VariantSpec.parse(config.variant).cache_bytes_per_token(cfg, itemsize=4)


def _key(config):
    text = json.dumps([asdict(config), code_version(), backend.current.name])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def recorded(config, out):
    """The record of this very run (configuration, code and backend the same) under `out`, or None."""
    path = Path(out) / "runs" / f"{_key(config)}.json"
    if not path.exists():
        return None
    with contextlib.suppress(EnvironmentFault):  # a damaged record is run again
        record = files.read_json(path)
        same = (record.get("config"), record.get("code")) == (asdict(config), code_version())
        return record if same and record.keys() == FIELDS else None
    return None


def run_study(configs, out, jobs=1, on_record=None):
    """Run what is missing under `out`, each run recorded as it ends; returns the records in the order of `configs`.

    `on_record(config, record, reused)` is called for each, in the order they end. The result does not depend on `jobs`.
    """
    records = {}
    files.make_folder(out)

    def keep(config, record, reused):
        records[config] = record
        if not reused:
            files.write_json(Path(out) / "runs" / f"{_key(config)}.json", record)
        if on_record:
            on_record(config, record, reused)

    missing = []
    for config in configs:
        record = recorded(config, out)
        if record:
            keep(config, record, True)
        else:
            missing.append(config)
    if jobs == 1 or len(missing) < 2:
        for config in missing:
            keep(config, run_one(config), False)
    else:
        _run_in_processes(missing, min(jobs, len(missing)), keep)
    return [records[config] for config in configs]


def _run_in_processes(configs, jobs, keep):
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, initializer=_start_worker, initargs=(backend.current.name,))
    try:
        waiting = {pool.submit(run_one, config): config for config in configs}
        for future in as_completed(waiting):
            keep(waiting[future], future.result(), False)
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            why = "a worker process was killed, perhaps for want of memory"
            raise EnvironmentFault(why, "the same command goes on from there; with fewer --jobs it needs less") from error
        raise


def _start_worker(backend_name):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    backend.tame_allocator()
    backend.set_backend(backend_name)


def _die_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def seconds_per_step(config):
    """A measured guess: a few steps on an eighth of the batch, times eight."""
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    x, y = config.data.draw(config.seed, "train", config.recipe.batch // 8)
    train_step(model, optimizer, x, y)
    began = time.perf_counter()
    train_step(model, optimizer, x, y)
    return 8 * (time.perf_counter() - began)


def estimate_seconds(configs, jobs):
    """Wall seconds that `configs` will take, from one measurement per model shape."""
    shapes = {}
    for config in configs:
        shape = (config.n_embd, config.n_layer, config.n_head, config.seq_len, config.form, config.protocol)
        if shape not in shapes:
            shapes[shape] = seconds_per_step(replace(config, variant="qkv", plus_start=None))
    per_run = [shapes[(c.n_embd, c.n_layer, c.n_head, c.seq_len, c.form, c.protocol)] * (c.steps + 10) for c in configs]
    return max(math.fsum(per_run) / jobs, max(per_run, default=0))


# ---- reading the results


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
        key = (config.task, config.protocol, config.form, config.seq_len, config.n_embd, config.n_layer, config.n_head)
        cells.setdefault(key, {}).setdefault(arm(config), []).append((config, record))
    return [Cell(*key, tuple(_row(runs, arms.get("qkv", ())) for runs in arms.values())) for key, arms in cells.items()]


def _row(runs, baseline):
    config, first = runs[0]
    by_seed = {c.seed: record["accuracy"] for c, record in runs}
    finished = {seed: value for seed, value in by_seed.items() if value is not None}
    reference = {c.seed: record["accuracy"] for c, record in baseline if record["accuracy"] is not None}
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
    """The authors' accuracies, one per seed, for exactly this configuration; an empty list where they published none."""
    plain = RunConfig(config.task, config.variant, seq_len=config.seq_len, n_layer=config.n_layer, n_head=config.n_head,
                      n_embd=config.n_embd, seed=config.seed)  # fmt: skip
    if config != plain:
        return []
    dims = (config.seq_len, config.n_embd, config.n_layer, config.n_head)
    return synthetic_2026().get((config.variant, config.task, *dims), [])


def unresolved(cell):
    """One line: how well this many seeds know the differences to qkv, and which they cannot tell from zero."""
    differences = [row for row in cell.rows if row.to_qkv]
    known = [row.to_qkv for row in differences if row.to_qkv.n > 1]
    if not differences:
        arms = [row.arm for row in cell.rows]
        alone = "qkv alone" if len(arms) == 1 else "no seed on which qkv and another finished"
        return f"{alone if 'qkv' in arms else 'no qkv among the variants'}, so no differences"
    if not known:
        return "one seed resolves nothing: no interval, no difference; use --seeds 3 or more"
    n, halves = min(difference.n for difference in known), sorted(difference.half for difference in known)
    blurred = [row.arm for row in differences if not row.to_qkv.clear_of_zero]
    line = f"n = {n} seeds, t = {stats.t_quantile(n - 1):.3f}: differences to qkv are known to ± {halves[0]:.3f}"
    line += f" to ± {halves[-1]:.3f}, each by itself" if len(halves) > 1 else ""
    line += f". Not told from zero: {', '.join(blurred)}." if blurred else ". All are clear of zero."
    ceiling = any(row.accuracy.mean > 0.9995 for row in cell.rows if row.accuracy)
    return line + (" What is at 1.000 has reached the ceiling." if ceiling else "")


# ---- keeping the results


def environment():
    """Versions and machine, for results.json."""
    machine = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    threads = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE") if name in os.environ
    }
    return {"minqkv": __version__, "code": code_version(), "backend": backend.current.describe(), **machine, "threads": threads}


def as_results(records, command, wall_seconds):
    """The object of results.json: versions, hyper-parameters, command, runs, and the summary."""
    runs = []
    for record in records:
        config = record["config"]
        size = {name: config[name] for name in ("seq_len", "n_embd", "n_layer", "n_head", "form", "protocol")}
        runs.append({
            "task": config["task"], "variant": config["variant"], "arm": arm(RunConfig(**config)), "seed": config["seed"],
            "accuracy": record["accuracy"], "seconds": record["seconds"], "loss": record["loss"], "diverged": record["diverged"],
            **size, "params": record["params"], "cache_bytes_per_token": record["cache_bytes_per_token"],
            "cache_bytes_per_token_formula": record["cache_bytes_per_token_formula"], "config": config,
        })  # fmt: skip
    protocols = dict.fromkeys(record["config"]["protocol"] for record in records)
    adam = {"optimiser": "Adam", "betas": Adam.BETAS, "eps": Adam.EPS, "schedule": "linear warm-up, cosine to 0"}
    recipes = {name: {**asdict(RECIPES[name]), **adam, "blocks": asdict(PROTOCOLS[name])} for name in protocols}
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
