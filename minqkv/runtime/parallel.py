"""Several cores, by threads. NumPy releases the interpreter's lock in products and in operations on
large arrays, so a batch can be trained in shards, one in each thread.

Results differ from those of one thread in rounding only; with n threads, they depend on n alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from types import CellType, MethodType

import numpy as np

from . import backend, tracing
from .blas import blas_threads
from .errors import UsageError
from .rng import first_row

SMALLEST = 1 << 24  # parameters × tokens of a shard below which it costs more than it saves

_inside = ContextVar("inside", default=False)  # whether this code runs as one of several parts
_lock = threading.Lock()
_pool = None


def set_threads(n: int) -> None:
    """Use n cores from now on. Raises UsageError below 1.

    Training shares out a batch, evaluation its batches, decoding the sequences of a large cache;
    and large products of a decoding step use BLAS's own threads. Freed memory stays in the process
    (`tame_allocator`). `set_threads(1)` undoes everything but that.
    """
    global _pool
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    backend.tame_allocator()
    with _lock:  # threads of an old pool end with their last task
        _pool = ThreadPoolExecutor(int(n) - 1, "minqkv") if n > 1 else None
        backend.use_cores(int(n), sys.modules[__name__] if n > 1 else None)


def each(function: Callable, items: Iterable) -> list:
    """[function(item) for item in items], on all threads, with BLAS on one thread each.

    Each call runs in a copy of the caller's context: its `np.errstate`, its `no_grad`. Everything
    that has begun is waited for, even if one call raises. Called from within a part, it runs the
    items one after another.
    """
    items, pool = list(items), _pool
    parts = [partial(copy_context().run, _part, function, item) for item in items]
    if pool is None or len(items) < 2 or _inside.get() or tracing.active() is not None:
        return [part() for part in parts]
    start, futures = Start(), []
    with blas_threads(1):
        try:
            with suppress(RuntimeError):  # the interpreter shuts down: no more threads
                for part in parts[1:]:
                    futures.append(pool.submit(start.wait_for, part))
            start.say(len(futures) == len(parts) - 1)
            if not start.go:
                return [part() for part in parts]
            first = parts[0]()
            # A part that no thread has taken up yet is done here.
            rest = [
                part() if future.cancel() else future
                for part, future in zip(parts[1:], futures, strict=True)
            ]
        finally:
            start.say(False)
            _wait(futures)
        return [first, *[r.result() if isinstance(r, Future) else r for r in rest]]


class Start:
    """Lets parts begin when all of them are submitted, or tells them not to begin at all.

    So an interrupt between two submissions leaves no part behind that nobody knows of.
    """

    def __init__(self):
        self.said, self.go = threading.Event(), False

    def say(self, go):
        """Only the first call counts."""
        if not self.said.is_set():
            self.go = go
            self.said.set()

    def wait_for(self, part):
        """Run a part, or not."""
        self.said.wait()
        return part() if self.go else None


def shares(n: int) -> list[slice] | None:
    """n rows in slices, one for each thread; None where one piece is best."""
    parts = min(backend.current.threads, n)
    if parts < 2 or _inside.get() or tracing.active() is not None:
        return None
    return _slices(n, parts)


def _slices(n, parts):
    ends = [n * i // parts for i in range(parts + 1)]
    return [slice(*ends[i : i + 2]) for i in range(parts)]


def _part(function, item):
    _inside.set(True)
    return function(item)


def _wait(futures):
    """Until all have ended, also through Ctrl-C, which is raised then."""
    interrupted = None
    while True:
        try:
            wait([future for future in futures if not future.cancelled()])
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted:
        raise interrupted


# ---- a batch in shards


def in_shards(model, x: np.ndarray, run: Callable) -> list | None:
    """[run(replica, rows)] for shards of the batch x; their gradients are added to the model's.

    None where one piece is best: a small batch, or a trace that wants to see all of it, or a model
    with a part that cannot be replicated. If a shard fails, no gradient is added. What `forward`
    stores in the model stays in the replica and is lost.
    """
    tokens = x.shape[0] * x.shape[1]  # each an id, or several, or a vector
    work = sum(p.data.size for p in model.parameters()) * tokens
    n = min(backend.current.threads, len(x), work // SMALLEST)
    if n < 2 or _inside.get() or tracing.active() is not None:
        return None
    rows, leaves = _slices(len(x), n), [[] for _ in range(n)]
    try:
        replicas = [_replica(model, {}, mine) for mine in leaves]
    except Irreplicable:
        return None

    def shard(i):
        first_row.set(first_row.get() + rows[i].start)
        return run(replicas[i], rows[i])

    results = each(shard, range(n))
    for mine in leaves:  # in the order of the shards, so that the same bits come out every time
        for leaf, twin in mine:
            if twin.grad is not None:
                leaf.add_gradient(twin.grad)
    return results


class Irreplicable(Exception):
    """A part of a model that shards would share, gradients and all."""


def _replica(value, twins, leaves):
    """The same model on the same arrays: modules, containers and leaves are new, nothing else.

    `twins` maps the id of a part to its replica: a parameter with two names is one there, too.
    `leaves` gathers (leaf, its twin), whose gradients are to be added up.
    """
    if isinstance(value, _PLAIN):
        return value
    if id(value) in twins:
        return twins[id(value)]
    kind = type(value)
    if hasattr(value, "named_parameters"):
        twin = twins[id(value)] = object.__new__(kind)
        copied = [(name, _replica(v, twins, leaves)) for name, v in vars(value).items()]
        vars(twin).update(copied)
        return twin
    if hasattr(value, "requires_grad"):
        if not value.requires_grad:
            return value
        if value.node.vjp is not None:
            raise Irreplicable("the result of an operation, kept in the model")
        twin = object.__new__(kind)
        twin.data, twin.node = value.data, type(value.node)(value.dtype)  # its own gradients
        leaves.append((value, twin))
    elif kind in (list, tuple):
        twin = kind([_replica(item, twins, leaves) for item in value])
    elif kind is dict:
        twin = {key: _replica(item, twins, leaves) for key, item in value.items()}
    elif isinstance(value, MethodType):
        twin = MethodType(value.__func__, _replica(value.__self__, twins, leaves))
    elif any(map(_has_leaves, _parts_of(value))):
        raise Irreplicable(f"a {kind.__name__} that holds parameters")
    else:
        return value
    twins[id(value)] = twin
    return twin


def _parts_of(value):
    """What else may be inside: attributes, what a function closes over, items of a container."""
    cells = [c for c in getattr(value, "__closure__", None) or () if c != CellType()]  # not empty
    items = value if isinstance(value, (list, tuple, set, frozenset)) else ()
    items = value.values() if isinstance(value, dict) else items
    if isinstance(value, partial):
        items = value.func, getattr(value.func, "__self__", None), *value.args
    return [*getattr(value, "__dict__", {}).values(), *(c.cell_contents for c in cells), *items]


def _has_leaves(value):
    return hasattr(value, "named_parameters") or getattr(value, "requires_grad", False) is True


_PLAIN = int, float, str, type, type(None), np.ndarray  # what has no parts, and is met most


def _after_fork():
    """A child has none of its parent's threads."""
    global _pool, _lock
    _lock = threading.Lock()
    if _pool is not None:
        _pool = ThreadPoolExecutor(backend.Backend.threads - 1, "minqkv")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
