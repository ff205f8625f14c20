"""Random streams keyed by (seed, purpose, name or step). All randomness is drawn here, on the host.

A stream depends on its key alone: not on what was drawn before, nor on the backend, nor on the
number of threads or processes. So two variants share the start of every parameter they share, and a
resumed run needs no generator state.
"""

from __future__ import annotations

import zlib
from contextvars import ContextVar

import numpy as np

step = ContextVar("step", default=None)  # the Step of the forward pass at hand; None outside
first_row = ContextVar("first_row", default=0)  # of a batch: where the shard at hand begins


class Step:
    """A training step: its number, and whether dropout has drawn masks for it."""

    def __init__(self, n: int):
        self.n, self.drawn = n, False


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A fresh generator for this key; strings are hashed (CRC-32), so the same words give the same
    numbers everywhere.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(seed), *words])))


def skip(rng: np.random.Generator, n: int) -> None:
    """Take a fresh generator past its first n float32 numbers, without drawing them."""
    rng.bit_generator.advance(n // 2)  # one 64-bit number makes two of them
    rng.random(n % 2, dtype=np.float32)
