"""A user's implementation against the vectors: what differs first, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .called import Fault, Gone
from .case import ARRAYS
from .computed import seen
from .files import Task


def check(tasks: list[Task], dtypes: tuple[str, ...], function: Callable) -> Iterator[dict]:
    """Rows {"case", "task", "dtype", "state", "text", ...}, one for each call of `function`, whose
    causes `causes.named` finds. After a call that does not return there are no more.

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


def expected(task: Task, name: str, dtype: str) -> np.ndarray:
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
        if is_buffer(task, name):
            return {"state": "differs", "array": name, "text": f"{name}: K = V stores one row",
                    "size": math.inf, "allowed": 0, "buffer": True}  # fmt: skip
    for name in task.due:
        if name not in found:
            continue
        array = found[name]
        due = expected(task, name, dtype)
        kind = due.dtype if due.dtype != np.float64 else np.dtype(dtype)
        if array.dtype != kind and not (name == "cache.bytes" and array.dtype.kind == "i"):
            raise Fault(f"{name} is {array.dtype}, not {kind}")
        if array.shape != due.shape:
            row = {
                "text": f"{name} has shape {array.shape}, not {due.shape}",
                "size": math.inf,
                "allowed": 0,
            }
        else:
            row = difference(task, name, array, due, dtype)
        if row:
            return {"state": "differs", "array": name, "values": found} | row
    return {"state": "ok", "returned": [*found]}


def is_buffer(task: Task, name: str) -> bool:
    """Whether an array is a second row of a cache that needs only one."""
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
        found = np.where(counted(task, found), found, due)
    away = np.where(np.isnan(found), np.inf, abs(found - due))
    limit = within(task, name, dtype)
    if not away.size or away.max() <= limit:
        return None
    where = np.unravel_index(away.argmax(), away.shape)
    text = f"{name}[{', '.join(map(str, where))}] is {found[where]:.6g}, not {due[where]:.6g}: "
    text += f"they differ by {away[where]:.1e}, {limit:.1e} is allowed"
    return {"text": text, "size": float(away.max()), "allowed": limit}


def counted(task: Task, scores) -> np.ndarray:
    """Which scores of a forward task count: of keys that the query sees, and has not hidden."""
    queries = np.arange(task.case.length) + task.case.past
    keys = np.arange(len(queries) + task.case.past)
    mask = seen(task.case, task.case.layer(), queries, keys, task.given.get("segments"))
    return mask & (scores > -1e4)
