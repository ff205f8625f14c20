"""What the GPU measurements need to know of a GPU, and the one of this machine.

Tests hand in a stand-in, so that all of bench.gpu runs without a GPU.
"""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from minqkv.runtime import backend

from .sizes import SIZES, Size


def _nothing(*_):
    pass


STEPS = SIZES | {
    "d 1024": Size(V=50304, T=1024, d=1024, L=4, H=16, B=4),
    "300M": Size(V=50304, T=2048, d=1024, L=20, H=16, B=4),  # the paper's smaller model
}
OPERATIONS = Size(V=16384, T=1024, d=1024, L=1, H=16, B=4)
DECODE = Size(V=16384, T=0, d=1024, L=4, H=16, B=1)  # T is the context


@dataclass
class Sizes:
    """How much is measured; the defaults are for a large GPU and a few minutes."""

    rounds: int = 7
    least: float = 0.05  # seconds a sample
    ops: Size = OPERATIONS
    steps: dict = field(default_factory=STEPS.copy)
    decode: Size = DECODE
    contexts: tuple = (2048, 8192, 32768)
    variants: tuple = ("qkv", "q-k=v", "q-mqa")
    copy: int = 1 << 28  # numbers of 4 bytes
    product: int = 8192  # rows and columns
    pytest: tuple = ("-m", "gpu")


@dataclass
class Card:
    """A GPU.

    `backend` is where minqkv computes, `wait` returns when all that was asked of the device is
    done, `torch` is PyTorch if it can use the device `torch_device`, else None. `tf32(on)` switches
    both libraries, `release()` gives cached memory back.
    """

    backend: str
    wait: Callable
    description: dict
    torch: object = None
    torch_device: str = "cuda"
    tf32: Callable = _nothing
    release: Callable = _nothing
    sizes: Sizes = field(default_factory=Sizes)

    def seconds(self, function, calls=1):
        """Seconds a call, averaged over `calls`, on a clock read while the device is idle."""
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            function()
        self.wait()
        return (time.perf_counter() - began) / calls

    def timing(self):
        """Arguments of `common.interleaved`."""
        sizes = self.sizes
        return {"rounds": sizes.rounds, "least": sizes.least, "rest": 0, "timer": self.seconds}

    def to_torch(self, array):
        """A NumPy array as a PyTorch tensor on the device; None without PyTorch."""
        return self.torch and self.torch.from_numpy(array).to(self.torch_device)


def this_machine():
    """The GPU of this machine. Raises EnvironmentFault where there is none to use."""
    with backend.use_backend("cupy"):  # refuses, and says why
        import cupy
    torch = _torch()
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    description = {
        "gpu": properties["name"].decode(),
        "gpu_memory_GiB": round(properties["totalGlobalMem"] / 2**30, 1),
        "multiprocessors": properties["multiProcessorCount"],
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver": _driver(),
        "cuda_of_driver": runtime.driverGetVersion(),
        "cuda_of_cupy": runtime.runtimeGetVersion(),
        "cuda_of_torch": torch and torch.version.cuda,
        "cupy": cupy.__version__,
        "torch": torch and torch.__version__,
    }

    def tf32(on):
        from cupy._core import _routines_linalg as linalg  # CUPY_TF32 is read once, at the start

        default, fast = 1, 7
        linalg.set_compute_type("float32", fast if on else default)
        if torch:
            torch.backends.cuda.matmul.allow_tf32 = on

    def release():
        cupy.get_default_memory_pool().free_all_blocks()
        if torch:
            torch.cuda.empty_cache()

    return Card("cupy", runtime.deviceSynchronize, description, torch, "cuda", tf32, release)


def _torch():
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _driver():
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
    return None
