"""Training, written out: the step, the loop, and a run folder that survives being killed.

A run folder holds config.json, metrics.jsonl (one line a step), checkpoint.npz, and at the end result.json.
"""

import json
import math
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from . import backend, files
from .errors import Diverged, EnvironmentFault, UsageError
from .functional import cross_entropy
from .models import GPT, PROTOCOLS, GPTConfig, Tagger, TaggerConfig
from .optim import Adam, clip_grad_norm, warmup_cosine
from .rng import stream
from .tasks.synthetic import IGNORE, Synthetic
from .tensor import no_grad
from .version import __version__

CHECKPOINT_EVERY_SECONDS = 30


def train_step(model, optimizer, x, y, clip=1.0):
    """One step on inputs and targets (integers, on the host); returns the loss before it, a Python float.

    That number is the only thing that waits for a GPU. Targets of -100 do not count; `clip` bounds the gradient's norm.
    """
    loss = cross_entropy(model(x), y, IGNORE)
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm(optimizer.parameters, clip)
    optimizer.step()
    return loss.item()


def fit(model, optimizer, batch, schedule, steps, clip=1.0, start=0, after=None):
    """The loop: steps `start` to `steps` on `batch(step)` -> inputs, targets; `after(step, loss)` runs after each.

    Raises Diverged, naming the step, when a loss is not finite.
    """
    for step in range(start, steps):
        x, y = batch(step)
        model.train(step)
        optimizer.lr = schedule(step)
        loss = train_step(model, optimizer, x, y, clip)
        if not math.isfinite(loss):
            raise Diverged(f"the loss at step {step} is {loss}", "try a smaller learning rate with --lr")
        if after:
            after(step, loss)
    model.eval()


@dataclass(frozen=True)
class Recipe:
    """What a protocol trains with (paper.md, section 3)."""

    n_train: int
    n_test: int
    batch: int
    epochs: int
    drop_last: bool
    lr: float
    clip: float
    warmup_share: float  # of all steps; 0: five steps
    restart: bool  # see optim.warmup_cosine


RECIPES = {
    "2023": Recipe(50_000, 10_000, 128, 2, True, 1e-3, 5.0, 0, False),
    "2026": Recipe(10_000, 2_000, 128, 2, False, 1e-3, 5.0, 0.05, True),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything a run's result depends on, but the code, the backend and the machine. `steps` None: the protocol's epochs."""

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

    def __post_init__(self):
        model = self.model_config()  # refuses what cannot be built
        lr = self.recipe.lr if self.lr is None else self.lr
        for name, value in (("variant", model.variant), ("position", model.position), ("lr", lr)):
            object.__setattr__(self, name, value)
        if self.steps is None:
            object.__setattr__(self, "steps", self.recipe.epochs * self.steps_per_epoch)
        if self.steps < 1 or self.seed < 0 or not 0 < self.lr < math.inf:
            raise UsageError(f"steps {self.steps} must be at least 1, seed {self.seed} at least 0, lr {self.lr} above 0, finite")

    @property
    def recipe(self):
        """The Recipe of its protocol."""
        return RECIPES[self.protocol]

    @property
    def data(self):
        """The task that draws its examples."""
        return Synthetic(self.task, self.seq_len, self.alphabet, self.form)

    @property
    def steps_per_epoch(self):
        """Batches in one pass over the training examples."""
        r = self.recipe
        return r.n_train // r.batch if r.drop_last else -(-r.n_train // r.batch)

    def model_config(self):
        """The TaggerConfig, or in causal form the GPTConfig, of this run."""
        data = self.data
        shared = {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "variant", "rope_value", "plus_start")}
        shared |= {"vocab_size": data.vocab_size, "block_size": data.block_size}
        if self.form == "encoder":
            return TaggerConfig(**shared, protocol=self.protocol, position=self.position, hide_self=self.hide_self)
        if self.hide_self:
            raise UsageError("hide_self is for encoders: the first token of a decoder would see nothing")
        if self.protocol not in PROTOCOLS:
            TaggerConfig(**shared, protocol=self.protocol)  # raises, with the known names
        return GPTConfig(**shared, position=self.position or "learned", dropout=PROTOCOLS[self.protocol].dropout)

    def build(self):
        """A fresh model of this run."""
        cfg = self.model_config()
        return (Tagger if self.form == "encoder" else GPT)(cfg, self.seed)

    def schedule(self):
        """step -> learning rate."""
        r = self.recipe
        warmup = max(1, int(r.warmup_share * self.steps)) if r.warmup_share else 5
        return warmup_cosine(self.lr, warmup, self.steps, restart=r.restart)


class Batches:
    """step -> (x, y): shuffled anew each epoch by a permutation that depends on (seed, epoch) alone."""

    def __init__(self, x, y, recipe, seed):
        self.x, self.y, self.recipe, self.seed = x, y, recipe, seed
        self.epoch, self.order = None, None

    def __call__(self, step):
        size, n = self.recipe.batch, len(self.x)
        per_epoch = n // size if self.recipe.drop_last else -(-n // size)
        epoch, i = divmod(step, per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, stream(self.seed, "order", epoch).permutation(n)
        rows = self.order[i * size : (i + 1) * size]
        return self.x[rows], self.y[rows]


@no_grad()
def evaluate(model, x, y, batch=500):
    """Token accuracy and mean loss over the targets that count, and the predictions (n, T)."""
    model.eval()
    predictions, losses, weights = [], [], []
    for i in range(0, len(x), batch):
        logits = model(x[i : i + batch])
        predictions.append(backend.to_host(logits.data.argmax(axis=-1)))
        weights.append(int((y[i : i + batch] != IGNORE).sum()))
        losses.append(cross_entropy(logits, y[i : i + batch], IGNORE).item())
    predicted = np.concatenate(predictions)
    counted = y != IGNORE
    accuracy = float((predicted[counted] == y[counted]).mean())
    return {"accuracy": accuracy, "loss": float(np.average(losses, weights=weights)), "predictions": predicted}


@np.errstate(all="ignore")  # what is not finite ends in Diverged: no warnings on the way there
def train_run(config, out=None, resume=False, progress=None):
    """Train by `config`, evaluate the last weights on the test split; returns (model, result).

    With `out`, everything is kept in that folder, `resume` continues there, bit for bit, and Ctrl-C and SIGTERM save at
    the end of the step. `progress(step, steps, loss)` is called after each step. Raises Diverged, EnvironmentFault.
    """
    began = time.perf_counter()
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    folder = RunFolder(out, config, resume) if out is not None else None
    start = folder.restore(model, optimizer) if folder else 0
    x, y = config.data.draw(config.seed, "train", config.recipe.n_train)
    schedule = config.schedule()
    with stopping_politely(bool(folder)) as stop:

        def after(step, loss):
            if folder:
                folder.record(step, {"step": step, "loss": loss, "lr": optimizer.lr})
                folder.maybe_save(step + 1, model, optimizer, last=step + 1 == config.steps or stop.is_set())
            if progress:
                progress(step + 1, config.steps, loss)
            if stop.is_set():
                raise KeyboardInterrupt

        fit(model, optimizer, Batches(x, y, config.recipe, config.seed), schedule, config.steps, config.recipe.clip, start, after)
    test = evaluate(model, *config.data.draw(config.seed, "test", config.recipe.n_test))
    if not math.isfinite(test["loss"]):
        raise Diverged(f"the loss after step {config.steps - 1} is {test['loss']}", "try a smaller learning rate with --lr")
    result = {"accuracy": test["accuracy"], "loss": test["loss"], "steps": config.steps, "params": model.n_params}
    result["seconds"] = time.perf_counter() - began
    if folder:
        files.write_json(folder.path / "result.json", result)
    return model, result


@contextmanager
def stopping_politely(wanted=True):
    """Turn the first SIGINT or SIGTERM into an event, so that a step is finished and saved; a second one is not waited for.

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
    """config.json, metrics.jsonl and checkpoint.npz of one run. Raises UsageError when the folder is not free for it."""

    checkpoint = property(lambda self: self.path / "checkpoint.npz")

    def __init__(self, path, config, resume=False):
        self.path, self.config = Path(path), config
        self.saved_at, self.saved_when = 0, time.monotonic()
        stored = self.path / "config.json"
        holds_a_run = stored.exists() or self.checkpoint.exists()
        if holds_a_run and not resume:
            raise UsageError(f"{self.path} already holds a run", "continue it with --resume, or choose another folder with --out")
        for left in self.path.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if holds_a_run:
            differences = "; ".join(difference(load_config(self.path), config))
            if differences:
                raise UsageError(f"{self.path} holds another run: {differences}", "leave those flags out, or take another --out")
        else:
            files.write_json(stored, {"kind": "minqkv run", "version": __version__, "config": asdict(config)})

    def restore(self, model, optimizer):
        """Load the checkpoint, if there is one; returns the step to go on from. Metrics of later steps are cut off."""
        if self.checkpoint.exists():
            self.saved_at = load_checkpoint(self.checkpoint, model, optimizer)
        self._keep_metrics(self.saved_at)
        return self.saved_at

    def _keep_metrics(self, n):
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)[:n] if path.exists() else []
        if len(lines) < n:
            raise EnvironmentFault(f"{path} has {len(lines)} lines, but the checkpoint is from step {n}", "choose another --out")
        with files.replacing(path) as file:
            file.writelines(lines)
        self.metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115 - stays open for the run

    def record(self, step, line):
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
    """Put a checkpoint into a model, and an optimiser; returns its step. Raises EnvironmentFault when it does not fit."""
    meta, arrays = files.read_arrays(path, "minqkv checkpoint")

    def part(prefix):
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    try:
        model.load_state_dict(part("model/"))
        if optimizer:
            optimizer.load_state_dict({"steps": meta["optimizer_steps"], **part("optimizer/")})
        return meta["step"]
    except (UsageError, KeyError) as error:
        raise EnvironmentFault(f"{path} is from another model: {error}", "use the folder it was written in") from error


def load_config(path):
    """The RunConfig of a run folder. Raises EnvironmentFault when there is none, or it is of another kind or version."""
    if not (Path(path) / "config.json").exists():
        raise EnvironmentFault(f"{path} holds no run (no config.json)", "minqkv train makes one; its folder is what --out names")
    stored = files.read_json(Path(path) / "config.json")
    if stored.get("kind") != "minqkv run":
        raise EnvironmentFault(f"{path}/config.json was not written by minqkv train")
    known = {field.name for field in fields(RunConfig)}
    if not isinstance(stored.get("config"), dict) or stored["config"].keys() != known:
        raise EnvironmentFault(f"{path}/config.json is from another version of minqkv ({stored.get('version')})")
    try:
        return RunConfig(**stored["config"])
    except (UsageError, TypeError, ValueError) as error:
        raise EnvironmentFault(f"{path}/config.json is damaged: {error}", "choose another folder with --out") from error


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
