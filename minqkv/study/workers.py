"""What happens in a worker of a study, and workers that are processes of this machine."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.context import SpawnContext

from ..runtime import backend
from ..runtime.blas import blas_threads
from ..runtime.errors import EnvironmentFault
from ..runtime.signals import stopping
from ..runtime.version import code_version

_running = {}  # thread -> the study for which it computes a run


class Stopped(Exception):
    """Raised inside a run whose study has ended."""


def run_here(study: bytes, code: str, how: tuple[str, str, bool], pickled: bytes) -> dict:
    """The function(item) that was pickled, with BLAS on one thread. `how` is the study's backend,
    its precision, and whether it uses kernels. Raises EnvironmentFault when this worker's code
    differs from the study's, or it lacks the backend or the memory.
    """
    name, precision, kernels = how
    where = f"the worker on {socket.gethostname()}"
    if code_version() != code:
        why = f"{where} has minqkv {code_version()}, the study has {code}"
        raise EnvironmentFault(why, "install the same version on both")
    try:
        backend.set_backend(name)
        backend.use_precision(precision)
        backend.use_kernels(kernels)
    except Exception as error:
        raise EnvironmentFault(f"{where} cannot use {name}: {error}") from error
    _running[threading.get_ident()] = study
    try:
        function, item = pickle.loads(pickled)  # not earlier: other code may lack their classes
        with blas_threads(1):
            return function(item)
    except Exception as error:
        full = backend.out_of_memory(error)
        if full is None:
            raise
        cure = "finished runs are kept; repeat the command with fewer --jobs"
        raise EnvironmentFault(f"{where}: {full}", cure) from error
    finally:
        del _running[threading.get_ident()]


def stop(study: bytes) -> None:
    """Raise Stopped in those threads of this process that compute a run of the study."""
    for thread in [thread for thread, its_study in list(_running.items()) if its_study == study]:
        stopped = ctypes.py_object(Stopped)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), stopped)


class _Spawn(SpawnContext):
    """Fresh processes, each of them noted in `started`."""

    def Process(self, *args, **options):
        self.started.append(super().Process(*args, **options))
        return self.started[-1]


def processes(jobs: int) -> tuple[Executor, Callable]:
    """A pool of processes, one core each, and a function that ends them. The function raises
    EnvironmentFault when a process has ended with its own exit code.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)  # a worker that imports the script it belongs to, which starts the study again
    spawn = _Spawn()
    spawn.started = []
    pool = ProcessPoolExecutor(jobs, spawn, initializer=_start)

    def end(early):
        for process in spawn.started if early else ():
            if process.is_alive():
                process.kill()  # also one that was halted; a worker leaves nothing half done
        pool.shutdown(cancel_futures=True)
        code = max((process.exitcode or 0 for process in spawn.started), default=0)
        if code > 0:  # negative: ended by a signal
            why = f"a worker process ended on its own, with exit code {code}"
            cure = 'a script must start a study under `if __name__ == "__main__":`'
            raise EnvironmentFault(f"{why}; {cure}", "its workers import the script, too")

    return pool, end


def _start():
    for number in stopping().keys() - {signal.SIGTERM}:  # these reach all processes of a terminal
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
