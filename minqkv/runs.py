"""One run from start to score, and its folder, which survives being killed.

A run folder holds config.json, metrics.jsonl (one line a step), checkpoint.npz, and at the end
result.json.
"""

import json
import math
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from .models import GPT, PROTOCOLS, GPTConfig, Tagger, TaggerConfig
from .optim import Adam, warmup_cosine
from .runtime import files
from .runtime.errors import Diverged, EnvironmentFault, UsageError, unknown
from .runtime.parallel import blas_threads, set_threads
from .runtime.version import __version__
from .tasks.base import Batches
from .tasks.synthetic import RECIPES, Synthetic
from .train import evaluate, fit

CHECKPOINT_EVERY_SECONDS = 30


@dataclass(frozen=True)
class RunConfig:
    """Everything a run's result depends on, but the code, the backend and the machine.

    On `threads` it depends in rounding only. Where `position`, `steps` or `lr` is None, it is the
    protocol's; `resolved` fills them in. Raises UsageError for what cannot be run.
    """

    task: str
    variant: str = "qkv"
    form: str = "encoder"
    protocol: str = "2026"
    seq_len: int = 16
    alphabet: int = 10
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    position: str | None = None
    rope_value: str = "raw"
    plus_start: float | None = None
    hide_self: bool = False
    steps: int | None = None
    lr: float | None = None
    seed: int = 0
    threads: int = 1

    def __post_init__(self):
        self.model_config()  # refuses what cannot be built
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        steps, lr = self.resolved_steps, self.resolved_lr
        if steps < 1 or self.seed < 0 or not 0 < lr < math.inf:
            raise UsageError(
                f"steps {steps} must be at least 1, seed {self.seed} at least 0, "
                f"lr {lr} above 0, finite"
            )

    def resolved(self):
        """The same run, with nothing left to the protocol and the variant's canonical name."""
        model = self.model_config()
        return replace(
            self,
            variant=model.variant,
            position=model.position,
            steps=self.resolved_steps,
            lr=self.resolved_lr,
        )

    @property
    def resolved_steps(self):
        """Training steps: the protocol's epochs unless given."""
        return (
            self.recipe.epochs * self.recipe.steps_per_epoch if self.steps is None else self.steps
        )

    @property
    def resolved_lr(self):
        """Peak learning rate: the protocol's unless given."""
        return self.recipe.lr if self.lr is None else self.lr

    @property
    def recipe(self):
        """The Recipe of its protocol."""
        return RECIPES[self.protocol]

    @property
    def data(self):
        """The task that draws its examples."""
        return Synthetic(self.task, self.seq_len, self.alphabet, self.form)

    def model_config(self):
        """The TaggerConfig, or in causal form the GPTConfig, of this run."""
        data = self.data
        names = ("n_layer", "n_head", "n_embd", "variant", "rope_value", "plus_start")
        shared = {name: getattr(self, name) for name in names}
        shared |= {"vocab_size": data.vocab_size, "block_size": data.block_size}
        if self.form == "encoder":
            own = {"protocol": self.protocol, "position": self.position}
            return TaggerConfig(**shared, **own, hide_self=self.hide_self)
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.protocol != "2026":
            why = (
                f"protocol {self.protocol} has no decoder; the causal form trains by protocol 2026"
            )
            raise UsageError(why)
        if self.hide_self:
            why = "hide_self is for encoders: the first token of a decoder would see nothing"
            raise UsageError(why)
        return GPTConfig(**shared, position=self.position or "learned")

    def build(self):
        """A fresh model of this run."""
        cfg = self.model_config()
        return (Tagger if self.form == "encoder" else GPT)(cfg, self.seed)

    def schedule(self):
        """step -> learning rate."""
        r, steps = self.recipe, self.resolved_steps
        warmup = max(1, int(r.warmup_share * steps)) if r.warmup_share else 5
        return warmup_cosine(self.resolved_lr, warmup, steps, restart=r.restart)


@np.errstate(all="ignore")  # what is not finite ends in Diverged: no warnings on the way there
def train_run(config, out=None, resume=False, progress=None):
    """Train by `config`, evaluate the last weights on the test split; returns (model, result).

    With `out`, everything is kept in that folder, `resume` continues there, bit for bit, and Ctrl-C
    and SIGTERM save at the end of the step. `progress(step, steps, loss)` is called after each
    step. Raises Diverged, EnvironmentFault.
    """
    began, config = time.monotonic(), config.resolved()
    set_threads(config.threads)
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    folder = RunFolder(out, config, resume) if out is not None else None
    start = folder.restore(model, optimizer) if folder else 0
    if folder and start == config.steps and (folder.path / "result.json").exists():
        return model.eval(), files.read_json(folder.path / "result.json")
    with blas_threads(1):  # the cores are for shards, and the bits do not depend on the machine
        _train(config, model, optimizer, folder, start, progress)
        test = evaluate(model, *config.data.draw(config.seed, "test", config.recipe.n_test))
    if not math.isfinite(test["loss"]):
        why = f"the loss after step {config.steps - 1} is {test['loss']}"
        raise Diverged(why, "try a smaller learning rate with --lr")
    result = {"accuracy": test["accuracy"], "loss": test["loss"]}
    result |= {"steps": config.steps, "params": model.n_params}
    result["seconds"] = time.monotonic() - began  # of this sitting: the one thing that is not exact
    if folder:
        files.write_json(folder.path / "result.json", result)
    return model, result


def _train(config, model, optimizer, folder, start, progress):
    x, y = config.data.draw(config.seed, "train", config.recipe.n_train)
    batches, schedule = Batches(x, y, config.recipe, config.seed), config.schedule()
    with stopping_politely(bool(folder)) as stop:
        steps = fit(model, optimizer, batches, schedule, config.steps, config.recipe.clip, start)
        for step, loss in steps:
            stopping = stop.is_set()  # asked once: a step that is the last one is also saved
            if folder:
                last = step + 1 == config.steps or stopping
                folder.record({"step": step, "loss": loss, "lr": optimizer.lr})
                folder.maybe_save(step + 1, model, optimizer, last)
            if progress:
                progress(step + 1, config.steps, loss)
            if stopping:
                raise KeyboardInterrupt


@contextmanager
def stopping_politely(wanted=True):
    """Turn the first SIGINT or SIGTERM into an event, so that a step is finished and saved; a
    second one is not waited for.

    With nothing to save (not `wanted`), and outside the main thread, signals are left alone.
    """
    stop = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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


class RunFolder:
    """config.json, metrics.jsonl and checkpoint.npz of one run. Raises UsageError when the folder
    is not free for it.
    """

    checkpoint = property(lambda self: self.path / "checkpoint.npz")

    def __init__(self, path, config, resume=False):
        self.path, self.config = Path(path), config
        self.saved_at, self.saved_when = 0, time.monotonic()
        stored = self.path / "config.json"
        holds_a_run = stored.exists() or self.checkpoint.exists()
        if holds_a_run and not resume:
            raise UsageError(
                f"{self.path} already holds a run",
                "continue it with --resume, or choose another folder with --out",
            )
        for left in self.path.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if holds_a_run:
            differences = "; ".join(difference(load_config(self.path), config))
            if differences:
                raise UsageError(
                    f"{self.path} holds another run: {differences}",
                    "leave those flags out, or take another --out",
                )
        else:
            files.write_json(
                stored, {"kind": "minqkv run", "version": __version__, "config": asdict(config)}
            )

    def restore(self, model, optimizer):
        """Load the checkpoint, if there is one; returns the step to go on from. Metrics of later
        steps are cut off.
        """
        if self.checkpoint.exists():
            self.saved_at = load_checkpoint(self.checkpoint, model, optimizer)
        self._keep_metrics(self.saved_at)
        return self.saved_at

    def _keep_metrics(self, n):
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)[:n] if path.exists() else []
        if len(lines) < n:
            raise EnvironmentFault(
                f"{path} has {len(lines)} lines, but the checkpoint is from step {n}",
                "choose another --out",
            )
        with files.replacing(path) as file:
            file.writelines(lines)
        self.metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115 - stays open for the run

    def record(self, line):
        """Append one step's metrics."""
        try:
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
        except OSError as error:
            with suppress(OSError):
                self.metrics.close()  # or its buffer is tried again, and complained about, at exit
            raise files.cannot_write(self.path / "metrics.jsonl", error) from error

    def maybe_save(self, step, model, optimizer, last):
        """A checkpoint at each tenth of the run, after 30 s without one, and when `last`."""
        tenth = step * 10 // self.config.steps > self.saved_at * 10 // self.config.steps
        if not (tenth or last or time.monotonic() - self.saved_when > CHECKPOINT_EVERY_SECONDS):
            return
        os.fsync(self.metrics.fileno())  # a checkpoint never knows of steps its metrics have lost
        arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
        state = optimizer.state_dict()
        arrays |= {f"optimizer/{name}": value for name, value in state.items() if name != "steps"}
        meta = {"step": step, "optimizer_steps": state["steps"], "version": __version__}
        files.write_arrays(self.checkpoint, "minqkv checkpoint", meta, arrays)
        self.saved_at, self.saved_when = step, time.monotonic()


def load_checkpoint(path, model, optimizer=None):
    """Put a checkpoint into a model, and an optimiser; returns its step. Raises EnvironmentFault
    when it does not fit.
    """
    meta, arrays = files.read_arrays(path, "minqkv checkpoint")

    def part(prefix):
        return {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }

    try:
        model.load_state_dict(part("model/"))
        if optimizer:
            optimizer.load_state_dict({"steps": meta["optimizer_steps"], **part("optimizer/")})
        return meta["step"]
    except (UsageError, KeyError) as error:
        raise EnvironmentFault(
            f"{path} is from another model: {error}", "use the folder it was written in"
        ) from error


def load_config(path):
    """The RunConfig of a run folder. Raises EnvironmentFault when there is none, or it is of
    another kind or version.
    """
    if not (Path(path) / "config.json").exists():
        raise EnvironmentFault(
            f"{path} holds no run (no config.json)",
            "minqkv train makes one; its folder is what --out names",
        )
    stored = files.read_json(Path(path) / "config.json")
    if stored.get("kind") != "minqkv run":
        raise EnvironmentFault(f"{path}/config.json was not written by minqkv train")
    known = {field.name for field in fields(RunConfig)}
    if not isinstance(stored.get("config"), dict) or stored["config"].keys() != known:
        raise EnvironmentFault(
            f"{path}/config.json is from another version of minqkv ({stored.get('version')})"
        )
    try:
        return RunConfig(**stored["config"])
    except (UsageError, TypeError, ValueError) as error:
        raise EnvironmentFault(
            f"{path}/config.json is damaged: {error}", "choose another folder with --out"
        ) from error


def load_run(path):
    """(model, RunConfig) of a run folder, at its last checkpoint. Raises EnvironmentFault."""
    config = load_config(path)
    model = config.build()
    load_checkpoint(Path(path) / "checkpoint.npz", model)
    return model.eval(), config


def difference(stored, wanted):
    """'name is a there, b here' for each field in which two RunConfigs differ."""
    return [f"{f.name} is {getattr(stored, f.name)} there, {getattr(wanted, f.name)} here" for f in fields(RunConfig)
            if getattr(stored, f.name) != getattr(wanted, f.name)]  # fmt: skip
