"""Training, written out: the loss and its gradients, a step, the loop, and scoring.

A task (tasks/) supplies the data; a run (runs.py) keeps the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .functional import cross_entropy
from .nn import Module
from .optim import Optimizer
from .runtime import backend, distributed
from .runtime.claims import decoding, training
from .runtime.errors import Diverged, UsageError
from .tensor import no_grad

IGNORE = -100  # a target that does not count


def fit(
    model: Module,
    optimizer: Optimizer,
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]],
    schedule: Callable[[int], float],
    steps: int,
    clip: float | None = 1.0,
    start: int = 0,
) -> Iterator[tuple[int, float]]:
    """The loop. A generator: yields (step, loss) after each of the steps from `start` to `steps`.

    `batch(step)` gives inputs and targets, `schedule(step)` the learning rate. Raises Diverged,
    naming the step, when a loss is not finite.
    """
    for step in range(start, steps):
        optimizer.lr = schedule(step)
        x, y = batch(step)
        loss = train_step(model, optimizer, x, y, clip)
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss at step {step} is {loss}", "try a smaller learning rate with --lr"
            )
        yield step, loss
    model.eval()


def train_step(
    model: Module,
    optimizer: Optimizer,
    x: np.ndarray,
    y: np.ndarray,
    clip: float | None = 1.0,
) -> float:
    """One step on inputs and targets (integers, on the host); returns the loss before it, a float.

    Fetching that number is the only time the host waits for a GPU. Targets of -100 do not count;
    `clip` bounds the norm of the gradient (None: no bound). Dropout masks depend on how many steps
    the optimiser has made. Raises UsageError while another thread trains this model or decodes with
    it.
    """
    with training(model):
        model.train(optimizer.steps)
        optimizer.zero_grad()
        loss = loss_and_gradients(model, x, y)
        optimizer.step(clip)
    return loss


def loss_and_gradients(model: Module, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross-entropy of model(x) over the targets that count, a float.

    Gradients are added to those of the parameters. With several threads the batch is cut into
    shards: each runs on a replica of the model (the same weights, gradients of its own) and counts
    by its share of the targets; then the gradients are added up. With several ranks, each does so
    with its own rows: the loss is that of the whole batch, and the optimiser's step adds up the
    gradients. Raises UsageError when x and y differ in shape, or no target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise UsageError(f"targets {y.shape} do not fit inputs {x.shape}")
    counted = int((y != IGNORE).sum())
    if not counted:
        raise UsageError("cross_entropy: every target is ignored")

    def run(replica, rows):
        share = int((y[rows] != IGNORE).sum()) / counted
        if not share:
            return 0.0
        loss = cross_entropy(replica(x[rows]), y[rows], IGNORE)
        loss.backward(backend.xp.full((), share, loss.dtype))  # its share of the mean
        return loss.item() * share

    with distributed.own_rows(len(x)) as rows:  # all of them, unless ranks share the batch
        x, y = x[rows], y[rows]
        losses = backend.in_shards(model, x, run)  # None: better in one piece
        loss = run(model, slice(None)) if losses is None else sum(losses)
    return distributed.total(loss)


def evaluate(model: Module, x: np.ndarray, y: np.ndarray, batch: int = 500) -> dict:
    """Token accuracy and mean loss over the targets that count, and the predictions (n, T).

    Without dropout, whatever the model's mode. Raises UsageError when no target counts.
    """
    if not (y != IGNORE).any():
        raise UsageError("evaluate: every target is ignored")

    def score(i):
        logits = model(x[i : i + batch])  # (batch, T, V)
        weight = int((y[i : i + batch] != IGNORE).sum())
        loss = cross_entropy(logits, y[i : i + batch], IGNORE).item() if weight else 0.0
        return backend.to_host(logits.data.argmax(axis=-1)), loss, weight

    with decoding(model), no_grad():
        parts = backend.each(score, range(0, len(x), batch))
    predictions, losses, weights = zip(*parts, strict=True)
    predicted = np.concatenate(predictions)  # (n, T)
    counted = y != IGNORE
    accuracy = float((predicted[counted] == y[counted]).mean())
    loss = float(np.average(losses, weights=weights))
    return {"accuracy": accuracy, "loss": loss, "predictions": predicted}
