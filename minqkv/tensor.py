"""Reverse-mode automatic differentiation, in one file.

A Tensor is an array and a Node; the Nodes, which hold no data, are the graph.

Each operation computes its result and hands `make` a vjp, the vector-Jacobian product: a function
that turns the gradient of the result into the gradients of the inputs. `backward` calls these in
reverse order of creation. The small operations are below; functional.py has the large ones.
"""

from __future__ import annotations

import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, copy_context

import numpy as np

from .runtime import backend, debug, tracing
from .runtime.backend import Array
from .runtime.errors import UsageError
from .runtime.scoped import scoped

_sequence = itertools.count()
_grad_on = ContextVar("grad", default=True)  # of each thread; parts of a batch copy the caller's
DEBUG = os.environ.get("MINQKV_DEBUG", "0") not in ("", "0")


class Node:
    """One vertex of the graph: its inputs, how to send a gradient back, the gradient so far."""

    __slots__ = ("dtype", "grad", "owned", "parents", "seq", "vjp")

    def __init__(self, dtype, parents=(), vjp=None):
        self.dtype = dtype  # of the Tensor, and so of its gradient
        self.parents = parents  # a Node for each input, None where no gradient is wanted
        self.vjp = vjp  # None for a leaf
        self.grad = None
        self.owned = False  # whether `grad` is ours to add to in place
        self.seq = next(_sequence)

    def __reduce__(self):
        if self.vjp is not None:  # a copy would send its gradient to the leaves of the original
            raise TypeError("only leaves can be copied, not results of operations: use detach()")
        return Node, (self.dtype,), (None, {"grad": self.grad, "owned": self.owned})


class Tensor:
    """An array that remembers how it was made.

    `data` is the array, `node` its place in the graph (None: a constant), `grad` the gradient of a
    leaf after `backward`. Lists and integers become float32; arrays of float32 and float64 keep
    their dtype. Raises TypeError for other kinds of numbers: float16 is for storage, as in a cache.
    """

    __slots__ = ("data", "node")
    __array_ufunc__ = None  # `numpy_array * tensor` comes to Tensor.__rmul__ as a whole

    def __init__(self, data, node=None, *, requires_grad: bool = False, dtype=None):
        if type(data) is not backend.ndarray or dtype is not None or data.dtype not in FLOATS:
            data = _as_float(data, dtype)
        self.data = data
        self.node = Node(data.dtype) if requires_grad and node is None else node

    requires_grad = property(lambda self: self.node is not None)
    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    @property
    def grad(self) -> Array | None:
        """The gradient array of a leaf, same shape and dtype as `data`; None before `backward`."""
        return None if self.node is None else self.node.grad

    def zero_grad(self) -> None:
        """Forget the gradient; the next `backward` starts from zero."""
        self.node.grad, self.node.owned = None, False

    def add_gradient(self, g: Array) -> None:
        """Add `g` to the gradient of a leaf, which takes ownership: do not use `g` afterwards."""
        if self.node.grad is None:
            self.node.grad, self.node.owned = g.astype(self.dtype, copy=False), True
        else:
            _accumulate(self.node, g)

    def detach(self) -> Tensor:
        """The same array, out of the graph."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array. On a GPU this waits for the device."""
        return backend.to_host(self.data)

    def item(self) -> float:
        """The single number inside, as a Python float. On a GPU this waits for the device."""
        return float(backend.to_host(self.data).item())

    def backward(self, grad: Tensor | Array | None = None) -> None:
        """Gradients of this tensor with respect to every leaf it came from, added to their `grad`.

        `grad` is the cotangent, of this tensor's shape; it may be left out for a single number (it
        is then 1). Raises RuntimeError on a tensor outside any graph, and on a second run: the
        graph is freed as it is used.
        """
        if self.node is None:
            why = "this tensor does not depend on anything that requires a gradient"
            raise RuntimeError(f"backward: {why}")
        if grad is None:
            if self.size != 1:
                why = f"a tensor of shape {self.shape} needs an explicit cotangent of that shape"
                raise RuntimeError(f"backward: {why}")
            grad = backend.xp.ones(self.shape, self.dtype)
        grad = array_of(grad)
        if grad.shape != self.shape:
            why = f"cotangent of shape {grad.shape} for a tensor of shape {self.shape}"
            raise RuntimeError(f"backward: {why}")
        _run_backward(self.node, grad)

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"Tensor({backend.to_host(self.data)!r}, requires_grad={self.requires_grad})"


FLOATS = np.dtype("float32"), np.dtype("float64")


def _as_float(data, dtype):
    array = backend.upload(data)
    keep = array.dtype.kind == "f" and hasattr(data, "dtype")
    wanted = np.dtype(dtype or (array.dtype.newbyteorder("=") if keep else "float32"))
    if array.dtype.kind not in "fiub" or wanted not in FLOATS or hasattr(data, "mask"):
        given = f"{type(data).__name__} of {array.dtype}" + (f", as {wanted}" if dtype else "")
        raise TypeError(f"a Tensor holds real numbers, in float32 or float64, not {given}")
    return array.astype(wanted, copy=False)


def array_of(value: Tensor | Array) -> Array:
    """The array behind an operand; an array, as a constant, counts like a Tensor."""
    if isinstance(value, Tensor):
        return value.data
    if not isinstance(value, backend.ndarray):
        known = f"a Tensor, a number or an array of the {backend.current.name} backend"
        raise TypeError(f"expected {known}, not {type(value).__name__}")
    return Tensor(value).data


def grad_wanted(*inputs) -> bool:
    """Whether any of these may need a gradient: only then save what backward needs."""
    return _grad_on.get() and any(getattr(x, "node", None) is not None for x in inputs)


def make(data: Array, inputs: Sequence, vjp: Callable | None) -> Tensor:
    """The result of an operation: a Tensor whose node, if one is needed, leads back to `inputs`.

    `vjp(g, wanted)` gets the gradient of the result and a flag per input, and returns a gradient
    per input, None where it is not wanted. Inputs that are not Tensors take no gradient.
    """
    if not isinstance(data, backend.ndarray):
        data = backend.xp.asarray(data)  # a full reduction gives a NumPy scalar
    out = object.__new__(Tensor)  # what __init__ would check is known to hold
    out.data, out.node = data, None
    if _grad_on.get():
        parents = tuple([getattr(x, "node", None) for x in inputs])
        if any(parents):
            vjp = debug.guard(vjp, data, inputs) if DEBUG else vjp
            out.node = Node(data.dtype, parents, vjp)
    return out


def _run_backward(root, grad):
    # A node is newer than its inputs. Going from newest to oldest, its gradient is complete when
    # its turn comes. Recursion would visit a node once for each path, and overflow on deep graphs.
    order = sorted(_reachable(root), key=lambda node: node.seq, reverse=True)
    _accumulate(root, grad)
    for node in order:
        if node.grad is None:  # its consumers had no gradient to send
            continue
        if tracing.active() is not None:
            tracing.saw_gradient(node, node.grad)
        if node.vjp is None:
            if not node.owned:  # a leaf's gradient is its own: no two `.grad` share memory
                node.grad, node.owned = backend.xp.array(node.grad, order="C"), True
            continue
        grads = node.vjp(node.grad, [parent is not None for parent in node.parents])
        for parent, g in zip(node.parents, grads, strict=True):
            if parent is not None and g is not None:
                _accumulate(parent, g)
        node.parents, node.vjp, node.grad = (), _freed, None
        del grads, g


def _reachable(root):
    seen, stack = {root}, [root]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


def _accumulate(node, g):
    """Add `g` to what a node has received so far.

    A vjp may hand one array, or a read-only view, to several inputs. So the first gradient is only
    referenced; the second makes an array of our own, and later ones add into it.
    """
    if g.dtype != node.dtype:  # it comes from an operation with numbers of another dtype
        g = g.astype(node.dtype)
    if node.grad is None:
        node.grad, node.owned = g, False
    elif not node.owned:
        node.grad = backend.xp.asarray(node.grad + g)  # NumPy returns a scalar for two 0-d arrays
        node.owned = True
    else:
        node.grad += g


def _freed(g, wanted):
    why = "this part of the graph was already used and freed; run the forward pass again"
    raise RuntimeError(f"backward: {why}")


@scoped
def no_grad() -> Iterator[None]:
    """`with no_grad():` (or `@no_grad()`): no graph is built inside, by this thread."""
    before = _grad_on.get()
    _grad_on.set(False)
    try:
        yield
    finally:
        _grad_on.set(before)


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), keeping only x: backward computes the rest again, and then uses it.

    This costs another forward pass and saves the memory of all arrays inside. The gradients, also
    those of parameters inside, have the same bits if `function` gives the same result both times;
    both calls see the same context variables. Under a trace, under MINQKV_DEBUG, or if x needs no
    gradient, `function` is simply called.
    """
    if DEBUG or tracing.active() is not None or not grad_wanted(x):
        return function(x)
    context, data = copy_context(), x.data
    with no_grad():
        result = function(x).data

    def vjp(g, wanted):
        again = Tensor(data, requires_grad=True)
        context.run(function, again).backward(g)
        return (again.grad,)

    return make(result, (x,), vjp)


def unbroadcast(g: Array, shape: tuple) -> Array:
    """Sum a gradient back to the shape its input had before broadcasting."""
    if g.shape == shape:
        return g
    added = g.ndim - len(shape)
    if added:
        g = g.sum(axis=tuple(range(added)))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    if stretched:
        g = g.sum(axis=stretched, keepdims=True)
    return g.reshape(shape)


# ---- The small operations: a forward line, and the lines that send a gradient back.
# Each takes Tensors or numbers and returns a Tensor; shapes broadcast as in NumPy. Python numbers
# stay Python numbers: turned into arrays they would be float64 and drag float32 data along.

Operand = Tensor | float | Array


def _operands(a, b):
    """The arrays behind the operands, and their shapes; numbers stay numbers, even NumPy's."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.data, b.data, a.data.shape, b.data.shape
    data = []
    for value in (a, b):
        if isinstance(value, Tensor):
            value = value.data
        elif isinstance(value, numbers.Real):
            value = _number(value)
        elif type(value) is not backend.ndarray or value.dtype.kind not in "iu":
            value = array_of(value)  # integers may be too large for float32: as they are
        data.append(value)
    return *data, *(getattr(d, "shape", ()) for d in data)


def _number(value):
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def add(a: Operand, b: Operand) -> Tensor:
    """a + b."""
    x, y, x_shape, y_shape = _operands(a, b)

    def vjp(g, wanted):
        da = unbroadcast(g, x_shape) if wanted[0] else None
        db = unbroadcast(g, y_shape) if wanted[1] else None
        return da, db

    return make(x + y, (a, b), vjp)


def sub(a: Operand, b: Operand) -> Tensor:
    """a - b."""
    x, y, x_shape, y_shape = _operands(a, b)

    def vjp(g, wanted):
        da = unbroadcast(g, x_shape) if wanted[0] else None
        db = unbroadcast(-g, y_shape) if wanted[1] else None
        return da, db

    return make(x - y, (a, b), vjp)


def mul(a: Operand, b: Operand) -> Tensor:
    """a * b, element by element."""
    x, y, x_shape, y_shape = _operands(a, b)

    def vjp(g, wanted):
        da = unbroadcast(g * y, x_shape) if wanted[0] else None
        db = unbroadcast(g * x, y_shape) if wanted[1] else None
        return da, db

    return make(x * y, (a, b), vjp)


def div(a: Operand, b: Operand) -> Tensor:
    """a / b, element by element."""
    x, y, x_shape, y_shape = _operands(a, b)
    out = x / y

    def vjp(g, wanted):
        da = unbroadcast(g / y, x_shape) if wanted[0] else None
        db = unbroadcast(-g * out / y, y_shape) if wanted[1] else None
        return da, db

    return make(out, (a, b), vjp)


def neg(a: Tensor) -> Tensor:
    """-a."""
    return make(-array_of(a), (a,), lambda g, wanted: (-g,))


def pow(a: Tensor, exponent: float) -> Tensor:
    """a ** exponent, for a number as exponent."""
    if not isinstance(exponent, numbers.Real):
        raise TypeError("pow: the exponent is a number; for a Tensor write exp(b * log(a))")
    exponent, x = _number(exponent), array_of(a)

    def vjp(g, wanted):
        if not exponent:  # a constant: at zero, 0 · 0⁻¹ would be NaN
            return (backend.xp.zeros_like(x),)
        return (g * (exponent * x ** (exponent - 1)),)

    return make(x**exponent, (a,), vjp)


def exp(a: Tensor) -> Tensor:
    """e ** a."""
    y = backend.xp.exp(array_of(a))
    return make(y, (a,), lambda g, wanted: (g * y,))


def log(a: Tensor) -> Tensor:
    """The natural logarithm."""
    x = array_of(a)
    return make(backend.xp.log(x), (a,), lambda g, wanted: (g / x,))


def tanh(a: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    y = backend.xp.tanh(array_of(a))
    return make(y, (a,), lambda g, wanted: (g * (1 - y * y),))


def sqrt(a: Tensor) -> Tensor:
    """The square root."""
    y = backend.xp.sqrt(array_of(a))
    return make(y, (a,), lambda g, wanted: (g / (2 * y),))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, k) @ (..., k, m) -> (..., n, m); the leading axes broadcast. At least two axes."""
    x, y, x_shape, y_shape = _operands(a, b)
    if len(x_shape) < 2 or len(y_shape) < 2 or x_shape[-1] != y_shape[-2]:
        shapes = f"{x_shape} and {y_shape}"
        raise UsageError(f"matmul: shapes {shapes} do not fit (..., n, k) @ (..., k, m)")

    def vjp(g, wanted):  # g (..., n, m)
        da = db = None
        if wanted[0]:
            da = unbroadcast(backend.bmm(g, y.swapaxes(-1, -2)), x_shape)  # (..., n, k)
        if wanted[1]:
            db = unbroadcast(backend.bmm(x.swapaxes(-1, -2), g), y_shape)  # (..., k, m)
        return da, db

    return make(backend.bmm(x, y), (a, b), vjp)


def _kept(shape, axis):
    """The shape a reduction over `axis` would have with keepdims=True."""
    n = len(shape)
    axes = range(n) if axis is None else [i % (n or 1) for i in np.atleast_1d(axis)]
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def sum(a: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (an int, a tuple, or None for all)."""
    x, shape = array_of(a), a.shape
    kept = _kept(shape, axis)

    def vjp(g, wanted):
        return (backend.xp.broadcast_to(g.reshape(kept), shape),)

    return make(x.sum(axis=axis, keepdims=keepdims), (a,), vjp)


def mean(a: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (an int, a tuple, or None for all)."""
    total = sum(a, axis, keepdims)
    return mul(total, total.size / a.size if a.size else math.nan)


def max(a: Tensor, axis=None, keepdims: bool = False) -> Tensor:
    """The maximum over `axis`; where several elements share it, they share its gradient equally."""
    x = array_of(a)
    kept = _kept(x.shape, axis)
    y = x.max(axis=axis, keepdims=True)

    def vjp(g, wanted):
        hit = x == y
        share = g.reshape(kept) / hit.sum(axis=axis, keepdims=True, dtype=x.dtype)
        return (backend.xp.where(hit, share, 0),)

    return make(x.max(axis=axis, keepdims=keepdims), (a,), vjp)


def reshape(a: Tensor, *shape) -> Tensor:
    """The same elements, in order, under another shape; one entry may be -1."""
    x = array_of(a)
    shape = tuple(shape[0]) if len(shape) == 1 and np.ndim(shape[0]) else shape
    before = x.shape
    return make(x.reshape(shape), (a,), lambda g, wanted: (g.reshape(before),))


def transpose(a: Tensor, *axes) -> Tensor:
    """The axes in a new order; without arguments, reversed."""
    axes = tuple(axes[0]) if len(axes) == 1 and np.ndim(axes[0]) else axes
    axes = axes or tuple(reversed(range(a.ndim)))

    def vjp(g, wanted):
        order = [i % g.ndim for i in axes]
        return (g.transpose([order.index(i) for i in range(g.ndim)]),)

    return make(array_of(a).transpose(axes), (a,), vjp)


def getitem(a: Tensor, index) -> Tensor:
    """a[index]: ints and slices, or integer arrays on the host, which are range-checked.

    Rows that are taken twice add their gradients.
    """
    x = array_of(a)
    index, fancy = _device_index(index, x.shape)

    def vjp(g, wanted):
        out = backend.xp.zeros(x.shape, g.dtype)
        if fancy:
            backend.xp.add.at(out, index, g)
        else:
            out[index] = g
        return (out,)

    return make(x[index], (a,), vjp)


SEQUENCES = list, tuple, range, np.ndarray


def _device_index(index, shape):
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, backend.ndarray) and not isinstance(p, np.ndarray) for p in parts):
        why = "index arrays stay on the host: they are range-checked, then uploaded"
        raise UsageError(f"getitem: {why}")
    fancy = any(isinstance(part, SEQUENCES) for part in parts)
    if not fancy:
        return index, False
    if len(parts) > len(shape):
        raise IndexError(f"too many indices: {len(parts)} for a tensor of {len(shape)} axes")
    if any(part is None or part is Ellipsis for part in parts):
        raise UsageError("getitem: an index array cannot be mixed with None or ...")
    checked = []
    for part, n in zip(parts, shape, strict=False):
        if isinstance(part, SEQUENCES):
            part = np.asarray(part, None if np.size(part) else np.int64)
            if part.dtype.kind == "i":  # from the end; what is out of range is left to upload_ids
                part = part.astype(np.int64)
                part = np.where((part < 0) & (part >= -n), part + n, part)
            part = backend.upload_ids(part, n, "getitem")
        checked.append(part)
    return tuple(checked), True


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`."""
    ends = np.cumsum([t.shape[axis] for t in tensors]).tolist()

    def vjp(g, wanted):
        parts = backend.xp.split(g, ends[:-1], axis=axis)
        return [part if want else None for part, want in zip(parts, wanted, strict=True)]

    return make(backend.xp.concatenate([array_of(t) for t in tensors], axis=axis), tensors, vjp)


def where(condition: Array, a: Operand, b: Operand) -> Tensor:
    """a where `condition` holds, b elsewhere: booleans, or integers, of which all but 0 hold."""
    x, y, x_shape, y_shape = _operands(a, b)
    condition = backend.xp.asarray(condition)
    if condition.dtype.kind not in "biu":
        raise TypeError(f"where: a condition is boolean, not {condition.dtype}")
    condition = condition.astype(bool, copy=False)

    def chosen(g, here):  # not g * here: an infinity in the branch not taken would become NaN
        return backend.xp.where(here, g, backend.xp.zeros_like(g))

    def vjp(g, wanted):
        da = unbroadcast(chosen(g, condition), x_shape) if wanted[0] else None
        db = unbroadcast(chosen(g, ~condition), y_shape) if wanted[1] else None
        return da, db

    return make(backend.xp.where(condition, x, y), (a, b), vjp)


# A Tensor's operators and methods are these functions.
Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, lambda a, b: sub(b, a)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, lambda a, b: div(b, a)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda a, b: matmul(b, a)
Tensor.__neg__, Tensor.__pow__, Tensor.__getitem__ = neg, pow, getitem
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.exp, Tensor.log, Tensor.tanh, Tensor.sqrt = exp, log, tanh, sqrt
Tensor.reshape, Tensor.transpose = reshape, transpose
