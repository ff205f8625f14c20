"""What a run will need: memory by formula, and time from a few measured steps.

The memory is computed without building the model.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..models import GPT, PROTOCOLS, GPTConfig, TaggerConfig, ViTConfig
from ..runs import RunConfig
from ..runtime import backend
from ..runtime.blas import blas_threads
from ..runtime.errors import EnvironmentFault
from ..runtime.parallel import SMALLEST, set_threads
from ..runtime.shown import size_text
from ..train import train_step
from ..variants import FARTHEST, POSITIONS, params
from .memory import activation_bytes, scoring_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None

UNTIMED = 1e12  # floating-point operations; a run with fewer is not worth timing
TIMED = 1e11  # floating-point operations; larger steps are not measured
CONTEXT = 512 << 20  # about what a process takes of a GPU beside its arrays: CUDA, code, workspace


@dataclass(frozen=True)
class Needs:
    """What one training process needs: a number of parameters, and bytes.

    `gradients` counts the copy that the optimiser gathers, one for each shard, and the sum over
    earlier parts of a batch. `saving` counts the copies made while a checkpoint is written.
    `scoring` counts the examples of a score, and the forward passes that run at the same time.
    `data` is what a task keeps in memory, such as all images.
    Activations, scoring and saving are never in memory together. Temporary arrays come on top.
    """

    parameters: int
    weights: int
    gradients: int
    moments: int
    activations: int
    scoring: int
    saving: int
    data: int = 0

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.fixed + max(0, max(self.activations, self.scoring) - self.saving)

    @property
    def fixed(self) -> int:
        """Bytes that are needed however few and short the sequences are."""
        return self.weights + self.gradients + self.moments + self.saving + self.data


def needs(config: RunConfig, ranks: int = 1) -> Needs:
    """What each of `ranks` processes needs for a run. For an encoder, or if few targets count, it
    is an estimate: that of a GPT of this size with a loss at every position.
    """
    own = config.task.config(config.variant)
    cfg, n = _as_gpt(own), n_params(own)
    rows = math.ceil(config.recipe.batch / config.recipe.accumulate / ranks)
    weights = n * np.dtype(cfg.dtype).itemsize
    threads = config.threads if backend.current.on_host else 1
    shards = max(1, min(threads, rows, n * rows * cfg.block_size // SMALLEST))
    before = shards > 1 and config.recipe.accumulate > 1  # a sum over earlier parts
    gradients = (1 + shards + before) * weights
    activations = activation_bytes(cfg, rows, cfg.block_size)
    saving = 6 * weights if backend.current.on_host else 0  # else on the host, which has room
    scoring = _scoring(config, own, cfg, threads)
    moments, data = 2 * weights, config.task.data_bytes
    return Needs(n, weights, gradients, moments, activations, scoring, saving, data)


def _scoring(config, own, cfg, threads):
    """Inputs, targets and predictions, all of a split; and forward passes, one a thread."""
    task, length = config.task, cfg.block_size
    splits = {config.split, "validation"} if config.recipe.watch else {config.split}
    n = max(map(task.n_scored, splits))
    rows = min(n, task.at_once)
    passes = min(threads, math.ceil(n / rows))
    token = 4 * own.n_in if isinstance(own, ViTConfig) else 8  # a vector, or an id
    return (token + 16) * n * length + passes * scoring_bytes(cfg, rows, length)


def n_params(cfg: GPTConfig | TaggerConfig | ViTConfig) -> int:
    """Numbers in a model. An encoder has a bias after the embedding, a head that is not tied and,
    by protocol 2023, a hidden layer before it. An encoder of vectors may have a class token, or no
    bias in its head.
    """
    if isinstance(cfg, GPTConfig):
        return params(cfg)
    d, hidden, pool = cfg.n_embd, cfg.protocol == "2023", getattr(cfg, "pool", None)
    more = d + (d + 1) * cfg.n_class + hidden * (d + 1) * d
    if POSITIONS[cfg.position].distance == "learned":  # distances to later tokens
        more += cfg.n_layer * cfg.n_head * min(cfg.block_size - 1, FARTHEST)
    return params(_as_gpt(cfg)) + more + d * (pool == "class") - (pool == "choice")


def _as_gpt(cfg):
    """The configuration of a GPT of this size."""
    if isinstance(cfg, GPTConfig):
        return cfg
    names = [field.name for field in fields(GPTConfig)]
    shared = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
    shared |= {"vocab_size": cfg.n_in} if isinstance(cfg, ViTConfig) else {}  # of the embedding
    style = PROTOCOLS[cfg.protocol]
    return GPTConfig(**shared, d_ff=style.mlp_ratio * cfg.n_embd, dropout=style.dropout)


def check_memory(config: RunConfig, ranks: int = 1) -> Needs:
    """The `needs` of a run. Raises EnvironmentFault if it does not fit into memory, and says what
    would make it fit.
    """
    found, free = needs(config, ranks), available()
    if free is None or found.total <= free:
        return found
    parts = f"weights {size_text(found.weights)}, gradients {size_text(found.gradients)}"
    parts += f", moments {size_text(found.moments)}, activations {size_text(found.activations)}"
    parts += f"; scoring {size_text(found.scoring)}"
    kind = "memory" if backend.current.on_host else "the GPU's memory"
    why = f"this run needs about {size_text(found.total)} of {kind} ({parts})"
    raise EnvironmentFault(f"{why}, but only {size_text(free)} is free", _cure(config, ranks, free))


def jobs_that_fit(configs: list[RunConfig]) -> int | None:
    """How many of these runs fit into the GPU's memory at a time, each in its own process; None on
    the host, or where it is not known. Raises EnvironmentFault if not even one run fits.
    """
    known = [config for config in configs if ":" not in config.task.name]  # else any model
    if not known:
        return None
    one = check_memory(max(known, key=lambda config: needs(config).total)).total
    return None if backend.current.on_host else max(1, available() // (one + CONTEXT))


def _cure(config, ranks, free):
    """The first change that would make a run fit."""
    batch, task = config.recipe.batch, config.task
    parts = [{"accumulate": 2**i} for i in range(1, batch.bit_length()) if 2**i <= batch]
    changes = [change for change in parts if change["accumulate"] > config.recipe.accumulate]
    if hasattr(task, "recompute") and not task.recompute:
        changes += [{"recompute": True}] + [{"recompute": True} | change for change in changes]
    scored = [name for name in ("n_test", "n_validation") if hasattr(task, name)]
    alone = {"threads": 1} if backend.current.on_host else {}
    fewer = alone | {name: min(50, getattr(task, name)) for name in scored}
    changes = [{}, *changes]
    for change in [scoring | change for scoring in ({}, alone, fewer) for change in changes]:
        if needs(config.change(**change), ranks).total <= free:
            flags = " ".join(f"--set {name}={value}" for name, value in change.items())
            flags = flags.replace("--set threads=", "--threads ")
            return f"it fits with {flags.replace('--set recompute=True', '--recompute')}"
    if needs(config.change(threads=1), ranks).fixed > free:
        return "the model itself is too large: make it smaller with --n-layer or --n-embd"
    return "one sequence is too long: shorten it with --seq-len, or make the model smaller"


def check_cache_memory(model: GPT, rows: int, capacity: int, **options) -> None:
    """Raises EnvironmentFault if a cache, `model.new_cache(rows, capacity, **options)`, does not
    fit into the memory together with the logits of one token of each row. Neither is allocated.
    """
    cache, cfg = model.new_cache(1, 1, **options), model.config  # one position
    if "window" in cache.takes:
        capacity = min(capacity, cache.options["sinks"] + cache.options["window"])
    one = capacity * cache.capacity_nbytes + cfg.vocab_size * np.dtype(cfg.dtype).itemsize
    free = available()
    if free is not None and rows * one > free:
        what = f"{rows:,} sequence{'s need' if rows > 1 else ' needs'}"
        why = f"{what} about {size_text(rows * one)} of memory, but {size_text(free)} are free"
        raise EnvironmentFault(why, "ask for fewer sequences or tokens, or use --cache int8")


# ---- available memory


def available() -> int | None:
    """Bytes that this process may still take: what the machine, its control groups or its address
    space leave, whichever is least; on a GPU, what the device leaves. None if unknown.
    """
    if not backend.current.on_host:
        return backend.free_memory()
    known = [_of_the_machine(), _of_the_address_space(), *of_control_groups()]
    return min((n for n in known if n is not None), default=None)


def _of_the_machine():
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return None


def _of_the_address_space():
    """What `ulimit -v` leaves."""
    with suppress(OSError, AttributeError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        if limit != resource.RLIM_INFINITY:
            return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return None


def of_control_groups(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left in each control group (version 1 or 2) of this process: those of containers, batch
    jobs and services. File caches are not counted, because the system frees them when needed.
    """
    found = []
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                top = root / "memory" if kinds else root
                group = top / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(top):
                        found += _left_in(folder)
    return found


def _left_in(folder):
    for most, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # another version; "max": no limit
            limit, now = (int((folder / name).read_text()) for name in (most, used))
            stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            return [max(0, limit - now + int(stat.get(cached, 0)))]
    return []


def peak_memory() -> int:
    """The most bytes that this process has held; on a GPU, the bytes of the device that it holds;
    0 if unknown.
    """
    if not backend.current.on_host:
        return backend.held_memory()
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---- the time it will take


def run_seconds(config: RunConfig) -> float | None:
    """About how many seconds a run will take, without scoring; None for a short one, which is not
    worth measuring.

    A few steps are measured, with fewer sequences if a step is long. If even one sequence takes
    long, no step is measured: the estimate uses the speed of a large matrix product.
    """
    cfg, recipe = _as_gpt(config.task.config(config.variant)), config.recipe
    row = 6 * params(cfg) * cfg.block_size  # forward and backward, of one sequence
    if row * recipe.batch * recipe.steps < UNTIMED:
        return None
    if row > TIMED:
        threads = config.threads if backend.current.on_host else 1
        return row * recipe.batch * recipe.steps / (threads * _product_speed())
    rows = min(recipe.batch, int(TIMED // row))
    set_threads(config.threads)
    small = config.change(batch=rows, accumulate=1)
    return seconds_per_step(small, 2) * recipe.batch / rows * recipe.steps


def _product_speed():
    """Floating-point operations per second of one core, in a large matrix product."""
    a, seconds = backend.xp.ones((1024, 1024), "float32"), []
    with blas_threads(1):
        for _ in range(3):
            began = time.perf_counter()
            backend.to_host((a @ a)[0])
            seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


@np.errstate(all="ignore")  # the rate may diverge
def seconds_per_step(config: RunConfig, steps: int = 3) -> float:
    """Seconds of computing per step: the median of a few, after one to warm up. Time taken by other
    programs is not counted, except on a GPU.
    """
    task, recipe = config.task, config.recipe
    task.check_data()
    model = config.build()
    optimizer, seconds = config.optimizer(model), []
    clock = time.thread_time if backend.current.on_host else time.perf_counter
    with blas_threads(1):
        for step in range(steps + 1):
            x, y = task.batch(config.seed, step, recipe.batch)
            began = clock()
            train_step(
                model, optimizer, x, y, recipe.clip, task.loss, task.weight, recipe.accumulate
            )
            seconds.append(clock() - began)
    return sorted(seconds[1:])[steps // 2]
