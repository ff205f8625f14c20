"""Where arrays live: NumPy on the host or CuPy on a GPU. The only file that knows which.

Other modules write `backend.xp.exp(x)`: the attribute is looked up at each call, so that a switch
takes effect at once; never `from .backend import xp`. What the two libraries do differently, or
what several cores do faster, is a method of `Backend`, with one meaning: all its public names can
be reached as `backend.name`. A method that may be faster returns None where it is not, and the
readable lines of the caller follow.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial

import numpy as np

from ..kernels import FILES, Kernels, argument, first_line, options, source
from ..kernels.products import PRECISIONS, gemm, multiply
from . import prefetch
from .errors import EnvironmentFault, UsageError, unknown
from .scoped import scoped
from .shown import size_text

Array = np.ndarray  # in type hints: an array of the backend in use, so cupy.ndarray on a GPU

LARGE_CACHE = 1 << 26  # bytes from which the sequences of a batch are shared out to the cores
PIECE = 1 << 17  # numbers of an array that are worked on while they are in a core's cache
LARGE_PASS = 1 << 18  # numbers from which several cores work on an array, piece by piece
LARGE_PRODUCT = 1 << 22  # multiply-adds from which BLAS's own threads pay
FULL = "ErrorMemoryAllocation", "ERROR_OUT_OF_MEMORY", "STATUS_ALLOC_FAILED"  # in other errors


@lru_cache(64)
def ones(n: int, dtype) -> Array:
    """(n,) ones, read-only."""
    array = np.ones(n, dtype)
    array.flags.writeable = False
    return array


class Backend(Kernels):
    """NumPy. The methods are all that this package asks of an array library beyond the shared `xp`
    functions.
    """

    name = "numpy"
    on_host = True  # in this process's memory, computed on its cores
    threads, cores = 1, None  # how many cores, and what uses them: set by parallel.set_threads
    graphs = 0  # recorded so far
    precision = "fp32"  # of products
    xp = np
    ndarray = np.ndarray

    @property
    def label(self) -> str:
        """What results depend on: the name, and the precision of products if it is not "fp32"."""
        return self.name if self.precision == "fp32" else f"{self.name} {self.precision}"

    def upload(self, array, dtype=None) -> Array:
        """A host array (or list, or number) as an array of this backend; no copy where none is
        needed.
        """
        return np.asarray(array, dtype)

    def shared(self, array: np.ndarray) -> Array:
        """Like `upload`, for positions and slots, not to be written to: all layers of a step need
        the same ones, and on a GPU one copy serves them all.
        """
        return array

    def empty(self, shape: tuple, dtype) -> Array:
        """An array that will be read many times: it begins at a cache line, so that its rows span
        as few cache lines as possible.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        whole = np.empty(size + 64, np.uint8)
        start = -whole.ctypes.data % 64
        return whole[start : start + size].view(dtype).reshape(shape)

    def to_host(self, array: Array) -> np.ndarray:
        """An array of this backend as a NumPy array. On a GPU this waits for the device."""
        return array

    def bmm(self, a: Array, b: Array) -> Array:
        """Product over the last two axes: (..., n, k) @ (..., k, m). The leading ones broadcast."""
        return np.matmul(a, b)

    def converted(self, a: Array, dtype) -> Array:
        """An array in another dtype. From float16 to float32 this is several times faster than
        NumPy's own conversion. The bits of a number are moved to their places in float32, and a
        factor of 2^112 corrects the exponent, whose bias is 15 in float16 and 127 in float32.
        """
        if a.dtype != "float16" or dtype != "float32":
            return a.astype(dtype)
        bits = a.view("int16").astype("int32")  # the sign is repeated in the upper half
        bits <<= 13
        bits &= -0x70002000  # 1000 1111 1111 1111 1110 0000 ...: sign, exponent and fraction
        found = bits.view("float32")
        found *= np.float32(2.0**112)
        if a.size and max(found.max(), -found.min()) >= 65536:  # infinite, or not a number
            return a.astype(dtype)
        return found

    def row_sum(self, a: Array) -> Array:
        """Sums over the last axis, kept: (..., n) -> (..., 1). A product with ones: several times
        faster on short rows.
        """
        n = a.shape[-1]
        if a.size <= 1024:  # NumPy's own sum has less to set up
            return np.add.reduce(a, axis=-1, keepdims=True)
        return (a.reshape(-1, n) @ ones(n, a.dtype)).reshape(*a.shape[:-1], 1)

    def column_sum(self, a: Array) -> Array:
        """Sums over all axes but the last: (..., n) -> (n,)."""
        flat = a.reshape(-1, a.shape[-1])
        return ones(flat.shape[0], a.dtype) @ flat

    def row_dot(self, a: Array, b: Array) -> Array:
        """Inner products of matching rows, kept as an axis: (..., n), (..., n) -> (..., 1)."""
        if a.shape[-1] < 32:  # a call of BLAS for each row does not pay
            return np.einsum("...i,...i->...", a, b)[..., None]
        return np.vecdot(a, b, keepdims=True)

    def masked(self, a: Array, mask: Array) -> Array:
        """`a` where `mask` holds, else 0. Of finite numbers that is their product, which is many
        times faster than np.where.
        """
        with np.errstate(invalid="ignore"):  # 0 times infinity
            out = a * mask
        return out if np.isfinite(out).all() else np.where(mask, a, a.dtype.type(0))

    def visible(self, mask: Array) -> int:
        """How many columns of a boolean mask (t, S) matter: up to the last that is ever True."""
        return mask.shape[1] - int(mask.any(axis=0)[::-1].argmax())

    def bounded(self, a: Array, b: Array) -> bool:
        """Whether, judging by their lengths, exp of the inner products of rows of a and b stays
        within half the range of exponents.
        """
        limit = math.log(np.finfo(a.dtype).max) / 2
        return bool(self.row_dot(a, a).max() * self.row_dot(b, b).max() <= limit**2)

    def in_pieces(self, function: Callable, *arrays: Array | None) -> None:
        """Call function(*parts) on matching parts of arrays of one shape, flattened. A few parts
        fit into a core's cache, and several cores work at a time.

        None is passed on as None. All arrays but the first must be contiguous, so that writing to a
        part writes to the array.
        """
        size = arrays[0].size
        if size <= PIECE:
            function(*arrays)
            return
        flat = [array if array is None else array.reshape(-1) for array in arrays]

        def run(rows):
            for start in range(rows.start, rows.stop, PIECE):
                piece = slice(start, min(start + PIECE, rows.stop))
                function(*(array if array is None else array[piece] for array in flat))

        shares = self.cores.shares(size) if self.cores and size >= LARGE_PASS else None
        if shares is None:
            run(slice(0, size))
        else:
            self.each(run, shares)

    def add_rows(self, ids: Array, rows: Array, n: int) -> Array:
        """Sum `rows` (N, d) by their ids (N,) into (n, d): the gradient of a lookup."""
        if n <= 512:  # a small vocabulary: one product with the one-hot matrix
            onehot = np.zeros((len(ids), n), rows.dtype)
            onehot[np.arange(len(ids)), ids] = 1
            with np.errstate(invalid="ignore"):  # 0 times infinity
                out = onehot.T @ rows  # (n, N) @ (N, d)
            if np.isfinite(out).all():
                return out
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        out = np.zeros((n, rows.shape[1]), rows.dtype)
        out[present] = np.add.reduceat(rows[order], starts, axis=0)
        return out

    def add_numbers(self, ids: Array, numbers: Array, n: int) -> Array:
        """Sum `numbers` (N,) by their ids (N,) into (n,), in float64."""
        return np.bincount(ids, numbers, n)

    def each(self, function: Callable, items: Iterable) -> list:
        """[function(item) for item in items], on several cores at a time."""
        if self.cores is None:
            return [function(item) for item in items]
        return self.cores.each(function, items)

    def in_shards(self, model, x: np.ndarray, run: Callable) -> list | None:
        """run(model, rows) for shards of a batch x, a core each; None: better in one piece."""
        return None if self.cores is None else self.cores.in_shards(model, x, run)

    def shares(self, cache) -> list[slice] | None:
        """Slices of a cache's batch that are worth a core each while decoding; None: one piece."""
        if self.cores is None or cache.nbytes < LARGE_CACHE:
            return None
        return self.cores.shares(cache.batch)

    def cores_for(self, macs: int) -> AbstractContextManager:
        """`with`: BLAS on as many cores as pay in a decoding step.

        `macs` are the multiply-adds of its largest product.
        """
        if self.cores is None:
            return nullcontext()
        return self.cores.blas_threads(self.threads if macs >= LARGE_PRODUCT else 1)

    def ahead(self, batches: Iterable[tuple]) -> Iterable[tuple]:
        """The same batches. On a GPU, each is made and uploaded while the one before it is used."""
        return batches

    def free_memory(self) -> int | None:
        """Bytes that this process may still take on the device; None without one."""
        return None

    def held_memory(self) -> int | None:
        """Bytes of the device that this process holds; None without one."""
        return None

    def release(self) -> None:
        """Give what this process holds on the device without using it back, to other processes."""

    def describe(self) -> str:
        """One line for `minqkv doctor`."""
        return f"NumPy {np.__version__}"

    def usable(self) -> dict[str, str]:
        """Each kernel and whether it can be used, for `minqkv doctor`."""
        return {}


class GpuBackend(Backend):
    """CuPy, or anything with its surface: the tests drive this class with a NumPy stand-in as
    strict as CuPy.
    """

    name = "cupy"
    on_host = False
    threads, cores = 1, None
    kernels = not os.environ.get("MINQKV_NO_KERNELS")  # set by use_kernels
    precision = "fp32"  # set by use_precision
    gemm = gemm

    def __init__(self, xp):
        self.xp, self.ndarray = xp, xp.ndarray
        self.functions, self.warned = {}, set()  # compiled kernels, files that do not compile
        self._copies = lru_cache(8)(lambda *about: self.upload(np.ndarray(*about)))
        self.beside, self.early = None, []  # see prefetch.py

    def launch(
        self, file: str, function: str, grid: tuple, block: tuple, args, constants, shared: int = 0
    ) -> bool:
        """Start a function of kernels/FILE.cu, compiled with these constants.

        False: it does not compile here, and nothing was started. `shared` are bytes of dynamic
        shared memory.
        """
        key = (file, function, *constants.items())
        if key not in self.functions:
            self.functions[key] = self.function(file, function, constants)
        if self.functions[key] is None:
            return False
        self.functions[key](grid, block, tuple(map(argument, args)), shared_mem=shared)
        return True

    def function(self, file: str, name: str, constants: dict) -> Callable | None:
        """A function of a .cu file, or None if it does not compile, of which one warning tells."""
        try:
            return self.compiled(source(file), options(constants)).get_function(name)
        except Exception as error:  # no NVRTC, no headers, an old driver, a fault in the file
            text = f"{file}.cu does not compile, so the readable code runs instead: "
            if file not in self.warned:
                warnings.warn(text + first_line(error), RuntimeWarning, stacklevel=2)
            self.warned.add(file)
            return None

    def compiled(self, text: str, flags: tuple[str, ...]):
        """CUDA C as a module whose functions can be launched; CuPy keeps it on disk."""
        module = self.xp.RawModule(code=text, options=flags)
        module.compile()
        return module

    def recorded(self, function: Callable) -> Callable:
        """A function that starts again all that function() starts on the device, by one call, and
        returns the same arrays with new contents: a CUDA graph.

        Addresses, sizes and numbers are frozen; what is to differ must be in an array's contents.
        Raises what CuPy refuses: cuBLAS, uploads, and all for which the host would wait.
        """
        pool, stream = self.xp.cuda.MemoryPool(), self.xp.cuda.Stream(non_blocking=True)
        usual = self.xp.cuda.get_current_stream()
        stream.wait_event(usual.record())  # for what has been started before
        with self.xp.cuda.using_allocator(pool.malloc), stream:
            function()  # kernels are compiled, and their memory is found, before
            stream.begin_capture()
            try:
                result = function()
            finally:
                graph = stream.end_capture()
        usual.wait_event(stream.record())

        def again():
            graph.launch()
            return result

        again.memory = pool  # of its own: nobody else is given what the graph writes to
        self.graphs += 1
        return again

    def address(self, array: Array) -> int:
        """Where an array begins in the memory of the device."""
        return array.data.ptr

    def upload(self, array, dtype=None) -> Array:
        found = prefetch.found(self, array, dtype)
        return self.xp.asarray(array, dtype) if found is None else found

    def ahead(self, batches: Iterable[tuple]) -> Iterable[tuple]:
        return prefetch.ahead(self, batches)

    def shared(self, array: np.ndarray) -> Array:
        found = prefetch.found(self, array, None)
        about = array.shape, array.dtype
        return self._copies(*about, array.tobytes()) if found is None else found

    def empty(self, shape: tuple, dtype) -> Array:
        return self.xp.empty(shape, dtype)

    def to_host(self, array: Array) -> np.ndarray:
        return self.xp.asnumpy(array)

    def bmm(self, a: Array, b: Array) -> Array:
        found = multiply(self, a, b)
        return self.xp.matmul(a, b) if found is None else found

    def capability(self) -> int:
        """The generation of the device: 80 for an A100, 90 for an H100."""
        return int(self.xp.cuda.Device().compute_capability)

    def converted(self, a: Array, dtype) -> Array:
        return a.astype(dtype)

    def row_sum(self, a: Array) -> Array:
        return a.sum(-1, keepdims=True)

    def column_sum(self, a: Array) -> Array:
        sums = self.sum_columns(a)
        return a.reshape(-1, a.shape[-1]).sum(0) if sums is None else sums

    def row_dot(self, a: Array, b: Array) -> Array:
        return (a * b).sum(-1, keepdims=True)

    def masked(self, a: Array, mask: Array) -> Array:
        return self.xp.where(mask, a, a.dtype.type(0))

    def visible(self, mask: Array) -> int:
        return mask.shape[1]  # to know better, the host would have to wait

    def bounded(self, a: Array, b: Array) -> bool:
        return False  # likewise

    def in_pieces(self, function: Callable, *arrays: Array | None) -> None:
        function(*arrays)  # whole: each operation on a piece would be launched anew

    def add_rows(self, ids: Array, rows: Array, n: int) -> Array:
        out = self.xp.zeros((n, rows.shape[1]), rows.dtype)
        self.xp.add.at(out, ids, rows)  # atomics: the last bits differ from run to run
        return out

    def add_numbers(self, ids: Array, numbers: Array, n: int) -> Array:
        # not xp.bincount, which makes the host wait, twice
        return self.add_rows(ids, numbers.astype("float64")[:, None], n)[:, 0]

    def free_memory(self) -> int:
        pool = self.xp.get_default_memory_pool()  # keeps what was freed
        return int(self.xp.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())

    def held_memory(self) -> int:
        return int(self.xp.get_default_memory_pool().total_bytes())

    def release(self) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()

    def describe(self) -> str:
        properties = self.xp.cuda.runtime.getDeviceProperties(0)
        return f"CuPy {self.xp.__version__} on {properties['name'].decode()}"

    def usable(self) -> dict[str, str]:
        found, tried = (
            {},
            {"graphs": lambda: self.recorded(lambda: self.empty((1,), "int64") + 1)()},
        )
        for file, constants in FILES.items():
            tried[file] = partial(self.compiled, source(file), options(constants))
        for name, trial in tried.items():
            try:
                trial()
                found[name] = "usable" if self.kernels else "usable, but switched off"
            except Exception as error:
                what = "does not compile" if name in FILES else "cannot be recorded"
                found[name] = f"{what}: {first_line(error)}"
        return found


def _cupy():
    try:
        import cupy
    except Exception as error:  # ImportError, and what a NumPy or a library that is too old causes
        raise EnvironmentFault(
            f"the cupy backend needs CuPy, and importing it failed: {_cause(error)}",
            "pip install -e '.[cuda13]' in the clone (or cuda12, rocm7), or use --backend numpy",
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()  # raises without a driver, or with an old one
        if not cupy.is_available():
            raise RuntimeError("it finds no GPU")
        cupy.asnumpy(cupy.zeros(1) + 1)  # takes memory, compiles, and computes
        cupy.cuda.get_cublas_handle()  # a library of its own
    except Exception as error:
        cures = {name: cure for name, cure in _CURES.items() if name in str(error).lower()}
        cure = next(iter(cures.values()), "check nvidia-smi")
        raise EnvironmentFault(
            f"CuPy is installed, but it cannot compute here: {_cause(error)}",
            f"{cure}, or use --backend numpy",
        ) from error
    found = GpuBackend(cupy)
    if cupy.cuda.runtime.is_hip:
        found.kernels = False  # they are written for warps of 32 threads
    return found


_CURES = {  # by a word of the error
    "insufficientdriver": "update the driver, or install the CuPy of its CUDA version (nvidia-smi)",
    "memory": "see in nvidia-smi which programs hold the memory of the GPU",
    "nvrtc": "install CUDA's compiler: pip install -e '.[cuda13]' in the clone (or cuda12)",
    "cuda headers": "install them: pip install -e '.[cuda13]' in the clone (or cuda12)",
    "source file": "install CUDA's headers: pip install -e '.[cuda13]' in the clone (or cuda12)",
    "libcublas": "install cuBLAS: pip install -e '.[cuda13]' in the clone (or cuda12)",
}


def _cause(error):
    """The line of an error that gives the reason: CuPy puts a banner around it."""
    text = str(error).rpartition("Original error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip("= ")]
    return lines[0] if lines else type(error).__name__


_makers = {"numpy": Backend, "cupy": _cupy}


def register(name: str, maker: Callable[[], Backend]) -> None:
    """Add a backend: `maker()` returns a `Backend`. The tests add `strict` this way."""
    _makers[name] = maker


def set_backend(name: str) -> None:
    """Use this backend from now on, in the whole process.

    Raises UsageError for an unknown name, EnvironmentFault where it cannot run.
    """
    if name not in _makers:
        raise unknown("backend", name, _makers)
    _use(_makers[name]())


@scoped
def use_backend(name: str) -> Iterator[Backend]:
    """`with use_backend("cupy"): ...`; the previous one is restored at the end."""
    before = current
    set_backend(name)
    try:
        yield current
    finally:
        _use(before)


def _use(backend):
    global current
    current = backend
    for name in dir(Backend):
        if not name.startswith("_"):
            globals()[name] = getattr(backend, name)


def use_kernels(on: bool) -> None:
    """Whether GPU backends use the kernels of minqkv/kernels, or the readable code alone."""
    GpuBackend.kernels = on
    _use(current)


def use_precision(name: str) -> None:
    """How GPU backends multiply float32: "fp32", "tf32" or "bf16" (kernels/products.py).

    Raises UsageError for another name or without a GPU, EnvironmentFault where the GPU cannot.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name != "fp32" and current.on_host:
        raise UsageError(f"{name} is for a GPU; {current.name} multiplies in float32",
                         "--backend cupy, or leave out --precision")  # fmt: skip
    if name != "fp32" and (found := current.capability()) < 80:
        why = f"this GPU (sm_{found}) has no {name}, which came with sm_80"
        raise EnvironmentFault(why, "leave out --precision")
    GpuBackend.precision = name
    _use(current)


def out_of_memory(error: Exception) -> str | None:
    """What was asked for and what is free, if an error says that memory is full; else None."""
    asked = re.search(r"allocating ([\d,]+) bytes", str(error))  # CuPy's words
    if not current.on_host and (asked or any(code in str(error) for code in FULL)):
        what = f"; {size_text(int(asked[1].replace(',', '')))} were asked for" if asked else ""
        return f"the GPU is out of memory{what}, {size_text(current.free_memory())} are free"
    return f"out of memory: {error}".rstrip(": ") if isinstance(error, MemoryError) else None


def use_cores(threads: int, cores) -> None:
    """For parallel.set_threads: how many cores NumPy uses, and the module that does it."""
    Backend.threads, Backend.cores = threads, cores
    _use(current)


def upload_ids(ids, limit: int, what: str, ignore: int | None = None) -> Array:
    """Check integer ids on the host, where it is free, and upload them: on a GPU a wrong id would
    wrap around silently.

    Raises UsageError for device arrays, other dtypes, or an id outside [0, limit) that is not
    `ignore`.
    """
    if isinstance(ids, current.ndarray) and not isinstance(ids, np.ndarray):
        raise UsageError(f"{what} must be a host (NumPy) array: it is range-checked, then uploaded")
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise UsageError(f"{what} must be integers, not {ids.dtype}")
    bad = (ids < 0) | (ids >= limit)
    if ignore is not None:
        bad &= ids != ignore
    if bad.any():
        raise UsageError(f"{what}: id {ids[bad].flat[0]} is outside 0..{limit - 1}")
    return current.shared(ids)


def tame_allocator() -> bool:
    """Keep freed memory in the process instead of giving it back to the kernel (glibc only).

    Otherwise large temporaries are mapped and page-faulted again at every use, which can double the
    time of a step. `set_threads` calls this. Returns whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    m_mmap_threshold, m_trim_threshold, m_arena_max = -3, -1, -8
    settings = ((m_mmap_threshold, 1 << 30), (m_trim_threshold, (1 << 31) - 1), (m_arena_max, 1))
    return [mallopt(option, value) for option, value in settings] == [1, 1, 1]


set_backend(os.environ.get("MINQKV_BACKEND") or "numpy")
