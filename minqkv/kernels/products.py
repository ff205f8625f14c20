"""Every product of float32 arrays on a GPU, as strided batches for cuBLAS.

CuPy's own product of more than two axes copies transposed views, follows pointers where an axis is
broadcast, and computes in float32 whatever is asked for. Here cuBLAS reads a view where it lies.
PRECISIONS says how it multiplies: "tf32" and "bf16" round the factors to 10 and 7 bits on their
way into the tensor cores, and add up in float32. All arrays stay float32, so weights need no copies
in another precision, and the loss no scale.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

PRECISIONS = {"fp32": 68, "tf32": 77, "bf16": 75}  # CUBLAS_COMPUTE_32F, ..._FAST_TF32, _FAST_16BF
FLOAT, USUAL = 0, -1  # CUDA_R_32F, and CUBLAS_GEMM_DEFAULT: cuBLAS chooses the algorithm
ONE, ZERO = np.ones(1, "float32"), np.zeros(1, "float32")
MANY = 8  # calls, from which it is cheaper to copy the factors


def multiply(gpu, a, b):
    """(..., n, k) @ (..., k, m) -> (..., n, m) in float32; the leading axes broadcast. None for
    other types, for vectors, and for products of nothing.
    """
    if not a.dtype == b.dtype == "float32" or min(a.ndim, b.ndim) < 2 or not a.size * b.size:
        return None
    lead, (n, k), m = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2:], b.shape[-1]
    if b.shape[-2] != k:
        raise ValueError(f"shapes {a.shape} and {b.shape} do not fit (..., n, k) @ (..., k, m)")
    c = gpu.empty((*lead, n, m), "float32")
    a, b = _readable(gpu, a), _readable(gpu, b)
    loops, batch = _batches(lead, a, b, c)
    if prod(size for size, _ in loops) > MANY:
        a, b = gpu.xp.ascontiguousarray(a), gpu.xp.ascontiguousarray(b)
        loops, batch = _batches(lead, a, b, c)
    (flip_a, wide_a), (flip_b, wide_b) = _layout(a), _layout(b)
    count, (step_a, step_b, step_c) = batch
    for at in product(*(range(size) for size, _ in loops)):
        x, y, z = _addresses(gpu, (a, b, c), at, loops)
        # The rows of an array are the columns of cuBLAS, so it computes (A B)ᵀ = Bᵀ Aᵀ.
        gpu.gemm(flip_b, flip_a, m, n, k, y, wide_b, step_b, x, wide_a, step_a, z, m, step_c, count)
    return c


def gemm(gpu, flip_a, flip_b, m, n, k, a, wide_a, step_a, b, wide_b, step_b, *c_and_count):
    """Start products of cuBLAS. `a`, `b` and then `c` are addresses of float32 matrices, in each of
    which columns are `wide` numbers apart; the matrices of a batch are `step` numbers apart.
    """
    c, wide_c, step_c, count = c_and_count
    cuda = gpu.xp.cuda
    cuda.cublas.gemmStridedBatchedEx(
        cuda.get_cublas_handle(), flip_a, flip_b, m, n, k, ONE.ctypes.data,
        a, FLOAT, wide_a, step_a, b, FLOAT, wide_b, step_b, ZERO.ctypes.data,
        c, FLOAT, wide_c, step_c, count, PRECISIONS[gpu.precision], USUAL,
    )  # fmt: skip


def _layout(x):
    """(1 if the numbers of a column are neighbours, else 0; from one row, or column, to the next).
    None for a matrix that cuBLAS cannot read.
    """
    (rows, columns), (down, along) = x.shape[-2:], (step // 4 for step in x.strides[-2:])
    if (along == 1 or columns == 1) and (down >= columns or rows == 1):
        return 0, max(down, columns)
    if (down == 1 or rows == 1) and (along >= rows or columns == 1):
        return 1, max(along, rows)
    return None


def _readable(gpu, x):
    return x if _layout(x) else gpu.xp.ascontiguousarray(x)


def _batches(lead, *arrays):
    """Leading axes, joined where they can be, as (size, steps of each array): those with a call for
    each place, and the longest one, which is a batch of cuBLAS.
    """
    found = [(1, (0,) * len(arrays))]
    for i, size in enumerate(lead):
        steps = tuple(_step(x, i - len(lead) - 2) for x in arrays)
        before, over = found[-1]
        if all(s == size * t for s, t in zip(over, steps, strict=True)):
            found[-1] = before * size, steps
        elif size > 1:
            found.append((size, steps))
    batch = max(found)
    found.remove(batch)
    return found, batch


def _addresses(gpu, arrays, at, loops):
    """Where the matrices begin that are at place `at` of the outer axes."""
    begin = [0] * len(arrays)
    for i, (_, steps) in zip(at, loops, strict=True):
        begin = [old + i * step for old, step in zip(begin, steps, strict=True)]
    return [gpu.address(x) + 4 * first for x, first in zip(arrays, begin, strict=True)]


def _step(x, axis):
    """Numbers from one place on a leading axis to the next; 0 where it is broadcast or missing."""
    return x.strides[axis] // 4 if -axis <= x.ndim and x.shape[axis] > 1 else 0
