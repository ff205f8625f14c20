"""A batch in shards, one a process, each with gradients of its own that are summed at the end.

NumPy's own steps use one core, and threads wait for each other at the interpreter's lock; processes do not. BLAS must be
on one thread (OMP_NUM_THREADS=1 before NumPy is imported; the command line does that), or processes and threads fight
for the cores. Where there is no safe fork (macOS, Windows) a batch stays whole.
"""

import itertools
from functools import partial

import numpy as np

from . import backend, tracing, workers
from .errors import UsageError
from .functional import cross_entropy
from .letters import Letter, Opener

SMALLEST = 1 << 22  # parameters × tokens of a shard below which it costs more than it saves


def loss_and_gradients(model, x, y, ignore_index=-100):
    """Mean cross-entropy of model(x) over the targets that count, a Python float; gradients are added up in the model.

    Raises UsageError when the shapes of x and y differ, or no target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise UsageError(f"targets {y.shape} do not fit inputs {x.shape}")
    counted = int((y != ignore_index).sum())
    n = _shards(model, x) if counted else 1
    if n == 1:
        return _loss(model, x, y, ignore_index)
    cuts = [len(x) * i // n for i in range(n + 1)]
    parts = []
    for first, last in itertools.pairwise(cuts):
        share = int((y[first:last] != ignore_index).sum()) / counted
        parts.append((x[first:last], y[first:last], ignore_index, share, first))
    letter = Letter(model)
    with workers.hire(model, Shards, n - 1, letter.size, letter.leaves[0].dtype) as crew:
        crew.share_out(letter, parts[1:])
        return _loss(model, *parts[0]) + sum(crew.collect(letter))


def _shards(model, x):
    """In how many shards a batch pays: as many as there are threads, if they are large enough."""
    n = min(workers.threads, len(x))
    if n == 1 or not workers.CAN_FORK or not backend.current.on_host or tracing.active is not None:
        return 1
    parameters = model.parameters()
    if len({p.data.dtype for p in parameters}) > 1:
        return 1
    return max(1, min(n, sum(p.data.size for p in parameters) * x.size // SMALLEST))


class Shards(workers.Crew):
    """Workers with memory (1 + n, size) that all share: the parameters, then each worker's gradients."""

    def __init__(self, model, n, size, dtype):
        self.memory = workers.shared((1 + n, size), dtype)
        super().__init__([partial(_shard, self.memory[0], gradients) for gradients in self.memory[1:]])

    def fits(self, model, n, size, dtype):
        """Whether it has so many workers, and room for such parameters."""
        return len(self.pids) == n and self.memory.shape[1] >= size and self.memory.dtype == dtype

    def share_out(self, letter, parts):
        """The model to all, and to each its part."""
        np.concatenate([p.data.reshape(-1) for p in letter.leaves], out=self.memory[0, : letter.size])
        self.ask([(letter.text, part) for part in parts])

    def collect(self, letter):
        """Wait for all; add their gradients to the parameters'; return their losses."""
        replies = self.answers()
        for row, (_, present) in zip(self.memory[1:], replies, strict=True):
            for p, gradient, there in zip(letter.leaves, letter.numbers(row), present, strict=True):
                if there:
                    p.add_gradient(gradient)
        return [loss for loss, _ in replies]


def _shard(parameters, gradients, text, part):
    """(loss, which parameters got a gradient), the gradients written where they belong."""
    letter = Opener(text, parameters)
    loss = _loss(letter.load(), *part)
    flat = [np.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in letter.leaves]
    np.concatenate(flat, out=gradients[: sum(map(len, flat))])
    return loss, [p.grad is not None for p in letter.leaves]


def _loss(model, x, y, ignore_index, share=1.0, first_row=0):
    """Run forward and backward on these rows; the loss, and the gradients, counted by their share of the targets."""
    if not share:
        return 0.0
    if first_row:
        model.place(model.first_row + first_row)
    loss = cross_entropy(model(x), y, ignore_index)
    loss.backward(backend.xp.full((), share, loss.dtype))
    return loss.item() * share
