"""Converted runs: the examples they are converted on, further training, and their folders."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..nn import Module
from ..runs import RunConfig, RunFolder, difference, read_run
from ..runtime import files
from ..runtime.blas import blas_threads
from ..runtime.errors import UsageError
from ..runtime.shown import pasted
from ..train import fit
from .convert import ON_EXAMPLES, convert

SHARE = 1 / 3  # of the peak learning rate of the run, when it is trained further
BATCHES = 8  # of the training stream, for the methods that look at activations


@dataclass(frozen=True)
class Original:
    """A run that has ended."""

    config: RunConfig
    metrics: list[dict]
    result: dict
    model: Module


@dataclass(frozen=True)
class Converted:
    """A run as another variant: its scores zero-shot and, if it was trained further, after that;
    and the metrics of these steps.
    """

    model: Module
    scores: list[dict]
    metrics: list[dict]


def finished(path: Path, own: type | None = None) -> Original:
    """The run in a folder. Raises UsageError if it has not ended, and what `read_run` raises."""
    if any((path / name).exists() for name in ("plan.json", "results.json")):
        raise UsageError(f"{path} is a study, which keeps scores and no models", "name runs")
    found = Original(*read_run(path, own))
    if found.result is None:
        why = f"{path} is unfinished: {len(found.metrics)} of {found.config.recipe.steps} steps"
        raise UsageError(why, f"minqkv train --resume --out {pasted(path)}")
    return found


def check_alike(configs: list[RunConfig]) -> None:
    """Refuse runs that differ in more than their seeds, or share one. Raises UsageError."""
    first, *others = (replace(config, seed=0, threads=1) for config in configs)
    for other in others:
        if differences := "; ".join(difference(first, other)):
            why = "a mean needs runs that differ only in their seeds"
            raise UsageError(f"{why}; against the first run, {differences}", "name other runs")
    if len({config.seed for config in configs}) < len(configs):
        raise UsageError("two of the runs have the same seed", "name runs of different seeds")


def check_free(out: Path) -> None:
    """Refuse a place that is taken. Raises UsageError."""
    if out.exists():
        raise UsageError(f"there is already something in {out}", "choose another folder with --out")


def bytes_per_token(model: Module) -> int:
    """Bytes of a token in the cache; of an encoder, those of a decoder with its layers."""
    cfg, specs = model.config, [block.attn.spec for block in model.blocks]
    stored = sum(heads * width for spec in specs for heads, width in spec.stored(cfg))
    return stored * np.dtype(cfg.dtype).itemsize


def batches(config: RunConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of the training stream, from the last step of the run on."""
    for step in itertools.count(config.recipe.steps):
        yield config.task.batch(config.seed, step, config.recipe.batch)


def convert_run(
    original: Original,
    to: str,
    method: str,
    steps: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Converted:
    """Convert the model of a run, on the first BATCHES of `batches`, then train it for `steps`.
    `progress` is called after the conversion and after each step.
    """
    config, examples = original.config, ()
    if method in ON_EXAMPLES:
        examples = [x for x, _ in itertools.islice(batches(config), BATCHES)]
    model, metrics = convert(original.model, to, method, examples), []
    scores = [config.task.score(model, config.split, config.seed)]
    progress()
    if steps:
        for line in fine_tune(config, model, steps):
            metrics.append(line)
            progress()
        scores.append(config.task.score(model, config.split, config.seed))
    return Converted(model, scores, metrics)


def fine_tune(config: RunConfig, model: Module, steps: int) -> Iterator[dict]:
    """Train a model with the task and the recipe of a run, on `batches`, at SHARE of its rate, with
    a warm-up of a twentieth of the steps and a fresh optimiser. Yields each step's metrics.
    """
    done, task, data = config.recipe.steps, config.task, batches(config)
    lr, warmup = SHARE * config.recipe.lr, max(1, steps // 20)
    config = config.change(steps=steps, lr=lr, warmup=warmup, watch=0)
    optimizer, recipe = config.optimizer(model), config.recipe
    loop = fit(
        model, optimizer, lambda step: next(data), config.schedule(), steps, recipe.clip, 0,
        task.loss, task.weight, recipe.accumulate,
    )  # fmt: skip
    with blas_threads(1):
        for step, loss in loop:
            yield {"step": done + step, "loss": loss, "lr": optimizer.lr}


def write_run(out: Path, original: Original, made: Converted, method: str) -> None:
    """The folder of a converted run, complete or absent: a run that has ended after the steps of
    the original and those since. What it was converted from is in config.json under "converted".
    Raises UsageError if there is something already.
    """
    check_free(out)
    metrics, model = [*original.metrics, *made.metrics], made.model
    changes = {"variant": model.config.variant, "rope_value": "raw", "watch": 0}
    config = original.config.change(**changes, steps=len(metrics))
    optimizer = config.optimizer(model)
    optimizer.steps = len(metrics)
    origin = {"method": method, "steps": len(made.metrics), "from": asdict(original.config)}
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder = RunFolder(aside, config)
        folder.restore(model, optimizer)  # from nothing
        with folder:
            for line in metrics:
                folder.record({name: line[name] for name in ("step", "loss", "lr")})
            folder.save(len(metrics), model, optimizer)
        about = {"steps": len(metrics), "params": model.n_params, "seconds": 0.0}
        folder.write_result(made.scores[-1] | about)
        stored = files.read_sealed(aside / "config.json")
        files.write_json(aside / "config.json", files.sealed(stored | {"converted": origin}))
        try:
            aside.rename(out)
        except OSError as error:
            raise files.cannot_write(out, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
