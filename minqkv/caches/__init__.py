"""Caches beside the plain one in cache.py, one kind per file.

What the command line needs to know is here, and imports no NumPy: the names of the kinds, and
`options`, the arguments with which `GPT.new_cache` makes them.
"""

from importlib import import_module

from ..runtime.errors import unknown

KINDS = {
    "plain": "all rows, in the model's dtype",
    "float16": "all rows, in half precision",
    "ring": "the first few rows, and a window of the last ones",
    "int8": "all rows, as 8-bit integers with a scale for each row",
    "int8-ring": "a ring of such rows",
}
_HOME = {  # class or function -> its file
    "RingCache": "ring",
    "Int8Cache": "int8",
    "Int8RingCache": "int8",
    "BranchCache": "branch",
    "save": "saved",
    "load": "saved",
}
__all__ = [*_HOME, "KINDS", "options"]


def options(kind: str, **window) -> dict:
    """Arguments of `GPT.new_cache` for a name of KINDS; `window` and `sinks` are for a ring.

    Raises UsageError for an unknown name.
    """
    classes = {"ring": "RingCache", "int8": "Int8Cache", "int8-ring": "Int8RingCache"}
    if kind not in KINDS:
        raise unknown("cache", kind, KINDS)
    if kind in classes:
        return {"kind": __getattr__(classes[kind]), **window}
    return {"dtype": "float16"} if kind == "float16" else {}


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
