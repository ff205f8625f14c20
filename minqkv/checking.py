"""Is a backward the transpose of its forward? Test it with random vectors u and v.

⟨u, J v⟩ must equal ⟨Jᵀ u, v⟩. J v is a central difference of the forward along v; Jᵀ u is what
backward returns for the cotangent u. Checking with all ones would miss errors: every row of a
softmax sums to one, so a softmax backward that returns zeros would pass.
"""

from __future__ import annotations

from collections.abc import Callable

from .runtime import backend
from .runtime.errors import MinqkvError
from .runtime.rng import stream
from .tensor import Tensor, no_grad


class GradcheckError(MinqkvError, AssertionError):
    """A backward that is not the transpose of its forward."""


def gradcheck(
    function: Callable, *inputs, seed: int = 0, eps: float = 1e-6, tolerance: float = 1e-7
) -> float:
    """Check `function(*inputs) -> Tensor` in every input Tensor that requires a gradient; they must
    be float64.

    Each is checked alone, so the message names the one that fails. Returns the largest error found,
    relative to the larger of |⟨u, Jv⟩|, ‖Jᵀu‖ and 1. Raises GradcheckError above `tolerance`,
    TypeError for other dtypes.
    """
    rng = stream(seed, "gradcheck")
    wanted = [(i, x) for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if any(x.dtype != "float64" for _, x in wanted):
        raise TypeError(
            "gradcheck: inputs must be float64; a float32 difference is too coarse to tell"
        )
    for _, x in wanted:
        x.zero_grad()
    out = function(*inputs)
    u = rng.standard_normal(out.shape)
    out.backward(backend.upload(u))
    worst = 0.0
    for i, x in wanted:
        v = rng.standard_normal(x.shape)
        slope = _slope(function, inputs, x, v, eps)
        transposed = backend.to_host(backend.xp.zeros_like(x.data) if x.grad is None else x.grad)
        forward, back = float((u * slope).sum()), float((transposed * v).sum())
        error = abs(forward - back) / max(
            1.0, abs(forward), float((transposed * transposed).sum()) ** 0.5
        )
        if not error <= tolerance:
            products = f"⟨u, Jv⟩ = {forward:.10g} but ⟨Jᵀu, v⟩ = {back:.10g}"
            raise GradcheckError(f"gradient of input {i}: {products} (relative error {error:.1e})")
        worst = max(worst, error)
    return worst


@no_grad()
def _slope(function, inputs, x, v, eps):
    """(f(x + εv) - f(x - εv)) / 2ε with x moved in place, and put back."""
    here = x.data.copy()
    step = backend.upload(v * eps)
    x.data[...] = here + step
    ahead = backend.to_host(function(*inputs).data).copy()
    x.data[...] = here - step
    behind = backend.to_host(function(*inputs).data).copy()
    x.data[...] = here
    return (ahead - behind) / (2 * eps)
