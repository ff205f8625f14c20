"""Worker processes: forked from this one, they answer questions until what they work for is gone.

A worker sees the memory of its parent as it was at the fork, for nothing, and `shared` arrays as they are.
"""

import math
import mmap
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import weakref
from contextlib import contextmanager, suppress

import numpy as np

from .errors import EnvironmentFault, UsageError

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"
MOST = 4  # crews at a time
PATIENCE = 0.005  # seconds awake before falling asleep: to be woken takes longer than many an answer

threads = 1
lock = threading.Lock()  # held from hiring a crew until it has answered
_crews = weakref.WeakKeyDictionary()  # what it works for -> Crew


def set_threads(n):
    """Use n cores from now on; results depend on n only in rounding. Raises UsageError below 1.

    Training steps share out the batch, decoding the positions of a long cache. Workers are forked when a model or a cache
    first needs them and know the code and the globals of that moment: after changing either (running a notebook's cell
    again, say), call this again.
    """
    global threads
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    for owner in list(_crews):
        _dismiss(owner)
    threads = int(n)


def hire(owner, kind, *needs):
    """The crew that works for `owner`, or a new one, `kind(owner, *needs)`, if it has none that is free and fits."""
    crew = _crews.get(owner)
    if crew is None or crew.busy or not crew.fits(owner, *needs):
        with undisturbed():
            _dismiss(owner)
            if len(_crews) >= MOST:
                _dismiss(next(iter(_crews)))  # the oldest
            _crews[owner] = kind(owner, *needs)
    return _crews[owner]


def crew_of(owner):
    """The crew that works for `owner`, or None."""
    return _crews.get(owner)


def _dismiss(owner):
    if owner in _crews:
        _crews.pop(owner).end()


def _forget():
    """The workers of a process, and a lock another thread holds, are not those of a child it forks."""
    global lock
    _crews.clear()
    lock = threading.Lock()


if CAN_FORK:
    os.register_at_fork(after_in_child=_forget)


def shared(shape, dtype):
    """An array of zeros that this process and those it forks later read and write together."""
    dtype = np.dtype(dtype)
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


@contextmanager
def undisturbed():
    """Ctrl-C and SIGTERM wait: a fork and the note of it, or a kill and the wait for it, happen whole.

    Not by a mask: a signal that another thread of the process takes would still be raised in the main one.
    """
    arrived, before = [], {}
    if threading.current_thread() is threading.main_thread():  # Python raises nothing in others
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))}
    for number in before:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in set(arrived):
            signal.raise_signal(number)


def _lost():
    return EnvironmentFault("a worker process was killed", "is there enough memory? use fewer --threads")


class Line:
    """One end of a connection of two pipes, by which objects are sent. Whoever waits at it stays awake for a while."""

    def __init__(self, inbox, outbox):
        self.inbox, self.outbox, self.news = os.fdopen(inbox, "rb"), os.fdopen(outbox, "wb"), select.poll()
        self.news.register(inbox, select.POLLIN)

    def send(self, item):
        """Any object that can be pickled."""
        pickle.dump(item, self.outbox, protocol=5)
        self.outbox.flush()

    def receive(self):
        """What the other end sent. Raises EOFError when the other end is closed."""
        end = time.perf_counter() + PATIENCE
        while not self.news.poll(0) and time.perf_counter() < end:
            os.sched_yield()
        return pickle.load(self.inbox)

    def close(self):
        """Hang up."""
        self.inbox.close()
        with suppress(BrokenPipeError):
            self.outbox.close()


def _line():
    """Both ends."""
    (inbox, from_there), (from_here, outbox) = os.pipe(), os.pipe()
    return Line(inbox, outbox), Line(from_here, from_there)


class Crew:
    """Forked workers: a question (a tuple) to each is answered by what its function of `works` returns for it.

    A function may have a `rest`, which is called between two questions; it returns when its line has news.

    They heed no Ctrl-C and no SIGTERM: both reach the whole group, and the parent decides. Make a crew inside
    `undisturbed`, as `hire` does. What `works` hold on to lives on in the workers alone.
    """

    def __init__(self, works):
        self.lines, self.pids, self.busy = [], [], False
        self.end = weakref.finalize(self, _end, os.getpid(), self.pids, self.lines)  # by call, or with the crew
        for work in works:
            here, there = _line()
            try:
                pid = os.fork()
            except OSError as error:
                raise EnvironmentFault(f"no worker process could be started: {error}", "use fewer --threads") from error
            if not pid:
                _live(there, here, work)
            there.close()
            self.lines.append(here)
            self.pids.append(pid)

    def ask(self, questions, answered=True):
        """A question to each; they are not answered where `works` return None."""
        self.busy = True  # also if this is interrupted, or fails
        try:
            for line, question in zip(self.lines, questions, strict=True):
                line.send(question)
        except ConnectionError as error:
            raise _lost() from error
        self.busy = answered

    def answers(self):
        """Wait for all. Raises what a worker raised."""
        try:
            replies = [line.receive() for line in self.lines]
        except (EOFError, pickle.UnpicklingError) as error:  # nothing, or the beginning of an answer
            raise _lost() from error
        self.busy = False
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies


def _end(parent, pids, lines):
    """Stop the workers, also in the middle of their work; in a child that was forked from their parent, do nothing."""
    if os.getpid() != parent:
        return
    with undisturbed():
        for line, pid in zip(lines, pids, strict=True):
            line.close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _live(line, parents_end, work):
    """A worker's life: a question, the answer, the next question; it ends with the process that forked it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        parents_end.close()
        rest = getattr(work, "rest", lambda line: None)
        while True:
            answer = _answer(work, line.receive())
            if answer is not None:
                line.send(answer)
            rest(line)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _answer(work, question):
    """What `work` returns, or the error that came."""
    try:
        return work(*question)
    except BaseException as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
