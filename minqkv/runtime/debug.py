"""`MINQKV_DEBUG=1`: every operation watched. Slow, and worth it when a gradient is wrong.

The first NaN names the operation that made it. Each gradient's shape and dtype is checked. An error
in backward shows where its forward ran. Arrays that a vjp has captured are read-only until it has
run or is dropped; if they are changed by another name, the vjp notices when it runs (NumPy only).
"""

import traceback
import weakref
from contextlib import suppress
from types import CellType

import numpy as np

from . import backend


def guard(vjp, data, inputs):
    """Wrap one operation's vjp; `data` is its result, `inputs` are Tensors or not."""
    name = vjp.__qualname__.split(".")[0]
    stack = "".join(traceback.format_list(traceback.extract_stack(limit=8)[:-2]))
    tensors = [x if hasattr(x, "node") else None for x in inputs]
    _no_nan(data, f"{name} (forward)", stack)
    arrays = [data] + [x.data for x in tensors if x is not None]
    locked = [a for a in arrays if isinstance(a, np.ndarray) and a.flags.writeable]
    for array in locked:
        array.flags.writeable = False
    captured = _captured(vjp)
    before = [hash(array.tobytes()) for array in captured]
    expected = [None if x is None else (x.data.shape, x.data.dtype) for x in tensors]

    def guarded(g, wanted):
        try:
            if [hash(array.tobytes()) for array in captured] != before:
                raise RuntimeError("an array that it needs has changed since the forward pass")
            grads = vjp(g, wanted)
            _check(name, grads, expected, data.dtype, stack)
        except FloatingPointError:
            raise
        except Exception as error:
            where = f"its forward ran here:\n{stack}"
            raise RuntimeError(f"backward of {name}: {error}\n{where}") from error
        finally:
            _unlock(locked)
        return grads

    guarded.__qualname__ = vjp.__qualname__
    weakref.finalize(
        guarded, _unlock, locked
    ).atexit = False  # a graph that is thrown away lets its arrays go
    return guarded


def _captured(thing, depth=4):
    """The NumPy arrays that a function has captured, also in containers and objects."""
    if isinstance(thing, np.ndarray):
        return [thing]
    cells = getattr(thing, "__closure__", None) or ()
    inside = [cell.cell_contents for cell in cells if cell != CellType()]  # one may be empty
    if isinstance(thing, (list, tuple)):
        inside = thing
    elif not callable(thing):
        inside = getattr(thing, "__dict__", {}).values()
    return [array for part in inside if depth for array in _captured(part, depth - 1)]


def _unlock(arrays):
    for array in reversed(arrays):
        with suppress(ValueError):  # a view whose base another operation still holds locked
            array.flags.writeable = True


def _check(name, grads, expected, dtype, stack):
    for i, (grad, want) in enumerate(zip(grads, expected, strict=True)):
        if grad is None or want is None:
            continue
        if grad.shape != want[0] or grad.dtype not in (want[1], dtype):
            raise TypeError(
                f"gradient {i} is {grad.shape} {grad.dtype}, its input {want[0]} {want[1]}"
            )
        _no_nan(grad, f"{name} (backward, gradient {i})", stack)


def _no_nan(array, where, stack):
    if np.isnan(backend.to_host(array)).any():
        raise FloatingPointError(f"first NaN in {where}; forward stack:\n{stack}")
