"""Shared by all tests: how they are spread over cores, the three backends, a seeded generator,
float64 leaves, the command line in this process.
"""

import os
import signal
import warnings
from contextlib import suppress

import numpy as np
import pytest
import strict
from browser import chromium

from minqkv import Tensor
from minqkv import backend as backends
from minqkv.runtime.signals import stopping

strict.register()

with suppress(ImportError):  # many small products, and a process for each core
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, "blas")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """A run of everything takes all cores, where pytest-xdist is installed; `-n 0` takes one.

    A run of some files, of what needs the GPU, or with `--pdb`, takes one.
    """
    whole = config.args_source is config.ArgsSource.TESTPATHS and config.option.markexpr != "gpu"
    unasked = config.getoption("numprocesses", 0) is None and not config.option.usepdb
    if whole and unasked and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.dist = cores(), "worksteal"


def cores():
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _why_no_gpu():
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    return None if cupy.is_available() else "CuPy finds no usable GPU"


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory):
    """Prepared texts go to a folder of the tests, also from child processes."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MINQKV_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def known_calls():
    """At the end, what the package has called on the stand-in for CuPy is on the list of calls."""
    yield
    new = sorted(strict.CALLS.difference(strict.LISTED.read_text("utf-8").splitlines()))
    assert not new, f"not in {strict.LISTED.name}: {', '.join(new)}; see support/device_calls.py"


def _using(name):
    """The `Backend` of this name while the test runs."""
    if name == "cupy" and (why := _why_no_gpu()):
        pytest.skip(why)
    with backends.use_backend(name) as current:
        yield current


@pytest.fixture(params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request):
    """The test runs once on each backend; this is the `Backend` in use."""
    yield from _using(request.param)


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def hardware(request):
    """Like `backend`, for long tests of what `strict` would only repeat, slower."""
    yield from _using(request.param)


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request):
    """Like `backend`, for tests of kernels: where they can be launched."""
    yield from _using(request.param)


@pytest.fixture
def nothing_is_clean(monkeypatch):
    """Memory that nobody has written is NaN, or 77, so that whoever reads it is found."""
    for kind in (backends.Backend, backends.GpuBackend):
        empty = kind.empty

        def unwritten(self, shape, dtype, empty=empty):
            array = empty(self, shape, dtype)
            array[...] = 77 if array.dtype == "int8" else np.nan
            return array

        monkeypatch.setattr(kind, "empty", unwritten)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of one module; without it they are skipped."""
    with chromium() as found:
        yield found


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def leaf(rng):
    """leaf(2, 3) -> a random Tensor (2, 3) on the backend in use that requires a gradient; float64
    unless told.
    """

    def new(*shape, dtype="float64", positive=False):
        values = np.asarray(
            rng.uniform(0.5, 2.0, shape) if positive else rng.standard_normal(shape)
        )
        return Tensor(backends.upload(values), requires_grad=True, dtype=dtype)

    return new


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """cli("train", "--task", ...) -> (exit code, stdout, stderr): the command line in this process,
    in an empty folder.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "MINQKV_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which run_cli sets
    from minqkv.cli import run_cli  # not above: only these tests need what it imports

    before = stopping()

    def run(*args):
        code = run_cli([str(arg) for arg in args])
        return (int(code), *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
