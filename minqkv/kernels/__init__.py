"""GPU kernels: CUDA C that is meant to be read, and what decides when to use it.

NAME.cu holds the code of the device, NAME.py the functions that call it. Such a function returns
None where the kernel does not fit, and the readable lines of its caller follow. `Kernels` makes
these functions methods of every backend. docs/kernels.md says how to add one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np

from . import decode, elementwise, gemv, rows, softmax

# The .cu files, each with constants for a trial build.
MODULES = {
    "decode": decode,
    "softmax": softmax,
    "rows": rows,
    "elementwise": elementwise,
    "gemv": gemv,
}
FILES = {file: module.EXAMPLE for file, module in MODULES.items()}


def source(name: str) -> str:
    """NAME.cu after common.cuh, as one text. A compiler reports errors by file and line."""
    here = Path(__file__).parent
    texts = {file: (here / file).read_text("utf-8") for file in ("common.cuh", f"{name}.cu")}
    text = "\n".join(f'#line 1 "{file}"\n{text}' for file, text in texts.items())
    return re.sub(r"[^\x00-\x7f]", ".", text)  # CuPy writes it in the encoding of the locale


def options(constants: dict) -> tuple[str, ...]:
    """What a compiler is told: constants are macros, so that sizes of arrays can depend on them."""
    return tuple(f"-D{name}={value}" for name, value in constants.items())


def argument(value):
    """A kernel's argument: an array, None for a null pointer, `int` for a Python int, `float` for a
    Python float. A 64-bit integer is an np.int64.
    """
    kind = {int: np.int32, bool: np.int32, float: np.float32}.get(type(value))
    return value if kind is None else kind(value)


def first_line(error: Exception) -> str:
    """What a compiler complains of first: the file, the line and the reason, if it says so."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if ".cu" in line and "error" in line), lines[0])


def method(function: Callable) -> Callable:
    """A method of every backend: function(backend, ...) where it uses kernels, else None."""

    @wraps(function)
    def call(self, *args, **more):
        return function(self, *args, **more) if self.kernels else None

    return call


class Kernels:
    """The methods of a backend that are kernels. Without kernels, each returns None."""

    kernels = False  # whether this backend uses them

    decode = method(decode.decode)
    norm = method(rows.norm)
    sum_columns = method(rows.sum_columns)
    cross_entropy = method(rows.cross_entropy)
    weigh = method(softmax.weigh)
    unweigh = method(softmax.unweigh)
    gelu = method(elementwise.gelu)
    adamw = method(elementwise.adamw)
    dropout = method(elementwise.dropout)
    gemv = method(gemv.gemv)
