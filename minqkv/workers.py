"""Worker processes: forked once, they answer questions about a model whose numbers lie in memory that all share.

A question carries the model as it is (a Letter: everything but the numbers of its parameters) and a part of the work.
"""

import io
import math
import mmap
import os
import pickle
import signal
import threading
import traceback
import weakref
from contextlib import contextmanager, suppress
from multiprocessing import Pipe

import numpy as np

from .errors import EnvironmentFault, UsageError
from .nn import Parameter
from .tensor import Tensor


class Letter(pickle.Pickler):
    """A model in bytes, without the numbers of its parameters: each is only named, by where they begin and its shape."""

    def __init__(self, model):
        self.leaves, self.places, self.size = [], [], 0
        file = io.BytesIO()
        super().__init__(file, protocol=5)
        try:
            self.dump(model)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(f"this model cannot be sent to other processes: {error}", "mq.set_threads(1)") from error
        self.text = file.getvalue()

    def reducer_override(self, item):
        """What stands for a parameter, once for each: `leaf(where its numbers begin, shape)`. Anything else is written out."""
        if not isinstance(item, Tensor) or not item.requires_grad:
            return NotImplemented
        self.leaves.append(item)
        self.places.append((self.size, item.shape))
        self.size += item.size
        return leaf, self.places[-1]

    def numbers(self, row):
        """For each parameter, its part of an array (size,), in its shape."""
        return [_part(row, *place) for place in self.places]


class Reader(pickle.Unpickler):
    """The model of a letter, its parameters on these numbers."""

    def __init__(self, text, numbers):
        super().__init__(io.BytesIO(text))
        self.numbers, self.leaves = numbers, []

    def find_class(self, module, name):
        """What a name in a letter means."""
        return self._leaf if (module, name) == (__name__, "leaf") else super().find_class(module, name)

    def _leaf(self, start, shape):
        self.leaves.append(Parameter(_part(self.numbers, start, shape)))
        return self.leaves[-1]


def leaf(start, shape):
    """A parameter, as a letter names it; only a Reader knows its numbers."""
    raise TypeError("a letter is read by a Reader")


def _part(row, start, shape):
    return row[start : start + math.prod(shape)].reshape(shape)


@contextmanager
def undisturbed():
    """Ctrl-C and SIGTERM wait: a fork and the note of it, or a kill and the wait for it, happen whole.

    Not by a mask: a signal that another thread of the process takes would still be raised in the main one.
    """
    arrived, before = [], {}
    if threading.current_thread() is threading.main_thread():  # Python raises nothing in others
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))}
    for number in before:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in set(arrived):
            signal.raise_signal(number)


@contextmanager
def _connected():
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise EnvironmentFault("a worker process was killed", "is there enough memory? use fewer --threads") from error


class Crew:
    """Forked workers, and memory (1 + workers, size) that all share: the parameters, then each worker's gradients.

    A worker computes `work(model, *part)`, a number; the gradients are what it leaves in the model. It heeds no Ctrl-C and
    no SIGTERM: both reach the whole group, and the parent decides. Make a crew inside `undisturbed`.
    """

    def __init__(self, work, workers, size, dtype):
        shared = mmap.mmap(-1, (1 + workers) * size * dtype.itemsize)
        self.memory = np.frombuffer(shared, dtype).reshape(1 + workers, size)
        self.pipes, self.pids, self.busy = [], [], False
        self.end = weakref.finalize(self, _end, os.getpid(), self.pids, self.pipes)  # by call, or with the crew
        for gradients in self.memory[1:]:
            here, there = Pipe()
            try:
                pid = os.fork()
            except OSError as error:
                raise EnvironmentFault(f"no worker process could be started: {error}", "use fewer --threads") from error
            if not pid:
                _live(there, here, work, self.memory[0], gradients)
            there.close()
            self.pipes.append(here)
            self.pids.append(pid)

    def fits(self, workers, size, dtype):
        """Whether it has so many workers, room for such parameters, and no answers that nobody has read."""
        room = self.memory.shape[1] >= size and self.memory.dtype == dtype
        return len(self.pids) == workers and room and not self.busy

    def ask(self, letter, parts):
        """Send the model, and to each worker its part."""
        self.busy = True
        np.concatenate([p.data.reshape(-1) for p in letter.leaves], out=self.memory[0, : letter.size])
        with _connected():
            for pipe, part in zip(self.pipes, parts, strict=True):
                pipe.send((letter.text, part))

    def answers(self, letter):
        """Wait for all; add their gradients to the parameters'; return their numbers. Raises what a worker raised."""
        with _connected():
            replies = [pipe.recv() for pipe in self.pipes]
        self.busy = False
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        for row, (_, present) in zip(self.memory[1:], replies, strict=True):
            for p, gradient, there in zip(letter.leaves, letter.numbers(row), present, strict=True):
                if there:
                    p.add_gradient(gradient)
        return [number for number, _ in replies]


def _end(parent, pids, pipes):
    """Stop the workers, also in the middle of their work; in a child that was forked from their parent, do nothing."""
    if os.getpid() != parent:
        return
    with undisturbed():
        for pipe, pid in zip(pipes, pids, strict=True):
            pipe.close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _live(pipe, parents_end, work, parameters, gradients):
    """A worker's life: a question, the answer, the next question; it ends with the process that forked it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        parents_end.close()
        while True:
            text, part = pipe.recv()
            pipe.send(_answer(work, text, part, parameters, gradients))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _answer(work, text, part, parameters, gradients):
    """(number, which parameters got a gradient), the gradients written where they belong; or the error that came."""
    try:
        reader = Reader(text, parameters)
        number = work(reader.load(), *part)
        flat = [np.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in reader.leaves]
        np.concatenate(flat, out=gradients[: sum(map(len, flat))])
        return number, [p.grad is not None for p in reader.leaves]
    except BaseException as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
