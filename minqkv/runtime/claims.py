"""Who uses a model at the moment: many threads may decode with it, or one may train it.

Both at once would mix weights of before a step with weights of after it.
"""

import threading
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import UsageError

evaluating = ContextVar("evaluating", default=False)  # dropout is off in here, whatever the mode
_lock = threading.Lock()
_training = {}  # id of a model -> the one claim of a training step
_decoding = {}  # id of a model -> the claims of all that decode with it


@contextmanager
def training(model):
    """For one training step. Raises UsageError while another thread uses the model."""
    claim = object()  # of its own, so that an interrupt at any moment gives back what was taken
    try:
        with _lock:
            if id(model) in _training or _decoding.get(id(model)):
                what = "trained" if id(model) in _training else "used for decoding"
                why = f"this model is being {what} by another thread"
                raise UsageError(why, "give each thread a model of its own")
            _training[id(model)] = claim
        yield
    finally:
        with _lock:
            if _training.get(id(model)) is claim:
                del _training[id(model)]


@contextmanager
def decoding(model):
    """For one step of decoding. Raises UsageError while the model is being trained."""
    claim, before = object(), evaluating.get()
    try:
        with _lock:
            if id(model) in _training:
                why = "this model is being trained by another thread"
                raise UsageError(why, "decode with a copy of it, or between two steps")
            _decoding.setdefault(id(model), set()).add(claim)
        evaluating.set(True)
        yield
    finally:
        evaluating.set(before)
        with _lock:
            claims = _decoding.get(id(model), set())
            claims.discard(claim)
            if not claims:
                _decoding.pop(id(model), None)
