"""Who uses a model at the moment: many threads may decode with it, or one may train it.

Both at once would mix weights of before a step with weights of after it. A claim is an object that
only its `with` block holds: however the block ends, even by an interrupt while it is being left,
the claim is gone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakSet

from .errors import UsageError

evaluating = ContextVar("evaluating", default=False)  # dropout is off in here, whatever the mode
_lock = threading.Lock()
_training = {}  # id of a model -> the claims of training steps: one at most
_decoding = {}  # id of a model -> the claims of all that decode with it


class Claim:
    """What a `with` block holds."""


@contextmanager
def training(model) -> Iterator[None]:
    """For one training step. Raises UsageError while the model is in use."""
    claim = Claim()
    with _lock:
        if _training.get(id(model)) or _decoding.get(id(model)):
            what = "trained" if _training.get(id(model)) else "used for decoding"
            why = f"this model is being {what} at the moment"
            raise UsageError(why, "give each thread its own model")
        _training[id(model)] = WeakSet([claim])
    try:
        yield
    finally:
        with _lock:
            _forget(_training, model, claim)


@contextmanager
def decoding(model) -> Iterator[None]:
    """For one step of decoding or scoring. Raises UsageError while the model is being trained."""
    claim, before = Claim(), evaluating.get()
    with _lock:
        if _training.get(id(model)):
            why = "this model is being trained at the moment"
            raise UsageError(why, "decode with a copy of it, or between two steps")
        _decoding.setdefault(id(model), WeakSet()).add(claim)
    evaluating.set(True)
    try:
        yield
    finally:
        evaluating.set(before)
        with _lock:
            _forget(_decoding, model, claim)


def _forget(claims, model, claim):
    mine = claims.get(id(model), WeakSet())
    mine.discard(claim)
    if not mine:
        claims.pop(id(model), None)


def _after_fork():
    """A child has none of its parent's other threads, and so none of their claims."""
    global _lock
    _lock = threading.Lock()
    _training.clear()
    _decoding.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
