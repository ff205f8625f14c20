"""rows.cu against the readable code and its gradients."""

import numpy as np
import on_cpu
import pytest
import strict

from minqkv import backend, kernels
from minqkv import functional as F
from minqkv.tensor import Tensor


def drawn(rng, *shape, size=1.0, shift=0.0):
    return (size * rng.standard_normal(shape) + shift).astype("f4")


def run(where, function, arrays, g=None):
    """The result and all gradients, as NumPy arrays; on the host in float64. `g` is the gradient of
    the result, 1 unless given. The host does not wait, and nothing that is given changes.
    """
    dtype = "f8" if where == "numpy" else "f4"
    with backend.use_backend(where):
        leaves = [Tensor(backend.upload(x, dtype), requires_grad=True) for x in arrays]
        g = None if g is None else backend.upload(g, dtype)
        with strict.count_syncs() as syncs:
            out = function(*leaves)
            given = [x for x in (out.data, g, *(leaf.data for leaf in leaves)) if x is not None]
            before = [x.copy() for x in given]
            out.backward(g)
        assert syncs() == 0
        for a, b in zip(given, before, strict=True):
            np.testing.assert_array_equal(backend.to_host(a), backend.to_host(b))
        return [backend.to_host(x) for x in (out.data, *(leaf.grad for leaf in leaves))]


def check(function, arrays, g=None, close=2e-6, names=()):
    """The kernels agree with the readable code in float64, and these kernels have been launched."""
    with on_cpu.recording() as calls:
        ours = run("strict", function, arrays, g)
    assert {call[2] for call in calls} == set(names) or not names
    for a, b in zip(ours, run("numpy", function, arrays, g), strict=True):
        assert a.dtype == "float32"
        np.testing.assert_allclose(a, b, close, close * max(1, abs(b[np.isfinite(b)]).max()))
    return calls


# ---- norms

NORM = ("norm_forward", "norm_backward")


def check_layer_norm(rows, n, seed=0, size=1.0, shift=0.0, **more):
    rng = np.random.default_rng((n, rows, seed))
    arrays = drawn(rng, rows, n, size=size, shift=shift), drawn(rng, n), drawn(rng, n)
    g = drawn(rng, rows, n)
    return check(F.layer_norm, arrays, g, names=(*NORM, "columns"), **more)


def check_rms_norm(rows, n, seed=0, **more):
    rng = np.random.default_rng((n, rows, seed))
    x, g = drawn(rng, rows, n, shift=0.5), drawn(rng, rows, n)
    return check(F.rms_norm, [x], g, names=NORM, **more)


@pytest.mark.parametrize("n", [3, 31, 32, 33, 100, 256, 257, 520])
def test_norms(n):
    for rows in (1, 5, 40):
        check_layer_norm(rows, n, close=5e-6)
        check_rms_norm(rows, n)


def test_a_row_of_one_number():
    check_layer_norm(3, 1)
    check_rms_norm(3, 1)


def test_the_widest_rows():
    check_layer_norm(2, 4096, close=5e-6)
    with on_cpu.recording() as calls:
        run("strict", lambda x: F.rms_norm(x).sum(), [np.ones((2, 4097), "f4")])
    assert calls == []


def test_rows_far_from_zero_and_rows_that_are_constant():
    check_layer_norm(6, 70, shift=1e4, close=2e-3)  # the mean is rounded to about 1e-3
    check_layer_norm(6, 70, size=1e4, close=5e-6)
    check_layer_norm(6, 70, size=0, close=5e-6)
    check_layer_norm(6, 70, size=1e-6, close=5e-6)


def test_gradients_that_are_not_wanted():
    rng = np.random.default_rng(0)
    given = drawn(rng, 20, 40), drawn(rng, 40), drawn(rng, 40)
    g = drawn(rng, 20, 40)
    whole = run("numpy", F.layer_norm, given, g)
    for only in range(3):
        with backend.use_backend("strict"), on_cpu.recording() as calls:
            arrays = [
                Tensor(backend.upload(x), requires_grad=i == only) for i, x in enumerate(given)
            ]
            F.layer_norm(*arrays).backward(backend.upload(g))
            found = [None if x.grad is None else backend.to_host(x.grad) for x in arrays]
        assert ("columns" in {call[2] for call in calls}) == (only > 0)
        assert [x is not None for x in found] == [i == only for i in range(3)]
        np.testing.assert_allclose(found[only], whole[1 + only], 1e-4, 1e-5)


def test_views():
    """Rows that do not begin where an array begins, and axes that are not in order."""
    rng = np.random.default_rng(0)
    x, w, b = drawn(rng, 3, 7, 41), drawn(rng, 41), drawn(rng, 41)

    def part(x, w, b):
        heads = F.transpose(x[1:, 2:, 3:], 1, 0, 2)
        return F.layer_norm(heads, w[3:], b[3:]) + F.rms_norm(heads)

    check(part, (x, w, b), drawn(rng, 5, 2, 38), close=1e-5)


def test_a_gradient_that_is_a_view():
    rng = np.random.default_rng(0)
    given = drawn(rng, 7, 41), drawn(rng, 41), drawn(rng, 41)
    g = drawn(rng, 41, 7)
    check(lambda *a: F.transpose(F.layer_norm(*a)), given, g, close=5e-6)


# ---- sums of columns


@pytest.mark.parametrize(
    ("rows", "n"), [(1, 1), (7, 33), (64, 5), (65, 129), (300, 40), (5000, 3), (2, 50_304)]
)
def test_sums_of_columns(rows, n):
    a = drawn(np.random.default_rng(rows), rows, n)
    with backend.use_backend("strict"), on_cpu.recording() as calls:
        ours = backend.to_host(backend.column_sum(backend.upload(a)))
        again = backend.to_host(backend.column_sum(backend.upload(a)))
    assert len(calls) == (2 if rows <= 64 else 4)
    np.testing.assert_allclose(ours, a.sum(0, "f8"), 1e-5, 2e-6 * rows**0.5)
    assert (ours == again).all()


# ---- the loss


LOSS = ("loss_forward", "loss_backward")


def check_loss(rows, n, ignored=0.0, size=3.0, shift=0.0, **more):
    """A share of the targets is ignored, but not the first."""
    rng = np.random.default_rng((rows, n))
    targets = rng.integers(0, n, rows)
    targets[1:][rng.random(rows - 1) < ignored] = -100
    logits = drawn(rng, rows, n, size=size, shift=shift)
    return check(lambda x: F.cross_entropy(x, targets), [logits], names=LOSS, **more)


@pytest.mark.parametrize("n", [1, 2, 66, 255, 256, 257, 700])
def test_loss(n):
    for rows, ignored in ((1, 0), (6, 0), (9, 0.5)):
        check_loss(rows, n, ignored)


@pytest.mark.parametrize("n", [50_304, 100_000])
def test_a_large_vocabulary(n):
    calls = check_loss(2, n, close=5e-6)
    assert all(f"-DTHREADS={kernels.rows.MOST}" in call[1] for call in calls)


def check_far_apart(n=4097):
    """The largest number is the first, or the last, of a row of one more than a block holds."""
    x = np.full((2, n), -1e4, "f4")
    x[0, 0] = x[1, n - 1] = 0
    check(lambda x: F.cross_entropy(x, [8, n - 1]), [x], names=LOSS)


def test_extreme_logits():
    check_far_apart()
    check_loss(4, 300, size=1e4)
    check_loss(4, 300, shift=1e4, close=1e-5)
    check_loss(4, 300, shift=-1e4, close=1e-5)
    x = np.full((3, 300), -np.inf, "f4")
    x[0, 7] = x[1, 299] = x[2, 0] = -1e4
    check(lambda x: F.cross_entropy(x, [7, 299, 0]), [x], names=LOSS)


def test_a_row_without_any_probability_is_not_a_number():
    x = np.full((2, 40), -np.inf, "f4")
    x[0] = 0
    with np.errstate(invalid="ignore"):
        loss, dx = run("strict", lambda x: F.cross_entropy(x, [3, 3]), [x])
    assert np.isnan(loss)
    assert np.isnan(dx[1]).all()
    assert np.isfinite(dx[0]).all()


def test_logits_of_other_shapes_and_types_of_targets():
    rng = np.random.default_rng(0)
    for dtype in ("uint8", "int32", "int64"):
        targets = rng.integers(0, 9, (2, 5)).astype(dtype)
        targets[1, 2] = 11
        x = drawn(rng, 5, 2, 9)
        check(
            lambda x, y=targets: F.cross_entropy(F.transpose(x, 1, 0, 2), y, 11) * 3,
            [x],
            names=LOSS,
        )


def test_float64_is_left_to_the_readable_code():
    with backend.use_backend("strict"), on_cpu.recording() as calls:
        x = Tensor(backend.upload(np.ones((3, 4))), requires_grad=True)
        w = Tensor(backend.upload(np.ones(4)))
        F.cross_entropy(F.layer_norm(F.rms_norm(x), w, w), [0, 1, 2]).backward()
        assert x.grad.dtype == "float64"
    assert calls == []


# ---- all of them


def everything(x, w, b):
    """All functions of the file, one after the other."""
    y = F.layer_norm(F.rms_norm(x), w, b)
    return F.cross_entropy(y, np.arange(len(x.data)) % x.shape[1])


def test_the_gradient_is_the_transpose_of_the_derivative():
    """⟨u, J v⟩, by differences in float64, and ⟨Jᵀ u, v⟩ of the kernels."""
    rng = np.random.default_rng(0)
    point = drawn(rng, 30, 50), drawn(rng, 50), drawn(rng, 50)
    step = [rng.standard_normal(x.shape) for x in point]
    ends = []
    for eps in (1e-5, -1e-5):
        moved = [x + eps * dx for x, dx in zip(point, step, strict=True)]
        ends.append(run("numpy", everything, moved)[0])
    grads = run("strict", everything, point)[1:]
    terms = [(g.astype("f8") * dx).sum() for g, dx in zip(grads, step, strict=True)]
    assert abs(sum(terms) - (ends[0] - ends[1]) / 2e-5) < 1e-5 * sum(map(abs, terms))


def test_the_order_of_threads_does_not_matter(monkeypatch):
    rng, call, found = np.random.default_rng(0), on_cpu.call, []
    given = drawn(rng, 90, 70), drawn(rng, 70), drawn(rng, 70)
    for seed in range(4):
        monkeypatch.setattr(on_cpu, "call", lambda *args, seed=seed: call(*args[:-1], seed))
        found.append(run("strict", everything, given))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a == b).all()


def check_addresses():
    """Nothing is read or written outside."""
    with on_cpu.recording() as calls:
        check_layer_norm(20, 33)
        check_layer_norm(3, 520)
        check_rms_norm(2, 1)
        check_loss(4, 66, 0.5)
        check_loss(2, 600)
    on_cpu.sanitised(calls)


def test_addresses():
    check_addresses()


# ---- planted faults


def quick_norms():
    """The checks that must notice a fault in a norm, or in a sum over a block."""
    check_layer_norm(35, 600)
    check_layer_norm(3, 513, size=0)
    check_rms_norm(2, 600)


def quick_rest():
    """The checks that must notice a fault elsewhere."""
    check_loss(7, 600, 0.4)
    kernels.rows.MOST = 128  # of this process, which ends with the check
    check_loss(2, 3000, shift=-1e4, close=1e-5)
    test_sums_of_columns(300, 520)


def one_norm():
    check_layer_norm(35, 100)


def near_0():
    check_layer_norm(6, 70, size=1e-4, close=5e-6)


def rms():
    check_rms_norm(2, 100)


def columns():
    test_sums_of_columns(300, 40)


def one_loss():
    check_loss(7, 100, 0.4)


SUMS = "warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0);\n"
FAULTS = [  # (old text, new text, the check that notices it)
    ("held[i] -= mean;", "", quick_norms),
    ("if (first + i * THREADS < n) square", "square", quick_norms),
    ("float mean = centred ? block_sum", "float mean = centred ? warp_sum", quick_norms),
    ("block_sum(square) / n + eps", "block_sum(square) / n", quick_norms),
    ("c < n ? (x[row * n + c] - mean) * inv", "c < n ? x[row * n + c] * inv", quick_norms),
    (
        "dw[i] += a[i] * unit[i], db[i] += a[i];",
        "dw[i] = a[i] * unit[i], db[i] += a[i];",
        quick_norms,
    ),
    ("sum += a[i], along += a[i]", "sum += a[i], along = a[i]", quick_norms),
    ("(a[i] - sum - unit[i] * along)", "(a[i] - unit[i] * along)", quick_norms),
    ("if (w && c < n) a[i] *= w[c];", "", quick_norms),
    ("row < rows; row += gridDim.x", "row < rows; row += gridDim.x + 1", quick_norms),
    ("sums[(2ll * blockIdx.x + 1) * n", "sums[2ll * blockIdx.x * n", quick_norms),
    ("__syncthreads();\n  x = warp_sum", "x = warp_sum", quick_norms),
    (SUMS + "  __syncthreads();\n", SUMS, quick_norms),
    ("i++) sum += held[i];", "i++) sum = held[i];", quick_rest),
    ("row += HELD * slabs", "row += HELD", quick_rest),
    ("row + i * slabs < rows", "row + i * slabs <= rows", quick_rest),
    ("peak = LOWEST, total = 0;", "peak = 0, total = 0;", quick_rest),
    ("total *= expf(peak - high);", "", quick_rest),
    ("block_sum(total * expf(peak - high))", "block_sum(total)", quick_rest),
    ("c < n ? logits[c] : -INFINITY", "c < n ? logits[c] : 0", quick_rest),
    ("(rows ? rows[m] : m) * n", "m * n", quick_rest),
    (" - (c == target)", "", quick_rest),
    ("* inv - (c", "- (c", quick_rest),
    ("1 / sqrtf(block_sum(square) / n + eps)", "1 / (sqrtf(block_sum(square) / n) + eps)", near_0),
    ("(b ? b[c] : 0)", "0", one_norm),
    ("invs[row] = inv", "invs[first] = inv", one_norm),
    ("db[HELD] = {};", "db[HELD];", one_norm),
    ("db[i] += a[i];\n      if (w && c < n) a[i] *= w[c];",
     "db[i] += a[i] *= w && c < n ? w[c] : 1;", one_norm),
    ("- unit[i] * along", "+ unit[i] * along", one_norm),
    ("sums[2ll * blockIdx.x * n + c]", "sums[blockIdx.x * n + c]", one_norm),
    ("* along) * inv;", "* along);", one_norm),
    ("sum = centred ? block_sum(sum) / n : 0;         //", "sum = block_sum(sum) / n;  //", rms),
    ("long long row = blockIdx.y;", "long long row = 0;", columns),
    ("a[(row + i * slabs) * n + c]", "a[(row + i) * n + c]", columns),
    ("held[HELD], high = peak;", "held[HELD], high = LOWEST;", check_far_apart),
    ("start < n; start += HELD", "start < n - 1; start += HELD", check_far_apart),
    ("logits[targets[m]] - high", "logits[targets[m]]", one_loss),
    ("(c == target)", "(c + 1 == target)", one_loss),
    ("scale = *g * part", "scale = *g", one_loss),
    ("peak = peaks[m]", "peak = peaks[0]", one_loss),
    ("row = rows ? rows[m] : m, target", "row = m, target", one_loss),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[new or old for old, new, _ in FAULTS])
def test_a_planted_fault_is_noticed(fault):
    assert not on_cpu.survives("rows", *fault)
