"""A batch in shards, one a thread, each with gradients of its own that are summed at the end.

NumPy holds the interpreter's lock only between operations, so shards run side by side. BLAS must then be on one thread
(OMP_NUM_THREADS=1 before NumPy is imported; the command line does that), or the two kinds of threads fight.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np

from . import backend, tracing
from .errors import UsageError
from .functional import cross_entropy
from .nn import Dropout, Module, Parameter

SMALLEST = 1 << 27  # parameters × tokens below which a shard costs more than it saves

_pool, _threads = None, 1
_shards = WeakKeyDictionary()  # model -> its Shards


def set_threads(n):
    """Use n threads in training steps from now on; results depend on n only in rounding. Raises UsageError below 1."""
    global _pool, _threads
    if n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    if n != _threads:
        _pool, _threads = (ThreadPoolExecutor(n) if n > 1 else None), n


class Shard:
    """The model again, on the same parameter arrays, with nodes, and so gradients, of its own."""

    def __init__(self, model):
        self.dropouts = []
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
            self.dropouts.append(twin)
        return twin

    def loss(self, x, y, ignore_index, share, first_row):
        """Run forward and backward on these rows; the loss, and the gradients, counted by their share of the targets."""
        for mine, own in self.pairs:
            own.data = mine.data
            own.zero_grad()
        for dropout in self.dropouts:
            dropout.first_row = first_row
        if not share:
            return 0.0
        loss = cross_entropy(self.model(x), y, ignore_index)
        loss.backward(np.full((), share, loss.dtype))
        return loss.item() * share


def loss_and_gradients(model, x, y, ignore_index=-100):
    """Mean cross-entropy of model(x) over the targets that count, a Python float; gradients are added up in the model."""
    x, y = np.asarray(x), np.asarray(y)
    n = min(_threads, len(x))
    if n > 1:
        n = min(n, max(1, model.n_params * x.size // SMALLEST))
    if n == 1 or backend.current.name != "numpy" or tracing.active is not None:
        loss = cross_entropy(model(x), y, ignore_index)
        loss.backward()
        return loss.item()
    shards = _shards.setdefault(model, [])
    shards += [Shard(model) for _ in range(n - len(shards))]
    counted = (y != ignore_index).sum()
    cuts = [len(x) * i // n for i in range(n + 1)]

    def work(i):
        rows = slice(cuts[i], cuts[i + 1])
        shards[i].model._mode(model.training, model.step)
        return shards[i].loss(x[rows], y[rows], ignore_index, float((y[rows] != ignore_index).sum() / counted), cuts[i])

    total = sum(_pool.map(work, range(n)))
    for shard in shards[:n]:
        for mine, own in shard.pairs:
            mine.take_gradient(own)
    return total
