"""What this installation is made of: for `minqkv doctor`."""

import importlib.metadata
import os
import platform

import numpy as np

from . import backend
from .errors import MinqkvError
from .version import __version__, code_version


def examine():
    """Versions, BLAS and its thread settings, backends and GPU, as a dict of strings and dicts."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    threads = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_CORETYPE",
        "MINQKV_THREADS",
    )
    return {
        "minqkv": f"{__version__} ({code_version()})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: importlib.metadata.version(name) for name in ("numpy", "click", "rich")},
        "BLAS": f"{blas.get('name')} {blas.get('version')}",
        "threads": {name: os.environ[name] for name in threads if name in os.environ},
        "backend": backend.current.describe(),
        "GPU": _gpu(),
    }


def _gpu():
    before = backend.current.name
    try:
        with backend.use_backend("cupy") as gpu:
            return gpu.describe()
    except MinqkvError as error:
        return f"{error} (backend in use: {before})"
