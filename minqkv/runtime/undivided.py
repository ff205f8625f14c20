"""Changes that a signal does not cut in two."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def undivided():
    """A block that Ctrl-C and SIGTERM do not cut in two: they act at its end. Only the main thread
    is interrupted by them, so elsewhere there is nothing to do.
    """
    waiting, numbers = [], (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)
