"""What can go wrong, in words a user can act on, and the exit code of each kind."""

from difflib import get_close_matches
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    ENVIRONMENT = 3
    DIVERGED = 4
    INTERRUPTED = 130


class MinqkvError(Exception):
    """An error with a fix: `str(error)` says what happened and why, `hint` is the command or step
    that fixes it.
    """

    code = Exit.CHECK_FAILED

    def __init__(self, message, hint=None):
        super().__init__(message)
        self.hint = hint

    def __reduce__(self):  # the hint survives the trip home from a worker process
        return type(self), (str(self), self.hint)


class UsageError(MinqkvError, ValueError):
    """A wrong name, shape, range or combination."""

    code = Exit.USAGE


class EnvironmentFault(MinqkvError, RuntimeError):
    """No CuPy, no GPU, a full disk, a file that is corrupt or of another kind."""

    code = Exit.ENVIRONMENT


class Diverged(MinqkvError, ArithmeticError):
    """The loss became NaN or infinite."""

    code = Exit.DIVERGED


def unknown(what, name, known):
    """A UsageError for a mistyped name, with the nearest known ones."""
    near = get_close_matches(str(name).lower(), list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown {what} {name!r}", hint)
