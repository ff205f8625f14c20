"""Kernels of minqkv/kernels on a CPU: built by the C++ compiler at hand, called through ctypes.

`run` is what tests use. `sanitised` repeats recorded calls under the address sanitiser, with
buffers of exactly the size of each array. `survives` tells whether a planted fault goes unnoticed.

What this cannot show: speed, coalescing, bank conflicts, the order of memory between blocks that
run at the same time, and the rounding of the device's own exp.
"""

import ctypes
import faulthandler
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from minqkv import kernels

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-unknown-pragmas")
FAULTY = ("-ftrivial-auto-var-init=pattern",)  # a local variable starts as garbage too
# That garbage is a finite number, which 0 times it hides. A planted fault runs once: optimising it
# takes longer than it saves, and this error needs that.
PLAIN = ("-O1", *FAULTY, "-Werror=maybe-uninitialized", "-Werror=uninitialized")
SANITISED = (
    "-g1",
    "-fsanitize=address,undefined",
    "-fsanitize-sections=shared_memory",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
CAUGHT, BROKEN = 1, 3  # exit codes of a trial
SEED = 0  # of the order of threads, unless given

_changed = {}  # file -> (old text, new text): a planted fault
_recorded = None  # calls, while they are recorded


class KernelError(Exception):
    """A kernel that does not compile, is given wrong arguments, or waits for ever."""


class CompileError(KernelError):
    """It does not compile."""


@lru_cache
def compiler():
    """The C++ compiler, or None if there is none that can do this."""
    found = shutil.which(os.environ.get("CXX") or "g++") if sys.platform == "linux" else None
    if found is None:
        return None
    test = [found, *PLAIN, "-x", "c++", "-fsyntax-only", os.devnull]
    return None if subprocess.run(test, capture_output=True).returncode else found


def missing():
    """Why no kernel can be built here, or None."""
    return None if compiler() else "needs Linux and g++ 12 or later: apt install g++"


def source(file):
    """The text of a kernel, with the planted fault if there is one."""
    return changed(kernels.source(file))


def changed(text):
    """The text of a kernel with the planted fault, if there is one for this file."""
    for file, (old, new) in _changed.items():
        if f'#line 1 "{file}.cu"' in text:
            assert text.count(old) == 1, f"{old!r}: {text.count(old)} times in {file}.cu, not once"
            text = text.replace(old, new)
    return text


def build(text, flags, how=PLAIN):
    """The path of a shared library made of CUDA C, built once: its name is a hash of all it is made
    of.
    """
    # Dynamic shared memory is a pointer here; the line stays one line.
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];",
        r"\1* \2 = (\1*)shim::dynamic_shared;",
        text,
    )
    names = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s*)?(\w+)\(", text)
    entries = "".join(f"ENTRY({name})\n" for name in names)
    text = f'#include "cuda_on_cpu.h"\n{text}\n{entries}'
    shim = (HERE / "cuda_on_cpu.h").read_text()
    flags = (*how, "-std=c++17", *WARNINGS, f"-I{HERE}", f"-I{HERE / 'include'}", *flags)
    key = hashlib.sha256("\0".join((text, shim, *flags, version())).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("MINQKV_KERNEL_CACHE") or cache())
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        for old in folder.glob("*.so"):
            if time.time() - old.stat().st_mtime > 7 * 86400:
                old.unlink(missing_ok=True)
        part = folder / f"{key}.{os.getpid()}"
        part.with_suffix(".cpp").write_text(text)
        command = [compiler(), *flags, "-shared", "-fPIC"]
        command += [part.with_suffix(".cpp"), "-o", part.with_suffix(".so")]
        done = subprocess.run(command, capture_output=True, text=True)
        part.with_suffix(".cpp").unlink()
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise CompileError("; ".join(errors) or done.stderr)
        part.with_suffix(".so").replace(library)
    return library


def cache():
    """The folder of built libraries, kept between runs."""
    return Path(tempfile.gettempdir()) / f"minqkv-kernels-{os.getuid()}"


@lru_cache
def version():
    """What the compiler says of itself."""
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout


class Module:
    """A built library. It looks like CuPy's RawModule. `seed` is the order of threads, SEED unless
    given.
    """

    def __init__(self, text, flags, seed=None):
        self.made_of, self.seed = (text, flags), seed
        how = FAULTY if _changed else PLAIN
        self.library = ctypes.PyDLL(str(build(text, flags, how)))  # holds the lock: one at a time

    def get_function(self, name):
        """A function launched as function(grid, block, args, shared_mem=0)."""
        try:
            function = getattr(self.library, f"run_{name}")
        except AttributeError:
            raise KernelError(f"there is no kernel {name}") from None

        def launch(grid, block, args, shared_mem=0):
            if _recorded is not None:
                kept = [extent(a) if isinstance(a, np.ndarray) else a for a in args]
                _recorded.append((*self.made_of, name, grid, block, kept, shared_mem))
            call(
                function,
                name,
                grid,
                block,
                args,
                shared_mem,
                SEED if self.seed is None else self.seed,
            )

        return launch


def call(function, name, grid, block, args, shared, seed):
    """Run one launch of a built function to its end."""
    values, types = [], []
    for value in args:
        if value is None:
            values.append(ctypes.c_void_p(0))
            types.append(b"*null")
        elif isinstance(value, np.ndarray):
            values.append(ctypes.c_void_p(value.ctypes.data))
            types.append(b"*" + value.dtype.name.encode())
        else:  # a number, whose bytes are passed as they are
            values.append((ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes()))
            types.append(value.dtype.name.encode())
    n = len(values)
    function.restype = ctypes.c_char_p
    error = function(
        (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
        (ctypes.c_uint * 3)(*block, *(1,) * (3 - len(block))),
        ctypes.c_size_t(shared),
        ctypes.c_uint64(seed),
        (ctypes.c_void_p * n)(*(ctypes.addressof(value) for value in values)),
        (ctypes.c_char_p * n)(*types),
        ctypes.c_uint(n),
    )
    if error:
        raise KernelError(f"{name}: {error.decode()}")


def run(file, function, grid, block, args, constants=(), seed=None, shared=0):
    """Launch a function of FILE.cu on NumPy arrays, which it changes in place."""
    module = Module(source(file), kernels.options(dict(constants)), seed)
    args = [kernels.argument(value) for value in args]
    module.get_function(function)(grid, block, args, shared_mem=shared)


@lru_cache(256)
def module_of(text, flags):
    """A built module, loaded once."""
    return Module(text, flags)


# ---- the address sanitiser


def extent(array):
    """The bytes from an array's first number to its last, as (bytes, by how much its address is
    beyond a multiple of 16, dtype).
    """
    size = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    assert all(stride >= 0 for stride in array.strides)
    size = size + array.itemsize if array.size else 0
    place = array.ctypes.data
    return ctypes.string_at(place, size), place % 16, array.dtype


@contextmanager
def recording():
    """`with recording() as calls: ...`: every launch since, its arguments as they were."""
    global _recorded
    outer, _recorded = _recorded, []
    calls = _recorded
    try:
        yield calls
    finally:
        _recorded = outer
        if outer is not None:  # inside another recording, which has these calls too
            outer += calls


def sanitised(calls, seed=1):
    """Repeat recorded calls under the address sanitiser, in a process of its own. Raises
    KernelError with its report.
    """
    libraries = {made: build(*made, how=SANITISED) for made in {call[:2] for call in calls}}
    found = subprocess.run(
        [compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    paths = [str(HERE), str(HERE.parents[1])]
    env = os.environ | {"LD_PRELOAD": found, "PYTHONPATH": os.pathsep.join(paths)}
    env["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
    done = subprocess.run(
        [sys.executable, __file__], input=pickle.dumps((libraries, calls, seed)),
        capture_output=True, env=env,
    )  # fmt: skip
    if done.returncode:
        raise KernelError(done.stderr.decode(errors="replace")[-6000:])


def repeat(libraries, calls, seed):
    """The other side of `sanitised`."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    loaded = {made: ctypes.PyDLL(str(path)) for made, path in libraries.items()}
    for text, flags, name, grid, block, args, shared in calls:
        held, taken = [], []
        for value in args:
            if isinstance(value, tuple):
                data, off, dtype = value
                place = libc.malloc(ctypes.c_size_t(off + len(data)))
                ctypes.memmove(place + off, data, len(data))
                held.append(place)
                value = Placed(place + off, dtype)
            taken.append(value)
        call(getattr(loaded[text, flags], f"run_{name}"), name, grid, block, taken, shared, seed)
        for place in held:
            libc.free(ctypes.c_void_p(place))


class Placed(np.ndarray):
    """An address and a dtype: all that a kernel sees of an array."""

    def __new__(cls, place, dtype):
        self = super().__new__(cls, (0,), dtype)
        self.place = place
        return self

    @property
    def ctypes(self):
        """As NumPy's, of which only `data` is read."""
        return type("Address", (), {"data": self.place})


# ---- planted faults


@contextmanager
def planted(file, old, new):
    """`with planted(...)`: FILE.cu has `new` in place of `old`, which must be there once."""
    _changed[file] = (old, new)
    try:
        yield
    finally:
        del _changed[file]


def survives(file, old, new, check, limit=60):
    """Whether check() still passes with a planted fault. It runs in a forked process, which may
    crash or never end: both count as noticed. Raises KernelError if the fault does not compile, and
    AssertionError if its old text is not there once.
    """
    with planted(file, old, new):
        source(file)  # the text is there: in the child, its absence would count as noticed
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()  # of a process with several threads, of which the child needs none
    if not child:
        code = CAUGHT
        try:
            faulthandler.disable()
            with planted(file, old, new):
                check()
            code = 0
        except CompileError:
            code = BROKEN
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status) == BROKEN:
                raise KernelError(f"{new!r} does not compile in {file}.cu")
            return status == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    repeat(*pickle.loads(sys.stdin.buffer.read()))
