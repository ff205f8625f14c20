"""CUDA graphs of the stand-in: what is done between begin_capture and end_capture is not done, but
put on a tape; `launch` does all of it, on the same memory and with the same numbers.

Like CuPy, it refuses cuBLAS, uploads, and all for which the host would wait. It is stricter in two
ways: memory must come from a pool of the graph's own, which must live as long as the graph, and a
kernel that is not compiled yet is refused. While it records, results are garbage.
"""

import weakref

import numpy as np

_tape = None  # while a stream is captured: functions that do again what it was given
_pool = None  # whose malloc is the allocator, inside using_allocator


def recording():
    """Whether a stream is being captured."""
    return _tape is not None


def refuse(what):
    """Raise NotImplementedError if a stream is being captured."""
    if recording():
        raise NotImplementedError(f"{what} during stream capture")


def fresh(result, again, sources):
    """Note an operation that makes new arrays, as again() does; their contents are garbage now. A
    view of one of the sources is no operation.
    """
    if not recording():
        return
    made = [a for a in _arrays(result) if not any(np.may_share_memory(a, b) for b in sources)]
    if not made:
        return
    for array in made:
        array.fill({"f": np.nan, "b": True}.get(array.dtype.kind, 127))

    def repeat():
        for array, new in zip(_arrays(result), _arrays(again()), strict=True):
            if any(array is one for one in made):
                array[...] = new

    _tape.append(repeat)


def _arrays(result):
    parts = result if isinstance(result, (list, tuple)) else (result,)
    return [part for part in parts if isinstance(part, np.ndarray)]


def act(function):
    """Do what changes arrays in place now, or leave it to the graph."""
    if recording():
        _tape.append(function)
    else:
        function()


class MemoryPool:
    """Of CuPy's, all that matters: whose memory it is."""

    def malloc(self, size):
        """Only to be named."""
        raise AssertionError("never called here")


class using_allocator:
    """`with using_allocator(pool.malloc)`."""

    def __init__(self, malloc):
        self.pool = malloc.__self__

    def __enter__(self):
        global _pool
        self.before, _pool = _pool, self.pool

    def __exit__(self, *error):
        global _pool
        _pool = self.before


class Recorder:
    """What a stream has for graphs. It is entered by `with` first."""

    before = None  # the stream that was current

    def begin_capture(self):
        """From now on, nothing is done."""
        global _tape
        if self.before is None:
            raise RuntimeError("what follows goes to another stream")
        if _pool is None:
            raise RuntimeError("the graph's memory would be given to others")
        refuse("another capture")
        _tape = []

    def end_capture(self):
        """The graph."""
        global _tape
        tape, _tape = _tape, None
        return Graph(tape, _pool)


class Graph:
    """What was recorded."""

    def __init__(self, tape, pool):
        self.tape, self.pool = tape, weakref.ref(pool)

    def launch(self):
        """All of it, once more."""
        if self.pool() is None:
            raise RuntimeError("the memory that this graph writes to has been given back")
        refuse("a graph")
        with np.errstate(all="ignore"):
            for function in self.tape:
                function()
