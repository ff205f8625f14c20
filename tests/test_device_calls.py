"""What the package asks of a GPU: calls that CuPy has, one wait a step, and few uploads."""

import device_calls
import numpy as np
import pytest
import strict
from device_calls import DECODING, MASKS, PROMPTS, TRAINING, decode, train, written, written_in
from make_cupy_surface import parameters, surface

from minqkv import backend as backends
from minqkv.tensor import DEBUG

strict.register()

TO_MEND = "read in CuPy's source what it does; then: python tests/support/device_calls.py"


def test_the_list_of_calls():
    listed = strict.LISTED.read_text("utf-8").splitlines()
    found = written_in("minqkv") | device_calls.used()
    assert sorted(found) == listed, TO_MEND


def test_benchmarks_call_what_cupy_has():
    assert written_in("bench")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("backend.xp.vecdot(a, b)", "line 1: CuPy has no vecdot"),
        ("\nwith backend.xp.errstate(all='ignore'): pass", "line 2: CuPy has no errstate"),
        ("xp.exp(a, where=a > 0)", "unexpected keyword argument 'where'"),
        ("self.xp.sum(a, initial=0)", "unexpected keyword argument 'initial'"),
        ("xp.clip(a, min=0)", "unexpected keyword argument 'min'"),
        ("xp.exp(x=a)", "unexpected keyword argument 'x'"),
        ("xp.zeros(3, 'f4', 'C', 1)", "at most 3 arguments by position"),
        ("xp.sum(a, 0, axis=0)", "unexpected keyword argument 'axis'"),
        ("xp.exp.at(a, i, b)", "CuPy has no exp.at"),
        ("xp.sum(*a)", "cannot be checked"),
        ("xp.cuda.runtime.memInfo()", "CuPy has no cuda.runtime.memInfo"),
        ("function = backend.xp.vecdot", "CuPy has no vecdot"),
    ],
)
def test_what_cupy_does_not_have_is_found_in_the_source(source, message):
    with pytest.raises((AttributeError, TypeError), match=message):
        written(source)


def test_calls_as_they_are_written():
    source = "xp.sum(a, axis=0); backend.xp.add.at(a, i, b); xp.float32; np.sum(a); self.xp.exp(a)"
    assert written(source) == {
        "xp.sum(a, axis=)",
        "xp.add.at(a, indices, b)",
        "xp.float32",
        "xp.exp(x)",
    }


def test_calls_as_they_run():
    """Those of the package alone are gathered, with methods, operators and indices."""
    source = "def run(a, xp): return (a.sum(0, keepdims=True) * a)[xp.asarray([0])].T"
    before = strict.CALLS.copy()
    for module, found in (("somewhere", set()), ("minqkv.somewhere", {
        "ndarray.sum(axis, keepdims=)", "ndarray.__mul__", "ndarray[ids]", "ndarray.T",
        "xp.asarray(a)"})):  # fmt: skip
        strict.CALLS.clear()
        names = {"__name__": module}
        exec(source, names)
        names["run"](strict.xp.ones((2, 3)), strict.xp)
        assert found == strict.CALLS
    strict.CALLS.clear()
    strict.CALLS.update(before)


# ---- the host waits once a step, and uploads little


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_waits_once(name):
    """It uploads inputs and targets, and the rows that count, where some do not; masks of dropout
    only without kernels.
    """
    more = TRAINING[name][2]
    with backends.use_backend("strict") as gpu:
        counts = train(name)
    masks = 0 if gpu.kernels else MASKS.get(name, 0)
    # MINQKV_DEBUG=1 looks for NaN on the host, and computes nothing again.
    assert counts == (1, 2 + more + masks) or DEBUG


@pytest.mark.parametrize("name", MASKS)
def test_a_training_step_without_kernels_uploads_masks(name):
    with backends.use_backend("strict") as gpu:
        gpu.kernels = False
        assert train(name) == (1, 2 + TRAINING[name][2] + MASKS[name]) or DEBUG


# Uploads for a token, in a model of any depth: its id, and where it differs, positions and slots.
LIMITS = {"equal": 2, "ragged": 7}
SEVERAL = 6  # branches of one prompt end at different slots


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", DECODING)
def test_a_token_waits_once(name, prompts):
    limit = max(LIMITS[prompts], SEVERAL if "samples" in name else 0)
    with backends.use_backend("strict"):
        counts = decode(name, prompts, n_layer=4, tokens=5)
    assert {waits for waits, _ in counts} == {1} or DEBUG
    assert max(uploads for _, uploads in counts[1:]) <= limit
    assert counts[0][1] <= 12  # the prompts are read


def test_equal_positions_are_uploaded_once():
    """By what they hold, not by which object: an array may be changed in place between steps."""
    at = np.array([[3, -1], [5, 6]])
    with backends.use_backend("strict") as current, strict.count_uploads() as uploads:
        first = backends.shared(at)
        assert backends.shared(at.copy()) is first
        at += 1
        others = [at, at.astype("int32"), at[0], at[:, :1], at > 4, at[:0], np.asarray(at.T)]
        for other in others:
            shared = backends.shared(other)
            assert shared.dtype == other.dtype
            np.testing.assert_array_equal(current.to_host(shared), other)
    assert uploads() == 1 + len(others)
    assert backends.shared(at) is at  # on the host there is nothing to upload


def test_numbers_are_added_by_their_ids_in_float64(backend, rng):
    ids, numbers = rng.integers(0, 5, 40), rng.standard_normal(40).astype("float32")
    found = backend.add_numbers(backend.upload(ids), backend.upload(numbers), 7)
    assert found.dtype == "float64"
    expected = [numbers[ids == i].sum(dtype="float64") for i in range(7)]
    np.testing.assert_allclose(backend.to_host(found), expected, rtol=1e-12)


# ---- the list of what CuPy offers


def test_parameters_are_read_from_a_signature_or_a_docstring(monkeypatch):
    def plain(self, a, /, b: int = 1, *more, c=(1, 2), **rest):
        """_ndarray_base.plain(self, Py_ssize_t axis1, order='C', *shape) -> _ndarray_base"""

    def nothing():
        """Says nothing."""

    def refuse(function):
        raise ValueError("no signature found")

    assert parameters(plain) == "a, /, b=, *more, c=, **rest"
    monkeypatch.setattr("inspect.signature", refuse)  # as for compiled code
    assert parameters(plain) == "axis1, order=, *shape"
    assert parameters(nothing) is None


@pytest.mark.gpu
def test_the_surface_is_that_of_the_installed_cupy():
    cupy = pytest.importorskip("cupy")
    if cupy.__version__ != strict.SURFACE["version"]:
        pytest.skip(f"the list is of CuPy {strict.SURFACE['version']}, not {cupy.__version__}")
    assert surface(cupy) | {"wheel": None} == strict.SURFACE | {"wheel": None}
