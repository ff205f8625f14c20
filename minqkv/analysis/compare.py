"""A user's implementation against the vectors: which array first differs, where, by how much, and
why, if it is a known mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .called import Fault, Gone
from .computed import seen
from .known import BUFFER, HALF, MASK, TOKEN, predictions
from .vectorfiles import Task, as_due
from .vectors import ARRAYS

SHORT, LONG, MOST = 0.8, 1.0, 100  # differences of sums in float16, in its tolerances: `_is_half`
FRUITLESS = 60  # searches for a cause that found none, after which no more are made
SLACK = 4  # for arrays that a mistake gives: their numbers may be larger


def check(tasks: list[Task], dtypes: tuple[str, ...], function: Callable) -> Iterator[dict]:
    """Rows {"case", "task", "dtype", "state", "text", ...}, one for each call of `function`, whose
    causes `named` finds. After a call that does not return there are no more.

    function(given, about) -> arrays by name, or None for what it does not compute. Floating-point
    arrays have the dtype `about["dtype"]`, also those returned. `state` is "ok", "differs", "fault"
    or "not done".
    """
    for dtype in dtypes:
        for task in tasks:
            if dtype == "float16" and task.case.level != "kernel":
                continue
            row = {"case": task.case.name, "task": task.task, "dtype": dtype, "state": "ok"}
            given = {n: a.astype(dtype) if a.dtype.kind == "f" else a.copy()
                     for n, a in task.given.items()}  # fmt: skip
            try:
                found = function(given, task.about | {"dtype": dtype})
                row |= {"state": "not done"} if found is None else _compared(task, dtype, found)
            except Fault as fault:
                row |= {"state": "fault", "text": str(fault)}
                if isinstance(fault, Gone):
                    yield row
                    return
            yield row


def _due(task, name, dtype):
    """The array that is right, as it would be stored in this dtype."""
    due = task.due[name]
    if name == "cache.bytes" and task.task != "int8":
        return due * np.dtype(dtype).itemsize // 8
    return due


def _compared(task, dtype, found):
    if not found:
        raise Fault("it returns no array; return None for a case that it does not compute")
    for name in found:
        if name not in ARRAYS and name not in (f"grad.{n}" for n in task.given):
            raise Fault(f"it returns {name!r}; known here: {', '.join(task.due)}")
        if _is_buffer(task, name):
            return {"state": "differs", "array": name, "text": f"{name}: K = V stores one row",
                    "causes": {BUFFER}}  # fmt: skip
    for name in task.due:
        if name not in found:
            continue
        array = found[name]
        due = _due(task, name, dtype)
        kind = due.dtype if due.dtype != np.float64 else np.dtype(dtype)
        if array.dtype != kind and not (name == "cache.bytes" and array.dtype.kind == "i"):
            raise Fault(f"{name} is {array.dtype}, not {kind}")
        if array.shape != due.shape:
            row = {"text": f"{name} has shape {array.shape}, not {due.shape}", "size": math.inf}
        else:
            row = difference(task, name, array, due, dtype)
        if row:
            return {"state": "differs", "array": name, "values": found} | row
    return {"state": "ok"}


def _is_buffer(task, name):
    return name.startswith("cache.v") and task.about["one_row"] and task.task != "forward"


def within(task: Task, name: str, dtype: str) -> float:
    """How far an array may be from the one that is right."""
    if limit := task.within[name].get(dtype):
        return limit
    due = task.due[name]
    if due.dtype == np.float32:  # scales of rows, of which few have a rounding error
        return 8 * float(np.finfo("float32").eps * abs(due).max())
    return int(due.dtype == np.int8)  # a number on the edge of two integers


def difference(task: Task, name: str, array, due, dtype: str) -> dict | None:
    """The largest difference that is not allowed; None if there is none. Of scores, only those that
    a query may see count, and none that are -∞.
    """
    found, due = array.astype("float64"), due.astype("float64")
    if name in ("scores", "plus"):
        found = np.where(_counted(task, found), found, due)
    away = np.where(np.isnan(found), np.inf, abs(found - due))
    limit = within(task, name, dtype)
    if not away.size or away.max() <= limit:
        return None
    where = np.unravel_index(away.argmax(), away.shape)
    text = f"{name}[{', '.join(map(str, where))}] is {found[where]:.6g}, not {due[where]:.6g}: "
    text += f"they differ by {away[where]:.1e}, {limit:.1e} is allowed"
    return {"text": text, "size": float(away.max())}


def _counted(task, scores):
    """Which scores of a forward task count: of keys that the query sees, and has not hidden."""
    queries = np.arange(task.case.length) + task.case.past
    keys = np.arange(len(queries) + task.case.past)
    mask = seen(task.case, task.case.layer(), queries, keys, task.given.get("segments"))
    return mask & (scores > -1e4)


# ---- causes


def named(tasks: list[Task], rows: list[dict], advance=lambda done: None) -> list[dict]:
    """The same rows; those that differ have a "cause", a name of known.EXPLAINED or None.

    A mistake is named only if it gives just the array that was found, and no other mistake does, in
    this case or in all others that differ.
    """
    known = {(t.case.name, t.task): t for t in tasks}
    wrong = [row for row in rows if row["state"] == "differs"]
    sure, before, fruitless = set(), {}, 0
    half = _is_half(known, wrong)
    for i, row in enumerate(wrong):
        same = row["case"], row["task"], row["array"]  # in another dtype
        if half and _is_small(known[same[:2]], row):
            row["causes"] = {HALF}
        elif "causes" not in row:
            row["causes"] = before.get(same, set())
            if not row["causes"] and fruitless < FRUITLESS:
                row["causes"] = _causes(known[same[:2]], row, sure)
            fruitless += not row["causes"]
        before[same] = row["causes"]
        sure |= row["causes"] if len(row["causes"]) == 1 else set()
        advance(i + 1)
    if wrong and all(row["causes"] for row in wrong):
        common = set.intersection(*(row["causes"] for row in wrong))
        sure |= common if len(common) == 1 else set()
    for row in wrong:
        found = row.pop("causes")
        found = found if len(found) == 1 else found & sure
        cause = min(found) if len(found) == 1 else None
        row["cause"] = MASK if cause == TOKEN and MASK in sure else cause  # one mask for both
        row.pop("values", None), row.pop("size", None)
    return rows


def _causes(task, row, sure):
    """Names of the mistakes that give the first array that differs. One that was already found in
    another case is enough.
    """
    name, found = row["array"], set()
    array, due = row["values"][name], _due(task, row["array"], row["dtype"])
    if name == "cache.bytes":
        twice = _is_buffer(task, "cache.v") and np.array_equal(array, 2 * due)
        return {BUFFER} if twice else set()
    allowed, most = within(task, name, row["dtype"]), float(abs(task.due[name]).max())
    for mistake, arrays in predictions(task.case, task.task, task.given, sure):
        if mistake in found or name not in arrays:
            continue
        wrong = as_due(task.case, task.task, name, arrays[name]).astype("float64")
        if name in ("scores", "plus") and array.shape == wrong.shape:
            wrong[~_counted(task, array)] = np.nan
        larger = np.nanmax(abs(wrong), initial=most) / (most or 1)  # so are its rounding errors
        limit = SLACK * allowed * larger
        if _is_close(array, wrong, limit) and not _is_close(due, wrong, limit):
            found.add(mistake)
            if mistake in sure:
                return {mistake}
    return found


def _is_close(array, wrong, limit):
    """Whether an array is what a mistake gives, wherever that is a number."""
    counts = np.isfinite(wrong)
    return array.shape == wrong.shape and (abs(array - wrong)[counts] <= limit).all()


def _is_half(known, wrong):
    """Whether all differences look like sums in float16. In long sums they are more than float16
    allows, but not gross. In short ones there is only rounding, which float16 allows and other
    dtypes do not. Rounding alone does not grow, and bfloat16 errs more in short sums too.
    """
    kernels = [(known[row["case"], row["task"]], row) for row in wrong]
    kernels = [(task, row) for task, row in kernels if task.case.level == "kernel"]
    long = {_share(task, row) for task, row in kernels if task.case.only}
    short = [row["dtype"] for task, row in kernels if not task.case.only]
    rounds = {row["dtype"] for _, row in kernels} <= {*short, "float16"}
    return rounds and all(_is_small(*each) for each in kernels) and max(long, default=0) > LONG


def _is_small(task, row):
    return _share(task, row) <= (MOST if task.case.only else SHORT)


def _share(task, row):
    """A difference, in tolerances of float16."""
    allowed = task.within[row["array"]].get("float16")
    return row.get("size", math.inf) / allowed if allowed else math.inf
