"""A batch in shards, one a process, each with gradients of its own that are summed at the end.

NumPy's own steps use one core, and threads wait for each other at the interpreter's lock; processes do not. Workers are
forked once. Each step sends them the model as it is, but for its numbers, and their rows of the batch; the numbers lie
in memory that all share. BLAS must then be on one thread (OMP_NUM_THREADS=1 before NumPy is imported; the command line
does that), or processes and threads fight for the cores. Where there is no safe fork (macOS, Windows) a batch stays whole.
"""

import io
import itertools
import math
import mmap
import os
import pickle
import signal
import sys
import weakref
from contextlib import suppress
from multiprocessing import Pipe

import numpy as np

from . import backend, tracing
from .errors import EnvironmentFault, UsageError
from .functional import cross_entropy
from .nn import Parameter
from .tensor import Tensor

SMALLEST = 1 << 22  # parameters × tokens of a shard below which it costs more than it saves
CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"

MOST = 4  # models that have workers at a time

_threads, _crews = 1, weakref.WeakKeyDictionary()  # model -> its Crew


def set_threads(n):
    """Use n cores in training steps from now on; results depend on n only in rounding. Raises UsageError below 1."""
    global _threads
    if not isinstance(n, int) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    if n != _threads:
        for model in list(_crews):
            _dismiss(model)
    _threads = n


def _dismiss(model):
    if model in _crews:
        _crews.pop(model).end()


if CAN_FORK:
    os.register_at_fork(after_in_child=_crews.clear)  # the workers of a process are not those of a child it forks


class Letter(pickle.Pickler):
    """A model in bytes, without the numbers of its parameters: each is only named, by where they begin and its shape."""

    def __init__(self, model):
        self.leaves, self.places, self.size = [], {}, 0
        file = io.BytesIO()
        super().__init__(file, protocol=5)
        try:
            self.dump(model)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(f"this model cannot be sent to other processes: {error}", "mq.set_threads(1)") from error
        self.text = file.getvalue()

    def persistent_id(self, item):
        """What stands for a parameter; None has anything else written out."""
        if not isinstance(item, Tensor) or not item.requires_grad:
            return None
        if id(item) not in self.places:
            self.places[id(item)] = self.size, item.shape
            self.leaves.append(item)
            self.size += item.size
        return self.places[id(item)]

    def numbers(self, row):
        """For each parameter, its part of an array (size,), in its shape."""
        return [row[start : start + math.prod(shape)].reshape(shape) for start, shape in self.places.values()]


class Reader(pickle.Unpickler):
    """The model of a letter, its parameters on these numbers."""

    def __init__(self, text, numbers):
        super().__init__(io.BytesIO(text))
        self.numbers, self.leaves = numbers, {}

    def persistent_load(self, place):
        if place not in self.leaves:
            start, shape = place
            self.leaves[place] = Parameter(self.numbers[start : start + math.prod(shape)].reshape(shape))
        return self.leaves[place]


class Crew:
    """Forked workers, and memory (1 + workers, size) that all share: the parameters, then each worker's gradients.

    Workers know the code as it was when they were forked, so each model, whose class may be newer, has a crew of its own.
    """

    def __init__(self, workers, size, dtype):
        shared = mmap.mmap(-1, (1 + workers) * size * dtype.itemsize)
        self.memory = np.frombuffer(shared, dtype).reshape(1 + workers, size)
        self.pipes, self.pids = [], []
        self.end = weakref.finalize(self, _end, os.getpid(), self.pids, self.pipes)  # by call, or with the crew
        for gradients in self.memory[1:]:
            here, there = Pipe()
            pid = os.fork()
            if not pid:
                here.close()
                _work(there, self.memory[0], gradients)
            there.close()
            self.pipes.append(here)
            self.pids.append(pid)

    def fits(self, workers, size, dtype):
        """Whether it has so many workers, and room for such parameters."""
        return len(self.pids) == workers and self.memory.shape[1] >= size and self.memory.dtype == dtype

    def begin(self, letter, parts):
        """Send the model, and to each worker its part: (first row, x, y, ignore_index, share)."""
        np.concatenate([leaf.data.reshape(-1) for leaf in letter.leaves], out=self.memory[0, : letter.size])
        for pipe, part in zip(self.pipes, parts, strict=True):
            pipe.send((letter.text, part))

    def finish(self, letter):
        """Wait for all; add their gradients to the parameters'; return the sum of their losses."""
        replies = [pipe.recv() for pipe in self.pipes]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        for row, (_, present) in zip(self.memory[1:], replies, strict=True):
            for leaf, gradient, there in zip(letter.leaves, letter.numbers(row), present, strict=True):
                if there:
                    leaf.add_gradient(gradient)
        return sum(loss for loss, _ in replies)


def _end(parent, pids, pipes):
    """Stop the workers, also in the middle of their work; in a child that was forked from their parent, do nothing."""
    if os.getpid() != parent:
        return
    for pipe, pid in zip(pipes, pids, strict=True):
        pipe.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _work(pipe, parameters, gradients):
    """A worker's life: a part of a batch, its loss and gradients, the next; it ends with the process that forked it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            text, (first_row, *part) = pipe.recv()
            try:
                reader = Reader(text, parameters)
                model = reader.load()
                model.place(first_row)
                loss = _loss(model, *part)
                leaves = reader.leaves.values()
                np.concatenate([_gradient(leaf) for leaf in leaves], out=gradients[: sum(leaf.size for leaf in leaves)])
                pipe.send((loss, [leaf.grad is not None for leaf in leaves]))
            except Exception as error:
                pipe.send(error)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _gradient(leaf):
    return np.zeros(leaf.size, leaf.dtype) if leaf.grad is None else leaf.grad.reshape(-1)


def _loss(model, x, y, ignore_index, share):
    """Run forward and backward on these rows; the loss, and the gradients, counted by their share of the targets."""
    if not share:
        return 0.0
    loss = cross_entropy(model(x), y, ignore_index)
    loss.backward(np.full((), share, loss.dtype))
    return loss.item() * share


def loss_and_gradients(model, x, y, ignore_index=-100):
    """Mean cross-entropy of model(x) over the targets that count, a Python float; gradients are added up in the model.

    Raises UsageError when the shapes of x and y differ, or no target counts.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise UsageError(f"targets {y.shape} do not fit inputs {x.shape}")
    counted = int((y != ignore_index).sum())
    n = min(_threads, len(x)) if CAN_FORK and counted and backend.current.name == "numpy" and tracing.active is None else 1
    letter = Letter(model) if n > 1 else None
    if n > 1:
        n = max(1, min(n, letter.size * x.size // SMALLEST))
    if n == 1:
        return _loss(model, x, y, ignore_index, 1.0)
    cuts = [len(x) * i // n for i in range(n + 1)]
    parts = []
    for first, last in itertools.pairwise(cuts):
        share = int((y[first:last] != ignore_index).sum()) / counted
        parts.append((first, x[first:last], y[first:last], ignore_index, share))
    try:
        crew = _hire(n - 1, model, letter)
        crew.begin(letter, parts[1:])
        return _loss(model, *parts[0][1:]) + crew.finish(letter)
    except (EOFError, ConnectionError) as error:
        _dismiss(model)
        raise EnvironmentFault("a worker process was killed", "is there enough memory? use fewer --threads") from error
    except BaseException:  # an answer that nobody waits for would be taken for the next one
        _dismiss(model)
        raise


def _hire(workers, model, letter):
    """The crew of this model, or a new one."""
    wanted = workers, letter.size, letter.leaves[0].dtype
    if model not in _crews or not _crews[model].fits(*wanted):
        _dismiss(model)
        if len(_crews) >= MOST:
            _dismiss(next(iter(_crews)))  # the oldest
        _crews[model] = Crew(*wanted)
    return _crews[model]
