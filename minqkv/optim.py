"""SGD, Adam, AdamW, gradient clipping and schedules, written out.

An optimiser moves its parameters into one flat buffer and leaves views behind, so that a step is a
handful of passes over one long array instead of a dozen small calls per parameter. Matrices come
first: they alone are decayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from .nn import Parameter
from .runtime import backend, distributed, shown
from .runtime.backend import Array
from .runtime.errors import UsageError
from .runtime.fields import whole
from .runtime.signals import undivided
from .tensor import Tensor


def large(dtype) -> float:
    """Half the size at which the square of a number overflows."""
    return math.sqrt(np.finfo(dtype).max) / 2


class Optimizer(shown.Moments):
    """Common to all: the flat buffer, the gathered gradient, the step count, the state dict."""

    slots = ()  # names of the state arrays, each as long as the flat buffer

    def __init__(self, parameters: Iterable[Parameter], lr: float):
        self.parameters = sorted(parameters, key=lambda p: p.ndim < 2)  # stable: matrices first
        self.lr, self.steps = lr, 0
        if len({str(p.dtype) for p in self.parameters}) != 1:
            raise UsageError("an optimiser needs parameters, all of one dtype")
        if len(set(map(id, self.parameters))) < len(self.parameters):
            raise UsageError("an optimiser was given the same parameter twice")
        size = sum(p.size for p in self.parameters)
        self.data = backend.empty((size,), self.parameters[0].dtype)  # (N,)
        backend.xp.concatenate([p.data.reshape(-1) for p in self.parameters], out=self.data)
        self.n_decayed = sum(p.size for p in self.parameters if p.ndim >= 2)
        self._move_in()
        self.gradient = backend.xp.zeros_like(self.data)
        for name in self.slots:
            setattr(self, name, backend.xp.zeros_like(self.data))

    def _move_in(self):
        start = 0
        for p in self.parameters:
            p.data = self.data[start : start + p.size].reshape(p.shape)
            start += p.size
        self.views = [p.data for p in self.parameters]

    def __setstate__(self, state):
        # Of a copy: what were views of the buffer are now separate arrays.
        vars(self).update(state)
        if all(p.data is view for p, view in zip(self.parameters, self.views, strict=True)):
            self._move_in()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters:
            p.zero_grad()

    def step(self, max_norm: float | None = None) -> Array | None:
        """Move every parameter by its gradient; one that has none counts as zero.

        With `max_norm`, gradients are first scaled so that their joint norm is at most that; the
        parameters' own `.grad` is left unscaled. Returns the norm before, a 0-d array that stays on
        the device, or None without a bound. Raises RuntimeError when parameters no longer live in
        this optimiser's buffer: it would move nothing; UsageError for a bound that is not positive.
        """
        if max_norm is not None and not max_norm > 0:
            raise UsageError(
                f"the gradient's norm can be bounded by a positive number, not {max_norm}"
            )
        if any(p.data is not view for p, view in zip(self.parameters, self.views, strict=True)):
            raise RuntimeError(
                "these parameters were given to another optimiser, or their .data was replaced"
            )
        start = 0
        for p in self.parameters:
            self.gradient[start : start + p.size] = 0 if p.grad is None else p.grad.reshape(-1)
            start += p.size
        distributed.add_up(self.gradient)  # over all ranks, where there are several
        with undivided():
            self.steps += 1
            return self.move(self.gradient, max_norm)

    def move(self, g: Array, max_norm: float | None) -> Array | None:
        """Clip the gathered gradient and move by it; returns the norm before, as `step` does."""
        norm = None if max_norm is None else clip(g, max_norm)
        self.update(g)
        return norm

    def state_dict(self) -> dict:
        """Step count and state arrays, as NumPy copies."""
        arrays = {name: backend.to_host(getattr(self, name)).copy() for name in self.slots}
        return {"steps": self.steps, **arrays}

    def load_state_dict(self, state: dict) -> None:
        """Overwrite step count and state arrays. Raises UsageError when they do not fit, before any
        change.
        """
        for name in self.slots:
            if name not in state or np.shape(state[name]) != self.data.shape:
                raise UsageError(f"optimiser state {name!r} does not fit these parameters")
        steps = whole("steps of an optimiser", state.get("steps"))
        arrays = [Tensor(state[name], dtype=self.data.dtype).data for name in self.slots]
        self.steps = steps
        for name, array in zip(self.slots, arrays, strict=True):
            getattr(self, name)[...] = array


class SGD(Optimizer):
    """Gradient descent, with momentum where it is not zero: v ← μv + g, p ← p − lr·v."""

    slots = ("velocity",)

    def __init__(self, parameters: Iterable[Parameter], lr: float = 1e-2, momentum: float = 0.0):
        super().__init__(parameters, lr)
        self.momentum = momentum

    def update(self, g: Array) -> None:
        self.velocity *= self.momentum
        self.velocity += g
        self.data -= self.velocity * self.lr


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); with `weight_decay`, AdamW (Loshchilov and Hutter, 2019), on
    matrices only.
    """

    slots = ("m", "v")
    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = BETAS,
        eps: float = EPS,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def move(self, g: Array, max_norm: float | None) -> Array | None:
        usual = type(self).update is Adam.update  # a subclass may have its own
        found = backend.adamw(self, g, max_norm) if usual else None
        return super().move(g, max_norm) if found is None else found[0]

    def update(self, g: Array) -> None:
        if self.weight_decay:
            self.data[: self.n_decayed] *= 1 - self.lr * self.weight_decay
        backend.in_pieces(self._update, self.data, self.m, self.v, g)

    def _update(self, data, m, v, g):
        beta1, beta2 = self.betas
        limit = large(g.dtype)  # the square of more would be infinite, and stay so
        backend.xp.clip(g, -limit, limit, out=g)
        m *= beta1
        m += g * (1 - beta1)
        v *= beta2
        g *= g  # the gathered copy, ours to overwrite
        g *= 1 - beta2
        v += g
        root = backend.xp.sqrt(v)
        root *= 1 / math.sqrt(1 - beta2**self.steps)  # both moments start at zero: undo that bias
        root += self.eps
        step = backend.xp.divide(m, root, out=root)
        step *= self.lr / (1 - beta1**self.steps)
        data -= step


class AdamW(Adam):
    """Adam with decoupled weight decay on matrices."""

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = Adam.BETAS,
        eps: float = Adam.EPS,
        weight_decay: float = 0.01,
    ):
        super().__init__(parameters, lr, betas, eps, weight_decay)


def clip(gradient: Array, max_norm: float) -> Array:
    """Scale a flat gradient, in place, so that its norm is at most `max_norm`; returns the norm
    before, a 0-d array.
    """
    peak = backend.xp.maximum(gradient.max(), -gradient.min())
    too_large = peak > large(peak.dtype) / 2**20  # the sum of squares may overflow
    unit = backend.xp.where(too_large, peak, peak.dtype.type(1))
    gradient /= unit
    row = gradient.reshape(1, -1)
    norm = backend.xp.sqrt(backend.row_dot(row, row)).reshape(()) * unit
    gradient *= backend.xp.minimum(max_norm / (norm + 1e-6), 1.0) * unit
    return norm


def constant(lr: float) -> Callable[[int], float]:
    """step -> lr, always the same."""
    return lambda step: lr


def warmup_cosine(
    lr: float, warmup: int, total: int, floor: float = 0.0, restart: bool = True
) -> Callable[[int], float]:
    """step (from 0) -> lr: a linear rise over `warmup` steps, then half a cosine down to `floor`·lr
    at `total`.

    With `restart` the cosine starts where the rise ends and step s of the rise has (s+1)/warmup
    (protocol 2026, GPT). Without, the cosine spans all steps, the rise multiplies it, and the first
    step has rate 0 (protocol 2023).
    """

    def schedule(step):
        begin = warmup if restart else 0
        progress = min(1.0, max(0.0, (step - begin) / max(1, total - begin)))
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        rise = min(1.0, (step + 1 if restart else step) / max(1, warmup))
        return lr * cosine * rise

    return schedule
