"""The signals that ask a program to stop: Ctrl-C, kill, a terminal that closes."""

import signal
import threading
from contextlib import contextmanager


def stopping() -> dict:
    """Their numbers, and the handler of each now. A signal that the user has chosen to ignore, as
    `nohup` does, is left out: it stays ignored.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    return {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def undivided():
    """A block that these signals do not cut in two: they act at its end. Only the main thread is
    interrupted by them, so elsewhere there is nothing to do.
    """
    main = threading.current_thread() is threading.main_thread()
    waiting, before = [], {n: h for n, h in stopping().items() if callable(h)} if main else {}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)
