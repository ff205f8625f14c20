"""One model trained by several processes, on one machine or on many: each computes its own rows of
every batch, and MPI adds up the flat gradient over all of them.

    mpiexec -n 4 minqkv train … --distributed mpi

Every rank builds the same model and draws the same batch, since both depend on the configuration
and the step alone. So only gradients and losses are sent, and all ranks make the same step. The
result equals that of one process with the whole batch, up to rounding. With the same number of
ranks, it is the same to the bit.
"""

import signal
import time
from contextlib import contextmanager

from . import backend
from .errors import EnvironmentFault, MinqkvError, UsageError
from .rng import first_row
from .version import code_version

_comm = None  # MPI's communicator, inside `ranks`


def mpi():
    """mpi4py.MPI, with MPI started. Raises EnvironmentFault where it cannot be used."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library was found
        raise EnvironmentFault("MPI is missing", "pip install 'minqkv[mpi]' mpich") from error
    return MPI


@contextmanager
def ranks():
    """Train on all processes that mpiexec has started; yields MPI's communicator.

    When one rank fails, all of them end: rank 0 with its own error, another with an
    EnvironmentFault that names it. Ctrl-C and SIGTERM are left to rank 0, which saves. Raises
    UsageError for a single process, EnvironmentFault when the ranks differ in code or backend.
    """
    global _comm
    comm = mpi().COMM_WORLD
    if comm.size < 2:
        raise UsageError("--distributed mpi needs several processes", "mpiexec -n 2 minqkv train …")
    try:
        _comm = comm
        for number in (signal.SIGINT, signal.SIGTERM) if comm.rank else ():
            signal.signal(number, signal.SIG_IGN)
        found = set(comm.allgather(f"{code_version()} on {backend.current.name}"))
        if len(found) > 1:
            raise EnvironmentFault(f"the ranks run different code: {', '.join(sorted(found))}")
        yield comm
    except BaseException as error:
        from mpi4py.run import set_abort_status

        # This process ends the others too: otherwise they would wait for it forever.
        set_abort_status(int(error.code) if isinstance(error, MinqkvError) else error)
        if comm.rank:
            time.sleep(1)  # if all ranks fail alike, rank 0 reports it, and ends this one
            why = f"rank {comm.rank} of {comm.size} failed: {error!r}"
            raise EnvironmentFault(why, "continue it with --resume") from error
        raise
    finally:
        _comm = None


@contextmanager
def own_rows(begin: int, end: int):
    """Which of these rows of a batch this rank computes: all of them, if it is the only process.
    Dropout masks drawn inside are the ones these rows have in the whole batch.
    """
    size, rank = (_comm.size, _comm.rank) if _comm else (1, 0)
    rows = slice(*[begin + (end - begin) * part // size for part in (rank, rank + 1)])
    before = first_row.set(first_row.get() + rows.start)
    try:
        yield rows
    finally:
        first_row.reset(before)


def add_up(array: backend.Array) -> None:
    """Replace an array by its sum over all ranks, the same bits on each of them."""
    if _comm:
        host = backend.to_host(array)  # with NumPy, the array itself
        _comm.Allreduce(mpi().IN_PLACE, host)
        array[...] = backend.upload(host)


def total(value: float) -> float:
    """The sum of a number over all ranks, the same bits on each of them."""
    return _comm.allreduce(value) if _comm else value


def same_start(optimizer, start: int) -> int:
    """Give every rank the weights and the state of rank 0's optimiser; returns rank 0's `start`.
    So a checkpoint has to be on the disk of rank 0 only.
    """
    if _comm:
        data, state = _comm.bcast((backend.to_host(optimizer.data), optimizer.state_dict()))
        optimizer.data[...] = backend.upload(data)
        optimizer.load_state_dict(state)
    return _comm.bcast(start) if _comm else start
