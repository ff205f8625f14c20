"""One run from start to score, and its folder, which survives being killed.

    config.json      what the run is: written first, never changed
    metrics.jsonl    step, loss and learning rate, a line appended after each step
    checkpoint.npz   the model, the optimiser and how many steps they have made: replaced whole
    best.npz         the model at its best validation score, if the run watches that
    result.json      the score: written last

A run resumes from its checkpoint: metrics beyond it are cut off, and the loop continues with the
first step that the checkpoint does not contain. Nothing else has to be remembered: the examples,
their order, the learning rate and the dropout masks depend on the configuration and the step alone.
So a run that was killed ends with the same bits as one that was not.

The files are bound together. Each carries the hash of the configuration. Each line of the metrics
also carries a checksum of itself and all lines before it. The checkpoint stores the last of these,
and the checksum of the result continues from it.

The metrics alone decide which score is best. A new best is saved in this order: its line in the
metrics, a checkpoint, best.npz. So at any moment the best model up to the checkpoint is in
best.npz, unless the checkpoint itself is the best; then best.npz is written again on resume.
"""

import hashlib
import json
import math
import os
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .models.saved import load
from .nn import Module
from .optim import Adam, warmup_cosine
from .runtime import backend, distributed, files
from .runtime.blas import blas_threads
from .runtime.errors import Diverged, EnvironmentFault, UsageError, unknown
from .runtime.fields import check_types
from .runtime.locks import locked
from .runtime.parallel import set_threads
from .runtime.shown import pasted
from .runtime.signals import stopping
from .runtime.version import __version__
from .tasks.base import Recipe, Task, check_split
from .tasks.registry import blaming, check_score, field_names, task_class, try_out
from .train import fit
from .variants import layer_specs, layered_name

CHECKPOINT_EVERY_SECONDS = 30
FORMAT = 2  # of a run folder; 1: version 0.1.0, a flat configuration, nothing bound together


@dataclass(frozen=True)
class RunConfig:
    """Everything a run's result depends on, except the code, the backend and the machine.

    `threads` changes the result in rounding only. `split` is what the result is scored on. Usually
    made by `configure`. Raises UsageError for what cannot be run.
    """

    task: Task
    variant: str
    recipe: Recipe
    seed: int = 0
    threads: int = 1
    split: str = "test"

    def __post_init__(self):
        check_types(self)
        self.task.config(self.variant)  # refuses what cannot be built
        specs = layer_specs(self.variant, self.task.n_layer, self.task.n_head)
        object.__setattr__(self, "variant", layered_name(specs))
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} must be at least 0")
        check_split(self.split)

    def change(self, **given) -> "RunConfig":
        """The same run with some fields changed: its own, its task's or its recipe's; see
        `configure`. With other `steps`, warm-up and `watch` become those of the new number of
        steps, where they are what the task itself chooses.
        """
        own, of_task, of_recipe = _sorted_out(given, type(self.task), self.task.name)
        task, recipe = replace(self.task, **of_task), self.recipe
        if "steps" in of_recipe:
            old, new = task.recipe(recipe.steps), task.recipe(of_recipe["steps"])
            chosen = [n for n in ("warmup", "watch") if getattr(recipe, n) == getattr(old, n)]
            recipe = replace(recipe, **{name: getattr(new, name) for name in chosen})
        return replace(self, task=task, recipe=replace(recipe, **of_recipe), **own)

    def build(self) -> Module:
        """A fresh model of this run."""
        return self.task.model(self.variant, self.seed)

    def schedule(self) -> Callable[[int], float]:
        """step -> learning rate."""
        r = self.recipe
        return warmup_cosine(r.lr, r.warmup, r.steps, r.floor, r.restart)

    def optimizer(self, model: Module) -> Adam:
        """A fresh optimiser of this run."""
        betas = (Adam.BETAS[0], self.recipe.beta2)
        return Adam(
            model.parameters(), self.recipe.lr, betas, weight_decay=self.recipe.weight_decay
        )

    @cached_property
    def hash(self) -> str:
        """The hash of all its values, which binds the files of a run together."""
        return hash_of(asdict(self))


def hash_of(values: dict) -> str:
    """The hash of a configuration, given as `asdict` makes it of a RunConfig."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def configure(task: str, variant: str = "qkv", own: type | None = None, **given) -> RunConfig:
    """A RunConfig from flat values: fields of the task, of its model, of its Recipe, and `seed`,
    `threads` and `split`. A value that is missing or None is the task's default.

    `own` is the class of a task MODULE:CLASS. Raises UsageError, with the nearest name for a field
    that does not exist.
    """
    cls = task_class(task, own)
    rest, of_task, of_recipe = _sorted_out(given, cls, task)
    with blaming(task):
        made = cls(task, **of_task)
        recipe = replace(made.recipe(of_recipe.get("steps")), **of_recipe)
        return RunConfig(made, variant, recipe, **rest)


def _sorted_out(given, cls, task):
    """Split given values into those of the run itself, of its task, and of its recipe."""
    names = [f.name for f in fields(RunConfig) if f.name not in ("task", "recipe")]
    names = names, field_names(cls), [f.name for f in fields(Recipe)]
    for name in given:
        if not any(name in group for group in names):
            raise unknown(f"setting of task {task}", name, [n for group in names for n in group])
    given = {name: value for name, value in given.items() if value is not None}
    return [{name: given[name] for name in group if name in given} for group in names]


@dataclass(frozen=True)
class Step:
    """What the caller of `train_run` is told after each step. It says how many of the `steps` are
    `done`, how many tokens the step read, the seconds it took without scoring, and the loss before
    it. The validation score is there if it was measured now; the model must not be changed.
    """

    done: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    validation: float | None
    model: Module


@np.errstate(all="ignore")  # what is not finite ends in Diverged: no warnings on the way there
def train_run(
    config: RunConfig,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> tuple[Module, dict]:
    """Train by `config`, then score the model on its split; returns (model, result).

    With `out`, everything is kept in that folder, `resume` continues there, and Ctrl-C and SIGTERM
    save at the end of the step. `progress` is called after each step. The result has the task's
    metric, with the last weights. If the recipe has `watch`, it also has `curve`, pairs (steps,
    score) on the validation split. Then `best` is the steps after which that score was best (the
    first of equals), and `reached` the steps after which it first was `task.learned` or better;
    each is None if there are none. Raises UsageError when the folder holds another run; Diverged;
    EnvironmentFault, also while another process uses the folder.
    """
    set_threads(config.threads)
    with blaming(config.task.name):
        model = config.build()
    if ":" in config.task.name:
        try_out(config.task, model, config.seed)
    if out and resume and (result := _finished(config, model, out)):
        return model.eval(), result
    with blaming(config.task.name):
        config.task.check_data()
    if out is None:
        return model, _train_and_score(config, model, None, progress)
    files.make_folder(out)
    with locked(out) as still_ours:
        folder = RunFolder(out, config, resume, still_ours)
        return model, _train_and_score(config, model, folder, progress)


def _finished(config, model, out):
    """The result of a run that has ended, and its weights in `model`; None where it has not ended.
    The folder may be read-only.
    """
    if not (Path(out) / "result.json").exists():
        return None
    folder = RunFolder(out, config, resume=True)
    if not folder.checkpoint.exists():  # not trained again: the result would be replaced
        why = f"{folder.checkpoint} does not exist, though this run has ended"
        raise EnvironmentFault(why, f"restore it, or {_ANOTHER}")
    meta = load_checkpoint(folder.checkpoint, folder.hash, model)
    if meta["step"] != config.recipe.steps:
        return None
    read_metrics(out)  # refuses lines of any other origin
    return read_result(out, config, folder.hash, meta.get("metrics"))


def _train_and_score(config, model, folder, progress):
    """The result: the score, and what it took."""
    began, steps = time.monotonic(), config.recipe.steps
    optimizer = config.optimizer(model)
    start = folder.restore(model, optimizer) if folder else 0
    start = distributed.same_start(optimizer, start)
    curve = folder.curve if folder else []
    with blas_threads(1):  # shards use the cores; bits do not depend on how many there are
        _train(config, model, optimizer, start, folder, curve, progress)
        with blaming(config.task.name):
            score = config.task.score(model, config.split, config.seed)
            check_score(config.task, score)
    for name, value in score.items():
        if not math.isfinite(value):
            why = f"the {name} after step {steps - 1} is {value}"
            raise Diverged(why, "try a smaller learning rate with --lr")
    result = {**score, "steps": steps, "params": model.n_params}
    if config.recipe.watch:
        found = {"best": _best(config.task, curve), "reached": _reached(config.task, curve)}
        result |= {"curve": curve, **found}
    result["seconds"] = time.monotonic() - began  # since it was last resumed; all else is exact
    if folder:
        folder.write_result(result)
    return result


def _train(config, model, optimizer, start, folder, curve, progress):
    """The steps from `start` on, each recorded; a checkpoint now and then, and after the last."""
    task, recipe, tokens = config.task, config.recipe, {}

    def batch(step):
        with blaming(task.name):
            x, y = task.batch(config.seed, step, recipe.batch)
            tokens[step] = math.prod(x.shape[:2])
        return x, y

    loop = fit(
        model, optimizer, batch, config.schedule(), recipe.steps, recipe.clip, start,
        task.loss, task.weight, recipe.accumulate,
    )  # fmt: skip
    with stopping_politely(folder is not None) as stop, folder or nullcontext():
        began = time.monotonic()
        for step, loss in loop:
            done, stopping, seconds = step + 1, stop.is_set(), time.monotonic() - began
            read = tokens.pop(step)
            line = {"step": step, "loss": loss, "lr": optimizer.lr}
            if recipe.watch and done % recipe.watch == 0:
                line["validation"] = task.score(model, "validation", config.seed)[task.metric]
                curve.append((done, line["validation"]))
            if folder:
                folder.record(line)
                best = "validation" in line and _best(task, curve) == done
                if best or stopping or folder.is_due(done):
                    folder.save(done, model, optimizer)
                if best:
                    folder.save_best(done, model)
            if progress:
                score = line.get("validation")
                progress(Step(done, recipe.steps, read, seconds, loss, score, model))
            if stopping:
                raise KeyboardInterrupt
            began = time.monotonic()


def _best(task, curve):
    """Steps after which the validation score was best, the first of equals; None: no score yet."""
    sign = 1 if task.better == "higher" else -1
    scores = [(done, sign * score) for done, score in curve if math.isfinite(score)]
    return max(scores, key=lambda point: point[1])[0] if scores else None


def _reached(task, curve):
    """Steps after which the validation score first was good enough; None: it never was."""
    sign = 1 if task.better == "higher" else -1
    good = (done for done, score in curve if sign * score >= sign * task.learned)
    return None if task.learned is None else next(good, None)


class RunFolder:
    """The files of one run. `with folder:` keeps its metrics open for `record`.

    Raises UsageError when the folder holds a run already and `resume` is not asked for, or when
    that run is another one. `still_ours` is called before each save; see `locked`.
    """

    def __init__(self, path, config, resume=False, still_ours=lambda: None):
        self.path = path = Path(path)
        self.metrics, self.checkpoint = path / "metrics.jsonl", path / "checkpoint.npz"
        self.best, self.result = path / "best.npz", path / "result.json"
        self.task, self.steps, self.still_ours = config.task, config.recipe.steps, still_ours
        self.saved_step, self.saved_time, self.curve = 0, time.monotonic(), []
        known = (path / "config.json", self.metrics, self.checkpoint, self.best, self.result)
        holds_a_run = any(file.exists() for file in known)
        if holds_a_run and not resume:
            cure = "continue it with --resume, or choose another folder with --out"
            raise UsageError(f"there is already a run in {path}", cure)
        if (path / "plan.json").exists():
            raise UsageError(f"{path} is a study, not a run", "choose another folder with --out")
        self.hash = config.hash  # None: a folder of version 0.1.0, whose files are not bound
        if not holds_a_run:
            write_config(path, config)
            return
        stored, self.hash = read_config(path, type(config.task))
        apart = [text for text in difference(stored, config) if not text.startswith("recompute ")]
        if differences := "; ".join(apart):  # recomputation keeps every bit
            cure = "leave those flags out, or choose another folder with --out"
            raise UsageError(f"{path} contains a different run: {differences}", cure)

    def restore(self, model, optimizer):
        """Load the checkpoint, if there is one, and cut off the metrics of later steps; write
        best.npz if the checkpoint is the best. Returns how many steps have been made.
        """
        for left in self.path.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        meta = {"step": 0}
        if self.checkpoint.exists():
            meta = load_checkpoint(self.checkpoint, self.hash, model, optimizer)
            _tell_backend(self.checkpoint, meta)
        self.saved_step, values = meta["step"], _up_to(self.metrics, self.hash, meta)
        lines = _lines(self.metrics)[: self.saved_step]
        self.check = values[-1]["check"] if values else _first_check(self.hash)
        self.curve = _curve(values)
        with files.replacing(self.metrics) as file:
            file.writelines(lines)
        if self.saved_step and self.saved_step == _best(self.task, self.curve):
            self.save_best(self.saved_step, model)
        return self.saved_step

    def __enter__(self):
        self.lines = open(self.metrics, "a", encoding="utf-8")
        return self

    def __exit__(self, *error):
        with suppress(OSError):  # of a line that could not be written, which `record` has said
            self.lines.close()

    def record(self, line):
        """Append one step's metrics."""
        self.check = _next_check(line, self.check)
        bound = {**line, "check": self.check} if self.hash else line
        try:
            self.lines.write(json.dumps(bound) + "\n")
            self.lines.flush()
        except OSError as error:
            raise files.cannot_write(self.metrics, error) from error

    def is_due(self, done):
        """Whether to save now: at each tenth of the run, so also at its end, and after 30 s."""
        tenth = done * 10 // self.steps > self.saved_step * 10 // self.steps
        return tenth or time.monotonic() - self.saved_time > CHECKPOINT_EVERY_SECONDS

    def save(self, done, model, optimizer):
        """Replace the checkpoint. Raises EnvironmentFault when the folder is gone."""
        self.still_ours()
        os.fsync(self.lines.fileno())  # first: a checkpoint must find the metrics of all its steps
        state = optimizer.state_dict()
        arrays = {f"optimizer/{name}": value for name, value in state.items() if name != "steps"}
        self._write(self.checkpoint, done, model, arrays, optimizer_steps=state["steps"])
        self.saved_step, self.saved_time = done, time.monotonic()

    def save_best(self, done, model):
        """Replace the best model, once the checkpoint is from this step or a later one."""
        self._write(self.best, done, model, {})

    def _write(self, path, done, model, arrays, **meta):
        arrays = {f"model/{name}": a for name, a in model.state_dict().items()} | arrays
        meta = {"step": done, **meta, "version": __version__, "backend": backend.current.label}
        meta |= {"config": self.hash, "metrics": self.check} if self.hash else {}
        files.write_arrays(path, "minqkv checkpoint", meta, arrays)

    def write_result(self, result):
        """Keep the score, and a checksum of it and of the metrics."""
        self.still_ours()
        bound = {"config": self.hash, "check": _next_check(result, self.check)}
        files.write_json(self.result, result | (bound if self.hash else {}))


def _tell_backend(path, meta):
    """Warn where a checkpoint was made by another backend; files of earlier versions do not say."""
    made, here = meta.get("backend"), backend.current.label
    if made not in (None, here):
        why = f"{path} was made on {made}: continued on {here}, the run may differ in its last bits"
        warnings.warn(why, RuntimeWarning, stacklevel=2)


def read_result(path, config, config_hash, check):
    """The score of a finished run; `check` is from the last line of its metrics. Raises
    EnvironmentFault when it was changed, or is of another run.
    """
    path = Path(path) / "result.json"
    cure = f"restore it, or score the run again: minqkv eval {pasted(path.parent)}"
    result = files.read_json(path, cure)
    bound = result.pop("config", None), result.pop("check", None)
    found = [result.get(name) for name in (config.task.metric, "steps", "params")]
    sound = all(map(_is_number, found)) and found[1] == config.recipe.steps
    if config_hash:
        sound = sound and bound == (config_hash, _next_check(result, check))
    if not sound or (bound != (None, None) and not config_hash):
        raise EnvironmentFault(f"{path} was changed, or belongs to a different run", cure)
    return result


def read_metrics(path: str | Path) -> list[dict]:
    """The metrics of a run folder, step by step, verified, up to a last line that is incomplete."""
    lines, config = _lines(path := Path(path) / "metrics.jsonl"), path.with_name("config.json")
    whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    return _verified(path, whole, _bound(files.read_sealed(config)))


def _up_to(path, config_hash, meta):
    """The values of the lines of metrics up to a checkpoint with these entries. Raises
    EnvironmentFault when they do not belong to it.
    """
    lines = _lines(path)[: meta["step"]]
    values = _verified(path, lines, config_hash)
    if len(lines) < meta["step"]:
        why = f"{path} has {len(lines)} lines, but the checkpoint is from step {meta['step']}"
        raise EnvironmentFault(why, f"restore that file, or {_ANOTHER}")
    if config_hash and values and values[-1]["check"] != meta.get("metrics"):
        why = f"{path} and the checkpoint.npz next to it were written by different runs"
        raise EnvironmentFault(why, f"restore the right one, or {_ANOTHER}")
    return values


def _verified(path, lines, config_hash):
    """The values of lines of metrics, each whole, in its place, and of this run. `check` is the
    checksum of a line and all before it, also where a file of version 0.1.0 has none.
    """
    values, check = [], _first_check(config_hash)
    for step, text in enumerate(lines):
        try:
            line = json.loads(text)
            found = line.pop("check", None)
            check = _next_check(line, check)
            numbers = line["step"], line["loss"], line["lr"]
            sound = all(map(_is_number, numbers)) and numbers[0] == step
            if not sound or not isinstance(line.get("validation", 0.0), (int, float)):
                raise ValueError("another step, or no number")
            if config_hash and found != check:
                raise ValueError("changed")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{path} is good up to step {step}; line {step + 1} is damaged, or of another run"
            raise EnvironmentFault(why, f"restore that file, or {_ANOTHER}") from error
        values.append(line | {"check": check})
    return values


def _is_number(value):
    return type(value) in (int, float) and abs(value) < 1e308  # an integer may fit no float


def _curve(values):
    """(steps, validation score) of the lines of metrics that have one."""
    return [(line["step"] + 1, line["validation"]) for line in values if "validation" in line]


def _next_check(line, check):
    """A checksum of this line and all before it, whose checksum is `check`."""
    return f"{zlib.crc32(json.dumps(line).encode(), int(check, 16)):08x}"


def _lines(path):
    """The lines of the metrics, as they are."""
    if not path.exists():
        return []
    try:
        with files.opened(path) as file:
            return file.read().splitlines(True)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error


_ANOTHER = "train again in another folder"


def _first_check(config_hash):
    return f"{zlib.crc32((config_hash or '').encode()):08x}"


def load_checkpoint(path, config_hash, model, optimizer=None):
    """Load a checkpoint into a model, and an optimiser; returns its other entries: `step` and so
    on. Raises EnvironmentFault when it does not fit, or carries the hash of another configuration.
    """
    meta, arrays = files.read_arrays(path, "minqkv checkpoint")
    if meta.get("config") != config_hash:
        why = f"{path} and the config.json next to it belong to different configurations"
        raise EnvironmentFault(why, "one of the two was changed or copied: restore the right one")
    parts = {"model": {}, "optimizer": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = array
        if array.dtype.kind != "f":
            why = f"{path} is not a checkpoint: {name} holds {array.dtype}, not real numbers"
            raise EnvironmentFault(why, f"restore it, or {_ANOTHER}")
        if not np.isfinite(array).all() and part == "model":
            why = f"the weights in {path} are not finite"
            raise Diverged(why, "try a smaller learning rate with --lr")
    try:
        step = meta["step"]
        for found in (step, meta["optimizer_steps"] if optimizer else step):
            if type(found) is not int or found < 0 or found != step:
                raise UsageError(f"its step is {found!r:.40}")
        model.load_state_dict(parts["model"])
        if optimizer:
            optimizer.load_state_dict({"steps": meta["optimizer_steps"], **parts["optimizer"]})
        return meta
    except (UsageError, KeyError) as error:
        why = f"{path} is from another model: {error}"
        raise EnvironmentFault(why, "use the folder it was written in") from error


def write_config(path, config):
    """config.json of a new folder."""
    stored = {"kind": "minqkv run", "format": FORMAT, "version": __version__}
    stored |= {"hash": config.hash, "config": asdict(config)}
    files.write_json(Path(path) / "config.json", files.sealed(stored))


def load_config(path: str | Path, own: type | None = None) -> RunConfig:
    """The RunConfig of a run folder; `own` is the class of your own task. Raises EnvironmentFault
    when there is none, or it is of another kind or version.
    """
    return read_config(path, own)[0]


def read_config(path, own=None):
    """(RunConfig, the hash that its files carry) of a run folder. The hash covers what is stored,
    not fields that were added since; it is None in format 1.
    """
    path = Path(path) / "config.json"
    if not path.exists():
        cure = "create one with minqkv train --out FOLDER"
        raise EnvironmentFault(f"there is no run in {path.parent} (no config.json)", cure)
    stored = files.read_sealed(path, f"restore it, or {_ANOTHER}")
    if stored.get("kind") != "minqkv run":
        raise EnvironmentFault(f"{path} was not written by minqkv train")
    values, bound = stored.get("config"), _bound(stored)
    if bound is not None and (stored.get("format") != FORMAT or bound != hash_of(values)):
        why = f"{path} was changed after it was written, or comes from a newer version of minqkv"
        raise EnvironmentFault(why, f"restore it, or {_ANOTHER}")
    try:
        name = values["task"]["name"] if isinstance(values["task"], dict) else values["task"]
        config = config_from(values, {name: own})
    except (UsageError, TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UsageError) and "of your own" in str(error):
            raise
        why = f"{path} cannot be read by this version of minqkv: {error}"
        raise EnvironmentFault(why, f"it was written by {stored.get('version')}") from error
    return config, bound


def _bound(stored):
    """The hash that the files of a run carry, by its config.json; None in format 1."""
    values = stored.get("config")
    flat = isinstance(values, dict) and isinstance(values.get("task"), str)
    return None if flat else str(stored.get("hash"))


def config_from(stored: dict, own: dict[str, type] | None = None) -> RunConfig:
    """A RunConfig from what `asdict` made of one, or from the flat values of version 0.1.0. `own`:
    MODULE:CLASS -> the class, for tasks of your own.
    """
    if isinstance(stored["task"], str):
        if stored.keys() != _FLAT:
            raise UsageError(f"its values are {', '.join(stored)}")
        return configure(**stored)
    task, recipe = dict(stored["task"]), Recipe(**stored["recipe"])
    name = task.pop("name")
    rest = {key: value for key, value in stored.items() if key not in ("task", "recipe")}
    return RunConfig(task_class(name, (own or {}).get(name))(name, **task), recipe=recipe, **rest)


_FLAT = {
    *("task", "variant", "form", "protocol", "seq_len", "alphabet", "n_layer", "n_head", "n_embd"),
    *("position", "rope_value", "plus_start", "hide_self", "steps", "lr", "seed", "threads"),
}


def load_run(
    path: str | Path, own: type | None = None, best: bool = False
) -> tuple[Module, RunConfig]:
    """The model of a run folder, at its last checkpoint, and its configuration. `own` is the class
    of your own task. With `best`, it is the model at its best validation score so far. Of a file
    that `save` wrote: the model, and the configuration of the model. Raises EnvironmentFault, and
    UsageError if the run has no best.
    """
    if Path(path).is_file():
        return load(path)
    (config, bound), path = read_config(path, own), Path(path)
    model = config.build()
    meta = _last_checkpoint(path, config, bound, model)
    if best:
        _load_best(path, config.task, bound, model, meta)
    return model.eval(), config


def read_run(path, own=None):
    """(RunConfig, metrics, result, model) of a run folder, each verified against the others. The
    result is None where the run has not ended, and the model where there is no checkpoint yet.
    """
    (config, bound), path = read_config(path, own), Path(path)
    result, model, meta = None, None, {"step": 0}
    if (path / "checkpoint.npz").exists():
        meta = _last_checkpoint(path, config, bound, model := config.build().eval())
    _up_to(path / "metrics.jsonl", bound, meta)
    metrics = read_metrics(path)
    if (path / "result.json").exists():
        if len(metrics) < config.recipe.steps:
            why = f"{path / 'metrics.jsonl'} has {len(metrics)} whole lines"
            why += f", but the run has ended after {config.recipe.steps} steps"
            raise EnvironmentFault(why, f"restore that file, or {_ANOTHER}")
        last = metrics[-1]["check"] if metrics else _first_check(bound)
        result = read_result(path, config, bound, last)
    return config, metrics, result, model


def _last_checkpoint(path, config, bound, model):
    """Load checkpoint.npz, which is from the last step if there is a result; its entries."""
    meta, steps = load_checkpoint(path / "checkpoint.npz", bound, model), config.recipe.steps
    if meta["step"] != steps and (path / "result.json").exists():
        why = f"{path / 'checkpoint.npz'} is from step {meta['step']}"
        cure = f"make it again: minqkv train --resume --out {pasted(path)}"
        raise EnvironmentFault(f"{why}, but this run has ended after {steps} steps", cure)
    return meta


def _load_best(path, task, bound, model, meta):
    """Replace the weights of a checkpoint with these entries by those of the best step so far."""
    lines, done = _up_to(path / "metrics.jsonl", bound, meta), meta["step"]
    step = _best(task, _curve(lines))
    if step is None:
        cure = "to have one, train with --set watch=N"
        raise UsageError(f"{path} has no validation score, so no best model", cure)
    if step == done:  # best.npz may still be that of an earlier step
        return
    found = load_checkpoint(path / "best.npz", bound, model)
    if found["step"] > done:  # a best model is saved after the checkpoint of its step
        raise EnvironmentFault(f"{path} has just been trained further", "try again")
    check = lines[step - 1]["check"] if bound else None
    if (found["step"], found.get("metrics")) != (step, check):
        why = f"{path / 'best.npz'} is not of step {step}, at which this run was best"
        raise EnvironmentFault(why, "restore that file, or train again in another folder")


def difference(stored, wanted):
    """'name is a there, b here' for each value in which two RunConfigs differ."""
    there, here = _flat(asdict(stored)), _flat(asdict(wanted))
    return [
        f"{'task' if name == 'name' else name} is {value} there, {here.get(name)} here"
        for name, value in there.items()
        if value != here.get(name)
    ]


def _flat(values):
    """Values of nested dictionaries, by their innermost names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


@contextmanager
def stopping_politely(wanted):
    """Turn the first signal that asks to stop into an event, so that a step is finished and saved;
    the second one acts at once.

    Signals are left alone with nothing to save (not `wanted`), and outside the main thread, where
    they cannot be caught.
    """
    stop = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = stopping()

    def note(number, frame):
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
