"""Random streams keyed by (seed, purpose, name or step). All randomness is drawn here, on the host.

A stream depends on its key alone: not on what was drawn before, nor on the backend, nor on how many processes work.
So two variants share the start of every parameter they share, and a resumed run needs no generator state.
"""

import zlib

import numpy as np


def stream(seed, *key):
    """A fresh generator for this key; strings are hashed (CRC-32), so the same words give the same numbers everywhere."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(seed), *words])))
