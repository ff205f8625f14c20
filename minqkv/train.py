"""Training, written out: the step, the loop, what a protocol trains with, and scoring. Run folders are in runs.py."""

import math
from dataclasses import dataclass

import numpy as np

from . import backend
from .errors import Diverged, UsageError, unknown
from .functional import cross_entropy
from .models import GPT, PROTOCOLS, GPTConfig, Tagger, TaggerConfig
from .optim import warmup_cosine
from .rng import stream
from .shards import loss_and_gradients
from .tasks.synthetic import IGNORE, Synthetic
from .tensor import no_grad


def train_step(model, optimizer, x, y, clip=1.0):
    """One step on inputs and targets (integers, on the host); returns the loss before it, a Python float.

    That number is the only thing that waits for a GPU. Targets of -100 do not count; `clip` bounds the gradient's norm
    (None: no bound). Dropout masks depend on how many steps the optimiser has made.
    """
    model.train(optimizer.steps)
    optimizer.zero_grad()
    loss = loss_and_gradients(model, x, y, IGNORE)
    optimizer.step(clip)
    return loss


def fit(model, optimizer, batch, schedule, steps, clip=1.0, start=0, after=None):
    """The loop: steps `start` to `steps` on `batch(step)` -> inputs, targets; `after(step, loss)` runs after each.

    Raises Diverged, naming the step, when a loss is not finite.
    """
    for step in range(start, steps):
        x, y = batch(step)
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
    """Everything a run's result depends on, but the code, the backend and the machine; on `threads` only in rounding.

    `position`, `steps` and `lr` are the protocol's where None, and filled in at once: to change the protocol of a config
    with `replace`, set them to None again.
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
        model = self.model_config()  # refuses what cannot be built
        lr = self.recipe.lr if self.lr is None else self.lr
        for name, value in (("variant", model.variant), ("position", model.position), ("lr", lr)):
            object.__setattr__(self, name, value)
        if self.steps is None:
            object.__setattr__(self, "steps", self.recipe.epochs * self.steps_per_epoch)
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
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
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.protocol != "2026":
            raise UsageError(f"protocol {self.protocol} has no decoder; the causal form trains by protocol 2026")
        if self.hide_self:
            raise UsageError("hide_self is for encoders: the first token of a decoder would see nothing")
        return GPTConfig(**shared, position=self.position or "learned")

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
