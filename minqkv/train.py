"""Training, written out: the loss and its gradients, a step, the loop, and scoring.

A task (tasks/) supplies the data; a run (runs.py) keeps the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from .functional import cross_entropy
from .nn import Module, one_step
from .optim import Optimizer
from .runtime import backend, distributed
from .runtime.claims import decoding, training
from .runtime.errors import Diverged, UsageError
from .tensor import Tensor, no_grad

IGNORE = -100  # a target that does not count


def token_loss(model: Module, x: np.ndarray, y: np.ndarray, sparse: bool = False) -> Tensor:
    """Mean cross-entropy of model(x) over the targets that count, those that are not IGNORE.

    With `sparse` the model computes logits where a target counts and nowhere else.
    """
    return cross_entropy(*_logits(model, x, y, sparse), IGNORE)


def _logits(model, x, y, sparse):
    """Logits and targets, of all positions or of those whose target counts."""
    if not sparse:
        return model(x), y  # (B, T, V), (B, T)
    y = np.asarray(y)
    at = y != IGNORE
    return model(x, at=at), y[at]  # (N, V), (N,)


def counted_targets(y: np.ndarray) -> int:
    """How many targets count."""
    return int((y != IGNORE).sum())


def fit(
    model: Module,
    optimizer: Optimizer,
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]],
    schedule: Callable[[int], float],
    steps: int,
    clip: float | None = 1.0,
    start: int = 0,
    loss: Callable = token_loss,
    weight: Callable = counted_targets,
    accumulate: int = 1,
) -> Iterator[tuple[int, float]]:
    """The loop. A generator: yields (step, loss) after each of the steps from `start` to `steps`.

    `batch(step)` gives inputs and targets, `schedule(step)` the learning rate; `loss` and `weight`
    come from the task; `accumulate`: see train_step. On a GPU, the next batch is made and uploaded
    while a step computes. Raises Diverged, naming the step, when a loss is not finite.
    """
    batches = backend.ahead(map(batch, range(start, steps)))
    for step, (x, y) in enumerate(batches, start):
        optimizer.lr = schedule(step)
        found = train_step(model, optimizer, x, y, clip, loss, weight, accumulate)
        if not math.isfinite(found):
            raise Diverged(
                f"the loss at step {step} is {found}", "try a smaller learning rate with --lr"
            )
        yield step, found
    model.eval()


def train_step(
    model: Module,
    optimizer: Optimizer,
    x: np.ndarray,
    y: np.ndarray,
    clip: float | None = 1.0,
    loss: Callable = token_loss,
    weight: Callable = counted_targets,
    accumulate: int = 1,
) -> float:
    """One step on inputs and targets (integers, on the host); returns the loss before it, a float.

    Fetching that number is the only time the host waits for a GPU. Targets of -100 do not count;
    `clip` bounds the norm of the gradient (None: no bound). The batch is computed in `accumulate`
    parts, one after the other, to save memory; up to rounding, the result is the same. Dropout
    masks depend on how many steps the optimiser has made. Raises UsageError while another thread
    trains this model or decodes with it.
    """
    with training(model):
        moved = {*map(id, optimizer.parameters)}
        if not any(id(p) in moved for _, p in model.named_parameters()):  # the first one tells
            raise UsageError("this optimiser moves no parameter of this model")
        model.train(optimizer.steps)
        optimizer.zero_grad()
        found = loss_and_gradients(model, x, y, loss, weight, accumulate)
        optimizer.step(clip)
    return found


def loss_and_gradients(
    model: Module,
    x: np.ndarray,
    y: np.ndarray,
    loss: Callable = token_loss,
    weight: Callable = counted_targets,
    accumulate: int = 1,
) -> float:
    """loss(model, x, y), a mean over what counts, as a float.

    Gradients are added to those of the parameters. With several threads the batch is cut into
    shards. Each runs on a replica of the model (the same weights, its own gradients) and counts
    by its share, weight(its targets) / weight(y). Then the gradients are added up. With
    `accumulate`, the batch is computed in that many parts, whose gradients are added up as well.
    With several ranks, each computes its own rows: the loss covers the whole batch, and the
    optimiser's step adds up the gradients. Raises UsageError when x and y differ in shape, or no
    target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape[: y.ndim] != y.shape:
        raise UsageError(f"targets {y.shape} do not fit inputs {x.shape}")
    total = weight(y)
    if not total:
        raise UsageError("every target is ignored")

    def run(x, y, replica, rows):
        share = weight(y[rows]) / total
        if not share:
            return backend.xp.zeros((), "float32"), 0.0
        mean = loss(replica, x[rows], y[rows])
        mean.backward(backend.xp.full((), share, mean.dtype))
        return mean.data, share

    def part(x, y):
        losses = backend.in_shards(model, x, partial(run, x, y))  # None: better in one piece
        return [run(x, y, model, slice(None))] if losses is None else losses

    parts = []
    with one_step(model):
        for begin, end in pairwise(len(x) * i // accumulate for i in range(accumulate + 1)):
            with distributed.own_rows(begin, end) as rows:  # all, unless ranks share the batch
                parts += part(x[rows], y[rows])
    means, shares = zip(*parts, strict=True)
    means = backend.to_host(backend.xp.stack(means)).tolist()  # all at once: a single wait
    return distributed.total(sum(mean * share for mean, share in zip(means, shares, strict=True)))


def evaluate(
    model: Module, x: np.ndarray, y: np.ndarray, batch: int = 500, sparse: bool = False
) -> dict:
    """Token accuracy and mean loss over the targets that count, and the predictions (n, T).

    Without dropout, whatever the model's mode. `sparse`: see token_loss; predictions elsewhere are
    IGNORE. Raises UsageError when no target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    counted = y != IGNORE
    if not counted.any():
        raise UsageError("evaluate: every target is ignored")

    def score(i):
        at, targets = counted[i : i + batch], y[i : i + batch]
        found = np.full(at.shape, IGNORE)
        if not at.any():
            return found, 0.0, 0
        logits, targets = _logits(model, x[i : i + batch], targets, sparse)
        found[at if sparse else ...] = backend.to_host(logits.data.argmax(axis=-1))
        return found, cross_entropy(logits, targets, IGNORE).item(), int(at.sum())

    with decoding(model), no_grad():
        parts = backend.each(score, range(0, len(x), batch))
    predictions, losses, weights = zip(*parts, strict=True)
    predicted = np.concatenate(predictions)  # (n, T)
    accuracy = float((predicted[counted] == y[counted]).mean())
    loss = float(np.average(losses, weights=weights))
    return {"accuracy": accuracy, "loss": loss, "predictions": predicted}
