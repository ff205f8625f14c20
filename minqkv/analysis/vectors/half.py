"""Whether an implementation adds up in float16, which no single array of it can show.

Float16 accumulation gives other numbers in each order of a sum, so it is known by three signs:

- Short sums have rounding errors only, which float16 allows and other dtypes do not.
- Long sums err more than float16 allows, but no more than one term after another, the worst order.
- These errors are random. Where terms are missing, all channels or all queries lose the same part.
"""

from __future__ import annotations

import math

import numpy as np

from .case import LARGE
from .files import Task
from .tolerances import plain_float16

SHORT = 0.8  # of the tolerance, in short sums: rounding alone does not grow, bfloat16 errs more
WORST = 4  # times the error of one term after another, which depends on where the scale is
RANDOM = 0.25  # of an error, at least, belongs to no common part


def is_half(known: dict, wrong: list[dict]) -> bool:
    """Whether these rows, all that differ, show the three signs. `known`: case and task -> Task."""
    kernels = [(known[row["case"], row["task"]], row) for row in wrong]
    kernels = [(task, row) for task, row in kernels if task.case.level == "kernel"]
    long = [(task, row) for task, row in kernels if task.case.only]
    short = [(task, row) for task, row in kernels if not task.case.only]
    rounds = {row["dtype"] for _, row in long} <= {"float16", *(row["dtype"] for _, row in short)}
    grows = any(_share(*each) > 1 for each in long)
    small = rounds and grows and all(is_small(*each) for each in short + long)
    return small and all(_is_random(*each) for each in long if _share(*each) > 1)


def is_small(task: Task, row: dict) -> bool:
    """Whether sums in float16 may err as much. A large scale makes short sums err more, too."""
    if not task.case.only and task.case.scale != LARGE:
        return _share(task, row) <= SHORT
    name, most = row["array"], math.inf
    if _share(task, row) < math.inf:
        worst = plain_float16(task.case, task.given, _one_by_one).get(name)
        most = math.inf if worst is None else abs(worst - task.due[name]).max()
        most = WORST * most + task.within[name]["float16"]
    return row["size"] <= most < math.inf


def _share(task, row):
    """A difference, in tolerances of float16."""
    allowed = task.within[row["array"]].get("float16")
    return row.get("size", math.inf) / allowed if allowed else math.inf


def _one_by_one(a, b):
    """a @ b, each partial sum rounded to float16."""
    total = np.float16(0)
    for i in range(a.shape[-1]):
        total = (total + a[..., i, None] * b[..., i, None, :]).astype("float16")
    return total.astype(a.dtype)


def _is_random(task, row):
    """Whether the errors of a long sum have little in common. Of values: a factor that all channels
    of an answer share. Of scores: what is added to a key in all queries.
    """
    name = row["array"]
    right, found = task.due[name], row["values"][name].astype("float64")
    if "scores" in task.case.only:
        right, found = (_centred(task, name, array) for array in (right, found))  # (B, H, T, S)
        common = (found - right).mean((0, 1, 2))
    else:
        common = right * ((found / right).mean(-1, keepdims=True) - 1)  # (B, H, T, d_v)
    error = found - right
    return np.linalg.norm(error - common) > RANDOM * np.linalg.norm(error)


def _centred(task, name, array):
    """Scores with a mean of 0 in each row, from themselves, or from the pattern or z. There are
    fewer keys than channels, so z tells the pattern.
    """
    if name == "z":
        array = array @ np.linalg.pinv(task.given["v"])  # (B, H, T, d_v) -> (B, H, T, S)
    if name != "scores":
        array = np.log(np.maximum(array, np.finfo("float16").tiny))
    return array - array.mean(-1, keepdims=True)
