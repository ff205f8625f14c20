"""Put other functions in the place of the package's own, for a while: the composed twins, or the
same with a clock.
"""

import sys
from contextlib import contextmanager
from types import FunctionType

from minqkv import functional, reference, tensor


def functions(module):
    """The public functions that a module defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def twins():
    """Each fused operation -> its composed twin."""
    slow = functions(reference)
    return {
        function: slow[name] for name, function in functions(functional).items() if name in slow
    }


class Swap:
    """Wherever a module of the package, or Tensor as a method, holds a key of `replacements`, its
    value takes the place.

    `with swap:` as often as wanted. What a model keeps for itself (an activation) is swapped if it
    is built inside.
    """

    def __init__(self, replacements):
        import minqkv.models
        import minqkv.train  # noqa: F401

        modules = [
            module for name, module in sys.modules.items() if name.partition(".")[0] == "minqkv"
        ]
        self.places = [
            (holder, name, value, replacements[value])
            for holder in [*modules, tensor.Tensor]
            for name, value in vars(holder).items()
            if isinstance(value, FunctionType) and value in replacements
        ]

    def __enter__(self):
        for holder, name, _, new in self.places:
            setattr(holder, name, new)

    def __exit__(self, *_):
        for holder, name, old, _ in self.places:
            setattr(holder, name, old)


@contextmanager
def used(functions):
    """Fails at the end if one of these was never called: a swap that swapped nothing would measure
    the wrong thing.
    """
    missing = set(functions)

    def watch(frame, event, _):
        if event == "call":
            missing.difference_update(f for f in list(missing) if f.__code__ is frame.f_code)

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert not missing, f"never called: {', '.join(sorted(f.__qualname__ for f in missing))}"
