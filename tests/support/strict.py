"""A GPU is rarely at hand, so `strict` stands in: NumPy underneath, and it fails where CuPy fails.

`xp` has the names and parameters of cupy_surface.json and no more; `StrictArray` is a wrapper and
not a subclass of ndarray, because np.asarray, assignment and indexing see through a subclass. It is
stricter than CuPy in four places: a host array or list as index (CuPy uploads it on the sly),
NumPy's functions on device arrays (CuPy dispatches them), duplicate indices in an assignment (CuPy
stores any one of the values), and an assignment between overlapping parts of one array where CuPy
copies memory and does not check. Results are laid out in C order, as in CuPy: a sum of transposed
arrays is not transposed. Dtypes are NumPy's, since CuPy promotes as NumPy does. It cannot catch
kernel faults, races, TF32 rounding or speed.

`CALLS` gathers how the package has called it in this process: see device_calls.py.
"""

import ctypes
import json
import numbers
import sys
import threading
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import graphs
import numpy as np
import on_cpu

from minqkv import backend
from minqkv.kernels.products import multiply

DATA = Path(__file__).parents[1] / "data"
SURFACE = json.loads((DATA / "cupy_surface.json").read_text("utf-8"))
LISTED = DATA / "cupy_calls.txt"  # the calls that are known
UPLOADS = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}
ON_DEVICE = {
    "allclose",
    "array_equal",
    "array_equiv",
    "count_nonzero",
}  # a Python number in NumPy, a 0-d array in CuPy
DOWNLOADS = {"item", "tolist", "tobytes", "tofile", "dump", "dumps"}
SIZED_BY_DATA = {
    "nonzero",
    "flatnonzero",
    "argwhere",
    "extract",
    "compress",
    "bincount",
    "unique",
    "delete",
    "average",
    "choose",
    "histogram",
    "percentile",
    "quantile",
}  # the host waits for the size, or for a check
AT_DTYPES = {"int32", "uint32", "int64", "uint64", "float16", "float32", "float64"}
IN_ORDER = {"copy", "astype", "array", "asarray", "asanyarray", "asfortranarray"} | {
    f"{name}_like" for name in ("empty", "zeros", "ones", "full")
}  # results may be laid out as an argument is
IN_PLACE = {"fill", "sort", "put", "partition"}
CALLS = set()

_syncs = _uploads = 0


def _wait(times=1):
    global _syncs
    graphs.refuse("a wait of the host")
    _syncs += times


def _count_upload(value):
    global _uploads
    graphs.refuse("an upload")
    _uploads += np.ndim(value) > 0  # a number is an argument of a kernel


@contextmanager
def count_uploads():
    """Likewise, how many host arrays have been copied to the device; numbers are not copied."""
    before = _uploads
    yield lambda: _uploads - before


@contextmanager
def count_syncs():
    """`with count_syncs() as syncs: ...`; then `syncs()` is how often the host waited for the
    device since: downloads, numbers, printing, results whose size depends on data."""
    before = _syncs
    yield lambda: _syncs - before


@contextmanager
def memory(free=1 << 40, largest=1 << 40):
    """`with memory(free=n, largest=m): ...`: n bytes are free, and an array of more than m bytes
    does not fit.
    """
    before = vars(device).copy()
    vars(device).update(free=free, largest=largest)
    yield
    vars(device).update(before)


def shares_memory(a, b):
    """Whether two device arrays overlap."""
    return np.shares_memory(a._host, b._host)


def _refuse(value):
    return TypeError(f"Unsupported type {type(value)}: CuPy takes device arrays and numbers here")


def _unwrap(value, seen):
    """The NumPy value behind an argument, lists and tuples included; `seen` collects the device
    arrays met.
    """
    if isinstance(value, StrictArray):
        seen.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        raise _refuse(value)
    return (
        type(value)([_unwrap(v, seen) for v in value])
        if isinstance(value, (list, tuple))
        else value
    )


def _wrap(result, seen=(), in_order=True):
    """NumPy's result on the device, numbers as 0-d arrays. An argument that comes back (`out`) is
    the same object. A new array is in C order, unless `in_order`: laid out as an argument is.
    """
    if isinstance(result, np.ndarray):
        for x in seen:
            if x._host is result:
                return x
        return StrictArray(result if in_order else _in_c_order(result))
    if isinstance(result, np.generic):
        return StrictArray(np.asarray(result))
    if isinstance(result, (list, tuple)):
        parts = [_wrap(part, seen, in_order) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    return result


def _run(function, args, kwargs, in_order=False):
    """Call a NumPy function on device arguments, as silent about overflow and division by zero as a
    GPU.
    """
    seen = []
    args = [_unwrap(value, seen) for value in args]
    kwargs = {name: _unwrap(value, seen) for name, value in kwargs.items()}
    if kwargs.get("out") is not None and graphs.recording():
        graphs.act(lambda: function(*args, **kwargs))
        return _wrap(kwargs["out"], seen)

    def compute():
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return _made(compute(), compute, seen, in_order)


def _made(result, again, seen, in_order=False):
    """NumPy's result on the device, which a graph computes again."""
    found = _wrap(result, seen, in_order)
    parts = found if isinstance(found, (list, tuple)) else [found]
    hosts = [part._host for part in parts if isinstance(part, StrictArray)]
    graphs.fresh(hosts, lambda: _parts(again()), [x._host for x in seen])
    return found


def _parts(result):
    parts = result if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(part) for part in parts]


def _in_c_order(result):
    """A new array as CuPy lays it out; a view as it is."""
    fresh = isinstance(result, np.ndarray) and result.base is None
    return result.copy() if fresh and not result.flags.c_contiguous else result


@lru_cache(None)
def call(name, parameters, n, keywords):
    """A call with n arguments by position, as a line: "xp.sum(a, keepdims=)".

    Raises TypeError if CuPy's function, with these parameters, does not take such arguments.
    """
    if parameters is None:
        return f"{name}(...)"
    positional, named, rest, anything = [], [], "", False
    for part in filter(None, parameters.split(", ")):
        if part == "/":
            named = []
        elif part.startswith("**"):
            anything = True
        elif part.startswith("*"):
            rest, positional = part[1:], tuple(positional)
        else:
            named.append(part.rstrip("="))
            positional += [named[-1]] if isinstance(positional, list) else ()
    given = list(positional[:n])
    if n > len(given) and not rest:
        raise TypeError(f"CuPy's {name}() takes at most {len(given)} arguments by position")
    for keyword in keywords:
        if keyword in given or not (anything or keyword in named):
            raise TypeError(f"CuPy's {name}() got an unexpected keyword argument {keyword!r}")
    given += [f"*{rest}"] if n > len(given) else []
    return f"{name}({', '.join([*given, *(f'{keyword}=' for keyword in keywords)])})"


def _note(line):
    """Remember a call if it is the package that makes it, two frames up."""
    if sys._getframe(2).f_globals.get("__name__", "").startswith("minqkv."):
        CALLS.add(line)


def _check_axes(*operands):
    if max(np.ndim(x._host if isinstance(x, StrictArray) else x) for x in operands) > 2:
        raise TypeError("@ above two dimensions is slow and narrow in CuPy: use backend.bmm")


def _kind(index):
    """What an index is made of: a list of calls is read by people."""
    arrays = [part for part in index if isinstance(part, np.ndarray)]
    return ("mask" if any(part.dtype == bool for part in arrays) else "ids") if arrays else "..."


def _check_overlap(to, value):
    """Raise ValueError where CuPy copies memory and does not see that its two ends overlap."""
    plain = to.shape == value.shape and to.strides == value.strides and to.dtype == value.dtype
    same = to.__array_interface__["data"] == value.__array_interface__["data"]
    if plain and not same and to.flags.c_contiguous and np.may_share_memory(to, value):
        raise ValueError("an assignment between overlapping parts of one array: copy() it first")


def _operand(value):
    """The other side of an operator, or the value of an assignment: a device array or a number."""
    if isinstance(value, StrictArray):
        return value._host
    if isinstance(value, (np.ndarray, list, tuple)):
        raise _refuse(value)
    return value if isinstance(value, (numbers.Number, np.generic)) else NotImplemented


device = SimpleNamespace(free=1 << 40, largest=1 << 40)  # bytes


class OutOfMemoryError(MemoryError):
    """As of CuPy, whose message is all that is used of it."""

    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,}).")
        self.given = size, total

    def __reduce__(self):
        return type(self), self.given


class Stream(graphs.Recorder):
    """A queue of copies to the device. Those of another stream than the first one arrive when the
    first one waits for them; until then, the numbers are garbage.
    """

    def __init__(self, non_blocking=False):
        self.copies, self.waited = [], 0

    def __enter__(self):
        _thread.stream, self.before = self, get_current_stream()
        return self

    def __exit__(self, *error):
        _thread.stream, self.before = self.before, None

    def record(self):
        """An event: all copies so far."""
        return [*self.copies]

    def wait_event(self, event):
        """Go on when the event has come."""
        self.waited += 1
        for target, source in event if self is _first else ():
            target[...] = source

    def upload(self, host):
        """A copy of a host array."""
        if self is _first:
            return StrictArray(np.array(host))
        target = np.full_like(host, 77)
        self.copies.append((target, np.array(host)))
        return StrictArray(target)


_first, _thread = Stream(), threading.local()


def get_current_stream():
    """Of this thread."""
    return getattr(_thread, "stream", _first)


cuda = SimpleNamespace(
    Stream=Stream,
    get_current_stream=get_current_stream,
    MemoryPool=graphs.MemoryPool,
    using_allocator=graphs.using_allocator,
    runtime=SimpleNamespace(memGetInfo=lambda: (device.free, 1 << 40)),
)
pool = SimpleNamespace(
    free_bytes=lambda: 0, total_bytes=lambda: 1 << 30, free_all_blocks=lambda: None
)


class StrictArray:
    """An array in the memory of a device that is not there."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None
    # So `numpy_array + x` comes to __radd__, which refuses it, and np.exp(x) is a TypeError.
    __array_ufunc__ = None

    def __init__(self, host):
        if host.nbytes > device.largest:
            raise OutOfMemoryError(host.nbytes, 0)
        self._host = host

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()`, or backend.to_host"
        )

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(
            f"numpy.{function.__name__} on a device array: use backend.xp.{function.__name__}"
        )

    def __getattr__(self, name):
        if name not in SURFACE["methods"]:
            raise AttributeError(f"CuPy's ndarray has no attribute {name!r}")
        parameters = SURFACE["methods"][name]
        if name in ("data", "flat") or not hasattr(np.ndarray, name):
            raise AttributeError(f"CuPy's ndarray.{name} is not modelled by the strict backend")
        value = getattr(self._host, name)
        if not callable(value):
            _note(f"ndarray.{name}")
            return _wrap(value, (self,))  # T, base ...

        def method(*args, **kwargs):
            _note(call(f"ndarray.{name}", parameters, len(args), tuple(kwargs)))
            if name in DOWNLOADS | SIZED_BY_DATA:
                _wait()
            if name == "take":
                kwargs["mode"] = "wrap"
            if name in IN_PLACE:
                graphs.refuse(f"ndarray.{name}, which is not modelled here")
            in_order = name in IN_ORDER
            return _run(lambda host, *a, **k: value(*a, **k), (self, *args), kwargs, in_order)

        return method

    def get(self):
        """The download."""
        return xp.asnumpy(self)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return StrictArray, (self.get(),)

    shape = property(lambda self: self._host.shape)  # the most used attributes, without detours
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    flags = property(lambda self: self._host.flags)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        parts = self._index(index)
        _note(f"ndarray[{_kind(parts)}]")
        return _made(self._host[parts], lambda: self._host[self._index(index)], [self])

    def __setitem__(self, index, value):
        parts = self._index(index)
        _note(f"ndarray[{_kind(parts)}] = ...")
        if graphs.recording():
            graphs.act(lambda: self._assign(self._index(index), value))
        else:
            self._assign(parts, value)

    def _assign(self, index, value):
        value = _operand(value)
        if value is NotImplemented:
            raise _refuse(value)
        arrays = [part for part in index if isinstance(part, np.ndarray)]
        if any(part.dtype != bool for part in arrays):  # one mask alone cannot name a cell twice
            coordinates = [
                c for part in arrays for c in (part.nonzero() if part.dtype == bool else (part,))
            ]
            cells = list(
                zip(*(c.ravel().tolist() for c in np.broadcast_arrays(*coordinates)), strict=True)
            )
            if len(set(cells)) < len(cells):
                raise ValueError(
                    "duplicate indices in an assignment: CuPy may store any of the values; "
                    "see xp.add.at"
                )
        elif isinstance(value, np.ndarray) and not arrays:
            _check_overlap(self._host[index], value)
        self._host[index] = value

    def _index(self, index):
        """What NumPy needs to index as CuPy does: integer arrays wrap around; a final ... makes
        a[0] a 0-d view.
        """
        parts = index if isinstance(index, tuple) else (index,)
        masks = [part for part in parts if isinstance(part, StrictArray) and part.dtype == bool]
        used = sum(part is not None and part is not Ellipsis for part in parts) + sum(
            mask.ndim - 1 for mask in masks
        )
        axis, out = 0, []
        for part in parts:
            if isinstance(part, (np.ndarray, list, tuple)):
                raise TypeError(
                    f"a {type(part).__name__} as index is a hidden upload: upload it first"
                )
            step = 0 if part is None else self.ndim - used if part is Ellipsis else 1
            if isinstance(part, StrictArray):
                step = part.ndim if part.dtype == bool else 1
                part = part._host if part.dtype == bool else part._host % max(self.shape[axis], 1)
            out.append(part)
            axis += step
        if masks:
            _wait()  # CuPy counts the True elements on the host, even to assign a number to them
        return tuple(out) if any(part is Ellipsis for part in parts) else (*out, Ellipsis)


def _define_operator(dunder, in_place=False):
    function = getattr(np.ndarray, dunder)

    def method(self, *other):
        _note(f"ndarray.{dunder}")
        values = [_operand(value) for value in other]
        if any(value is NotImplemented for value in values):
            return NotImplemented  # a Tensor, perhaps: its own reflected operator is next
        if "matmul" in dunder:
            _check_axes(self, *values)
            graphs.refuse("cuBLAS")

        def compute():
            with np.errstate(all="ignore"):
                return function(self._host, *values)

        if in_place and graphs.recording():
            graphs.act(compute)
            return self
        result = compute()
        if in_place and result is not NotImplemented:
            return self
        return _made(result, compute, [], isinstance(result, tuple))

    setattr(StrictArray, dunder, method)


def _define_download(dunder):
    def method(self, *spec):
        _wait()
        return getattr(self._host, dunder)(*spec)

    setattr(StrictArray, dunder, method)


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    _define_operator(f"__{_name}__")
    _define_operator(f"__r{_name}__")
    _define_operator(f"__i{_name}__", in_place=True)
for _name in (
    "matmul",
    "rmatmul",
    "divmod",
    "rdivmod",
    "neg",
    "pos",
    "abs",
    "invert",
    "lt",
    "le",
    "eq",
    "ne",
    "gt",
    "ge",
):
    _define_operator(f"__{_name}__")
for _name in ("float", "int", "bool", "complex", "repr", "str", "format"):
    _define_download(f"__{_name}__")


class StrictModule:
    """What `backend.xp` is here: CuPy's names, run by NumPy."""

    __version__ = f"{SURFACE['version']} (strict)"
    ndarray, cuda = StrictArray, cuda
    get_default_memory_pool = staticmethod(lambda: pool)

    def __getattr__(self, name):
        kind, value = SURFACE["names"].get(name, {}).get("kind"), getattr(np, name, None)
        if kind is None:
            raise AttributeError(f"module 'cupy' has no attribute {name!r}")
        scalar_type = isinstance(value, type) and (
            issubclass(value, np.generic) or value in (np.dtype, np.finfo, np.iinfo)
        )
        if not hasattr(np, name) or (
            kind == "other" and not (scalar_type or value is None or isinstance(value, float))
        ):
            raise AttributeError(f"cupy.{name} is not modelled by the strict backend")
        made = {"func": _function, "ufunc": _Ufunc}.get(kind, lambda _: value)(name)
        setattr(self, name, made)
        return made

    def asnumpy(self, a):
        """The download: always a copy."""
        _wait()
        return a._host.copy() if isinstance(a, StrictArray) else np.asarray(a)


class _Ufunc:
    """An elementwise function."""

    def __init__(self, name):
        self.name, self.function = name, getattr(np, name)

    def __call__(self, *args, **kwargs):
        parameters = SURFACE["names"][self.name]["sig"]
        _note(call(f"xp.{self.name}", parameters, len(args), tuple(kwargs)))
        if any(isinstance(value, (list, tuple)) for value in args):
            raise _refuse([])
        return _run(self.function, args, kwargs)

    def at(self, a, indices, b):
        """In-place operation that adds up duplicates; only addition, and only where there are
        atomic instructions.
        """
        _note(f"xp.{self.name}.at(a, indices, b)")
        if self.name != "add":
            raise NotImplementedError(
                f"`cupy_{self.name}.at` is not supported, or not modelled by the strict backend"
            )
        if not isinstance(a, StrictArray) or a.dtype.name not in AT_DTYPES:
            raise TypeError(
                f"cupy.add.at only supports {', '.join(sorted(AT_DTYPES))}, "
                f"not {getattr(a, 'dtype', type(a))}"
            )
        graphs.act(lambda: self.function.at(a._host, a._index(indices), _operand(b)))


def _function(name):
    function = getattr(np, name)

    parameters = SURFACE["names"][name]["sig"]

    def called(*args, **kwargs):
        _note(call(f"xp.{name}", parameters, len(args), tuple(kwargs)))
        if name in SIZED_BY_DATA or (name == "where" and len(args) == 1):
            _wait(2 if name == "bincount" else 1)
        if name == "take":
            kwargs["mode"] = "wrap"
        if name == "matmul":
            _check_axes(*args)
            graphs.refuse("cuBLAS")
        if name in UPLOADS and not isinstance(args[0], StrictArray):
            _count_upload(args[0])
            if isinstance(args[0], np.ndarray):
                args = (get_current_stream().upload(args[0]), *args[1:])
        result = _run(function, args, kwargs, name in IN_ORDER)
        return StrictArray(np.asarray(result)) if name in ON_DEVICE else result

    return called


xp = StrictModule()


class _Kernels:
    """A kernel's CPU build, on device arrays."""

    def __init__(self, module):
        self.module = module

    def get_function(self, name):
        """As of CuPy's RawModule."""
        function = self.module.get_function(name)

        def launch(grid, block, args, shared_mem=0):
            if any(isinstance(value, np.ndarray) for value in args):
                raise TypeError("a host array is no argument of a kernel")
            args = [_unwrap(value, []) for value in args]
            graphs.act(lambda: function(grid, block, args, shared_mem))

        return launch


BITS = {"fp32": 23, "tf32": 10, "bf16": 7}  # of the fraction, that a factor keeps


def _columns(address, width, step, rows, columns, count):
    """A batch of float32 matrices (count, rows, columns), whose columns lie `width` apart."""
    if width < rows:
        raise ValueError(f"cuBLAS: columns of {rows} numbers, only {width} apart")
    size = (count - 1) * step + (columns - 1) * width + rows
    memory = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
    strides = 4 * step, 4, 4 * width
    return np.lib.stride_tricks.as_strided(memory, (count, rows, columns), strides)


def _rounded(x, bits):
    """float32 to the nearest number with so many bits of fraction, ties to even."""
    drop = 23 - bits
    if not drop:
        return x
    whole = x.astype("float32").view("uint32")
    whole = whole + ((1 << drop - 1) - 1) + (whole >> drop & 1)
    return (whole >> drop << drop).view("float32")


class StrictBackend(backend.GpuBackend):
    """The code of the GPU backend on the stand-in for CuPy."""

    name = "strict"

    def __init__(self):
        super().__init__(xp)
        if on_cpu.compiler() is None:
            self.kernels = False

    def compiled(self, text, flags):
        graphs.refuse("a new kernel")
        return _Kernels(on_cpu.module_of(on_cpu.changed(text), flags))

    def address(self, array):
        return array._host.ctypes.data

    def bmm(self, a, b):
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            raise _refuse([])
        graphs.refuse("cuBLAS")
        found = multiply(self, a, b)
        return _run(np.matmul, (a, b), {}) if found is None else found  # of more than two axes

    def gemm(self, flip_a, flip_b, m, n, k, *matrices):
        """As cuBLAS: what addresses, widths and steps say, column by column."""
        *matrices, count = matrices
        shapes = (k, m) if flip_a else (m, k), (n, k) if flip_b else (k, n), (m, n)
        a, b, c = (
            _columns(*matrices[3 * i : 3 * i + 3], rows, columns, count)
            for i, (rows, columns) in enumerate(shapes)
        )
        a, b = (_rounded(x, BITS[self.precision]) for x in (a, b))
        np.matmul(a.swapaxes(-1, -2) if flip_a else a, b.swapaxes(-1, -2) if flip_b else b, out=c)

    def capability(self):
        return 90

    def describe(self):
        return f"strict: NumPy {np.__version__} within the surface of CuPy {SURFACE['version']}"


def register():
    """Make `use_backend("strict")` work."""
    backend.register("strict", StrictBackend)
