"""What tests of executors let workers compute, instead of runs: some of it is deadly.

Each gets (a folder, a number) and leaves a file in the folder for each time it was begun.
"""

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def begun(folder, number):
    """How often the cell of this number has begun."""
    return len(list(Path(folder).glob(f"{number}-*")))


def compute(cell):
    """The number and who computed it."""
    folder, number = cell
    (Path(folder) / f"{number}-{uuid.uuid4().hex}").touch()
    return {"number": number, "pid": os.getpid()}


def die(cell):
    """Ends its worker."""
    compute(cell)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(cell):
    """Cell 1 ends its worker the first time."""
    first = begun(*cell) == 0
    return die(cell) if first and cell[1] == 1 else compute(cell)


def wait(cell):
    """All cells but 0 last for ever; "ended" says that one was ended inside the worker."""
    found = compute(cell)
    try:
        while cell[1]:
            time.sleep(0.01)
    finally:
        (Path(cell[0]) / "ended").touch()
    return found


def lacks(cell):
    """What only the study has installed."""
    import no_such

    return no_such


def threads():
    """An executor."""
    return ThreadPoolExecutor(2)


def fails():
    """None."""
    raise OSError("no machine is free")


def number():
    """None either."""
    return 7
