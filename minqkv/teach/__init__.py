"""Lessons: what a lesson calls, and what plays and checks them. lessons/AUTHORS.md says how to
write one.
"""

from .events import (
    cache_step,
    compare,
    curve,
    gradients,
    heat,
    memory,
    predict,
    roofline,
    say,
    show,
    source,
    table,
)
from .training import trained

__all__ = [
    "cache_step", "compare", "curve", "gradients", "heat", "memory", "predict", "roofline", "say",
    "show", "source", "table", "trained",
]  # fmt: skip
