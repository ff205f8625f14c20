"""One run from start to score, and its folder, which survives being killed.

    config.json      what the run is: written first, never changed
    metrics.jsonl    step, loss and learning rate, a line appended after each step
    checkpoint.npz   the model, the optimiser and how many steps they have made: replaced whole
    result.json      the score on the test split: written last

A run resumes from its checkpoint: metrics beyond it are cut off, and the loop continues with the
first step that the checkpoint does not contain. Nothing else has to be remembered: the examples,
their order, the learning rate and the dropout masks depend on the configuration and the step alone.
So a run that was killed ends with the same bits as one that was not.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from .models import GPT, PROTOCOLS, GPTConfig, Tagger, TaggerConfig
from .nn import Module
from .optim import Adam, warmup_cosine
from .runtime import files
from .runtime.blas import blas_threads
from .runtime.errors import Diverged, EnvironmentFault, UsageError, unknown
from .runtime.parallel import set_threads
from .runtime.version import __version__
from .tasks.base import Batches
from .tasks.synthetic import RECIPES, Synthetic
from .train import evaluate, fit

CHECKPOINT_EVERY_SECONDS = 30


@dataclass(frozen=True)
class RunConfig:
    """Everything a run's result depends on, except the code, the backend and the machine.

    `threads` changes it in rounding only. `position`, `steps` and `lr` may be None, which stands
    for the protocol's value; `resolved()` puts that in. Raises UsageError for what cannot be run.
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
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} must be at least 0")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps {self.steps} must be at least 1")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"lr {self.lr} must be above 0 and finite")

    def resolved(self) -> "RunConfig":
        """The same run with the protocol's values put in, and its variant by the usual name."""
        recipe, model = self.recipe, self.model_config()
        steps = recipe.epochs * recipe.steps_per_epoch if self.steps is None else self.steps
        lr = recipe.lr if self.lr is None else self.lr
        return replace(self, variant=model.variant, position=model.position, steps=steps, lr=lr)

    @property
    def recipe(self):
        """The Recipe of its protocol."""
        return RECIPES[self.protocol]

    @property
    def data(self):
        """The task that draws its examples."""
        return Synthetic(self.task, self.seq_len, self.alphabet, self.form)

    def model_config(self) -> TaggerConfig | GPTConfig:
        """The configuration of its model: a Tagger's, or in causal form a GPT's."""
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
            why = f"protocol {self.protocol} has no decoder"
            raise UsageError(f"{why}; the causal form trains by protocol 2026")
        if self.hide_self:
            why = "the first token of a decoder would see nothing"
            raise UsageError(f"hide_self is for encoders: {why}")
        return GPTConfig(**shared, position=self.position or "learned")

    def build(self) -> Module:
        """A fresh model of this run."""
        cfg = self.model_config()
        return (Tagger if self.form == "encoder" else GPT)(cfg, self.seed)

    def schedule(self) -> Callable[[int], float]:
        """step -> learning rate."""
        recipe, run = self.recipe, self.resolved()
        warmup = max(1, int(recipe.warmup_share * run.steps)) if recipe.warmup_share else 5
        return warmup_cosine(run.lr, warmup, run.steps, restart=recipe.restart)


@np.errstate(all="ignore")  # what is not finite ends in Diverged: no warnings on the way there
def train_run(
    config: RunConfig,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Module, dict]:
    """Train by `config`, then score the model on the test split; returns (model, result).

    With `out`, everything is kept in that folder, `resume` continues there, and Ctrl-C and SIGTERM
    save at the end of the step. `progress(steps done, steps in all, loss)` is called after each
    step. Raises UsageError when the folder holds another run, Diverged, EnvironmentFault.
    """
    began, config = time.monotonic(), config.resolved()
    set_threads(config.threads)
    model = config.build()
    optimizer = Adam(model.parameters(), config.lr)
    folder = RunFolder(out, config, resume) if out is not None else None
    start = folder.restore(model, optimizer) if folder else 0
    if folder and start == config.steps and folder.result.exists():
        return model.eval(), files.read_json(folder.result)
    with blas_threads(1):  # shards use the cores; bits do not depend on how many there are
        _train(config, model, optimizer, start, folder, progress)
        test = evaluate(model, *config.data.draw(config.seed, "test", config.recipe.n_test))
    if not math.isfinite(test["loss"]):
        why = f"the loss after step {config.steps - 1} is {test['loss']}"
        raise Diverged(why, "try a smaller learning rate with --lr")
    result = {"accuracy": test["accuracy"], "loss": test["loss"]}
    result |= {"steps": config.steps, "params": model.n_params}
    result["seconds"] = time.monotonic() - began  # since it was last resumed; all else is exact
    if folder:
        files.write_json(folder.result, result)
    return model, result


def _train(config, model, optimizer, start, folder, progress):
    """The steps from `start` on, each recorded; a checkpoint now and then, and after the last."""
    x, y = config.data.draw(config.seed, "train", config.recipe.n_train)
    batches = Batches(x, y, config.recipe, config.seed)
    clip, schedule = config.recipe.clip, config.schedule()
    with stopping_politely(folder is not None) as stop, folder or nullcontext():
        for step, loss in fit(model, optimizer, batches, schedule, config.steps, clip, start):
            done, stopping = step + 1, stop.is_set()
            if folder:
                folder.record({"step": step, "loss": loss, "lr": optimizer.lr})
                if stopping or folder.is_due(done):
                    folder.save(done, model, optimizer)
            if progress:
                progress(done, config.steps, loss)
            if stopping:
                raise KeyboardInterrupt


class RunFolder:
    """The files of one run. `with folder:` keeps its metrics open for `record`.

    Raises UsageError when the folder holds a run already and `resume` is not asked for, or when
    that run is another one.
    """

    def __init__(self, path, config, resume=False):
        path = Path(path)
        self.metrics, self.checkpoint = path / "metrics.jsonl", path / "checkpoint.npz"
        self.result = path / "result.json"
        self.steps, self.saved_step, self.saved_time = config.steps, 0, time.monotonic()
        holds_a_run = (path / "config.json").exists() or self.checkpoint.exists()
        if holds_a_run and not resume:
            cure = "continue it with --resume, or choose another folder with --out"
            raise UsageError(f"{path} already holds a run", cure)
        for left in path.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if not holds_a_run:
            stored = {"kind": "minqkv run", "version": __version__, "config": asdict(config)}
            files.write_json(path / "config.json", stored)
        elif differences := "; ".join(difference(load_config(path), config)):
            cure = "leave those flags out, or choose another folder with --out"
            raise UsageError(f"{path} holds another run: {differences}", cure)

    def restore(self, model, optimizer):
        """Load the checkpoint, if there is one, and cut off the metrics of later steps; returns how
        many steps have been made.
        """
        if self.checkpoint.exists():
            self.saved_step = load_checkpoint(self.checkpoint, model, optimizer)
        lines = self.metrics.read_bytes().splitlines(True) if self.metrics.exists() else []
        if len(lines) < self.saved_step:
            why = f"{self.metrics} has {len(lines)} lines"
            why += f", but the checkpoint is from step {self.saved_step}"
            raise EnvironmentFault(why, "choose another folder with --out")
        with files.replacing(self.metrics) as file:
            file.writelines(lines[: self.saved_step])
        return self.saved_step

    def __enter__(self):
        self.lines = open(self.metrics, "a", encoding="utf-8")
        return self

    def __exit__(self, *error):
        with suppress(OSError):  # of a line that could not be written, which `record` has said
            self.lines.close()

    def record(self, line):
        """Append one step's metrics."""
        try:
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
        except OSError as error:
            raise files.cannot_write(self.metrics, error) from error

    def is_due(self, done):
        """Whether to save now: at each tenth of the run, so also at its end, and after 30 s."""
        tenth = done * 10 // self.steps > self.saved_step * 10 // self.steps
        return tenth or time.monotonic() - self.saved_time > CHECKPOINT_EVERY_SECONDS

    def save(self, done, model, optimizer):
        """Replace the checkpoint."""
        os.fsync(self.lines.fileno())  # first: a checkpoint must find the metrics of all its steps
        arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
        state = optimizer.state_dict()
        arrays |= {f"optimizer/{name}": value for name, value in state.items() if name != "steps"}
        meta = {"step": done, "optimizer_steps": state["steps"], "version": __version__}
        files.write_arrays(self.checkpoint, "minqkv checkpoint", meta, arrays)
        self.saved_step, self.saved_time = done, time.monotonic()


def load_checkpoint(path, model, optimizer=None):
    """Put a checkpoint into a model, and an optimiser; returns how many steps they have made.
    Raises EnvironmentFault when it does not fit.
    """
    meta, arrays = files.read_arrays(path, "minqkv checkpoint")
    parts = {"model": {}, "optimizer": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = array
    try:
        model.load_state_dict(parts["model"])
        if optimizer:
            optimizer.load_state_dict({"steps": meta["optimizer_steps"], **parts["optimizer"]})
        return meta["step"]
    except (UsageError, KeyError) as error:
        why = f"{path} is from another model: {error}"
        raise EnvironmentFault(why, "use the folder it was written in") from error


def load_config(path: str | Path) -> RunConfig:
    """The RunConfig of a run folder. Raises EnvironmentFault when there is none, or it is of
    another kind or version.
    """
    path = Path(path) / "config.json"
    if not path.exists():
        cure = "minqkv train makes one; its folder is what --out names"
        raise EnvironmentFault(f"{path.parent} holds no run (no config.json)", cure)
    stored = files.read_json(path)
    if stored.get("kind") != "minqkv run":
        raise EnvironmentFault(f"{path} was not written by minqkv train")
    config, known = stored.get("config"), {field.name for field in fields(RunConfig)}
    if not isinstance(config, dict) or config.keys() != known:
        version = stored.get("version")
        raise EnvironmentFault(f"{path} is from another version of minqkv ({version})")
    try:
        return RunConfig(**config)
    except (UsageError, TypeError, ValueError) as error:
        cure = "choose another folder with --out"
        raise EnvironmentFault(f"{path} is damaged: {error}", cure) from error


def load_run(path: str | Path) -> tuple[Module, RunConfig]:
    """The model of a run folder, at its last checkpoint, and its configuration. Raises
    EnvironmentFault.
    """
    config = load_config(path)
    model = config.build()
    load_checkpoint(Path(path) / "checkpoint.npz", model)
    return model.eval(), config


def difference(stored, wanted):
    """'name is a there, b here' for each field in which two RunConfigs differ."""
    there, here = asdict(stored), asdict(wanted)
    return [
        f"{name} is {value} there, {here[name]} here"
        for name, value in there.items()
        if value != here[name]
    ]


@contextmanager
def stopping_politely(wanted):
    """Turn the first SIGINT or SIGTERM into an event, so that a step is finished and saved; the
    second one acts at once.

    Signals are left alone with nothing to save (not `wanted`), and outside the main thread, where
    they cannot be caught.
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
