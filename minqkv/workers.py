"""Worker processes: forked from this one, they answer questions until what they work for is gone.

A worker sees the memory of its parent as it was at the fork, for nothing, and `shared` arrays as they are.
"""

import gc
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
RECENT = 1.0  # seconds in which a crew that was hired is not idle
LOST = ("a worker process was killed", "is there enough memory? use fewer --threads")
PATIENCE = 0.005  # seconds awake before falling asleep: to be woken takes longer than many an answer

threads = 1
_crews, _lock = weakref.WeakKeyDictionary(), threading.Lock()  # what it works for -> Crew


def set_threads(n):
    """Use n cores from now on; results depend on n only in rounding. Raises UsageError below 1.

    Training steps share out the batch, decoding the positions of a long cache. Workers are forked when a model or a cache
    first needs them and know the code and the globals of that moment: after changing either (running a notebook's cell
    again, say), call this again.
    """
    global threads
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise UsageError(f"{n} threads: there must be at least one")
    with _lock:
        for owner in list(_crews):
            _dismiss(owner)
        threads = int(n)


@contextmanager
def hire(owner, kind, *needs, only_idle=False):
    """`with hire(...) as crew:` the crew that works for `owner`, or `kind(owner, *needs)` if none is free and fits; locked.

    There are MOST at a time. Beyond that the one hired longest ago goes; with `only_idle` it must be idle, or the crew
    is None.
    """
    while True:
        crew = _hire(owner, kind, needs, only_idle)
        if crew is None:
            yield None
            return
        with crew.lock:
            if crew.end.alive and not crew.busy:  # another thread may have been quicker
                yield crew
                return


def _hire(owner, kind, needs, only_idle):
    with _lock:
        crew = _crews.get(owner)
        if crew is None or crew.busy or not crew.fits(owner, *needs):
            with undisturbed():
                _dismiss(owner)
                if len(_crews) >= MOST:
                    oldest = min(_crews, key=lambda other: _crews[other].hired)
                    if only_idle and time.perf_counter() - _crews[oldest].hired < RECENT:
                        return None
                    _dismiss(oldest)
                crew = _crews[owner] = kind(owner, *needs)
        crew.hired = time.perf_counter()
        return crew


def crew_of(owner):
    """The crew that works for `owner`, or None."""
    return _crews.get(owner)


def _dismiss(owner):
    """A crew in use goes on, and ends with the last that uses it."""
    crew = _crews.pop(owner, None)
    if crew is not None and crew.lock.acquire(blocking=False):
        _, end, arguments, _ = crew.end.detach()
        crew.lock.release()  # who waits for it finds the crew dead
        end(*arguments, signal.raise_signal)


def _forget():
    """The workers of a process, and a lock another thread holds, are not those of a child it forks."""
    global _lock
    _crews.clear()
    _lock = threading.Lock()


if CAN_FORK:
    os.register_at_fork(after_in_child=_forget)


def shared(shape, dtype):
    """An array of zeros that this process and those it forks later read and write together."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)


def _later(number):
    """Raise a signal soon: an exception inside a weakref's callback would be lost."""
    with suppress(RuntimeError):  # the interpreter is ending
        threading.Timer(0.01, signal.raise_signal, (number,)).start()


@contextmanager
def undisturbed(raise_again=signal.raise_signal):
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
            raise_again(number)


class Line:
    """One end of a connection of two pipes, by which objects are sent. Whoever waits at it stays awake for a while.

    Nothing is read before it is asked for, so that `news` never hides a message; nothing that is sent waits in a buffer,
    which a fork would copy.
    """

    def __init__(self, inbox, outbox):
        self.inbox, self.outbox, self.news = inbox, outbox, select.poll()
        self.news.register(inbox, select.POLLIN)

    def send(self, item):
        """Any object that can be pickled."""
        text = pickle.dumps(item, protocol=5)
        message = memoryview(len(text).to_bytes(8) + text)
        while message:
            message = message[os.write(self.outbox, message) :]

    def receive(self):
        """What the other end sent. Raises EOFError when it is closed."""
        end = time.perf_counter() + PATIENCE
        while not self.news.poll(0) and time.perf_counter() < end:
            os.sched_yield()
        return pickle.loads(self._read(int.from_bytes(self._read(8))))

    def _read(self, n):
        message = bytearray()
        while len(message) < n:
            part = os.read(self.inbox, n - len(message))
            if not part:
                raise EOFError
            message += part
        return message

    def close(self):
        """Hang up."""
        os.close(self.inbox)
        os.close(self.outbox)


def _line():
    """Both ends."""
    (inbox, from_there), (from_here, outbox) = os.pipe(), os.pipe()
    return Line(inbox, outbox), Line(from_here, from_there)


class Crew:
    """Forked workers: a question (a tuple) to each is answered by what its function of `works` returns for it.

    A function may have a `rest`, which is called between two questions; it returns when its line has news.

    They heed no Ctrl-C and no SIGTERM: both reach the whole group, and the parent decides. `hire` makes crews; who uses
    one holds its `lock`. What `works` hold on to lives on in the workers alone.
    """

    def __init__(self, works):
        self.lines, self.pids, self.busy, self.lock = [], [], False, threading.Lock()
        self.hired = time.perf_counter()
        self.end = weakref.finalize(self, _end, os.getpid(), self.pids, self.lines)  # with the crew, unless dismissed
        for work in works:
            ends = ()
            try:
                here, there = ends = _line()
                pid = os.fork()
            except OSError as error:
                for end in ends:
                    end.close()
                raise EnvironmentFault(f"no worker process could be started: {error}", "use fewer --threads") from error
            if not pid:
                _live(there, work)
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
            raise EnvironmentFault(*LOST) from error
        self.busy = answered

    def answers(self):
        """Wait for all. Raises what a worker raised."""
        try:
            replies = [line.receive() for line in self.lines]
        except EOFError as error:
            raise EnvironmentFault(*LOST) from error
        self.busy = False
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies


def _end(parent, pids, lines, raise_again=_later):
    """Stop the workers, also in the middle of their work; in a child that was forked from their parent, do nothing."""
    if os.getpid() != parent:
        return
    with undisturbed(raise_again):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line, pid in zip(lines, pids, strict=True):
            line.close()
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _live(line, work):
    """A worker's life: a question, the answer, the next question; it ends with the process that forked it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gc.disable()  # what the parent threw away is not ours to finish
        for number in set(map(int, os.listdir("/dev/fd"))) - {0, 1, 2, line.inbox, line.outbox}:
            with suppress(OSError):  # what the parent closes shall be closed
                os.close(number)
        rest = getattr(work, "rest", lambda line: None)
        while True:
            answer = _answer(work, line.receive())
            if answer is not None:
                line.send(answer)
            with suppress(Exception):  # nothing depends on it
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
