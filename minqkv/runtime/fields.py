"""What the fields of a configuration may hold."""

from dataclasses import fields
from typing import get_type_hints

from .errors import UsageError

LARGEST = 2**31 - 1  # of a size: no larger array can be addressed


def plain(value):
    """NumPy's numbers, and arrays without axes, as Python's; all else as it is."""
    return (
        value.item() if getattr(value, "shape", None) == () and hasattr(value, "dtype") else value
    )


def check_types(value) -> None:
    """Refuse a field of a dataclass whose value is not of its type, or a size that no array can
    have. NumPy's numbers become Python's. Raises UsageError.
    """
    hints = get_type_hints(type(value))
    for field in fields(value):
        found, hint = plain(getattr(value, field.name)), hints[field.name]
        object.__setattr__(value, field.name, found)
        kinds = getattr(hint, "__args__", (hint,))  # int | None
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            wanted = " or ".join("none" if k is type(None) else k.__name__ for k in kinds)
            raise UsageError(f"{field.name} must be {wanted}, not {found!r}")
        if isinstance(found, int) and found > LARGEST and field.name != "seed":
            raise UsageError(f"{field.name} {found} is too large", f"at most {LARGEST:,}")
