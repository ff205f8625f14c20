"""What the fields of a configuration may hold."""

from dataclasses import fields
from typing import get_type_hints

from .errors import UsageError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_WORDS[type(None)] = "none"
LARGEST = 2**31 - 1  # of a size: no larger array can be addressed


def plain(value):
    """NumPy's numbers, and arrays without axes, as Python's; all else as it is."""
    alone = getattr(value, "shape", None) == () and hasattr(value, "dtype")
    return value.item() if alone else value


def whole(name, value, least=0, most=LARGEST):
    """A whole number in these bounds, as Python's. Raises UsageError for anything else."""
    value = plain(value)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most:,}, not {value!r}")
    return value


def check_types(value) -> None:
    """Refuse a field of a dataclass whose value is not of its type, or a size that no array can
    have. NumPy's numbers become Python's. Raises UsageError.
    """
    hints = get_type_hints(type(value))
    for field in fields(value):
        found, hint = plain(getattr(value, field.name)), hints[field.name]
        object.__setattr__(value, field.name, found)
        kinds = getattr(hint, "__args__", (hint,))  # int | None
        taken = (*kinds, int) if float in kinds else kinds
        if not isinstance(found, taken) or (isinstance(found, bool) and bool not in kinds):
            wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
            raise UsageError(f"{field.name} must be {wanted}, not {found!r}")
        if isinstance(found, int) and found > LARGEST and field.name != "seed":
            raise UsageError(f"{field.name} {found} is too large", f"at most {LARGEST:,}")
