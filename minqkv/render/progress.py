"""Progress on stderr: a live bar on a terminal, a line for each tenth elsewhere."""

import threading
import time
from contextlib import ExitStack, contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from .console import duration, stderr


class Elapsed(TimeElapsedColumn):
    """The time so far, with a comma: the time left follows."""

    def render(self, task):
        """The column's text."""
        return super().render(task) + ","


class TwoLines(Progress):
    """A bar as wide as the terminal, and the task's note in a line below it."""

    def get_renderables(self):
        """The bar, and the line."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(t.fields["note"], no_wrap=True, overflow="ellipsis") for t in self.tasks)


@contextmanager
def progress(label, total, start=0, console=None, below=False, began=None):
    """Yields `advance(done, note="")`, which shows how much of `total` is done.

    A caller who prints its own lines meanwhile passes its `console`. Then the lines appear above
    the bar, and off a terminal they replace the tenths. With `below`, the note is on a line below
    the bar. `began` is the time.monotonic() at which the work after `start` began; now unless
    given.
    """
    tenths, console = console is None, console or stderr()
    if not console.is_terminal:
        advance = _tenths(label, total, start, console, began or time.monotonic())
        yield advance if tenths else lambda done, note="": None
        return
    bar = BarColumn(None if below else 40)
    before = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), Elapsed())
    after = (Remaining(), TextColumn("left" if below else "left  {task.fields[note]}"))
    kind = TwoLines if below else Progress
    with kind(*before, *after, console=console, expand=below) as bar:
        task = bar.add_task(label, total=total, completed=start, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


@contextmanager
def patient(label, total, seconds=1.0):
    """Like `progress`, but shows nothing in the first `seconds`."""
    began = time.monotonic()
    with ExitStack() as stack:
        shown = None

        def advance(done, of=total):
            nonlocal shown
            if shown is None and time.monotonic() - began > seconds:
                shown = stack.enter_context(progress(label, total, start=done))
            if shown:
                shown(done)

        yield advance


@contextmanager
def creeping(advance, done, jobs, seconds):
    """While runs are computed, move the bar on by the work probably done: `jobs` runs at a time,
    about `seconds` each. `done()` is how many have ended.
    """
    stop = threading.Event()

    def creep():
        last, since = done(), time.monotonic()
        while not stop.wait(0.5):
            if done() != last:
                last, since = done(), time.monotonic()
            advance(last + jobs * min(0.95, (time.monotonic() - since) / seconds))

    thread = threading.Thread(target=creep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _tenths(label, total, start, console, began):
    """An `advance` that prints a line for each tenth."""
    last = start * 10 // max(1, total)

    def advance(done, note=""):
        nonlocal last
        if done * 10 // total > last:
            last = done * 10 // total
            left = (time.monotonic() - began) / max(1, done - start) * (total - done)
            line = f"{label}  {done}/{total}  {duration(left)} left  {note}".rstrip()
            console.print(Text(line), soft_wrap=True)  # one line of a log, however long

    return advance
