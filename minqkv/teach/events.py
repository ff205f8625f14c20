"""What a lesson says: events, drawn by whichever stage is on. A lesson that runs as plain Python
draws plain text.

Events are dicts of strings, numbers and lists. They never hold escape codes, and every number in
them was computed.
"""

import inspect
from contextlib import contextmanager
from pathlib import Path

from ..render.lesson import choose
from ..runtime.errors import MinqkvError
from .answers import verdict, wanted

_stage = None


class LessonError(MinqkvError):
    """A lesson that contradicts itself."""


class Quit(Exception):
    """The learner wants to stop."""


class Go(Exception):
    """The learner wants to be at another step: `Go(at)`, counted from 0."""


@contextmanager
def on(stage):
    """Draw on this stage inside the `with` block."""
    global _stage
    before, _stage = _stage, stage
    try:
        yield stage
    finally:
        _stage = before


def stage():
    """The stage in use. Outside the runner it is the notebook's, or a plain one on stdout, which
    asks only on a terminal.
    """
    global _stage
    if _stage is None:
        from ..render.notebook import kernel  # here, because other stages need no figures

        _stage = kernel() or choose(plain=True)
    return _stage


def emit(kind, **fields):
    """Draw one event on the stage in use."""
    stage().draw({"event": kind, **fields})


def host(value):
    """A Tensor, an array of any backend, a list or a number as a NumPy array."""
    import numpy as np

    from ..runtime import backend

    value = getattr(value, "data", value) if hasattr(value, "requires_grad") else value
    return np.asarray(backend.to_host(value) if isinstance(value, backend.ndarray) else value)


def plain(value):
    """An array as nested lists that JSON can hold: what is not finite becomes a word."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def array_event(kind, name, array, rows=None, columns=None, mask=None, digits=3):
    """The event behind `show` and `heat`."""
    array = host(array)
    values = plain(array.tolist())
    if mask is not None:
        import numpy as np

        seen = np.broadcast_to(host(mask).astype(bool), array.shape).tolist()
        values = _hide(values, seen)
    return {
        "event": kind,
        "name": name,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "values": values,
        "rows": rows and list(rows),
        "columns": columns and list(columns),
        "digits": digits,
    }


def _hide(values, seen):
    if isinstance(values, list):
        return [_hide(value, flag) for value, flag in zip(values, seen, strict=True)]
    return values if seen else None


def said(text, style=""):
    """The event of a sentence, for those who hand events on."""
    return {"event": "say", "text": text, "style": style}


def quoted(text, line=0):
    """The event of lines of code."""
    return {"event": "code", "source": text.rstrip(), "line": line}


def say(text):
    """A line of text whose numbers were computed: say(f"the cache holds {cache.nbytes} bytes")."""
    stage().draw(said(text))


def show(name, array, rows=None, columns=None, mask=None, digits=3):
    """An array with its name and shape. `rows` and `columns` label the last two axes; `mask` is
    True where an entry may be seen, the others print as a dot. More than two axes come as one
    matrix per leading index."""
    stage().draw(array_event("show", name, array, rows, columns, mask, digits))


def heat(name, array, rows=None, columns=None, mask=None, digits=3):
    """`show` for weights between 0 and 1, with shading on top of the numbers."""
    stage().draw(array_event("heat", name, array, rows, columns, mask, digits))


def table(title, columns, rows):
    """Rows of strings and numbers below short headers; the first column names the row."""
    rows = [[plain(cell.item() if hasattr(cell, "item") else cell) for cell in row] for row in rows]
    emit("table", title=title, columns=list(columns), rows=rows)


def curve(title, series, x="step", log=False):
    """Curves as text: `series` maps a name to its values, one for each x; `log` for values over
    several decades.
    """
    series = {name: [float(y) for y in ys] for name, ys in series.items()}
    if not all(abs(y) < float("inf") for ys in series.values() for y in ys):
        raise LessonError(f"curve: {title} has values that are not finite")
    emit("curve", title=title, series=series, x=x, log=log)


def roofline(title, bandwidth, rate, points):
    """The most operations per second of a card with this bandwidth, in bytes per second, and this
    rate. `points` maps a name to its arithmetic intensity, in operations per byte.
    """
    points = {name: float(x) for name, x in points.items()}
    emit("roofline", title=title, bandwidth=bandwidth, rate=rate, points=points)


def predict(question, answer, options=None, tolerance=1e-2):
    """Ask before showing. `answer` was computed; with `options` (strings) it is one of them, else a
    number (right within `tolerance`), a bool or a word. Anything else is a key, or is asked
    again. Without a terminal the question and the answer are stated."""
    answer = host(answer).item() if hasattr(answer, "item") else answer
    if options is not None and answer not in options:
        raise LessonError(
            f"predict: the answer {answer!r} is none of the options",
            "compute it from the same strings",
        )
    emit("predict", question=question, options=options and list(options))
    right = None
    while right is None and (reply := stage().ask("  your guess (Enter: show me, ?: keys): ")):
        right = verdict(reply, answer, options, tolerance)
        if right is None and not stage().key(reply):
            say(wanted(answer, options))
    text = ("yes" if answer else "no") if isinstance(answer, bool) else str(answer)
    if isinstance(answer, float):
        text = f"{answer:.4g}"
    emit("answer", answer=text, right=right)


def compare(left, a, right, b, tolerance=1e-9, same=True):
    """The largest difference of two arrays. Where the lesson's claim (`same`) fails, the lesson
    fails.
    """
    a, b = host(a), host(b)
    if a.shape != b.shape:
        raise LessonError(f"compare: {left} is {a.shape}, {right} is {b.shape}")
    difference = float(abs(a - b).max()) if a.size else 0.0
    if (difference <= tolerance) != same:
        claim = f"equal within {tolerance:g}" if same else f"further apart than {tolerance:g}"
        found = f"{left} and {right} differ by {difference:.3g}"
        raise LessonError(f"compare: {found}; the lesson says they are {claim}")
    emit("compare", left=left, right=right, difference=difference, equal=same)


def memory(**arrays):
    """Which arrays are one: `v: same memory as k (0 extra bytes)`, or how many bytes each is."""
    import numpy as np

    seen, rows = {}, []
    for name, value in arrays.items():
        value = value.data if hasattr(value, "requires_grad") else value
        for other, array in seen.items():
            both = isinstance(value, np.ndarray) and isinstance(array, np.ndarray)
            if value is array or (both and np.shares_memory(value, array)):
                rows.append(f"{name}: same memory as {other} (0 extra bytes)")
                break
        else:
            rows.append(f"{name}: its own memory ({value.nbytes:,} bytes)")
        seen[name] = value
    say("\n".join(rows))


def cache_step(cache, config, new=1):
    """One line on what a decode step of `new` tokens just wrote and read, from `nbytes`, compared
    with the formula.
    """
    from ..variants import VariantSpec

    spec, itemsize = VariantSpec.parse(config.variant), cache.layers[0].rows[0].dtype.itemsize
    per_token = spec.cache_bytes_per_token(config, itemsize) * cache.batch
    formula, held = per_token * len(cache), cache.nbytes
    if formula != held:
        raise LessonError(f"the cache holds {held} bytes, the formula says {formula}")
    twice = f" (two arrays: {2 * held:,} B)" if len(cache.stored[0]) == 1 else ""
    step = f"write {per_token * new:,} B read {held:,} B cache {held:,} B"
    say(f"t={len(cache)} {step}{twice}")


def source(thing, at=None):
    """Point at the real implementation: file and line of a function or class, or of the line in it
    that contains `at`.
    """
    stage().draw(place(thing, at))


def place(thing, at=None):
    """The event of `source`."""
    thing = inspect.unwrap(thing)
    rows, line = inspect.getsourcelines(thing)
    if at is not None:
        found = [i for i, row in enumerate(rows) if at in row]
        if not found:
            raise LessonError(f"source: no line of {thing.__qualname__} contains {at!r}")
        line += found[0]
    package = Path(__file__).resolve().parents[1]
    file = Path(inspect.getsourcefile(thing)).resolve()
    shown = file.relative_to(package.parent) if file.is_relative_to(package) else file.name
    file = str(shown).replace("\\", "/")
    return {"event": "source", "name": thing.__qualname__, "file": file, "line": line}


def gradients(function, inputs, cotangent):
    """(output, [gradient of each input]) of a function on Tensors, called with these NumPy arrays:
    for checks.
    """
    from ..tensor import Tensor

    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    out = function(*leaves)
    out.backward(Tensor(cotangent).data)
    return host(out), [host(leaf.grad) if leaf.grad is not None else None for leaf in leaves]
