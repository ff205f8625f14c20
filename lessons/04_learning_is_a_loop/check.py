"""Check 04: steps of `adam`, with its state, against the package's Adam."""

import numpy as np

from minqkv import backend
from minqkv.nn import Parameter
from minqkv.optim import Adam

TOLERANCE = 1e-9

HINTS = (
    "Five lines: count the step, update m, update v, correct both, move. m, v and the count "
    "must outlive the call, so keep them in state.",
    'The first time, state is empty: state.get("m", 0) is then 0. t is 1 in the first step. m is '
    "corrected by 1 - beta1**t, v by 1 - beta2**t; keep the uncorrected ones.",
    'm = beta1 * state.get("m", 0) + (1 - beta1) * g; v the same with beta2 and g**2; then return '
    "w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps).",
)

EXPLANATION = """
The package keeps all parameters of a model in one long array, and m and v beside it: a step is a
handful of passes over three arrays, however many layers there are. It corrects √v, and `m` together
with the learning rate, by a single number each: the same function, in fewer passes.

Where eps is added matters more than its size suggests. Put inside the root, or added before `v` is
corrected, it gives a different optimiser: similar where gradients are large, but not where they are
small. And weight decay is not part of Adam: `mq.AdamW` shrinks the matrices first, separately from
both averages.
"""


def cases(rng):
    """w (n,), gs (steps, n) of very different sizes, and settings at which every mistake shows."""
    n, steps = (int(k) for k in rng.permutation(np.arange(2, 7))[:2])
    w = rng.standard_normal(n).round(1)
    gs = rng.standard_normal((steps, n)) * 10 ** rng.uniform(-2, 1, n)
    betas = rng.uniform(0.5, 0.9), rng.uniform(0.91, 0.99)
    beta1, beta2 = (float(round(beta, 3)) for beta in betas)
    lr, eps = rng.uniform(0.05, 0.5), 10 ** rng.uniform(-3, -1)
    lr, eps = float(round(lr, 4)), float(round(eps, 4))
    return w, gs, lr, beta1, beta2, eps


def reference(w, gs, lr, beta1, beta2, eps):
    """Where the parameters are after each step."""
    p = Parameter(w)
    optimizer, path = Adam([p], lr, (beta1, beta2), eps), []
    for g in gs:
        optimizer.zero_grad()
        p.add_gradient(backend.upload(g))
        optimizer.step()
        path.append(p.numpy().copy())
    return path


def use(learner, w, gs, lr, beta1, beta2, eps):
    """All steps, with one state, which is the learner's to fill."""
    state, path = {}, []
    for g in gs:
        moved = learner.adam(w, g, state, lr, beta1, beta2, eps)
        path.append(moved)
        w = moved if isinstance(moved, np.ndarray) else w
    return path
