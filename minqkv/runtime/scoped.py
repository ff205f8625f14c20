"""`with` blocks that are decorators, too."""

import inspect
from contextlib import contextmanager
from functools import partial, wraps

LATER = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction


class Scoped:
    """What `with` takes, once, and what decorates a function, any number of times."""

    def __init__(self, begin):
        self.begin = begin

    def __enter__(self):
        self.block = self.begin()
        return self.block.__enter__()

    def __exit__(self, *error):
        return self.block.__exit__(*error)

    def __call__(self, function):
        if any(kind(function) for kind in LATER):
            why = "the body of a generator or coroutine runs after its call has returned"
            raise TypeError(f"{why}: write `with` inside {function.__name__}, around what computes")

        @wraps(function)
        def inside(*args, **kwargs):
            with self.begin():
                return function(*args, **kwargs)

        return inside


def scoped(manager):
    """contextlib.contextmanager, but as a decorator it refuses what runs only later."""
    begin, signature = contextmanager(manager), inspect.signature(manager)

    @wraps(manager)
    def scope(*args, **kwargs):
        signature.bind(*args, **kwargs)  # now, not when the block begins
        return Scoped(partial(begin, *args, **kwargs))

    return scope
