"""Vectors as files: `manifest.json` says what each array is, `vectors.npz` holds the numbers.

Equal arrays are stored once, and all of a dtype one after another in one array of that name: two
thousand small files would be mostly headers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...runtime.errors import EnvironmentFault, UsageError
from ...runtime.files import (
    make_folder,
    read_arrays,
    read_json,
    read_sealed,
    sealed,
    write_arrays,
    write_text,
)
from ...runtime.version import __version__
from .case import ARRAYS, KINDS, Case, Sizes
from .cases import cases
from .computed import contents, held, results
from .tolerances import tolerances

KIND, VERSION = "set of minqkv vectors", 1
MANIFEST, NUMBERS = "manifest.json", "vectors.npz"
READ = {
    "entry": "file[dtype][at : at + n].reshape(shape), n being the product of the shape",
    "cache.": "rows by position; held: whose row is in each slot after each token, -1 for none",
    "within": "twice the largest difference of a plain implementation in this dtype, and a floor",
}
AGAIN = "minqkv vectors export DIR writes a new set"


class Task(NamedTuple):
    """What one call computes: arrays given and due by name, and by how much each may differ."""

    case: Case
    task: str
    about: dict
    given: dict[str, np.ndarray]
    due: dict[str, np.ndarray]
    within: dict[str, dict[str, float]]  # name -> dtype -> largest difference


class _Pool:
    """Arrays to be stored, each only once."""

    def __init__(self):
        self.parts, self.places = {}, {}

    def add(self, array):
        """The entry of an array in the manifest."""
        dtype, key = array.dtype.name, (array.dtype.name, array.tobytes())
        if key not in self.places:
            parts = self.parts.setdefault(dtype, [])
            self.places[key] = sum(map(len, parts))
            parts.append(array.reshape(-1))
        return {"dtype": dtype, "at": self.places[key], "shape": list(array.shape)}


def export(folder, sizes: Sizes | None = None, advance=lambda done: None) -> dict:
    """Write all cases into a folder; the same files each time. Returns {"cases", "arrays",
    "bytes"}. Raises UsageError if the folder has a manifest of something else.
    """
    make_folder(folder)
    folder, sizes, pool = Path(folder), sizes or Sizes(), _Pool()
    path = folder / MANIFEST
    if path.exists() and read_json(path).get("kind") != KIND:
        raise UsageError(f"{path} is something else, which would be lost", "choose another folder")
    described = {}
    for i, case in enumerate(cases(sizes)):
        given = case.given()
        entries = {n: pool.add(_small(a)) for n, a in given.items()}
        found = {task: _entries(case, task, given, pool) for task in case.tasks}
        described[case.name] = {"about": case.about(), "given": entries, "results": found}
        advance(i + 1)
    arrays = {dtype: np.concatenate(parts) for dtype, parts in pool.parts.items()}
    manifest = sealed({
        "kind": KIND, "version": VERSION, "minqkv": __version__, "sizes": asdict(sizes),
        "read": READ, "arrays": ARRAYS, "held": {kind: held(sizes, kind) for kind in KINDS},
        "cases": described,
    })  # fmt: skip
    lines = [f"{json.dumps(n)}: {_lines(v, n == 'cases')}" for n, v in manifest.items()]
    write_text(path, "{" + ",\n".join(lines) + "}\n")
    write_arrays(folder / NUMBERS, KIND, {"version": VERSION, "of": manifest["check"]}, arrays)
    size = sum((folder / name).stat().st_size for name in (MANIFEST, NUMBERS))
    return {"cases": len(described), "arrays": len(pool.places), "bytes": size}


def _lines(value, one_each):
    """JSON; of the cases, each on a line."""
    if not one_each:
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in value.items()) + "}"


def _small(array):
    """What is given, in a type that holds it exactly."""
    return array.astype("int8" if array.dtype.kind == "i" else "float16")


def _entries(case, task, given, pool):
    right = results(case, task, given, case.layer(task=task))
    within, found = tolerances(case, task, given, right), {}
    for name in sorted(right, key=_order):
        found[name] = pool.add(right[name])
        if name in within:
            found[name]["within"] = within[name]
    return found


def _order(name):
    """In the order of the computation; gradients come last, those of weights after that of x."""
    known = [*ARRAYS]
    return known.index(name) if name in known else len(known) + (name not in ("grad.v", "grad.x"))


def load(folder) -> list[Task]:
    """All tasks of a folder. Raises EnvironmentFault if a file is missing, damaged, or of another
    version.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise EnvironmentFault(f"there are no vectors in {folder} (no {MANIFEST})", AGAIN)
    manifest = read_sealed(path, AGAIN)
    if manifest.get("kind") != KIND:
        raise EnvironmentFault(f"{path} is not a {KIND}", AGAIN)
    if manifest.get("version") != VERSION:
        why = f"{path} has version {manifest.get('version')!r}; this program reads {VERSION}"
        raise EnvironmentFault(why, AGAIN)
    try:
        meta, arrays = read_arrays(Path(folder) / NUMBERS, KIND)
    except EnvironmentFault as error:  # without its advice, which is for runs
        raise EnvironmentFault(str(error), AGAIN) from error
    if meta.get("of") != sealed(manifest)["check"]:
        raise EnvironmentFault(f"{path} and {NUMBERS} are not from one export", AGAIN)
    try:
        return [*_tasks(manifest, arrays)]
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise EnvironmentFault(f"{path} is damaged: {error}", AGAIN) from error


def _tasks(manifest, arrays) -> Iterator[Task]:
    def array(entry, *dtypes):
        name, at, shape = entry["dtype"], entry["at"], entry["shape"]
        if name not in dtypes or arrays[name].dtype != name or at < 0:
            raise ValueError(f"an array of {name}, from {at}")
        return arrays[name][at : at + math.prod(shape)].reshape(shape)

    for case in cases(Sizes(**manifest["sizes"])):
        known, own = manifest["cases"][case.name], case.given()
        if known["about"] != json.loads(json.dumps(case.about())):
            raise ValueError(f"{case.name} is described in another way")
        given = {n: array(known["given"][n], "float16", "int8").astype(a.dtype)
                 for n, a in own.items()}  # fmt: skip
        if any(given[n].shape != a.shape for n, a in own.items()):
            raise ValueError(f"{case.name} has other shapes")
        for task in case.tasks:
            entries = known["results"][task]
            due = {n: as_due(case, task, n, array(entry, "float64", "float32", "int8", "int64"))
                   for n, entry in entries.items()}  # fmt: skip
            within = {n: {dtype: float(most) for dtype, most in entry.get("within", {}).items()}
                      for n, entry in entries.items()}  # fmt: skip
            yield Task(case, task, case.about(task=task), given, due, within)


def as_due(case: Case, task: str, name: str, array: np.ndarray) -> np.ndarray:
    """A stored array as a function has to return it: rows of a cache, after each token."""
    rows = name.startswith("cache.") and name != "cache.bytes"
    return contents(array, np.array(held(case.sizes, task))) if rows else array
