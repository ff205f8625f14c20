"""A batch in shards, one a thread, each with gradients of its own that are summed at the end.

NumPy holds the interpreter's lock only between operations, so shards run side by side. BLAS must then be on one thread
(OMP_NUM_THREADS=1 before NumPy is imported; the command line does that), or the two kinds of threads fight.
"""

import copy
import os
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from . import backend, tracing
from .errors import UsageError
from .functional import cross_entropy
from .nn import Dropout, Module, Parameter

SMALLEST = 1 << 27  # parameters × tokens below which a shard costs more than it saves

_crew = (None, 1)  # the pool, and how many threads it has


def set_threads(n):
    """Use n threads in training steps from now on; results depend on n only in rounding. Raises UsageError below 1."""
    global _crew
    if not isinstance(n, int) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    if n != _crew[1]:
        _crew = (ThreadPoolExecutor(n) if n > 1 else None, n)


def _hire_again():
    """A forked child has the pool, but none of its threads."""
    global _crew
    pool, n = _crew
    _crew = (ThreadPoolExecutor(n) if pool else None, n)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hire_again)


class Shard:
    """The model again, on the same parameter arrays, with nodes, and so gradients, of its own; made anew each step, so
    that it is the model as it is."""

    def __init__(self, model, first_row):
        self.first_row = first_row
        self.model = self._twin(model)
        self.pairs = list(zip(model.parameters(), self.model.parameters(), strict=True))

    def _twin(self, module):
        twin = copy.copy(module)
        for name, value in vars(module).items():
            if isinstance(value, Parameter):
                setattr(twin, name, Parameter(value.data))
            elif isinstance(value, Module):
                setattr(twin, name, self._twin(value))
            elif isinstance(value, list):
                setattr(twin, name, [self._twin(item) if isinstance(item, Module) else item for item in value])
        if isinstance(twin, Dropout):
            twin.first_row = self.first_row
        return twin

    def loss(self, x, y, ignore_index, share):
        """Run forward and backward on these rows; the loss, and the gradients, counted by their share of the targets."""
        if not share:
            return 0.0
        loss = cross_entropy(self.model(x), y, ignore_index)
        loss.backward(np.full((), share, loss.dtype))
        return loss.item() * share


def loss_and_gradients(model, x, y, ignore_index=-100):
    """Mean cross-entropy of model(x) over the targets that count, a Python float; gradients are added up in the model.

    Raises UsageError when the shapes of x and y differ, or no target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise UsageError(f"targets {y.shape} do not fit inputs {x.shape}")
    pool, n = _crew
    n = min(n, len(x))
    if n > 1:
        n = min(n, max(1, model.n_params * x.size // SMALLEST))
    counted = int((y != ignore_index).sum())
    if n == 1 or not counted or backend.current.name != "numpy" or tracing.active is not None:
        loss = cross_entropy(model(x), y, ignore_index)
        loss.backward()
        return loss.item()
    cuts = [len(x) * i // n for i in range(n + 1)]
    shards = [Shard(model, first_row) for first_row in cuts[:-1]]

    def work(i):
        rows = slice(cuts[i], cuts[i + 1])
        return shards[i].loss(x[rows], y[rows], ignore_index, int((y[rows] != ignore_index).sum()) / counted)

    running = [pool.submit(work, i) for i in range(n)]
    wait(running)  # all of them, also when one has failed
    total = sum(future.result() for future in running)
    for shard in shards:
        for mine, own in shard.pairs:
            mine.take_gradient(own)
    return total
