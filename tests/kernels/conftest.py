"""Without a C++ compiler, or without NVRTC, tests that need it are skipped; where MINQKV_KERNELS is
set, as in CI, they fail instead.
"""

import os

import nvrtc
import on_cpu
import pytest


def pytest_collection_modifyitems(items):
    """Skip what cannot run here."""
    reasons = {"compiler": on_cpu.missing(), "nvrtc": nvrtc.missing()}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        here = "/kernels/" in item.path.as_posix() and "gpu" not in marks  # CuPy needs neither
        if not here or os.environ.get("MINQKV_KERNELS"):
            continue
        need = "nvrtc" if "nvrtc" in marks else "compiler"
        if reasons[need]:
            item.add_marker(pytest.mark.skip(reason=reasons[need]))
