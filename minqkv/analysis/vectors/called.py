"""A user's function, called with arrays, in a separate process.

There it may print, end the process, or never return: the command goes on, and says so in one line.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ...runtime.errors import MinqkvError, UsageError

START_S = 120  # to load the function, with all that it imports


class Fault(Exception):
    """What is wrong with a function, in one line."""


class Gone(Fault):
    """It has not ended in time, or has ended the process: calling it again would take as long."""


def answer(function: Callable, given: dict, about: dict) -> dict[str, np.ndarray] | None:
    """What it returns, as NumPy arrays. Raises Fault."""
    before = {name: array.copy() for name, array in given.items()}
    try:
        found = function(given, about)
    except NotImplementedError:
        return None
    except (Exception, SystemExit) as error:
        says = [type(error).__name__, *str(error).splitlines()[:1]]
        raise Fault(f"it raises {': '.join(says)}") from error
    for name, array in before.items():
        if name not in given or not np.array_equal(array, given[name]):
            raise Fault(f"it changes its input {name!r}")
    if found is None or isinstance(found, dict):
        return found and {str(name): as_numpy(name, array) for name, array in found.items()}
    raise Fault(f"it returns {type(found).__name__}; a dict of arrays is needed, or None")


def as_numpy(name, array) -> np.ndarray:
    """An array of NumPy, PyTorch, CuPy or this package on the host. Raises Fault."""
    given = array
    with suppress(Exception):
        array = array.detach() if hasattr(array, "detach") else array
        array = array.cpu() if hasattr(array, "cpu") else array  # PyTorch
        array = array.data if hasattr(array, "node") else array  # minqkv.Tensor
        array = array.get() if hasattr(array, "get") else array  # CuPy
        array = np.asarray(array)
        if array.dtype.kind in "fiub":
            return array
    what = f"one of {given.dtype}" if hasattr(given, "dtype") else type(given).__name__
    raise Fault(f"{name!r} is not an array of numbers, but {what}")


class Called:
    """The function that `load()` gives, in a new process; `with` ends the process. Raises Gone if a
    call takes longer than `limit` seconds. `printed`: it has written to stdout or stderr.
    """

    def __init__(self, load: Callable, limit: float = 60.0):
        self.load, self.limit, self.printed = load, limit, False

    def __enter__(self):
        spawn = multiprocessing.get_context("spawn")  # a fork could not use a GPU
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, self.load), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self._reply(START_S)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, Gone):
                raise UsageError(f"the module of the function cannot be loaded: {error}") from None
            raise
        return self

    def __exit__(self, *about):
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def __call__(self, given, about):
        return self._reply(self.limit, given, about)

    def _reply(self, limit, *question):
        try:
            if question:
                self.pipe.send(question)
            if not self.pipe.poll(limit):
                raise Gone(f"it has not ended after {limit:g} s")
            kind, value, printed = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise Gone(f"it ends its process, with exit code {code}") from None
        self.printed |= printed
        if kind == "ok":
            return value
        raise value


class _Silent(io.TextIOBase):
    """Takes what is printed, and keeps only that something was."""

    used = False

    def write(self, text):
        self.used |= bool(text)
        return len(text)


def _serve(pipe, load):
    """In the new process: load the function, then answer one call after another."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.stdout = sys.stderr = silent = _Silent()

    def tried(call, *args):
        try:
            return "ok", call(*args)
        except (Fault, MinqkvError) as error:
            return "error", error

    kind, function = tried(load)
    pipe.send((kind, None if kind == "ok" else function, silent.used))
    with suppress(EOFError):  # the command has ended
        while kind == "ok":
            pipe.send((*tried(answer, function, *pipe.recv()), silent.used))


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
