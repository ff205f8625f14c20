"""The tasks by name: those of this package, and classes of your own."""

import math
from contextlib import contextmanager
from dataclasses import fields
from inspect import isabstract

import numpy as np

from ..nn import Module
from ..runtime.errors import MinqkvError, UsageError, unknown
from ..train import loss_and_gradients
from .base import Task
from .images import Images
from .recall import Recall
from .rules import RECALL, RULES, TASKS, TEXT
from .segment import Segment
from .sets import Sets
from .synthetic import Synthetic
from .text import Text

CLASSES = dict.fromkeys(RULES, Synthetic) | dict.fromkeys(RECALL, Recall)
CLASSES |= dict.fromkeys(TEXT, Text) | {"images": Images, "segment": Segment, "sets": Sets}


def task_class(name: str, own: type | None = None) -> type:
    """The class of a task by its name; `own` is for a name MODULE:CLASS, already imported.

    Raises UsageError for an unknown name, and for a class of your own that is not given: code is
    never imported because a file names it.
    """
    if ":" in name:
        if own is None:
            raise UsageError(f"{name} is a task of your own", f"name it: --task {name}")
        if own.__name__ != name.rpartition(":")[2]:
            why = f"{own.__name__} is not {name}"
            raise UsageError(f"{why}, a task of your own", f"name it: --task {name}")
        return own
    if name not in CLASSES:
        raise unknown("task", name, TASKS)
    return CLASSES[name]


def check_class(name: str, found) -> type:
    """A user's class, checked. Raises UsageError that says what it lacks."""
    cure = "derive it from minqkv.Task, as examples/own_task.py does"
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UsageError(f"{name} is not a task", cure)
    if isabstract(found):
        missing = " and ".join(sorted(found.__abstractmethods__))
        raise UsageError(f"{name} lacks {missing}", cure)
    if "__dataclass_params__" not in vars(found) or not found.__dataclass_params__.frozen:
        raise UsageError(
            f"{name} must be a frozen dataclass", f"@dataclass(frozen=True); or {cure}"
        )
    if found.better not in ("higher", "lower"):
        raise UsageError(f"{name}: better must be higher or lower, not {found.better!r}")
    return found


@contextmanager
def blaming(name: str):
    """Errors in the code of a task of your own, as a UsageError that names it."""
    try:
        yield
    except (MinqkvError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a script's sys.exit() would end us without a word
        if ":" not in name:
            raise
        what = f"{name} raised {type(error).__name__}: {error}"
        raise UsageError(what, "--traceback shows where") from error


def try_out(task: Task, model: Module, seed: int) -> None:
    """Try a training step and a score on two examples of a task of your own, changing no weight.

    So what does not fit is reported before anything is written, not hours later. Raises UsageError.
    """
    with blaming(task.name):
        batch = task.batch(seed, 0, 2)
        if not isinstance(batch, tuple) or [type(part) for part in batch] != [np.ndarray] * 2:
            raise UsageError(f"{task.name}: examples must be two arrays, inputs and targets")
        if [len(part) for part in batch] != [2, 2]:
            shapes = " and ".join(str(part.shape) for part in batch)
            raise UsageError(f"{task.name}: two examples were asked for; their shapes are {shapes}")
        try:
            loss_and_gradients(model, *batch, task.loss, task.weight)
            score = task.predict(model, *batch)
        except UsageError as error:
            raise UsageError(f"{task.name}: {error}", error.hint) from error
        _check_score(task, score, batch[1])
    model.zero_grad()


def _check_score(task, score, targets):
    for name in (task.metric, "predictions"):
        if name not in score:
            raise UsageError(f"{task.name}: predict gives {', '.join(score)}, but no {name}")
    for name, value in score.items():
        if name != "predictions":
            _check_number(task, name, value)
    if np.shape(score["predictions"]) != targets.shape:
        shape = np.shape(score["predictions"])
        raise UsageError(f"{task.name}: predictions {shape} do not fit targets {targets.shape}")
    _check_limits(task, score[task.metric])


def check_score(task: Task, score: dict) -> None:
    """Check what `score` gave: numbers, the metric within its limits. NaN is left to the caller,
    for a run that diverged. Raises UsageError.
    """
    if task.metric not in score:
        raise UsageError(f"{task.name}: score gives {', '.join(score)}, but no {task.metric}")
    for name, value in score.items():
        _check_number(task, name, value)
    if math.isfinite(score[task.metric]):
        _check_limits(task, score[task.metric])


def _check_number(task, name, value):
    if not isinstance(value, (int, float)):
        raise UsageError(f"{task.name}: the {name} must be a number, not {value!r}")


def _check_limits(task, value):
    low, high = task.limits
    if not low <= value <= high:
        what = f"{task.metric} {value} is outside its limits"
        raise UsageError(f"{task.name}: {what}, {low} to {high}")


def field_names(cls: type) -> list[str]:
    """What can be set for a task, besides its name."""
    return [field.name for field in fields(cls) if field.name != "name"]
