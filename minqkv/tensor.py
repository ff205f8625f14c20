"""Reverse mode in one file: a Tensor is an array and a Node; the Nodes are the graph, and they hold no data.

Each operation (ops.py, fused.py) computes its result and hands `make` a vjp, the vector-Jacobian product that turns
the gradient of the result into gradients of the inputs. `backward` runs those in reverse order of creation.
"""

import itertools
import os
import threading
from contextlib import contextmanager

from . import backend, debug, tracing

_sequence = itertools.count()
DEBUG = os.environ.get("MINQKV_DEBUG", "0") not in ("", "0")


class _Mode(threading.local):
    grad = True  # each thread has its own: one that decodes takes no gradients from one that trains


_mode = _Mode()


class Node:
    """One vertex of the graph: who it came from, how to send a gradient back, and the gradient gathered so far."""

    __slots__ = ("grad", "owned", "parents", "seq", "vjp")

    def __init__(self, parents=(), vjp=None):
        self.parents = parents  # a Node for each input, None where no gradient is wanted
        self.vjp = vjp  # None for a leaf
        self.grad = None
        self.owned = False  # whether `grad` is ours to add to in place
        self.seq = next(_sequence)


class Tensor:
    """An array that remembers how it was made.

    `data` is the array, `node` its place in the graph (None: a constant), `grad` the gradient of a leaf after
    `backward`. Lists and integers become float32; floating arrays keep their dtype.
    """

    __slots__ = ("data", "node")
    __array_ufunc__ = None  # `numpy_array * tensor` must come to Tensor.__rmul__, not spread over the elements

    def __init__(self, data, node=None, *, requires_grad=False, dtype=None):
        if not isinstance(data, backend.ndarray) or dtype is not None or data.dtype.kind != "f":
            data = _as_float(data, dtype)
        self.data = data
        self.node = Node() if requires_grad and node is None else node

    requires_grad = property(lambda self: self.node is not None)
    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    @property
    def grad(self):
        """The gradient array of a leaf, same shape and dtype as `data`; None before `backward`."""
        return None if self.node is None else self.node.grad

    def zero_grad(self):
        """Forget the gradient; the next `backward` starts afresh."""
        self.node.grad, self.node.owned = None, False

    def add_gradient(self, g):
        """Add an array to the gradient of a leaf, which keeps no hold of it."""
        node = self.node
        if node.grad is None:
            node.grad, node.owned = g.copy(), True
        else:
            _accumulate(node, g)

    def detach(self):
        """The same array, out of the graph."""
        return Tensor(self.data)

    def numpy(self):
        """The data as a NumPy array. On a GPU this waits for the device."""
        return backend.to_host(self.data)

    def item(self):
        """The single number inside, as a Python float. On a GPU this waits for the device."""
        return float(backend.to_host(self.data).item())

    def backward(self, grad=None):
        """Gradients of this tensor with respect to every leaf it came from, added to their `grad`.

        `grad` is the cotangent, of this tensor's shape; it may be left out for a single number (it is then 1).
        Raises RuntimeError on a tensor outside any graph, and on a second run: the graph is freed as it is used.
        """
        if self.node is None:
            raise RuntimeError("backward: this tensor does not depend on anything that requires a gradient")
        if grad is None:
            if self.size != 1:
                raise RuntimeError(f"backward: a tensor of shape {self.shape} needs an explicit cotangent of that shape")
            grad = backend.xp.ones(self.shape, self.dtype)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if grad.shape != self.shape:
            raise RuntimeError(f"backward: cotangent of shape {grad.shape} for a tensor of shape {self.shape}")
        _run_backward(self.node, grad.astype(self.dtype, copy=False))

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"Tensor({backend.to_host(self.data)!r}, requires_grad={self.requires_grad})"


def _as_float(data, dtype):
    array = backend.upload(data, dtype)
    keep = dtype is not None or (array.dtype.kind == "f" and hasattr(data, "dtype"))
    return array if keep else array.astype("float32")


def grad_wanted(x):
    """Whether a gradient of this tensor may be asked for: an operation may save itself what only backward needs."""
    return _mode.grad and x.node is not None


def make(data, inputs, vjp):
    """The result of an operation: a Tensor whose node, if one is needed, leads back to `inputs`.

    `vjp` is one function g -> a gradient per input (None where there is none), or a tuple of functions, one per
    input; of a tuple, only those somebody needs are kept and run. Inputs that are no Tensors take no gradient.
    """
    if not isinstance(data, backend.ndarray):
        data = backend.xp.asarray(data)  # a full reduction gives a NumPy scalar; a Tensor always holds an array
    if not _mode.grad:
        return Tensor(data)
    parents = tuple([getattr(x, "node", None) for x in inputs])
    if not any(parents):
        return Tensor(data)
    if isinstance(vjp, tuple):
        vjp = _each(vjp, parents)
    if DEBUG:
        vjp = debug.guard(vjp, data, inputs)
    return Tensor(data, Node(parents, vjp))


def _each(pulls, parents):
    needed = [pull if parent is not None else None for pull, parent in zip(pulls, parents, strict=True)]

    def vjp(g):
        return [pull and pull(g) for pull in needed]

    vjp.__qualname__ = pulls[0].__qualname__  # the operation's name, for error messages
    return vjp


def _run_backward(root, grad):
    order = sorted(_reachable(root), key=lambda node: node.seq, reverse=True)  # creation order is topological
    _accumulate(root, grad)
    for node in order:
        if node.grad is None:
            continue
        if tracing.active is not None:
            tracing.saw_gradient(node, node.grad)
        if node.vjp is None:
            if not node.owned:  # a leaf's gradient is its own: no two `.grad` share memory
                node.grad, node.owned = backend.xp.array(node.grad, order="C"), True
            continue
        grads = node.vjp(node.grad)
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
    """Gradients add up: the first is borrowed, the second allocates, from the third on the sum grows in place."""
    if node.grad is None:
        node.grad, node.owned = g, False
    elif not node.owned:
        node.grad, node.owned = backend.xp.asarray(node.grad + g), True  # of two 0-d arrays NumPy makes a scalar
    else:
        node.grad += g


def _freed(g):
    raise RuntimeError("backward: this part of the graph was already used and freed; run the forward pass again")


@contextmanager
def no_grad():
    """`with no_grad():` (or `@no_grad()`): no graph is built inside, by this thread."""
    before, _mode.grad = _mode.grad, False
    try:
        yield
    finally:
        _mode.grad = before


def unbroadcast(g, shape):
    """Sum a gradient back to the shape its input had before broadcasting: broadcasting's mirror."""
    if g.shape == shape:
        return g
    added = g.ndim - len(shape)
    if added:
        g = g.sum(axis=tuple(range(added)))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    if stretched:
        g = g.sum(axis=stretched, keepdims=True)
    return g.reshape(shape)
