"""Every kernel compiles for a GPU, spills no registers, and uses what a committed table says."""

import json
from importlib.metadata import version

import nvrtc
import on_cpu
import pytest
from builds import BUILDS

from minqkv import kernels
from minqkv.kernels.decode import SAME, SHARED, taken

CASES = [(file, constants) for file, builds in BUILDS.items() for constants in builds]
IDS = [f"{file} {' '.join(map(str, constants.values()))}" for file, constants in CASES]
FEW = 8  # registers are given out by eights
MOST_SHARED = 48 * 1024  # bytes, without asking the driver for more


@pytest.fixture(scope="module")
def table():
    return json.loads(nvrtc.TABLE.read_text())


def test_each_file_has_builds_and_an_example():
    here = {path.stem for path in (nvrtc.TABLE.parents[2] / "minqkv/kernels").glob("*.cu")}
    assert here == set(kernels.FILES) == set(BUILDS)


@pytest.mark.nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize(("file", "constants"), CASES, ids=IDS)
def test_resources(file, constants, architecture, table):
    """Registers depend on the compiler's version and, by a few, on what else is in a file."""
    found = nvrtc.resources(file, constants, architecture)
    listed = table[file][" ".join(kernels.options(constants))][architecture]
    why = "if the change is meant: python tests/kernels/nvrtc.py"
    assert {name: row[1:] for name, row in found.items()} == {
        name: row[1:] for name, row in listed.items()
    }, why
    same = version("nvidia-cuda-nvrtc") == table["nvrtc"]
    for name, (registers, spills, shared) in found.items():
        assert not same or abs(registers - listed[name][0]) <= FEW, why
        assert spills == 0, name
        assert registers <= 255
        assert shared <= MOST_SHARED


def test_decode_counts_the_shared_memory_that_it_takes(table):
    """What no device gives without being asked is then never launched."""
    for constants in BUILDS["decode"]:
        width, value, beside, form = (constants[k] for k in ("WIDTH", "VALUE", "BESIDE", "FORM"))
        own = value * (form != SAME)
        floats = taken(width + beside, own, constants["GROUP"], constants["ROWS"])
        for found in table["decode"][" ".join(kernels.options(constants))].values():
            assert found["decode"][2] == 4 * floats
    assert 4 * SHARED <= MOST_SHARED


@pytest.mark.nvrtc
def test_an_example_compiles_for_each_architecture():
    for file, constants in kernels.FILES.items():
        for architecture in nvrtc.ARCHITECTURES:
            assert nvrtc.resources(file, constants, architecture)


@pytest.mark.nvrtc
def test_an_error_names_file_and_line():
    old = "float4 k = "
    line = 1 + kernels.source("decode").split('"decode.cu"\n')[1].split(old)[0].count("\n")
    flags = ("-arch=sm_80", f"-I{nvrtc.headers()}", *kernels.options(kernels.FILES["decode"]))
    good, log = nvrtc.compiled(on_cpu.source("decode").replace(old, "flaot4 k = "), flags)
    assert not good
    assert f"decode.cu({line}): error" in log
