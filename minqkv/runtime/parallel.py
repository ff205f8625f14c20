"""Several cores, by threads. NumPy releases the interpreter's lock in products and in operations on
large arrays, so a batch can be trained in shards, one in each thread.

Results differ from those of one thread in rounding only; with n threads, they depend on n alone.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

import numpy as np
import threadpoolctl

from . import backend, tracing
from .errors import UsageError
from .rng import first_row

SMALLEST = 1 << 24  # parameters × tokens of a shard below which it costs more than it saves

_inside = ContextVar("inside", default=False)  # whether this code runs as one of several parts
_lock = threading.Lock()
_pool = None


def set_threads(n):
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


def each(function, items):
    """[function(item) for item in items], on all threads, with BLAS on one thread each.

    Each call runs in a copy of the caller's context: its `np.errstate`, its `no_grad`. Everything
    is waited for, whatever is raised. Inside of another part, they run one after another.
    """
    items, pool = list(items), _pool
    if pool is None or len(items) < 2 or _inside.get():
        return [function(item) for item in items]
    contexts = [copy_context() for _ in items]
    with blas_threads(1):
        futures = [
            pool.submit(context.run, _part, function, item)
            for context, item in zip(contexts[1:], items[1:], strict=True)
        ]
        try:
            first = contexts[0].run(_part, function, items[0])
        finally:
            _wait(futures)
        return [first, *[future.result() for future in futures]]


def shares(n):
    """n rows in slices, one for each thread; None where one piece is best."""
    parts = min(backend.current.threads, n)
    if parts < 2 or _inside.get() or tracing.active is not None:
        return None
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
            wait(futures)
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted:
        raise interrupted


# ---- a batch in shards


def in_shards(model, x, run):
    """[run(replica, rows)] for shards of the batch x; their gradients are added to the model's.

    None where one shard is best: a small batch, or a trace that wants to see all of it. If a shard
    fails, no gradient is added.
    """
    parameters = {id(p): p for p in model.parameters()}.values()  # a tied one has two names
    work = sum(p.data.size for p in parameters) * x.size
    n = min(backend.current.threads, len(x), work // SMALLEST)
    if n < 2 or _inside.get() or tracing.active is not None:
        return None
    ends = [len(x) * i // n for i in range(n + 1)]
    twins = [{} for _ in range(n)]  # of each shard: id of a part of the model -> its own part
    replicas = [_replica(model, mine) for mine in twins]

    def shard(i):
        first_row.set(first_row.get() + ends[i])
        return run(replicas[i], slice(ends[i], ends[i + 1]))

    results = each(shard, range(n))
    for p in parameters:
        for mine in twins:  # in the order of the shards, so that the same bits come out every time
            twin = mine.get(id(p))  # none where no gradient is required
            if twin is not None and twin.grad is not None:
                p.add_gradient(twin.grad)
    return results


def _replica(value, twins):
    """The same model on the same arrays: modules, lists and parameters are new, nothing else."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in twins:
        return twins[id(value)]  # a tied parameter is one parameter there, too
    kind = type(value)
    if hasattr(value, "named_parameters"):
        twin = twins[id(value)] = object.__new__(kind)
        vars(twin).update([(name, _replica(v, twins)) for name, v in vars(value).items()])
    elif hasattr(value, "requires_grad") and value.requires_grad:
        twin = object.__new__(kind)
        twin.data, twin.node = value.data, type(value.node)()  # gradients of its own
    elif kind in (list, tuple):
        twin = kind([_replica(item, twins) for item in value])
    elif kind is dict:
        twin = {key: _replica(item, twins) for key, item in value.items()}
    else:
        return value
    twins[id(value)] = twin
    return twin


_PLAIN = int, float, str, type(None), type(lambda: None)  # what has no parts, and is met most


# ---- BLAS's own threads


_libraries = None  # found once: the BLAS that NumPy uses
_asked = {}  # who asks for how many; the fewest win
_before = []  # what each library had before anybody asked


@contextmanager
def blas_threads(n):
    """BLAS on n threads inside, on fewer while anybody asks for fewer; at the end as it was."""
    me = object()
    try:
        with _lock:
            _asked[me] = n
            _apply()
        yield
    finally:
        with _lock:
            _asked.pop(me, None)
            _apply()


def _apply():
    global _libraries, _before
    if _libraries is None:
        found = threadpoolctl.ThreadpoolController().select(user_api="blas")
        _libraries = found.lib_controllers
    if not _before:
        _before = [library.num_threads for library in _libraries]
    for library, before in zip(_libraries, _before, strict=True):
        wanted = min(_asked.values(), default=before)
        if library.num_threads != wanted:
            library.set_num_threads(wanted)
    if not _asked:
        _before = []


def _after_fork():
    """A child has none of its parent's threads."""
    global _pool, _lock
    _lock = threading.Lock()
    _asked.clear()
    if _pool is not None:
        _pool = ThreadPoolExecutor(backend.Backend.threads - 1, "minqkv")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
