"""The signals that ask a program to stop: Ctrl-C, kill, a terminal that closes."""

import signal


def stopping() -> dict:
    """Their numbers, and the handler of each now. A signal that the user has chosen to ignore, as
    `nohup` does, is left out: it stays ignored.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    return {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}
