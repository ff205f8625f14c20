"""Products for cuBLAS: views are read where they lie, in few calls, in the precision asked for."""

import pickle

import numpy as np
import pytest

from minqkv import backend
from minqkv.cli.options import PRECISIONS as OFFERED
from minqkv.kernels.products import PRECISIONS
from minqkv.runtime.errors import EnvironmentFault, UsageError
from minqkv.study import workers

VIEWS = {  # shapes of two factors as they lie in memory, and the views that are multiplied
    "matrices": ((5, 7), (7, 3), lambda a, b: (a, b)),
    "a transposed": ((7, 5), (7, 3), lambda a, b: (a.T, b)),
    "b transposed": ((5, 7), (3, 7), lambda a, b: (a, b.T)),
    "both": ((7, 5), (3, 7), lambda a, b: (a.T, b.T)),
    "columns of a wider array": ((5, 20), (9, 30), lambda a, b: (a[:, 3:12], b[:, 4:11])),
    "every other row": ((10, 7), (14, 3), lambda a, b: (a[::2], b[::2])),
    "every other column": ((5, 14), (7, 6), lambda a, b: (a[:, ::2], b[:, ::2])),
    "backwards": ((5, 7), (7, 3), lambda a, b: (a[::-1], b[:, ::-1])),
    "one row": ((1, 7), (7, 3), lambda a, b: (a, b)),
    "one column": ((5, 7), (7, 1), lambda a, b: (a, b)),
    "one row of a wider array": ((4, 20), (7, 3), lambda a, b: (a[1:2, 3:10], b)),
    "one column of a wider array": ((5, 7), (7, 9), lambda a, b: (a, b[:, 2:3])),
    "a row of every other number": ((9, 14), (7, 3), lambda a, b: (a[2:3, ::2], b)),
    "a column of every other number": ((5, 7), (9, 14), lambda a, b: (a, b.T[::2, 2:3])),
    "an outer product": ((5, 1), (1, 3), lambda a, b: (a, b)),
    "one number": ((1, 1), (1, 1), lambda a, b: (a, b)),
    "scores": ((2, 6, 3, 5), (2, 9, 3, 5),  # (B, T, H, d)
               lambda a, b: (a.transpose(0, 2, 1, 3), b.transpose(0, 2, 3, 1))),
    "a filled part of a cache": ((2, 3, 4, 5), (2, 3, 20, 5),
                                 lambda a, b: (a, b[:, :, :11].swapaxes(-1, -2))),
    "one KV head for all": ((2, 4, 6, 5), (2, 1, 5, 7), lambda a, b: (a, b)),
    "one sequence for all": ((3, 4, 6, 5), (1, 4, 5, 7), lambda a, b: (a, b)),
    "weights for each head": ((2, 3, 4, 5), (3, 5, 6), lambda a, b: (a, b)),
    "weights for all": ((2, 3, 4, 5), (5, 6), lambda a, b: (a, b)),
    "a batch of each": ((3, 1, 4, 5), (1, 2, 5, 6), lambda a, b: (a, b)),
    "many sequences": ((9, 6, 10, 5), (9, 7, 10, 5),  # more calls than a copy is worth
                       lambda a, b: (a.transpose(0, 2, 1, 3), b.transpose(0, 2, 3, 1))),
}  # fmt: skip

CALLS = {  # where the batches do not lie evenly apart
    **{"scores": 2, "a batch of each": 2, "one KV head for all": 2, "weights for each head": 2},
    "one sequence for all": 3,
}


@pytest.fixture
def strict():
    with backend.use_backend("strict") as current:
        yield current
        backend.use_precision("fp32")


def factors(name):
    """The two factors of a view, on the host."""
    rng = np.random.default_rng(0)
    first, second, view = VIEWS[name]
    return (rng.standard_normal(shape, dtype="f4") for shape in (first, second)), view


def largest(precision):
    """The largest error of a product on the GPU backend, as a share of Σ |a| |b|."""
    (host_a, host_b), view = factors("scores")
    backend.use_precision(precision)
    found = backend.to_host(backend.bmm(*view(backend.upload(host_a), backend.upload(host_b))))
    x, y = (array.astype("float64") for array in view(host_a, host_b))
    return (abs(found - x @ y) / (abs(x) @ abs(y))).max()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_multiplied_where_it_lies(name, strict, monkeypatch):
    (host_a, host_b), view = factors(name)
    calls, gemm = [], strict.gemm
    monkeypatch.setattr(strict, "gemm", lambda *given: (calls.append(given), gemm(*given)))
    copies, copy = [], strict.xp.ascontiguousarray
    monkeypatch.setattr(strict.xp, "ascontiguousarray", lambda x: (copies.append(x), copy(x))[1],
                        raising=False)  # fmt: skip
    found = strict.bmm(*view(strict.upload(host_a), strict.upload(host_b)))
    np.testing.assert_allclose(strict.to_host(found), np.matmul(*view(host_a, host_b)), 2e-6, 2e-6)
    assert found.dtype == "float32"
    assert len(calls) == CALLS.get(name, 1)
    due = {"every other column": 2, "backwards": 2, "many sequences": 2}.get(name, 0)
    assert len(copies) == due


def test_a_broadcast_matrix_is_copied(strict):
    column, row = (
        strict.upload(np.arange(5, dtype="f4")[:, None]),
        strict.upload(np.ones((1, 3), "f4")),
    )
    wide, high = strict.xp.broadcast_to(column, (5, 7)), strict.xp.broadcast_to(row, (7, 3))
    due = 7 * np.arange(5)[:, None] * np.ones(3)
    np.testing.assert_array_equal(strict.to_host(strict.bmm(wide, high)), due)


def test_random_views(strict):
    rng = np.random.default_rng(1)
    for _ in range(200):
        lead, n, k, m = rng.integers(1, 4, rng.integers(0, 3)).tolist(), *rng.integers(1, 6, 3)
        pair = []
        for rows, columns in ((n, k), (k, m)):
            own = [1 if rng.random() < 0.3 else size for size in lead][int(rng.integers(0, 2)) :]
            shape = [*own, rows, columns]
            order = rng.permutation(len(shape))
            wide = [shape[i] + int(rng.integers(0, 3)) for i in order]
            whole = rng.standard_normal(wide, dtype="f4")
            cut = tuple(slice(int(rng.integers(0, w - shape[i] + 1)), None) for i, w in
                        zip(order, wide, strict=True))  # fmt: skip
            view = strict.upload(whole)[cut], whole[cut]
            inner = tuple(slice(0, shape[i]) for i in order)
            pair.append([x[inner].transpose(*np.argsort(order).tolist()) for x in view])
        (a, host_a), (b, host_b) = pair
        found = strict.to_host(strict.bmm(a, b))
        np.testing.assert_allclose(found, np.matmul(host_a, host_b), 1e-5, 1e-5)


def test_other_types_and_products_of_nothing(strict):
    for dtype in ("float64", "float16"):
        a = strict.upload(np.ones((2, 3, 4)), dtype)
        assert strict.bmm(a, a.swapaxes(1, 2)).dtype == dtype
    for shapes in (((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 0, 3), (2, 3, 4))):
        a, b = (strict.upload(np.ones(shape, "f4")) for shape in shapes)
        np.testing.assert_array_equal(strict.to_host(strict.bmm(a, b)), np.matmul(
            *(np.ones(shape, "f4") for shape in shapes)))  # fmt: skip
    a = strict.upload(np.ones((2, 3), "f4"))
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 3\) do not fit"):
        strict.bmm(a, a)


def test_factors_are_rounded_as_asked(strict):
    """Each factor to the nearest of 24, 11 or 8 bits: an error of up to 2^-24, 2^-11 or 2^-8."""
    found = {name: largest(name) for name in PRECISIONS}
    assert found["fp32"] < 2**-21
    assert 2**-14 < found["tf32"] < 2**-10
    assert 2**-11 < found["bf16"] < 2**-7


def test_what_is_offered_and_refused(monkeypatch, strict):
    assert tuple(PRECISIONS) == OFFERED
    with pytest.raises(UsageError, match="unknown precision 'fp16'"):
        backend.use_precision("fp16")
    monkeypatch.setattr(strict, "capability", lambda: 75)
    with pytest.raises(EnvironmentFault, match=r"this GPU \(sm_75\) has no bf16"):
        backend.use_precision("bf16")
    backend.use_precision("fp32")
    with backend.use_backend("numpy"), pytest.raises(UsageError, match="tf32 is for a GPU"):
        backend.use_precision("tf32")


def seen(item):
    """What a run of a study sees."""
    return backend.current.label, backend.kernels


def test_a_worker_multiplies_and_launches_as_its_study(strict, monkeypatch):
    """And records of another precision are not those of this study."""
    assert strict.label == "strict"
    backend.use_precision("bf16")
    assert strict.label == "strict bf16"
    backend.use_precision("fp32")
    monkeypatch.setattr(backend.GpuBackend, "kernels", True)
    how = "strict", "tf32", False
    found = workers.run_here(b"", workers.code_version(), how, pickle.dumps((seen, 0)))
    assert found == ("strict tf32", False)
