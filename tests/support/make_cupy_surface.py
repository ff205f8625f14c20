"""Write cupy_surface.json, the list of what CuPy offers, from the CuPy wheel installed here. No GPU
is needed.

    pip install "cupy-cuda12x[ctk]"
    python tests/support/make_cupy_surface.py

For each public name: its kind ("ufunc", "func" or "other"); for a function, its signature as
[parameter names, whether it takes any keyword], null where compiled code does not tell; for a
ufunc, the operation its `.at` performs, null where it has none. And the public attributes of
cupy.ndarray. Run it again when the pinned CuPy changes.
"""

import inspect
import json
import sys
from pathlib import Path


def describe(value, ufunc):
    """One entry of `names`."""
    if isinstance(value, ufunc):
        # not public, but the only place that says which `.at` exist without running one on a GPU
        return {"kind": "ufunc", "sig": None, "at": getattr(value, "_scatter_op", None)}
    if not callable(value) or isinstance(value, type):
        return {"kind": "other", "sig": None, "at": None}
    return {"kind": "func", "sig": signature(value), "at": None}


def signature(function):
    """[parameter names, whether there is a **kwargs], or None for compiled functions without a
    signature.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    return [[p.name for p in parameters], any(p.kind is p.VAR_KEYWORD for p in parameters)]


def main():
    try:
        import cupy
    except ImportError as error:
        sys.exit(
            f"make_cupy_surface: CuPy is needed, and importing it failed: {error}\n"
            "    pip install 'cupy-cuda12x[ctk]'"
        )
    surface = {
        "version": cupy.__version__,
        "methods": [name for name in dir(cupy.ndarray) if not name.startswith("_")],
        "names": {
            name: describe(getattr(cupy, name), cupy.ufunc)
            for name in dir(cupy)
            if not name.startswith("_")
        },
    }
    path = Path(__file__).parents[1] / "data" / "cupy_surface.json"
    path.write_text(json.dumps(surface, indent=0, sort_keys=True))
    counts = f"{len(surface['names'])} names, {len(surface['methods'])} methods"
    print(f"{path}: CuPy {cupy.__version__}, {counts}")


if __name__ == "__main__":
    main()
