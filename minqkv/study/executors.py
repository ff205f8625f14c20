"""Where the runs of a study are computed: on any `concurrent.futures.Executor`, named by

    (nothing)               processes of this machine, as many as --jobs
    dask://HOST:PORT        a dask cluster: the address of its scheduler
    mpi                     the processes of mpiexec -n N python -m mpi4py.futures -m minqkv study …
    MODULE:FACTORY          what FACTORY() returns

A worker gets a function of this package and a configuration, and sends back a JSON object. So it
needs the same code as the study, but no disk in common with it.
"""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from itertools import islice
from urllib.parse import urlsplit

from ..runtime import backend, distributed
from ..runtime.errors import EnvironmentFault, Exit, UsageError
from ..runtime.signals import stopping
from ..runtime.version import code_version
from .workers import processes, run_here, stop

AGAIN = 3  # how often a run is repeated after its worker was lost
CONNECT_S = 5  # when to give up on a scheduler that does not answer


def run_on(executor: str | None, jobs: int, function: Callable, items: Iterable) -> Iterator[tuple]:
    """Yield (item, function(item)) for each item, as they end.

    `executor` is a name as above, or None for `jobs` processes. An item whose worker is lost is run
    again, at most AGAIN times. If the iteration ends early, nothing is left running. Raises
    UsageError for a name that opens no executor and for work that cannot be pickled. Raises
    EnvironmentFault when an executor cannot be reached, lacks a package or loses its workers, or
    when a worker has other code.
    """
    left = {item: _pickled(function, item) for item in items}
    study = os.urandom(8)
    how = backend.current.name, backend.current.precision, backend.GpuBackend.kernels
    work = partial(run_here, study, code_version(), how)
    with _one_interrupt():
        yield from _rounds(executor, jobs, work, left, study)


def _rounds(executor, jobs, work, left, study):
    """Run all of `left` on an executor; when workers are lost, run what is left on a new one."""
    lost = Counter()
    while left:
        pool, end = _open(executor, min(jobs, len(left)), study)
        try:
            waiting = {pool.submit(work, pickled): item for item, pickled in left.items()}
            for future in as_completed(waiting):
                item, result = waiting[future], future.result()
                del left[item]
                yield item, result
            end(early=False)
        except BaseException as error:
            end(early=True)
            for missing in (error, error.__cause__):
                if isinstance(missing, ImportError):
                    why = f"a worker, or the scheduler, lacks some code: {missing}"
                    raise EnvironmentFault(why, f"install minqkv {code_version()} there") from error
            if not _means_lost(error):
                raise
            for item in islice(left, jobs):  # runs start in order: these had begun
                lost[item] += 1 + getattr(error, "allowed_failures", 0)  # dask's own repeats
            if max(lost.values()) > AGAIN:
                why = f"the same run lost its worker {AGAIN + 1} times, perhaps out of memory"
                cure = "repeat the command to continue; fewer --jobs need less memory"
                raise EnvironmentFault(why, cure) from error


def _means_lost(error):
    of_dask = type(error).__name__ in ("CommClosedError", "KilledWorker")  # without importing it
    return of_dask or isinstance(error, (BrokenExecutor, CancelledError))


def _pickled(function, item):
    try:
        return pickle.dumps((function, item))
    except Exception as error:  # PicklingError, TypeError, AttributeError, RecursionError …
        why = f"this study cannot be sent to a worker: {error}"
        raise UsageError(why, "use importable classes and functions, or --jobs 1") from error


@contextmanager
def _one_interrupt():
    """A signal to stop counts once: a second must not interrupt what the first has started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number, handler in stopping().items() if callable(handler)}

    def first(number, frame):
        for each in before:
            signal.signal(each, lambda *_: None)  # SIG_IGN would say that it came too late
        before[number](number, frame)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- executors by name: each is a pool, and a function that ends it


def _open(name, jobs, study):
    if name is None:
        return processes(jobs)
    if name == "mpi":
        return _mpi()
    if name.startswith(("dask://", "dask+")):
        protocol, _, place = name.removeprefix("dask").partition("://")
        return _dask(f"{protocol.removeprefix('+') or 'tcp'}://{place}", study)
    if ":" in name and "/" not in name:
        return _made_by(name, study)
    raise UsageError(f"unknown executor {name!r}", "known: dask://HOST:PORT, mpi, MODULE:FACTORY")


def _dask(address, study):
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise EnvironmentFault("dask is missing", "pip install 'minqkv[dask]'") from error
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # `run_on` reports what matters
    try:
        url = urlsplit(address)
        socket.create_connection((url.hostname, url.port), CONNECT_S).close()  # Client fails later
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        why = f"no dask scheduler answers at {address}: {error}"
        raise EnvironmentFault(why, "start one with: dask scheduler") from error
    pool = client.get_executor(pure=False)

    def end(early):
        with suppress(Exception):  # where the scheduler is gone, so are the runs
            pool.shutdown(wait=not early)
            if early:
                client.run(stop, study, on_error="ignore")
            client.close()

    return pool, end


def _mpi():
    world = distributed.mpi().COMM_WORLD
    if "mpi4py.futures" not in sys.orig_argv or world.size < 2:
        if world.rank:  # rank 0 reports the error: one line is enough
            sys.exit(Exit.USAGE)
        why = "--executor mpi needs mpi4py.futures and at least two processes"
        cure = "start it with: mpiexec -n 4 python -m mpi4py.futures -m minqkv study …"
        raise UsageError(why, cure)
    from mpi4py.futures import MPIPoolExecutor

    pool = MPIPoolExecutor()

    def end(early):
        if early:  # runs that have begun can only be ended together with this process
            abort = threading.Timer(1, world.Abort, [Exit.INTERRUPTED])
            abort.daemon = True
            abort.start()
        pool.shutdown(wait=not early, cancel_futures=True)

    return pool, end


def _made_by(name, study):
    module, _, factory = name.partition(":")
    try:
        pool = getattr(import_module(module), factory)()
    except Exception as error:
        raise UsageError(f"executor {name}: {type(error).__name__}: {error}") from error
    if not isinstance(pool, Executor):
        raise UsageError(f"executor {name}: {factory}() returns a {type(pool).__name__}")

    def end(early):
        stop(study)  # where its workers are threads of this process
        pool.shutdown(wait=not early, cancel_futures=True)

    return pool, end
