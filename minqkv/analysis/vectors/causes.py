"""Why an implementation differs from the vectors, if it makes a known mistake."""

from __future__ import annotations

import math

import numpy as np

from .compare import counted, expected, is_buffer, within
from .files import Task, as_due
from .known import BUFFER, HALF, MASK, TOKEN, predictions

SHORT, LONG, MOST = 0.8, 1.0, 100  # differences of sums in float16, in its tolerances: `_is_half`
FRUITLESS = 60  # searches for a cause that found none, after which no more are made
SLACK = 4  # for arrays that a mistake gives: their numbers may be larger


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
    array, due = row["values"][name], expected(task, row["array"], row["dtype"])
    if name == "cache.bytes":
        twice = is_buffer(task, "cache.v") and np.array_equal(array, 2 * due)
        return {BUFFER} if twice else set()
    allowed, most = within(task, name, row["dtype"]), float(abs(task.due[name]).max())
    for mistake, arrays in predictions(task.case, task.task, task.given, sure):
        if mistake in found or name not in arrays:
            continue
        wrong = as_due(task.case, task.task, name, arrays[name]).astype("float64")
        if name in ("scores", "plus") and array.shape == wrong.shape:
            wrong[~counted(task, array)] = np.nan
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
