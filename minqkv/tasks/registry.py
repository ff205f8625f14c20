"""The tasks by name: those of this package, and classes of your own."""

from dataclasses import fields
from inspect import isabstract

from ..runtime.errors import UsageError, unknown
from .base import Task
from .recall import Recall
from .rules import RECALL, RULES, TASKS
from .synthetic import Synthetic

CLASSES = {**dict.fromkeys(RULES, Synthetic), **dict.fromkeys(RECALL, Recall)}


def task_class(name: str, own: type | None = None) -> type:
    """The class of a task by its name; `own` is that of a name MODULE:CLASS, already imported.

    Raises UsageError for an unknown name, and for a class of yours that is not named here: code is
    never imported because a file names it.
    """
    if ":" in name:
        if own is None:
            raise UsageError(f"{name} is a task of your own", f"name it: --task {name}")
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
    return found


def field_names(cls: type) -> list[str]:
    """What can be set of a task, beside its name."""
    return [field.name for field in fields(cls) if field.name != "name"]
