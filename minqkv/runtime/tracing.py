"""Probe points: look at the arrays inside a real forward, backward or decode.

    with trace() as t:
        model(ids)
    t["blocks.0.attn.pattern"]        # (B, H, T, S), a NumPy copy
    t.all("blocks.0.attn.pattern")    # one per call, for instance one per decoded token

A trace is of its thread alone. Without one, a probe costs one `is None` test. Names:
`q k v scores pattern z out`, `cache.k cache.v`, `grad.<any of them>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from difflib import get_close_matches

import numpy as np

from . import backend, shown
from .backend import Array
from .scoped import scoped

_active = ContextVar("trace", default=None)  # the Trace that this thread records, or None
active = _active.get
_nothing = nullcontext()


class Trace(shown.Arrays):
    """Arrays by name, in the order they were seen."""

    def __init__(self):
        self.seen = {}
        self.watched = {}  # Node -> its names: backward reports its gradient under each
        self.scopes = []

    def __getitem__(self, name):
        if name in self.seen:
            return self.seen[name][-1]
        near = [known for known in self.seen if known.endswith(f".{name}")][:3]
        near = near or get_close_matches(str(name), self.seen, cutoff=0.5)
        near = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.seen)}"
        raise KeyError(f"no array {name} was seen; {near}")

    def __contains__(self, name):
        return name in self.seen

    def __iter__(self):
        return iter(self.seen)

    def __len__(self):
        return len(self.seen)

    def keys(self) -> list[str]:
        """The names, in the order they were seen."""
        return list(self.seen)

    def all(self, name: str) -> list[np.ndarray]:
        """Every array recorded under this name, oldest first."""
        return self.seen.get(name, [])

    def record(self, name: str, array: Array) -> None:
        """Keep a host copy."""
        self.seen.setdefault(name, []).append(backend.to_host(array).copy())


@scoped
def trace() -> Iterator[Trace]:
    """Record every probe inside the `with` block, in this thread."""
    before, t = active(), Trace()
    _active.set(t)
    try:
        yield t
    finally:
        _active.set(before)


def scope(name: str) -> AbstractContextManager:
    """`with scope(name):` prefixes the probes inside with `name.`; modules use their own name."""
    return _nothing if active() is None or not name else _inside(name)


@contextmanager
def _inside(name):
    scopes = active().scopes
    scopes.append(name)
    try:
        yield
    finally:
        scopes.pop()


def here() -> str:
    """The prefix in force, for a backward that will run later: "" outside any scope."""
    return "" if active() is None else "".join(f"{name}." for name in active().scopes)


def probe(name: str, value, prefix: str | None = None) -> None:
    """Show `value` (an array or a Tensor) to the trace being recorded, if there is one."""
    t = active()
    if t is None:
        return
    name = (here() if prefix is None else prefix) + name
    if hasattr(value, "node"):
        if value.node is not None:
            t.watched.setdefault(value.node, []).append(name)
        value = value.data
    t.record(name, value)


def saw_gradient(node, gradient):
    """Called by backward for each node as its gradient is complete."""
    for name in active().watched.get(node, ()):
        head, dot, last = name.rpartition(".")
        active().record(f"{head}{dot}grad.{last}", gradient)
