"""Progress on stderr: a live bar on a terminal, a line per tenth elsewhere."""

import time
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .console import duration, say, stderr


@contextmanager
def progress(label, total, start=0, console=None):
    """Yields `advance(done, note="")`. Off a terminal it prints a line per tenth.

    Who prints lines of its own meanwhile passes its `console`, on which they come out above the
    bar, and off a terminal in place of the tenths.
    """
    tenths, console = console is None, console or stderr()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
        )
        with Progress(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console
        ) as bar:
            task = bar.add_task(label, total=total, completed=start, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        return
    began, last = time.monotonic(), start * 10 // max(1, total)

    def advance(done, note=""):
        nonlocal last
        if tenths and done * 10 // total > last:
            last = done * 10 // total
            left = (time.monotonic() - began) / max(1, done - start) * (total - done)
            say(console, f"{label}  {done}/{total}  {duration(left)} left  {note}".rstrip())

    yield advance
