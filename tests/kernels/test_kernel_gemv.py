"""gemv.cu against the product of NumPy, and on the way from a model's token to a launch."""

import numpy as np
import on_cpu
import pytest

import minqkv as mq
from minqkv import backend
from minqkv import functional as F
from minqkv.tensor import Tensor

# (rows, n, m): one number, tails that fill no block, more columns than a block has
SHAPES = [(1, 1, 1), (1, 33, 7), (3, 5, 65), (8, 100, 9), (2, 300, 100), (5, 1, 40), (4, 70, 1)]


def numbers(*shape, seed=0, dtype="f4"):
    """Random numbers at an address that is aligned to no more than it must be."""
    flat = np.random.default_rng(seed).standard_normal(int(np.prod(shape)) + 1)
    return flat.astype(dtype)[1:].reshape(shape)


def linear(x, w, b, transposed=False, kernels=True):
    """F.linear on the stand-in, and what was launched."""
    with backend.use_backend("strict") as current, on_cpu.recording() as calls, mq.no_grad():
        current.kernels = kernels
        x, w, b = (None if a is None else Tensor(backend.upload(a)) for a in (x, w, b))
        y = F.linear(x, F.transpose(w) if transposed else w, b)
        return y.numpy(), [call[2] for call in calls]


def check(shapes=SHAPES):
    """In both orders of W, with a bias and without."""
    for B, n, m in shapes:
        x, w, b = numbers(B, n), numbers(n, m, seed=1), numbers(m, seed=2)
        for bias in (b, None):
            right = x.astype("f8") @ w + (0 if bias is None else bias)
            y, calls = linear(x, w, bias)
            assert calls in (["across"], ["along"])  # of one row or column, both are true
            assert calls == ["across"] or 1 in (n, m)
            np.testing.assert_allclose(y, right, 1e-5, 1e-5)
            y, calls = linear(x, np.ascontiguousarray(w.T), bias, transposed=True)
            assert calls == ["along"] or 1 in (n, m)
            np.testing.assert_allclose(y, right, 1e-5, 1e-5)


def test_products():
    check()


def test_a_wide_matrix_has_wider_blocks():
    x, w = numbers(1, 9), numbers(9, 9000, seed=1)
    with on_cpu.recording() as calls, backend.use_backend("strict"), mq.no_grad():
        y = F.linear(*(Tensor(backend.upload(a)) for a in (x, w))).numpy()
    (_, flags, _, grid, *_) = calls[0]
    assert ("-DLANES=32" in flags, grid) == (True, (282,))
    np.testing.assert_allclose(y, x @ w, 1e-5, 1e-5)
    y, calls = linear(x, np.ascontiguousarray(w.T), None, transposed=True)
    assert calls == ["along"]  # whose blocks have eight columns all the same
    np.testing.assert_allclose(y, x @ w, 1e-5, 1e-5)


def test_strided_rows_and_biases():
    """Rows are copied; with a bias that has gaps, or is of another type, the readable code runs."""
    x, w, b = numbers(6, 10)[::2, ::2], numbers(5, 8), numbers(16)
    with backend.use_backend("strict") as current, on_cpu.recording() as calls:
        on = [backend.upload(a) for a in (numbers(6, 10), w, b)]
        y = current.gemv(on[0][::2, ::2], on[1], on[2][:8])
        assert current.gemv(on[0][::2, ::2], on[1], on[2][::2]) is None
        assert current.gemv(on[0][::2, ::2], on[1], on[2][:8].astype("float64")) is None
        np.testing.assert_allclose(backend.to_host(y), x @ w + b[:8], 1e-5, 1e-5)
    assert len(calls) == 1


def check_direct(batch=3, lanes=16, n=150, m=37, name="across", stored="float", seeds=3):
    """A launch with results that start as garbage, threads in another order each time."""
    x, w, b = numbers(batch, n), numbers(n, m, seed=1), numbers(m, seed=2)
    given, w = stored_as(w, stored)
    constants = {"STORED": stored, "BATCH": batch, "LANES": lanes}
    blocks = -(-m // (lanes if name == "across" else 8))
    given = given if name == "across" else np.ascontiguousarray(given.T)
    for seed in range(seeds):
        y = np.full((batch, m), np.nan, "f4")
        args = [x, given, b, y, n, m]
        on_cpu.run("gemv", name, (blocks,), (256,), args, constants, seed=seed)
        np.testing.assert_allclose(y, x.astype("f8") @ w + b, 1e-5, 1e-5)


def stored_as(w, stored):
    """Numbers as an array of CUDA's type, and what they are after rounding."""
    if stored == "float":
        return w, w
    if stored == "__half":
        return w.astype("f2"), w.astype("f2").astype("f4")
    bits = (np.ascontiguousarray(w).view("u4") >> 16).astype("u2")
    return bits, (bits.astype("u4") << 16).view("f4")


@pytest.mark.parametrize("stored", ["float", "__half", "__nv_bfloat16"])
@pytest.mark.parametrize("name", ["across", "along"])
def test_types_and_orders_of_threads(name, stored):
    check_direct(name=name, stored=stored)


@pytest.mark.parametrize("lanes", [8, 32])
def test_columns_of_a_block(lanes):
    check_direct(lanes=lanes, batch=8)


def test_extreme_numbers():
    x, w = np.float32([[1e30, 1e-30, 0]]), np.float32([[1e8, -1], [1e-8, 1e38], [7, np.inf]])
    y, calls = linear(x, w, None)
    assert calls == ["across"]
    assert y[0, 0] == np.float32(1e38)
    assert np.isnan(y[0, 1])  # 0 times an infinity, as in any product
    with np.errstate(all="ignore"):
        assert np.array_equal(linear(x, w, None, kernels=False)[0], y, equal_nan=True)


def test_what_does_not_fit_takes_the_readable_code():
    w, b = numbers(6, 4), numbers(4)
    for x, more in ((numbers(9, 6), {}), (numbers(2, 6).astype("f8"), {})):
        assert linear(x, w.astype(x.dtype), b.astype(x.dtype), **more)[1] == []
    assert linear(numbers(2, 6), numbers(4, 6), None, transposed=True)[1] == ["along"]
    with backend.use_backend("strict"), on_cpu.recording() as calls:
        x, w = (Tensor(backend.upload(a)) for a in (numbers(2, 6), numbers(6, 8)))
        with mq.no_grad():
            F.linear(x, Tensor(w.data[:, ::2]))
        F.linear(Tensor(x.data, requires_grad=True), w)
        assert calls == []
    with pytest.raises(ValueError, match="do not fit"):
        linear(numbers(2, 5), numbers(6, 4), None)


@pytest.mark.parametrize("variant", ["qkv", "q-k=v", "mqa"])
def test_every_product_of_a_token_is_one_of_these(variant, monkeypatch):
    """So that a token needs no cuBLAS, which a CUDA graph could not hold."""
    config = mq.GPTConfig(11, 16, 2, 2, 32, variant=variant, position="rope")
    with backend.use_backend("strict") as current:
        model = mq.GPT(config)
        cache = model.new_cache()
        model([[1, 2, 3]], cache=cache)
        twin = cache.clone()
        expected = {}
        for kernels in (False, True):
            current.kernels = kernels
            with on_cpu.recording() as calls:
                expected[kernels] = model([[4]], cache=(twin, cache)[kernels]).numpy()
        found = [call[2] for call in calls if call[2] in ("across", "along")]
        layers = {"qkv": 6, "q-k=v": 5, "mqa": 6}[variant]
        assert found == ["across"] * (2 * layers) + ["along"]
        np.testing.assert_allclose(expected[True], expected[False], 1e-4, 1e-5)


def check_addresses():
    """All of it under the address sanitiser."""
    with on_cpu.recording() as calls:
        check([(1, 33, 7), (3, 5, 65)])
    assert calls
    on_cpu.sanitised(calls)


def test_nothing_is_read_or_written_outside():
    check_addresses()


def across():
    check_direct()


def along():
    check_direct(name="along")


def half():
    check_direct(stored="__half", seeds=1)


FAULTS = [  # (old text, new text, the check that notices it)
    ("column = first + lane;\n  float sum[BATCH] = {};",
     "column = first + lane;\n  float sum[BATCH];", across),
    ("  if (column < m) {", "  if (column <= m) {", check_addresses),
    ("row += ROWS", "row += ROWS + 1", across),
    ("(long long)row * m + column", "(long long)row * n + column", across),
    ("step = LANES; step < 32", "step = 2 * LANES; step < 32", across),
    ("lane] = sum[b];\n  }\n  __syncthreads();", "lane] = sum[b];\n  }", across),
    ("if (t % 32 < LANES) parts", "if (t % 32 < LANES / 2) parts", across),
    ("if (first + c >= m) continue;", "", check_addresses),
    ("warp < WARPS; warp++", "warp < WARPS - 1; warp++", across),
    ("for (int row = lane; row < n", "for (int row = lane; row < n / 32 * 32", along),
    ("sum[b] += x[b * n + row] * weight;\n  }\n  for",
     "sum[b] += x[b * m + row] * weight;\n  }\n  for", along),
    ("if (column >= m) return;", "if (column > m) return;", check_addresses),
    ("float total = warp_sum(sum[b]);", "float total = sum[b];", along),
    ("total + (bias ? bias[column] : 0)", "total", along),
    ("x[b * n + row] * weight;\n    }", "x[b * m + row] * weight;\n    }", across),
    ("bias ? bias[first + c] : 0", "bias ? bias[c] : 0", across),
    ("y[b * m + first + c]", "y[b * n + first + c]", across),
    ("row = t / LANES; row", "row = t / 32; row", across),
    ("row < n; row += ROWS", "row < n / ROWS * ROWS; row += ROWS", across),
    ("t % LANES, first", "t % LANES / 2, first", across),
    ("parts[warp][b][c];\n", "parts[warp][0][c];\n", across),
    ("STORED* w, const float* bias,   //", "float* w, const float* bias,   //", half),
    ("blockIdx.x * WARPS + threadIdx.x / 32", "blockIdx.x * WARPS + threadIdx.x / WARPS", along),
    ("row = lane; row < n; row += 32", "row = lane; row < n; row += THREADS", along),
    ("// the whole warp\n  float sum[BATCH] = {}", "\n  float sum[BATCH]", along),
    ("(long long)column * n + row", "(long long)column * m + row", along),
    ("y[b * m + column]", "y[b * n + column]", along),
    ("step = 16; step; step /= 2) x +=", "step = 8; step; step /= 2) x +=", along),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[str(i) for i in range(len(FAULTS))])
def test_a_planted_fault_is_noticed(fault):
    assert not on_cpu.survives("gemv", *fault)
