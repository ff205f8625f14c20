"""Indices beyond 2^31, which an `int` cannot hold.

The arrays are larger than the machine's memory: of pages that nobody writes to, only addresses
exist. `far` starts a kernel at a late block, as if those before it had been there.
"""

import math
import mmap

import numpy as np
import on_cpu
import pytest

from minqkv import kernels
from minqkv.kernels import decode

FAR = 2**31
NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python has a name for from 3.13 on


def sparse(*shape, dtype="f4"):
    """Zeros that take no memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    return np.frombuffer(memory, dtype).reshape(shape)


def far(file, function, args, constants=(), skipped=0, grid=(1,), block=(256,)):
    """Launch the blocks that come after the first `skipped` ones."""
    axis = "y" if function == "columns" else "x"
    text = on_cpu.source(file)
    for each in "xy":
        text = text.replace(f"blockIdx.{each}", f"(blockIdx.{each} + skipped_{each})")
    text = f"static unsigned skipped_x, skipped_y;\n{text}\n"
    text += 'extern "C" void skip_x(unsigned n) { skipped_x = n; }\n'
    text += 'extern "C" void skip_y(unsigned n) { skipped_y = n; }\n'
    module = on_cpu.module_of(text, kernels.options(dict(constants)))
    skip = getattr(module.library, f"skip_{axis}")
    skip(skipped)
    module.get_function(function)(grid, block, [kernels.argument(x) for x in args])
    skip(0)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, "f4")


N = 64
ROW = FAR // N  # of an array (..., N), the first row that begins beyond 2^31


def last_rows(count, *values):
    """`count` arrays (ROW + 1, N), of which the first ones end in these values."""
    arrays = [sparse(ROW + 1, N) for _ in range(count)]
    for array, row in zip(arrays, values, strict=False):
        array[ROW] = row
    return arrays


def check_softmax():
    x, g = drawn(N), drawn(N, seed=1)
    scores, d = last_rows(2, x, g)
    inv_sums, constants = sparse(ROW + 1), {"NUMBER": "float", "THREADS": 32}
    args = scores, inv_sums, None, None, *[np.int64(0)] * 5, N, 1, 1
    far("softmax", "weigh", args, constants, ROW, block=(32,))
    weights = np.exp(x - x.max())
    np.testing.assert_allclose(scores[ROW], weights, 1e-5)
    far("softmax", "gradient", (d, scores, inv_sums, N), constants, ROW, block=(32,))
    shared = (weights * g).sum() / weights.sum()
    np.testing.assert_allclose(d[ROW], weights * (g - shared), 1e-4, 1e-6)


def check_norm():
    x, g = drawn(N), drawn(N, seed=1)
    rows, y, slope, dx = last_rows(4, x, 0 * x, g)
    means, invs = sparse(ROW + 1), sparse(ROW + 1)
    more = {"constants": {"THREADS": 32}, "skipped": ROW, "block": (32,)}
    far("rows", "norm_forward", (rows, None, None, y, means, invs, 1e-5, 1, N), **more)
    unit = (x - x.mean()) / x.std()
    np.testing.assert_allclose(y[ROW], unit, 1e-4, 1e-5)
    args = slope, rows, None, means, invs, dx, None, np.int64(ROW + 1), 1, N
    far("rows", "norm_backward", args, **more)
    np.testing.assert_allclose(
        dx[ROW], (g - g.mean() - unit * (g * unit).mean()) / x.std(), 1e-4, 1e-5
    )


def check_columns():
    x = drawn(N)
    rows, sums = last_rows(2, x)
    args = rows, sums, np.int64(ROW + 1), N
    far("rows", "columns", args, {"THREADS": 32}, ROW, (2,), (32,))
    assert (sums[ROW] == x).all()


def check_loss():
    x = drawn(N)
    logits, d = last_rows(2, x)
    rows, target, g = np.int64([ROW]), np.int64([5]), np.ones((), "f4")
    loss, peak, total = np.full((3, 1), np.nan, "f4")
    more = {"constants": {"THREADS": 32}, "block": (32,)}
    far("rows", "loss_forward", (logits, rows, target, loss, peak, total, N), **more)
    p = np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(loss, -np.log(p[5]), 1e-5)
    far("rows", "loss_backward", (logits, rows, target, peak, total, g, 1.0, d, N), **more)
    np.testing.assert_allclose(d[ROW], p - (np.arange(N) == 5), 1e-4, 1e-6)


def check_gelu():
    x = sparse(FAR + 9)
    x[FAR:] = drawn(9)
    y, slope = sparse(FAR + 9), sparse(FAR + 9)
    far("elementwise", "gelu", (x, y, slope, np.int64(FAR + 9)), skipped=FAR // 256)
    phi = [0.5 + 0.5 * math.erf(z / math.sqrt(2)) for z in x[FAR:]]
    np.testing.assert_allclose(y[FAR:], x[FAR:] * phi, 0, 2e-3)  # the tanh form is this close
    assert slope[FAR:].all()


def check_adamw():
    g = sparse(FAR + 9)
    g[FAR:] = drawn(9)
    data, m, v = (sparse(FAR + 9) for _ in range(3))
    sums, n, skipped = sparse(FAR // 256 + 1, dtype="f8"), np.int64(FAR + 9), FAR // 256
    far("elementwise", "squares", (g, sums, n), skipped=skipped)
    np.testing.assert_allclose(sums[skipped], (g[FAR:].astype("f8") ** 2).sum())
    args = data, m, v, g, n, n, 1.0, None, 0, 0.0, None, 0.9, 0.1, 0.99, 0.01, 1.0, 1e-8, 1e-3
    far("elementwise", "adamw", args, skipped=skipped)
    np.testing.assert_allclose(m[FAR:], 0.1 * g[FAR:], 1e-6)
    assert (data[FAR:] != 0).all()


def check_dropout():
    x, y = sparse(FAR + 9), sparse(FAR + 9)
    x[FAR:] = 1
    args = x, y, np.int64(FAR + 9), np.uint64(1), np.int64(0), np.uint32(0), 2.0
    far("elementwise", "dropout", args, skipped=FAR // 4 // 256)
    assert (y[FAR:] == 2).all()


def check_gemv():
    n, m = 33, FAR // 32  # the last row of `across` begins at 2^31, the last column of `along` also
    x, w = drawn(1, n), sparse(n, m)
    w[n - 1, :5] = range(1, 6)
    y, constants = sparse(1, m), {"STORED": "float", "BATCH": 1, "LANES": 8}
    far("gemv", "across", (x, w, None, y, n, m), constants)
    np.testing.assert_allclose(y[0, :5], x[0, -1] * w[-1, :5], 1e-6)
    x, w, y = drawn(1, 32), sparse(m + 1, 32), sparse(1, m + 1)
    w[m] = 1
    far("gemv", "along", (x, w, None, y, 32, m + 1), constants, m // 8)
    np.testing.assert_allclose(y[0, m], x.sum(), 1e-5)


def check_decode():
    """2^31 rows and more, as in a cache of int8 on a GPU of 80 GB."""
    h, capacity, d, n = 65, 2**25, 16, 3
    rows, scales = sparse(1, h, capacity, d, dtype="i1"), sparse(1, h, capacity, 1)
    q, k = drawn(1, h, d), np.arange(n * d).reshape(n, d) % 7
    rows[0, -1, :n], scales[0, -1, :n] = k, 0.5
    sizes = {"WIDTH": d, "VALUE": d, "BESIDE": 0, "ASKED": d, "FORM": decode.SAME, "TURN": 0}
    constants = {"STORED": "int8", **sizes, "GROUP": 1, "ROWS": 32, "VECTOR": 16}
    mixed, totals, peaks = (np.full((1, h, size), np.nan, "f4") for size in (d, 1, 1))
    args = q, 1.0, None, rows, None, None, scales, *[None] * 8, *[0] * 4
    args = *args, mixed, totals, peaks, None, n, 32, capacity, h, h
    far("decode", "decode", args, constants, grid=(1, h, 1), block=(128,))
    weights = np.exp(q[0, -1] @ k.T * 0.5)
    answer = weights @ k * 0.5 / weights.sum()
    np.testing.assert_allclose(mixed[0, -1] / totals[0, -1], answer, 1e-5)


CHECKS = [
    check_softmax, check_norm, check_columns, check_loss, check_gelu, check_adamw, check_dropout,
    check_gemv, check_decode,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_an_index_beyond_an_int(check):
    check()


FIRST = "row = blockIdx.x;\n  int first = threadIdx.x;\n  "
EACH = "i = FIRST; i < n; i += STRIDE) "
FAULTS = [  # (file, what comes after `long long`, the check that notices an `int` there)
    ("softmax", FIRST + "long long t", check_softmax),
    ("softmax", FIRST + "d +=", check_softmax),
    ("rows", FIRST + "x", check_norm),
    ("rows", "row = blockIdx.x; row < rows", check_norm),
    ("rows", "row = blockIdx.y", check_columns),
    ("rows", "row = rows ? rows[m] : m, target", check_loss),
    ("elementwise", EACH + "{\n    float in", check_gelu),
    ("elementwise", EACH + "{\n    float slope", check_adamw),
    ("elementwise", EACH + "sum", check_adamw),
    ("elementwise", "i = 4 * j", check_dropout),
    ("decode", "place, int start", check_decode),
    ("decode", "place = (b * heads", check_decode),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{file}: {text}" for file, text, _ in FAULTS])
def test_an_int_is_noticed(fault):
    file, text, check = fault
    assert not on_cpu.survives(file, f"long long {text}", f"int {text}", check)


@pytest.mark.parametrize("index", ["row * m", "column * n"])
def test_an_int_is_noticed_in_a_product(index):
    assert not on_cpu.survives("gemv", f"(long long){index}", index, check_gemv)
