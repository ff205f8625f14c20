"""Caches beside the plain one in cache.py, one kind per file.

Each kind is named here once. The help texts, what `generate` and `eval` take, what a file may hold,
and what the benchmark measures follow from KINDS. This file imports no NumPy.
"""

from importlib import import_module
from typing import NamedTuple

from ..runtime.errors import unknown


class Kind(NamedTuple):
    """`cls`, in the file `home`, stores elements of `dtype`, or of the model's. `rounds`: it stores
    numbers that differ from those it is given. `windowed`: it is made with a window.
    """

    home: str = "..cache"
    cls: str = "KVCache"
    dtype: str | None = None
    rounds: bool = False
    windowed: bool = False


KINDS = {
    "plain": Kind(),  # all rows, in the model's dtype
    "float16": Kind(dtype="float16", rounds=True),
    "ring": Kind(".ring", "RingCache", windowed=True),  # the first few rows, and the last ones
    "int8": Kind(".int8", "Int8Cache", rounds=True),  # 8-bit integers, and a scale for each row
    "int8-ring": Kind(".int8", "Int8RingCache", rounds=True, windowed=True),
}
_HOME = {kind.cls: kind.home for kind in KINDS.values()}  # class or function -> its file
_HOME |= {"BranchCache": ".branch", "branches": ".branch", "save": ".saved", "load": ".saved"}
__all__ = [*_HOME, "KINDS", "Kind", "options"]


def options(kind: str, **window) -> dict:
    """Arguments of `GPT.new_cache` for a name of KINDS; `window` and `sinks` are for a ring.

    Raises UsageError for an unknown name.
    """
    if kind not in KINDS:
        raise unknown("cache", kind, KINDS)
    return {"kind": __getattr__(KINDS[kind].cls), "dtype": KINDS[kind].dtype, **window}


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
