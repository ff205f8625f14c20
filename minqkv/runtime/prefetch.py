"""Batches made and uploaded ahead of the step: while a GPU computes on one, the next one comes.

A second thread makes it, since the first waits for the device at the end of each step. It uploads
on a second CUDA stream, so that copies, from pinned memory, run while the first stream computes.
Then `Backend.upload` finds the numbers on the device. Two rules keep this safe:

- Computing waits, on the device, for the copy that it reads.
- The memory of the copies is read by `found` alone, which copies once more, on the device. So a
  later upload, which may get that memory again, waits for what was computed before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import copy_context

import numpy as np


def ahead(gpu, batches: Iterable[tuple]) -> Iterator[list]:
    """Yield each batch, its arrays as copies that are read-only; the next one is made meanwhile."""
    from concurrent.futures import ThreadPoolExecutor  # here: the host needs none of it

    batches, here = iter(batches), gpu.xp.cuda.get_current_stream
    gpu.beside = beside = gpu.beside or gpu.xp.cuda.Stream(non_blocking=True)

    def make(read):
        if (batch := next(batches, None)) is None:
            return None
        batch = [_copy(part) for part in batch]
        with beside:
            beside.wait_event(read)
            numbers = [part for part in batch if part.size and part.dtype.kind in "iuf"]
            early = [(part, gpu.xp.asarray(part.reshape(-1))) for part in numbers]
            return batch, early, beside.record()

    with ThreadPoolExecutor(1, "minqkv-ahead") as thread:
        coming = thread.submit(copy_context().run, make, here().record())
        try:
            while (made := coming.result()) is not None:
                batch, gpu.early, copied = made
                here().wait_event(copied)
                coming = thread.submit(copy_context().run, make, here().record())
                yield batch
        finally:
            gpu.early = []


def _copy(array):
    """A task may use its array again; and nobody changes a number that is on the device already."""
    array = np.array(array, order="C")
    array.flags.writeable = False
    return array


def found(gpu, array, dtype):
    """A host array on the device, if it is a part of a batch that was uploaded early; else None."""
    if not gpu.early or not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return None
    for part, on_device in gpu.early:
        start = array.ctypes.data - part.ctypes.data  # bytes
        inside = 0 <= start <= part.nbytes - array.nbytes and array.size
        if inside and array.dtype == part.dtype and dtype in (None, part.dtype):
            first = start // part.itemsize
            return on_device[first : first + array.size].reshape(array.shape).copy()
    return None
