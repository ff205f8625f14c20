"""Parameters, the modules that hold them, and their initial values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from . import functional as F
from .runtime import backend, shown
from .runtime.claims import evaluating
from .runtime.errors import UsageError
from .runtime.rng import Step, first_row, step, stream
from .tensor import Tensor


class Parameter(Tensor):
    """A leaf Tensor that a Module owns and an optimiser moves."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Init:
    """Where parameters come from: a seed, a dtype, a scheme, and the dotted name so far.

    A parameter's random numbers depend on the seed and its full name alone, so weights that two
    variants have in common start equal (under "xavier", up to a factor).
    `init / "attn"` goes one name down. Schemes, for a weight (fan_in, fan_out) and its bias:
    "gpt2": N(0, 0.02), bias 0. "uniform": both uniform in ±1/√fan_in. "xavier": uniform in
    ±√(6/(fan_in + fused)), `fused` the width of the matrix this one would be part of; bias 0.
    """

    def __init__(self, seed: int = 0, dtype="float32", scheme: str = "gpt2", name: str = ""):
        self.seed, self.dtype, self.scheme, self.name = seed, dtype, scheme, name

    def __repr__(self):
        return f"<Init {self.name!r}, seed {self.seed}, {self.dtype}, {self.scheme}>"

    def __truediv__(self, part: str) -> Init:
        return Init(
            self.seed, self.dtype, self.scheme, f"{self.name}.{part}" if self.name else str(part)
        )

    def using(self, scheme: str) -> Init:
        """The same, by another scheme."""
        return Init(self.seed, self.dtype, scheme, self.name)

    def normal(self, shape: tuple, std: float) -> Parameter:
        """Independent normal numbers with this standard deviation."""
        return self._parameter(self._stream().standard_normal(shape) * std)

    def constant(self, shape: tuple, value: float) -> Parameter:
        """The same number everywhere."""
        return self._parameter(np.full(shape, value))

    def weight(
        self, fan_in: int, fan_out: int, fused: int | None = None, heads: int | None = None
    ) -> Parameter:
        """A (fan_in, fan_out) matrix by the scheme, or one for each of so many heads."""
        shape = (fan_in, fan_out) if heads is None else (heads, fan_in, fan_out)
        if self.scheme == "gpt2":
            return self.normal(shape, 0.02)
        bound = 1 / math.sqrt(fan_in)
        if self.scheme == "xavier":
            bound = math.sqrt(6 / (fan_in + (fused or fan_out)))
        return self.uniform(shape, bound)

    def bias(self, fan_in: int, fan_out: int) -> Parameter:
        """A (fan_out,) vector by the scheme."""
        if self.scheme == "uniform":
            return self.uniform((fan_out,), 1 / math.sqrt(fan_in))
        return self.constant((fan_out,), 0.0)

    def uniform(self, shape: tuple, bound: float) -> Parameter:
        """Independent numbers, uniform in ±bound."""
        return self._parameter(self._stream().uniform(-bound, bound, shape))

    def _stream(self):
        return stream(self.seed, "parameter", self.name)

    def _parameter(self, array):
        data = backend.current.empty(array.shape, self.dtype)
        data[...] = backend.upload(np.asarray(array, self.dtype))
        return Parameter(data)


class Module(shown.Model):
    """A tree of modules with parameters at its leaves, found by attribute name.

    What is in a list, tuple or dict is named by its index or key. A part with several names has the
    first of them.
    """

    training = True
    step = 0  # of training: it selects the dropout masks of the next forward pass

    def __call__(self, *args, **kwargs):
        if not self.training or step.get() is not None:
            return self.forward(*args, **kwargs)
        with one_step(self):
            return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly below."""
        return _parts(self, Module)

    def named_modules(self, prefix: str = "", seen=None) -> Iterator[tuple[str, Module]]:
        """(full name and a dot, module) of this module and all below it."""
        seen = set() if seen is None else seen
        if self not in seen:
            seen.add(self)
            yield prefix, self
            for name, child in self.children():
                yield from child.named_modules(f"{prefix}{name}.", seen)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(full name, Parameter), in a fixed order. Raises UsageError if two have one name."""
        found, seen = set(), set()
        for before, module in self.named_modules(prefix):
            for name, parameter in _parts(module, Parameter):
                if id(parameter) in seen:
                    continue
                if before + name in found:
                    raise UsageError(f"two parameters are named {before + name}")
                found.add(before + name)
                seen.add(id(parameter))
                yield before + name, parameter

    def parameters(self) -> list[Parameter]:
        """The Parameters, in the order of `named_parameters`."""
        return [p for _, p in self.named_parameters()]

    @property
    def n_params(self) -> int:
        """How many numbers the parameters hold."""
        return sum(p.size for p in self.parameters())

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.zero_grad()

    def train(self, step: int | None = None) -> Module:
        """Training mode: dropout on. `step` selects the masks of the next forward pass; each pass
        that draws masks goes one step further. Unless it is given, the steps go on.
        """
        return self._set(training=True, **({} if step is None else {"step": step}))

    def eval(self) -> Module:
        """Evaluation mode: dropout off."""
        return self._set(training=False)

    def _set(self, **values):
        for _, module in self.named_modules():
            vars(module).update(values)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Full name -> NumPy copy of each parameter."""
        return {name: backend.to_host(p.data).copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Overwrite every parameter. Raises UsageError naming each missing, unknown or misshapen
        entry, before any change.
        """
        mine = dict(self.named_parameters())
        faults = [f"{name} is missing" for name in mine.keys() - state.keys()]
        faults += [f"{name} is unknown" for name in state.keys() - mine.keys()]
        for name in mine.keys() & state.keys():
            if mine[name].shape != np.shape(state[name]):
                faults.append(f"{name} is {np.shape(state[name])}, not {mine[name].shape}")
        if faults:
            raise UsageError("state does not fit the model: " + "; ".join(sorted(faults)))
        arrays = [Tensor(state[name], dtype=p.dtype).data for name, p in mine.items()]
        for p, array in zip(mine.values(), arrays, strict=True):
            p.data[...] = array


def _parts(value, kind, name=""):
    """(name, part) of all Modules, or Parameters, directly in a module or in a container."""
    inside = vars(value) if isinstance(value, Module) else value
    for key, part in inside.items() if isinstance(inside, dict) else enumerate(inside):
        if isinstance(part, kind):
            yield f"{name}{key}", part
        elif isinstance(part, (list, tuple, dict)):
            yield from _parts(part, kind, f"{name}{key}.")
        elif isinstance(part, (set, frozenset)) and any(_parts(list(part), (Module, Parameter))):
            raise UsageError(f"{name}{key} is a set, which has no order: use a list or a dict")


@contextmanager
def one_step(model: Module) -> Iterator[None]:
    """`with`: all forward passes inside have the dropout masks of one step, the model's next."""
    if step.get() is not None or not model.training:
        yield
        return
    now = Step(model.step)
    token = step.set(now)
    try:
        yield
    finally:
        step.reset(token)
    model.step += now.drawn


class Linear(Module):
    """y = x @ weight + bias, weight (in, out)."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        init: Init | None = None,
        bias: bool = True,
        fused: int | None = None,
    ):
        init = init or Init()
        self.weight = (init / "weight").weight(fan_in, fan_out, fused)
        self.bias = (init / "bias").bias(fan_in, fan_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of weight (n, d) by integer host ids."""

    def __init__(self, n: int, d: int, init: Init | None = None, std: float = 0.02):
        self.weight = ((init or Init()) / "weight").normal((n, d), std)

    def forward(self, ids: np.ndarray) -> Tensor:
        return F.embedding(ids, self.weight)


class LayerNorm(Module):
    """Layer normalisation over the last axis, with a learned scale and shift."""

    def __init__(self, d: int, init: Init | None = None):
        init = init or Init()
        self.weight = (init / "weight").constant((d,), 1.0)
        self.bias = (init / "bias").constant((d,), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias)


class Dropout(Module):
    """Dropout whose mask depends on the seed, this module's name, the row, and the step
    (Module.train): modules of one name have one mask.
    """

    def __init__(self, rate: float, init: Init | None = None):
        init = init or Init()
        self.rate, self.seed, self.name = rate, init.seed, init.name

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training or evaluating.get():
            return x
        now = step.get() or Step(self.step)
        now.drawn = True
        rng = stream(self.seed, "dropout", self.name, now.n)
        return F.dropout(x, self.rate, rng, first_row.get() * math.prod(x.shape[1:]))


class MLP(Module):
    """proj(activation(fc(x))), with dropout between the two where the rate is not zero."""

    def __init__(
        self,
        d: int,
        width: int,
        init: Init | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ):
        init = init or Init()
        self.fc = Linear(d, width, init / "fc", bias)
        self.proj = Linear(width, d, init / "proj", bias)
        self.activation = {"gelu": F.gelu, "relu": F.relu}[activation]
        self.drop = Dropout(dropout, init / "drop")

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.drop(self.activation(self.fc(x))))
