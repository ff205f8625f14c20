"""The small operations: each a forward line and, per input, the line that sends a gradient back.

Python numbers stay Python numbers: turned into arrays they would be float64 and drag float32 data along (NumPy 2).
Every function takes Tensors or numbers and returns a Tensor; shapes broadcast as in NumPy.
"""

import numbers

import numpy as np

from . import backend
from .errors import UsageError
from .tensor import Tensor, make, unbroadcast


def _operands(a, b):
    """The arrays behind the operands, and their shapes; numbers stay numbers, even NumPy's."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.data, b.data, a.data.shape, b.data.shape
    data = []
    for value in (a, b):
        if isinstance(value, Tensor):
            value = value.data
        elif isinstance(value, numbers.Real):
            value = value.item() if isinstance(value, np.generic) else value
        elif not isinstance(value, backend.ndarray):
            kind = type(value).__name__
            raise TypeError(f"expected a Tensor, a number or an array of the {backend.current.name} backend, not {kind}")
        data.append(value)
    return *data, *(getattr(d, "shape", ()) for d in data)


def add(a, b):
    """a + b."""
    x, y, x_shape, y_shape = _operands(a, b)
    return make(x + y, (a, b), (lambda g: unbroadcast(g, x_shape), lambda g: unbroadcast(g, y_shape)))


def sub(a, b):
    """a - b."""
    x, y, x_shape, y_shape = _operands(a, b)
    return make(x - y, (a, b), (lambda g: unbroadcast(g, x_shape), lambda g: unbroadcast(-g, y_shape)))


def mul(a, b):
    """a * b, element by element."""
    x, y, x_shape, y_shape = _operands(a, b)
    return make(x * y, (a, b), (lambda g: unbroadcast(g * y, x_shape), lambda g: unbroadcast(g * x, y_shape)))


def div(a, b):
    """a / b, element by element."""
    x, y, x_shape, y_shape = _operands(a, b)
    out = x / y
    return make(out, (a, b), (lambda g: unbroadcast(g / y, x_shape), lambda g: unbroadcast(-g * out / y, y_shape)))


def neg(a):
    """-a."""
    return make(-a.data, (a,), (lambda g: -g,))


def pow(a, exponent):
    """a ** exponent, for a number as exponent."""
    if not isinstance(exponent, numbers.Real):
        raise TypeError("pow: the exponent is a number; for a Tensor write exp(b * log(a))")
    exponent = exponent.item() if isinstance(exponent, np.generic) else exponent
    x = a.data
    slope = (lambda: exponent * x ** (exponent - 1)) if exponent else (lambda: backend.xp.zeros_like(x))  # 0 · 0⁻¹ is 0 here
    return make(x**exponent, (a,), (lambda g: g * slope(),))


def exp(a):
    """e ** a."""
    y = backend.xp.exp(a.data)
    return make(y, (a,), (lambda g: g * y,))


def log(a):
    """The natural logarithm."""
    x = a.data
    return make(backend.xp.log(x), (a,), (lambda g: g / x,))


def tanh(a):
    """The hyperbolic tangent."""
    y = backend.xp.tanh(a.data)
    return make(y, (a,), (lambda g: g * (1 - y * y),))


def sqrt(a):
    """The square root."""
    y = backend.xp.sqrt(a.data)
    return make(y, (a,), (lambda g: g / (2 * y),))


def matmul(a, b):
    """(..., n, k) @ (..., k, m) -> (..., n, m); the leading axes broadcast. Both need two axes at least."""
    x, y = a.data, b.data
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise UsageError(f"matmul: shapes {x.shape} and {y.shape} do not fit (..., n, k) @ (..., k, m)")

    def to_a(g):
        return unbroadcast(backend.bmm(g, y.swapaxes(-1, -2)), x.shape)  # (..., n, m) @ (..., m, k)

    def to_b(g):
        return unbroadcast(backend.bmm(x.swapaxes(-1, -2), g), y.shape)  # (..., k, n) @ (..., n, m)

    return make(backend.bmm(x, y), (a, b), (_rename(to_a, "matmul"), _rename(to_b, "matmul")))


def _rename(function, name):
    function.__qualname__ = name
    return function


def _kept(shape, axis):
    """The shape a reduction over `axis` would have with keepdims=True."""
    axes = range(len(shape)) if axis is None else [i % len(shape) for i in np.atleast_1d(axis)]
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def sum(a, axis=None, keepdims=False):
    """The sum over `axis` (an int, a tuple, or None for all)."""
    shape = a.shape
    kept = _kept(shape, axis)
    return make(a.data.sum(axis=axis, keepdims=keepdims), (a,), (lambda g: backend.xp.broadcast_to(g.reshape(kept), shape),))


def mean(a, axis=None, keepdims=False):
    """The mean over `axis` (an int, a tuple, or None for all)."""
    total = sum(a, axis, keepdims)
    return mul(total, total.size / a.size)


def max(a, axis=None, keepdims=False):
    """The maximum over `axis`; where several elements share it, they share its gradient equally."""
    x = a.data
    kept = _kept(x.shape, axis)
    y = x.max(axis=axis, keepdims=True)

    def vjp(g):
        hit = (x == y).astype(x.dtype)
        return (g.reshape(kept) * hit / hit.sum(axis=axis, keepdims=True),)

    return make(x.max(axis=axis, keepdims=keepdims), (a,), vjp)


def reshape(a, *shape):
    """The same elements, in order, under another shape; one entry may be -1."""
    before = a.shape
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
    return make(a.data.reshape(shape), (a,), (lambda g: g.reshape(before),))


def transpose(a, *axes):
    """The axes in a new order; without arguments, reversed."""
    axes = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple) else axes
    axes = axes or tuple(reversed(range(a.ndim)))

    def back(g):
        order = [i % g.ndim for i in axes]
        return g.transpose([order.index(i) for i in range(g.ndim)])

    return make(a.data.transpose(axes), (a,), (_rename(back, "transpose"),))


def getitem(a, index):
    """a[index]: ints and slices, or integer host arrays, which are range-checked; repeated rows add their gradients."""
    x = a.data
    index, fancy = _device_index(index, x.shape)

    def vjp(g):
        out = backend.xp.zeros(x.shape, g.dtype)
        if fancy:
            backend.xp.add.at(out, index, g)
        else:
            out[index] = g
        return (out,)

    return make(x[index], (a,), vjp)


def _device_index(index, shape):
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, backend.ndarray) and not isinstance(part, np.ndarray) for part in parts):
        raise UsageError("getitem: index arrays stay on the host: they are range-checked, then uploaded")
    fancy = any(isinstance(part, (list, np.ndarray)) for part in parts)
    if not fancy:
        return index, False
    if any(part is None or part is Ellipsis for part in parts):
        raise UsageError("getitem: an index array cannot be mixed with None or ...")
    checked = []
    for part, n in zip(parts, shape, strict=False):
        if isinstance(part, (list, np.ndarray)):
            part = np.asarray(part)
            if part.dtype.kind in "iu":  # anything else is refused by upload_ids
                part = np.where(part < 0, part.astype(np.int64) + n, part)
            part = backend.upload_ids(part, n, "getitem")
        checked.append(part)
    return tuple(checked), True


def concat(tensors, axis=0):
    """The tensors one after another along `axis`."""
    ends = np.cumsum([t.shape[axis] for t in tensors]).tolist()

    def vjp(g):
        return backend.xp.split(g, ends[:-1], axis=axis)

    return make(backend.xp.concatenate([t.data for t in tensors], axis=axis), tensors, vjp)


def where(condition, a, b):
    """a where the boolean array `condition` holds, b elsewhere."""
    x, y, x_shape, y_shape = _operands(a, b)
    out = backend.xp.where(condition, x, y)

    def chosen(g, here):  # not g * here: an infinity in the branch not taken would become NaN
        return backend.xp.where(here, g, backend.xp.zeros_like(g))

    pulls = (lambda g: unbroadcast(chosen(g, condition), x_shape), lambda g: unbroadcast(chosen(g, ~condition), y_shape))
    return make(out, (a, b), pulls)


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, lambda a, b: sub(b, a)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, lambda a, b: div(b, a)
Tensor.__neg__, Tensor.__pow__, Tensor.__matmul__, Tensor.__getitem__ = neg, pow, matmul, getitem
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.exp, Tensor.log, Tensor.tanh, Tensor.sqrt = exp, log, tanh, sqrt
Tensor.reshape, Tensor.transpose = reshape, transpose
