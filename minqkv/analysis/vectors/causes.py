"""Why an implementation differs from the vectors, if it makes a known mistake.

A way to make a mistake fits an array that differs if it gives that array. In one case an unknown
mistake can give the same numbers as a known one. So other cases count, too: one that
the mistake would change, but that is right, or that differs in another way, refutes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

import numpy as np

from .compare import counted, expected, is_buffer, within
from .files import Task, as_due
from .half import is_half, is_small
from .known import BUFFER, HALF, MASK, MIXED, TOKEN, predictions

SLACK = 4  # tolerances by which rounding may move what a mistake gives
PART = 10  # what a mistake leaves unexplained is at most one part of so many of what it changes
SEVERAL = 3  # cases that a mistake must explain to be one of a part of the code
ORDINARY = {
    "causal": False, "window": None, "sinks": 0, "position": "none", "rope_value": "raw",
    "pairing": "halves", "one_row": False, "own_query": True, "apart": False, "latent": False,
    "norm": False, "plus": None,
}  # fmt: skip


def named(tasks: list[Task], rows: list[dict], advance: Callable = lambda done: None) -> list[dict]:
    """The same rows; those that differ have a "cause", a name of known.EXPLAINED or None.

    A mistake is named only if it gives just the array that was found, and no other mistake does, in
    this case or in all others that differ. No other case may refute it.
    """
    known = {(t.case.name, t.task): t for t in tasks}
    wrong = [row for row in rows if row["state"] == "differs"]
    half, done = is_half(known, wrong), 0
    for row in rows:
        row["fits"], row["not"], row["about"] = set(), set(), _features(known[_key(row)])
    for key, group in groupby(sorted(wrong, key=_key), _key):
        group = [*group]
        _judge_all(known[key], group, half)
        advance(done := done + len(group))
    ways = {way for row in wrong for way in row["fits"]}
    right = [row for row in rows if row["state"] == "ok"] if ways else []
    for key, group in groupby(sorted(right, key=_key), _key):
        group = [*group]
        for name, way, arrays in predictions(known[key], {name for name, _ in ways}):
            for row in group:
                if (name, way) in ways and _would_change(known[key], row, arrays):
                    row["not"].add((name, way))
    _drop_refuted([row for row in rows if row["state"] in ("ok", "differs")])
    _choose(wrong)
    for row in rows:
        for name in ("fits", "not", "about", "values", "size", "returned"):
            row.pop(name, None)
    return rows


def _key(row):
    return row["case"], row["task"]


def _names(row):
    return {name for name, _ in row["fits"]}


def _choose(wrong):
    """The cause of each row, where other cases decide between two."""
    sure = {name for row in wrong if len(_names(row)) == 1 for name in _names(row)}
    if wrong and all(row["fits"] for row in wrong):
        common = set.intersection(*map(_names, wrong))
        sure |= common if len(common) == 1 else set()
    for row in wrong:
        found = _names(row)
        found = found if len(found) == 1 else found & sure
        cause = min(found) if len(found) == 1 else None
        row["cause"] = MASK if cause == TOKEN and MASK in sure else cause  # one mask for both


# ---- what a mistake gives in one case


def _judge_all(task, group, half):
    """Which ways fit each row of a case, and which are refuted by it."""
    searched = []
    for row in group:
        if half and is_small(task, row):
            row["fits"].add((HALF, None))
        elif row.pop("buffer", False) or _is_twice(task, row):
            row["fits"].add((BUFFER, None))
        elif row["array"] != "cache.bytes":
            searched.append(row)
    grads = any(row["array"].startswith("grad.") for row in searched)
    for name, way, arrays in predictions(task, grads=grads) if searched else ():
        for row in searched:
            if verdict := _judged(task, row, arrays):
                row[verdict].add((name, way))


def _is_twice(task, row):
    """Whether a cache with K = V has the bytes of two rows."""
    if row["array"] != "cache.bytes" or not is_buffer(task, "cache.v"):
        return False
    return np.array_equal(row["values"]["cache.bytes"], 2 * expected(task, *_of(row)))


def _of(row):
    return row["array"], row["dtype"]


def _judged(task, row, arrays):
    """ "fits" if a mistake gives the first array that differs; "not" if it gives another one."""
    name, array = row["array"], row["values"][row["array"]]
    due = expected(task, *_of(row))
    if name not in arrays or array.shape != due.shape:
        return None
    if name.startswith("grad.") and _would_change(task, row, arrays):
        return None  # it comes from what is right
    wrong, limit = _given_by(task, name, arrays, row["dtype"])
    if name in ("scores", "plus"):
        wrong[~counted(task, array)] = np.nan
    changed, left = _away(due, wrong), _away(array, wrong)
    if changed > limit / SLACK and left <= min(limit, changed / PART):
        return "fits"
    return "not" if min(changed, left) > limit and np.isfinite(array).all() else None


def _given_by(task, name, arrays, dtype):
    """The array of this name, and how far rounding may move it."""
    wrong = as_due(task.case, task.task, name, arrays[name]).astype("float64")
    most = float(abs(task.due[name]).max())
    larger = np.nanmax(abs(wrong), initial=most) / (most or 1)  # so are its rounding errors
    return wrong, SLACK * within(task, name, dtype) * larger


def _away(array, wrong):
    """The largest difference from what a mistake gives, wherever that is a number."""
    counts = np.isfinite(wrong)
    away = abs(array.astype("float64") - wrong)[counts]
    return np.where(np.isnan(away), np.inf, away).max(initial=0)


def _would_change(task, row, arrays):
    """Whether a mistake would have changed an array that is right, after all that it concerns."""
    for name in MIXED & set(row.get("returned", row.get("values"))) & arrays.keys():
        wrong, limit = _given_by(task, name, arrays, row["dtype"])
        if _away(task.due[name], wrong) > limit:
            return True
    return False


# ---- what other cases say


def _features(task: Task) -> dict:
    """What is special about a case, by name. Code for fewer of these runs in it, too."""
    about, case = task.about, task.case
    found = {name: about[name] for name, usual in ORDINARY.items() if about[name] != usual}
    heads, width = about["kv_heads"], about["query_width"]
    special = {
        "shipped": case.variant if case.name.startswith("shipped/") else None,
        "past": np.sign(case.past), "packed": case.packed, "given scale": case.scale,
        "shared": heads < about["n_head"], "one head": heads == 1,
        "thin": width != about["head_dim"], "part": about["d_rope"] and about["d_rope"] < width,
        "long": case.only, "task": task.task != "forward" and task.task,
    }  # fmt: skip
    return found | {name: value for name, value in special.items() if value}


def _code(row):
    """Cases that run the same code: kernels, those of one query, layers, or decoding."""
    return row["case"].startswith("kernel/"), "one query" in row["case"], row["task"] == "forward"


def _drop_refuted(rows):
    """Take from "fits" what another row refutes, until nothing changes."""
    again = True
    while again:
        again = False
        others = [row for row in rows if row["not"] or row["state"] == "differs"]
        others = [row for row in others if not row["fits"]]
        for name, code in {(name, _code(row)) for row in rows for name in _names(row)}:
            named = [row for row in rows if _code(row) == code and name in _names(row)]
            carried = set.intersection(*(set(row["about"].items()) for row in named))
            carried = carried if len({row["case"] for row in named}) >= SEVERAL else set()
            for row in named:
                ways = {way for way in row["fits"] if way[0] == name}
                gone = {w for w in ways if any(_refutes(o, row, w, carried) for o in others)}
                row["fits"] -= gone
                again |= bool(gone)


def _refutes(other, row, way, carried):
    """Whether a row shows that another one, which a way fits, has another cause. A mistake that is
    made in several cases may be one of code that only they run: for what is `carried` by them.
    """
    simpler = _code(other) == _code(row) and other["about"].items() <= row["about"].items()
    if other["state"] == "ok":
        return way in other["not"] and simpler and carried <= set(other["about"].items())
    return way in other["not"] or (simpler and _is_clear(other))


def _is_clear(row):
    return SLACK * row["allowed"] < row["size"] < math.inf
