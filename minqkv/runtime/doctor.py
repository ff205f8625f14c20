"""What this installation is made of: for `minqkv doctor`."""

import importlib.metadata
import os
import platform

import numpy as np
import threadpoolctl

from . import backend
from .errors import MinqkvError
from .version import __version__, code_version

_PACKAGES = ("numpy", "click", "rich", "threadpoolctl")
_VARIABLES = (  # nothing here sets them; where a user does, they matter
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "MINQKV_THREADS",
)


def examine():
    """Versions, BLAS and its thread settings, backends and GPU, as a dict of strings and dicts."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "minqkv": f"{__version__} ({code_version()})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "BLAS": f"{blas.get('name')} {blas.get('version')}",
        "threads": _threads(),
        "backend": backend.current.describe(),
        "kernels": backend.current.usable() or "none: this backend computes on the host",
        "GPU": _gpu(),
    }


def _threads():
    """BLAS's threads in this process, and what is set in the environment."""
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    counts = {f"BLAS ({library['internal_api']})": library["num_threads"] for library in found}
    return counts | {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _gpu():
    before = backend.current.name
    try:
        with backend.use_backend("cupy") as gpu:
            return gpu.describe()
    except MinqkvError as error:
        return f"{error} (backend in use: {before})"
