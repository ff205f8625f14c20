"""Write cupy_surface.json, the list of what CuPy offers, from the CuPy wheel installed here. No GPU
is needed.

    pip install cupy-cuda13x
    python tests/support/make_cupy_surface.py

For each public name: its kind ("ufunc", "func" or "other"); the parameters that it takes; and, of a
ufunc, its types, as in NumPy, and the operation that its `.at` performs, null where it has none.
For each public attribute of cupy.ndarray: the parameters of a method, null for a property. The
special methods, and what is in cupy.cuda and cupy.cuda.runtime, are listed by name. Parameters are
names, with `=` where they may be left out, and with `/`, `*` and `**` as in Python; null where
compiled code does not tell. Run it again when the pinned CuPy changes.
"""

import inspect
import json
import re
import sys
from importlib import metadata
from pathlib import Path

SURFACE = Path(__file__).parents[1] / "data" / "cupy_surface.json"


def describe(value, ufunc):
    """One entry of `names`."""
    if isinstance(value, ufunc):
        # not public, but the only place that says which `.at` exist without running one on a GPU
        at, sig = getattr(value, "_scatter_op", None), of_ufunc(value.nin, value.nout)
        return {"kind": "ufunc", "sig": sig, "at": at, "types": " ".join(value.types)}
    if not callable(value) or isinstance(value, type):
        return {"kind": "other", "sig": None, "at": None}
    return {"kind": "func", "sig": parameters(value), "at": None}


def of_ufunc(n_in, n_out):
    """The parameters of a ufunc: CuPy's share one signature."""
    ins = ["x"] if n_in == 1 else [f"x{i + 1}" for i in range(n_in)]
    outs = ["out="] if n_out == 1 else [f"out{i + 1}=" for i in range(n_out)]
    last = [] if n_out == 1 else ["out="]
    before = [*ins, "/", *outs] if n_out == 1 else [*ins, *outs, "/"]
    return ", ".join([*before, "*", *last, "casting=", "dtype="])


def parameters(function):
    """The parameters of a function or method, from its signature or, if it is compiled, from the
    first line of its docstring.
    """
    try:
        signature = str(inspect.signature(function))
    except ValueError:
        name = re.escape(function.__name__)
        found = re.match(rf"(?:\w+\.)?{name}(\(.*\))", (function.__doc__ or "").split("\n")[0])
        signature = found and found[1]
    if signature is None:
        return None
    return ", ".join(short(part) for part in parts(signature) if part != "self")


def parts(signature):
    """Split "(a, b=(1, 2)) -> c" at the commas outside brackets: ["a", "b=(1, 2)"]."""
    depth, found = 0, [""]
    for letter in signature:
        depth += (letter in "([{") - (letter in ")]}")
        if not depth:
            break
        if letter == "," and depth == 1:
            found.append("")
        else:
            found[-1] += letter
    found[0] = found[0][1:]  # the bracket that opens
    return [part.strip() for part in found if part.strip()]


def short(part):
    """ "int axis: int = -1" as "axis="."""
    name, default, _ = part.partition("=")
    return name.split(":")[0].split()[-1] + default


def contents(module):
    """Names of the functions, classes, modules and switches in a module."""
    kept = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    known = [n for n, v in kept.items() if callable(v) or inspect.ismodule(v)]
    return sorted([*known, *(n for n, v in kept.items() if isinstance(v, bool))])


def surface(cupy):
    """All that the file holds."""
    array = {name: getattr(cupy.ndarray, name) for name in dir(cupy.ndarray)}
    return {
        "version": cupy.__version__,
        "wheel": metadata.packages_distributions()["cupy"][0],
        "methods": {
            name: parameters(value) if callable(value) else None
            for name, value in array.items()
            if not name.startswith("_")
        },
        "special": sorted(n for n in array if n.startswith("__") and n not in dir(object)),
        "modules": {
            "cuda": contents(cupy.cuda),
            "cuda.runtime": contents(cupy.cuda.runtime),
        },
        "names": {
            name: describe(getattr(cupy, name), cupy.ufunc)
            for name in dir(cupy)
            if not name.startswith("_")
        },
    }


def main():
    try:
        import cupy
    except ImportError as error:
        sys.exit(
            f"make_cupy_surface: CuPy is needed, and importing it failed: {error}\n"
            "    pip install cupy-cuda13x"
        )
    found = surface(cupy)
    SURFACE.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    counts = f"{len(found['names'])} names, {len(found['methods'])} methods"
    print(f"{SURFACE}: {found['wheel']} {found['version']}, {counts}")


if __name__ == "__main__":
    main()
