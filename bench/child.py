"""One measurement of memory in a separate process: `python -m bench.child TASK`, the answer as
JSON on the last line.

The baseline is what is resident once the library has run a tiny model and the parameters of the
real one exist; the answer is how far the peak rises above it. minqkv runs a second time under
tracemalloc, which NumPy reports to.
"""

import ctypes
import gc
import json
import platform
import re
import resource
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import minqkv as mq

from .caches import contents, decoding, filled, new_ids
from .common import use_threads
from .sizes import Size

STEPS = 3
TINY = Size(8, 8, 8, 1, 4, 2)


def main():
    task = json.loads(sys.argv[1])
    if task["limit_GiB"]:
        limit = int(task["limit_GiB"] * 2**30)
        with suppress(ValueError, OSError):  # a system without such a limit: the time is bounded
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    use_threads(task["threads"])
    if task["engine"] == "minqkv":
        engine = Ours(task.get("recompute", False))
    else:
        engine = Torch(task["engine"], task["threads"])
    work = getattr(engine, task["kind"])
    try:
        answer = growth(
            work,
            engine.model(TINY, task["variant"]),
            lambda: engine.model(Size(*task["size"]), task["variant"]),
        )
        if engine.traced:
            answer["traced"] = traced_growth(
                work, lambda: engine.model(Size(*task["size"]), task["variant"])
            )
    except (MemoryError, RuntimeError) as error:  # PyTorch raises the latter
        answer = {"failed": f"{type(error).__name__} {error}".strip().splitlines()[0]}
    print(json.dumps(answer))


class Ours:
    """minqkv."""

    traced = True

    def __init__(self, recompute):
        self.recompute = recompute

    def model(self, size, variant):
        """(size, model): what is there before the measurement starts."""
        return size, mq.GPT(size.config(variant, recompute=self.recompute))

    def step(self, size, model):
        """Make the optimiser, take some training steps."""
        optimizer = mq.AdamW(model.parameters(), lr=1e-3)
        for _ in range(STEPS):
            mq.train_step(model, optimizer, *size.batch())

    def decode(self, size, model):
        """Fill a cache, decode the last position."""
        decoding(model, filled(model, size), size)()


class Torch:
    """PyTorch with a kind of attention, and its fused AdamW."""

    traced = False

    def __init__(self, attention, threads):
        import torch

        torch.set_num_threads(threads)
        from . import torch_gpt

        self.twin, self.attention = torch_gpt, attention

    def model(self, size, variant):
        source = mq.GPT(size.config(variant))
        return size, self.twin.GPT(source, self.attention), source

    def step(self, size, model, source):
        step = self.twin.training(model, True, *size.batch())
        for _ in range(STEPS):
            step()

    def decode(self, size, model, source):
        cache = self.twin.Cache(model, size.B, size.T).fill(contents(source, size))
        self.twin.decoding(model, cache, new_ids(size))()


def growth(work, tiny, make):
    """{"resident": bytes} by which `work(*make())` raises the peak of what is resident above what
    it found.
    """
    work(*tiny)
    given = make()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux: start the high-water mark afresh
        Path("/proc/self/clear_refs").write_text("5")
    before = resident()[0]
    work(*given)
    return {"resident": resident()[1] - before}


def traced_growth(work, make):
    """The same by tracemalloc: exact, and blind to what the allocator wastes."""
    tracemalloc.start()
    given = make()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    work(*given)
    return tracemalloc.get_traced_memory()[1] - before


def resident():
    """(now, peak) in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return [
            1024 * int(re.search(rf"{field}:\s*(\d+)", status.read_text())[1])
            for field in ("VmRSS", "VmHWM")
        ]
    unit = 1 if sys.platform == "darwin" else 1024
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit] * 2


if __name__ == "__main__":
    main()
