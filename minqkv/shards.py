"""A batch in shards, one a process, each with gradients of its own that are summed at the end.

NumPy's own steps use one core, and threads wait for each other at the interpreter's lock; processes do not. BLAS must be
on one thread (OMP_NUM_THREADS=1 before NumPy is imported; the command line does that), or processes and threads fight
for the cores. Where there is no safe fork (macOS, Windows) a batch stays whole.
"""

import itertools
import os
import sys
import threading
import weakref

import numpy as np

from . import backend, tracing
from .errors import UsageError
from .functional import cross_entropy
from .workers import Crew, Letter, undisturbed

SMALLEST = 1 << 22  # parameters × tokens of a shard below which it costs more than it saves
MOST = 4  # models that have workers at a time
CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"

_threads, _crews, _lock = 1, weakref.WeakKeyDictionary(), threading.Lock()  # model -> its Crew


def set_threads(n):
    """Use n cores in training steps from now on; results depend on n only in rounding. Raises UsageError below 1.

    Each model's workers are forked at its first step and know the code and the globals of that moment: after changing
    either (running a notebook's cell again, say), call this again.
    """
    global _threads
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    for model in list(_crews):
        _dismiss(model)
    _threads = int(n)


def _dismiss(model):
    if model in _crews:
        _crews.pop(model).end()


def _forget():
    """The workers of a process, and a lock another thread holds, are not those of a child it forks."""
    global _lock
    _crews.clear()
    _lock = threading.Lock()


if CAN_FORK:
    os.register_at_fork(after_in_child=_forget)


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
    with _lock:
        crew = _hire(model, n - 1, letter.size, letter.leaves[0].dtype)
        crew.ask(letter, parts[1:])
        return _loss(model, *parts[0]) + sum(crew.answers(letter))


def _shards(model, x):
    """In how many shards a batch pays: as many as there are threads, if they are large enough."""
    n = min(_threads, len(x))
    if n == 1 or not CAN_FORK or not backend.current.on_host or tracing.active is not None:
        return 1
    parameters = model.parameters()
    if len({p.data.dtype for p in parameters}) > 1:
        return 1
    return max(1, min(n, sum(p.data.size for p in parameters) * x.size // SMALLEST))


def _hire(model, workers, size, dtype):
    """The crew of this model, or a new one."""
    if model not in _crews or not _crews[model].fits(workers, size, dtype):
        with undisturbed():
            _dismiss(model)
            if len(_crews) >= MOST:
                _dismiss(next(iter(_crews)))  # the oldest
            _crews[model] = Crew(_loss, workers, size, dtype)
    return _crews[model]


def _loss(model, x, y, ignore_index, share=1.0, first_row=0):
    """Run forward and backward on these rows; the loss, and the gradients, counted by their share of the targets."""
    if not share:
        return 0.0
    if first_row:
        model.place(model.first_row + first_row)
    loss = cross_entropy(model(x), y, ignore_index)
    loss.backward(backend.xp.full((), share, loss.dtype))
    return loss.item() * share
