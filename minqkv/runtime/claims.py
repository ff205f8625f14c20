"""Who uses a model at the moment: many threads may decode with it, or one may train it.

Both at once would read half-updated weights and switch dropout on and off under each other's feet.
"""

import threading
import weakref
from contextlib import contextmanager

from .errors import UsageError

_lock = threading.Lock()
_training = weakref.WeakSet()  # models that a training step is changing
_decoding = (
    weakref.WeakKeyDictionary()
)  # model -> [how many decode, whether it was in training mode]


@contextmanager
def training(model):
    """For one training step. Raises UsageError while the model is in use elsewhere."""
    with _lock:
        if model in _training or model in _decoding:
            what = "being trained" if model in _training else "decoding"
            raise UsageError(f"this model is {what} in another thread", "give each thread a model")
        _training.add(model)
    try:
        yield
    finally:
        with _lock:
            _training.discard(model)


@contextmanager
def decoding(model):
    """For one step of decoding, in evaluation mode. Raises UsageError while the model is trained."""
    with _lock:
        if model in _training:
            why = "this model is being trained in another thread"
            raise UsageError(why, "decode before or after the step, or with a copy")
        entry = _decoding.setdefault(model, [0, model.training])
        entry[0] += 1
        if entry == [1, True]:
            model.eval()
    try:
        yield
    finally:
        with _lock:
            entry[0] -= 1
            if not entry[0]:
                del _decoding[model]
                if entry[1]:
                    model.train(model.step)
